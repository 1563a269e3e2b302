"""Thousands of live leases: roles in a real server, rows in a real store, and the verbs and the sweeper over both.

What a crowd of agents would have asked for one by one is written in bulk, because only its end is looked at: the roles
by an administrator in the kit's name, as ``issue`` and ``enable`` leave them; the rows by the store itself.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from taskpass.core.grant import Grant
from taskpass.core.ids import GrantId, LeaseId, RequestId, RoleName, new_id, role_name
from taskpass.core.lease import Lease, LeaseEvent, LeaseState, Target
from taskpass.core.scope import Level, Scope
from taskpass.core.secret import Secret
from taskpass.core.separation import Environment
from taskpass.issuers.base import Issuer, Order
from taskpass.issuers.postgres import kit, scram
from taskpass.issuers.postgres.close_many import READ_BACK, WITNESSES
from taskpass.issuers.postgres.issuer import PostgresIssuer
from taskpass.issuers.postgres.probe import PROOF, Place
from taskpass.issuers.postgres.probe_many import prove_all_refused
from taskpass.runtime.sweeper import Sweeper
from taskpass.runtime.system import SystemClock, SystemEntropy
from taskpass.testing import orders
from taskpass.testing.broker import DEV, make_harness
from taskpass.testing.postgres import EmbeddedServer

ENTROPY = SystemEntropy()
PATIENCE = 180.0
LIFETIME = 3600

_ROLES = """
DO $do$ DECLARE
    modern boolean := current_setting('server_version_num')::integer >= 160000;
    item record;
    name text;
BEGIN
    IF modern THEN
        SET LOCAL ROLE taskpass_kit;
        FOR item IN SELECT right(r, 1) AS maker, array_agg(r::name) AS names FROM crowd GROUP BY 1 LOOP
            EXECUTE format('SELECT taskpass.maker_%s(''make'', $1, NULL, NULL)', item.maker) USING item.names;
        END LOOP;
        EXECUTE (SELECT format('GRANT %I TO %s WITH INHERIT TRUE, SET FALSE', current_setting('crowd.holder'),
                               string_agg(quote_ident(r), ', ')) FROM crowd);
        RESET ROLE;
    END IF;
    FOR name IN SELECT r FROM crowd LOOP
        IF NOT modern THEN
            EXECUTE format('CREATE ROLE %I', name);
            EXECUTE format('GRANT %I TO taskpass_kit', name);
        END IF;
        EXECUTE format('ALTER ROLE %I LOGIN CONNECTION LIMIT 5 PASSWORD %L VALID UNTIL ''infinity''', name,
                       current_setting('crowd.verifier'));
    END LOOP;
END $do$
"""


def _scope(resource: str) -> Scope:
    return Scope(resource, "read", Level.READ, (f"{orders.SCHEMA}.*",), ())


class Crowd:
    """A server, an installation and ``leases`` live leases of it. ``sweeper`` is not started.

    Without ``roles`` they stand in the store only: making one takes the server longer, the more there are.
    """

    def __init__(
        self,
        directory: Path,
        *,
        leases: int,
        version: int = 18,
        more: Sequence[tuple[str, int]] = (),
        roles: bool = True,
    ) -> None:
        directory.chmod(0o700)
        self.leases = leases
        self.version = version
        self.roles = roles
        self.lifetime = LIFETIME
        self.secret = scram.new_secret(ENTROPY)
        self.verifier = scram.verifier(self.secret, ENTROPY)
        self.harness = make_harness(directory)
        self.clock = self.harness.clock
        self.servers: dict[str, EmbeddedServer] = {}
        self._directory = directory
        self._resources = [(DEV, leases), *more]
        self._issuers: dict[str, Issuer] = {}

    def __enter__(self) -> Self:
        with self.harness.store.read() as unit:
            self.installation = unit.installation.id
        self.use_real_issuers()
        try:
            for resource, many in self._resources:
                self._serve(resource)
                self._issue(resource, many)
            self.use_real_issuers()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sweeper.stop()
        for issuer in self._issuers.values():
            issuer.close_connections()
        for server in self.servers.values():
            server.stop()
            server.remove()
        self.harness.stop()

    @property
    def server(self) -> EmbeddedServer:
        return self.servers[DEV]

    def use_real_issuers(self) -> None:
        """The broker of the harness, with the issuers of these servers and a sweeper with threads of its own."""
        self.broker = replace(
            self.harness.broker,
            issuers=dict(self._issuers),
            issuer_of=lambda target: self._issuers[target.resource],
        )
        self.sweeper = Sweeper(self.broker, self.harness.fitness, restore_reserve=lambda: True)

    def _serve(self, resource: str) -> None:
        server = EmbeddedServer(self.version)
        server.start()
        self.servers[resource] = server
        with server.connect() as admin:
            admin.execute("CREATE DATABASE orders")
        with server.connect("orders") as admin:
            orders.load(admin, orders=100)
            password = scram.new_secret(ENTROPY)
            verifier = scram.verifier(password, ENTROPY, iterations=4096)
            most = {"most_live": 1_000_000, "longest_seconds": 8 * 3600}
            enrolment = kit.Enrolment(self.installation, verifier, (f"{orders.SCHEMA}.*",), (), **most)
            admin.execute(kit.install_sql(admin.info.server_version, enrolment).encode())
        target = Target(
            resource=resource,
            issuer="postgres",
            environment=Environment.DEV,
            address=server.address("orders"),
            nodes=(),
            tls={},
            login={"file": "crowd.cred"},
        )
        self._issuers[resource] = PostgresIssuer(
            target, self.installation, password, clock=SystemClock(), entropy=ENTROPY
        )

    def _issue(self, resource: str, many: int) -> None:
        ids = [LeaseId(new_id("lse", self.clock.now(), ENTROPY)) for _ in range(many)]
        if self.roles:
            self._make_roles(resource, ids)
        self._remember(resource, ids)

    def _make_roles(self, resource: str, ids: list[LeaseId]) -> None:
        first, issuer = LeaseId(new_id("lse", self.clock.now(), ENTROPY)), self._issuers[resource]
        scope = _scope(resource)
        manifest = issuer.resolve(scope)
        role = role_name(self.installation, first)
        issuer.create(Order(first, role, scope, manifest.digest(), manifest, LIFETIME, self.secret))
        issuer.close(role, audit_head="")
        with self.servers[resource].connect("orders", autocommit=False) as admin:
            holder = admin.execute("SELECT role FROM taskpass.manifest").fetchone()
            admin.execute("CREATE TEMPORARY TABLE crowd (r text)")
            admin.execute("GRANT SELECT ON crowd TO taskpass_kit")
            names = [role_name(self.installation, each) for each in ids]
            admin.execute("INSERT INTO crowd SELECT unnest(%s::text[])", [names])
            admin.execute("SELECT set_config('crowd.verifier', %s, true)", [self.verifier])
            admin.execute("SELECT set_config('crowd.holder', %s, true)", [holder[0] if holder else ""])
            admin.execute(_ROLES)
            admin.execute(
                "INSERT INTO taskpass.lease (installation, lease, state, role, rights, started_at)"
                " SELECT %s, g.id, 'enabled', r.oid, '[{}]', now() FROM unnest(%s::text[], %s::text[]) AS g(id, name)"
                " JOIN pg_roles r ON r.rolname = g.name",
                [self.installation, list(ids), names],
            )
            admin.commit()

    def _remember(self, resource: str, ids: list[LeaseId]) -> None:
        harness = self.harness
        agent = harness.run()
        agent.open_task()
        pattern, now = agent.request(DEV), harness.clock.now()
        issuer = self._issuers[resource]
        target, scope = issuer.target, _scope(resource)
        pattern = replace(pattern, scope=scope, manifest=issuer.resolve(scope))
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            with harness.store.write() as unit:
                for lease in part:
                    request = replace(pattern, id=RequestId(f"req{lease[3:]}"))
                    request = replace(request, state=type(pattern.state).PENDING, decided_at=None)
                    grant = Grant(
                        id=GrantId(f"grt{lease[3:]}"),
                        request=request.id,
                        task=request.task,
                        resource=resource,
                        asked=request.manifest.digest(),
                        manifest=request.manifest,
                        digest=request.digest,
                        approvals=(),
                        renewable=False,
                        created_at=now,
                        ends_at=type(now)(now + LIFETIME * 1000),
                    )
                    unit.requests.add(request)
                    unit.grants.add(grant)
                    unit.leases.add(self._lease(lease, grant, target))
                unit.leases.advance_many(part, LeaseEvent.CREATED, now)
        # As requests are whose leases were made: nothing of them is left to lapse while the leases end.
        with sqlite3.connect(f"{self._directory}/taskpass.db") as connection:
            for before, after in (("pending", "approved"), ("approved", "fulfilled")):
                query = "UPDATE requests SET state = ?, decided_at = ? WHERE state = ?"
                connection.execute(query, [after, now, before])

    def _lease(self, lease: LeaseId, grant: Grant, target: Target) -> Lease:
        from taskpass.core.decision import Delivery

        return Lease(
            id=lease,
            grant=grant.id,
            task=grant.task,
            role=role_name(self.installation, lease),
            target=target,
            manifest_digest=grant.asked,
            delivery=Delivery.ENDPOINT,
            state=LeaseState.INTENDED,
            created_at=grant.created_at,
            expires_at=grant.ends_at,
        )

    # ---- what became of them ----

    def counts(self, resource: str = "%") -> dict[LeaseState, int]:
        """Rows by state, read past the store's own locks."""
        with sqlite3.connect(f"file:{self._directory}/taskpass.db?mode=ro", uri=True) as connection:
            query = "SELECT state, count(*) FROM leases WHERE resource LIKE ? GROUP BY state"
            found = dict(connection.execute(query, [resource]).fetchall())
        return {state: found.get(state.value, 0) for state in LeaseState}

    def wait(self, done: Callable[[dict[LeaseState, int]], bool], resource: str = "%") -> float:
        """The monotonic time at which ``done`` was seen to hold."""
        deadline = time.monotonic() + PATIENCE
        while not done(self.counts(resource)):
            assert time.monotonic() < deadline, self.counts(resource)
            time.sleep(0.02)
        return time.monotonic()

    def usable(self, resource: str = DEV) -> int:
        query = "SELECT count(*) FROM pg_roles WHERE starts_with(rolname::text, 'tp_') AND rolcanlogin"
        with self.servers[resource].connect("orders") as admin:
            row = admin.execute(query).fetchone()
        return row[0] if row else 0

    def wait_until_nobody_can_log_in(self) -> float:
        deadline = time.monotonic() + PATIENCE
        while self.usable():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return time.monotonic()

    def proofs(self) -> tuple[int, int]:
        """Leases whose stored proof is the server's refusal of that very role, and those that rest on witnesses."""
        with sqlite3.connect(f"file:{self._directory}/taskpass.db?mode=ro", uri=True) as connection:
            query = "SELECT json_extract(proof, '$.answer') AS answer, count(*) FROM leases GROUP BY 1"
            found = dict(connection.execute(query).fetchall())
        own = found.pop(PROOF, 0)
        return own, sum(many for answer, many in found.items() if answer == READ_BACK.format(WITNESSES))

    def slowest_steps(self) -> str:
        with sqlite3.connect(f"file:{self._directory}/taskpass.db?mode=ro", uri=True) as connection:
            proofs = [json.loads(row[0]) for row in connection.execute("SELECT DISTINCT proof FROM leases").fetchall()]
        slowest = max(proofs, key=lambda proof: proof.get("took_ms", 0))
        return ", ".join(f"{step} {at}" for step, at in slowest.get("steps", []))

    def try_logins(self, names: list[str], secret: Secret | None = None) -> int:
        """Log in as each, which must be refused as a proof is; how many were."""
        place = Place(self.server.address("orders"))
        answers = prove_all_refused(place, [RoleName(name) for name in names], secret or self.secret, ENTROPY)
        return sum(answer is None for answer in answers.values())
