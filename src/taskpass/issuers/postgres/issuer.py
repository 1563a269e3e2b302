"""The PostgreSQL issuer: makes login roles in a target through its kit, and takes them back.

Everything here is a few statements to the kit's routines (kit.sql), whose rules hold in the target itself. Not for
deciding, not for serving connections. Safe to call from several threads; every call is bounded by the server's and the
driver's timeouts and by ``close.PATIENCE``.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any, TypeVar

import psycopg

from taskpass.core.aftermath import Ran
from taskpass.core.clock import Clock, Entropy, Instant
from taskpass.core.errors import InvalidInput, ManifestChanged, TargetUnavailable, TargetUnfit, TaskpassError
from taskpass.core.ids import InstallationId, LeaseId, RoleName, lease_of_role, new_id, role_name
from taskpass.core.lease import Target
from taskpass.core.limits import BOUNDS, Enforced, Limits
from taskpass.core.manifest import Manifest, Migration, accept, is_within
from taskpass.core.scope import Level, Scope
from taskpass.core.script import Script
from taskpass.core.secret import Secret
from taskpass.core.widening import Snapshot
from taskpass.issuers.base import (
    Capabilities,
    Finding,
    FoundRole,
    Inventory,
    Order,
    Overdue,
    Progress,
    RevocationSpeed,
    Rights,
    Severity,
    Taken,
    close_each,
    rights_of,
)
from taskpass.issuers.postgres import catalogue, kit, migrate, nodes, preflight, rights, scram
from taskpass.issuers.postgres.close import Closing
from taskpass.issuers.postgres.close_many import BulkClosing
from taskpass.issuers.postgres.connection import (
    AT_ONCE,
    MET_ANOTHER,
    BrokerLogin,
    Connection,
    Connections,
    Timeline,
    driver_errors,
    giving,
)
from taskpass.issuers.postgres.drill import PostgresDrill
from taskpass.issuers.postgres.own_login import OwnLogin
from taskpass.issuers.postgres.probe import Place, control
from taskpass.issuers.postgres.script import split

UNUSED_SECONDS = 600
"""How long a role that holds a manifest's rights stays after its last lease, without login and without members.

Making it again grants on schemas and tables, and that makes every session of the database plan its statements anew:
with six tables 8 ms more at each issue, and work for sessions that have nothing to do with it.
"""

ATTEMPTS = 10
"""How often an effect is tried that only met another one at a catalogue row."""

CAPABILITIES = Capabilities(
    cuts_open_sessions=True,
    expires_by_itself=True,
    revocation=RevocationSpeed.NOW,
    per_object=True,
    delivers_endpoint=True,
)

T = TypeVar("T")


class PostgresIssuer:
    """One database, one installation. ``password`` is the broker's own; None where the server proves us otherwise.

    ``user`` is the login if it is not the installation's usual one: a second broker on the same store has its own.
    ``passwords`` gives all that may be right by now; ``name`` tells this process's sessions from others of the login.
    """

    def __init__(
        self,
        target: Target,
        installation: InstallationId,
        password: Secret | None,
        *,
        clock: Clock,
        entropy: Entropy,
        user: str = "",
        passwords: Callable[[], Sequence[Secret]] = lambda: (),
        name: str = "taskpass",
    ) -> None:
        self._target = target
        self._installation = installation
        self._clock = clock
        self._entropy = entropy
        login = BrokerLogin(user or kit.broker_login(installation), password, reload=passwords)
        self._timeline = Timeline()
        self._connections = Connections(target, login, name, timeline=self._timeline)
        # Of their own, so that taking back never waits until issuing has finished.
        self._closing = Connections(target, login, name, timeline=self._timeline)
        self.own_login = OwnLogin(self._connections, target, login.user, entropy)
        # Until the first look nobody knows.
        self._unlisted: int | None = None
        self._aside = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="catalogue")
        self._settings = kit.Settings(watched=False, temp_files=False)

    @property
    def capabilities(self) -> Capabilities:
        return self.capabilities_of(Level.READ)

    def capabilities_of(self, level: Level) -> Capabilities:
        on_tables = level is not Level.MIGRATE
        times = Enforced.BROKER if on_tables and self._settings.watched else Enforced.DEFAULT
        return replace(
            CAPABILITIES,
            changes_data=level is not Level.READ,
            changes_schema=not on_tables,
            row_limits=on_tables,
            limits=dict.fromkeys(BOUNDS, times)
            | {
                "connections": Enforced.TARGET,
                "temp_megabytes": Enforced.TARGET if self._settings.temp_files else Enforced.NONE,
            },
            unlisted_nodes=self._unlisted,
        )

    @property
    def target(self) -> Target:
        return self._target

    @property
    def installation(self) -> InstallationId:
        return self._installation

    # ---- looking ----

    def preflight(self, *, thorough: bool = False) -> list[Finding]:
        """What stands against serving this target. A target that does not answer is ``TargetUnavailable``."""
        with self._connections.use() as connection:
            found = preflight.check(connection, self._target, thorough=thorough)
            found += self._look_at_nodes(connection)
            with driver_errors("looking at the kit"):
                found += kit.lacking(connection)
                self._settings = kit.settings(connection)
        return [*found, *self._rehearse()] if thorough else found

    def resolve(self, scope: Scope) -> Manifest:
        with self._connections.use() as connection:
            if scope.level is Level.MIGRATE:
                return migrate.resolve(connection, scope)
            public = self._aside.submit(self._read_openings)

            def openings(own: Connection) -> Sequence[catalogue.Opening]:
                beside = public.result()
                return catalogue.read_openings(own) if beside is None else beside

            try:
                return catalogue.resolve(connection, scope, openings)
            finally:
                wait([public])

    def _read_openings(self) -> Sequence[catalogue.Opening] | None:
        """On a connection of its own, because it takes as long as all the rest; None if there is none to be had."""
        with contextlib.suppress(TargetUnavailable), self._connections.use_one_more() as connection:
            return None if connection is None else catalogue.read_openings(connection)

    def estimate_rows(self, manifest: Manifest) -> dict[int, int]:
        with self._connections.use() as connection:
            return catalogue.estimate_rows(connection, manifest)

    def rights(self, role: RoleName) -> Rights:
        with self._connections.use() as connection:
            return rights.read(connection, self._own(role) and role)

    def inventory(self) -> Inventory:
        with self._connections.use() as connection, driver_errors("taking stock"):
            roles = connection.execute(_ROLES).fetchall()
            epoch, seq, now = connection.execute(_STATE).fetchone() or (0, 0, 0)
            connection.execute("SELECT taskpass.tidy(%s)", [UNUSED_SECONDS])
            self._look_at_nodes(connection)
            # Kits of version 1 do not tell.
            tells = connection.execute("SELECT to_regprocedure('taskpass.changed()') IS NOT NULL").fetchone() == (True,)
            changed = connection.execute("SELECT lease, why FROM taskpass.changed()").fetchall() if tells else []
        found = [FoundRole(n, lease_of_role(self._installation, n), login, sessions) for n, login, sessions in roles]
        return Inventory(
            epoch=epoch,
            own=tuple(role for role in found if role.lease),
            foreign=tuple(role.name for role in found if not role.lease),
            now=Instant(now),
            audit_seq=seq,
            timeline=self._timeline.highest,
            unlisted_nodes=self._unlisted_words(),
            changed=tuple((LeaseId(lease), why) for lease, why in changed),
        )

    def set_epoch(self, epoch: int) -> None:
        with self._connections.use() as connection, driver_errors("raising the epoch"):
            connection.execute("SELECT taskpass.set_epoch(%s)", [epoch])

    # ---- making ----

    def create(self, order: Order) -> None:
        """One transaction: lock the tables, make the role, recompute the manifest, read the rights back, commit."""
        self._own(order.role)
        if order.manifest.empty:
            raise InvalidInput("there is nothing to grant")
        verifier = scram.verifier(order.secret, self._entropy, iterations=scram.ITERATIONS[order.delivery])
        _again(lambda: self._create_once(order, verifier))

    def _create_once(self, order: Order, verifier: str) -> None:
        warnings: list[str] = []
        with self._connections.use() as connection, driver_errors("making the account"):
            heard = _listen(connection, warnings)
            with giving(connection):
                made = _ask_for(connection, order, verifier)
                # One that acts as an owner inherits nothing and is given nothing that could be read back.
                held = rights.ask(connection, order.role) if order.manifest.migration is None else None
                # Nothing was waited for until here, and the server reads the rights while this goes on.
                made.fetchone()
                if warnings:
                    raise TargetUnfit("the target warned while granting, so not all was granted", code="kit_grant")
                self._compare(connection, order, held)
            connection.remove_notice_handler(heard)

    def _compare(self, connection: Connection, order: Order, held: Callable[[], rights.Rights] | None) -> None:
        now = _resolve_inside(connection, order.scope)
        if now.digest() != order.asked or not is_within(order.manifest, accept(now, order.manifest.accepted)):
            raise ManifestChanged("the database changed since this was decided", hint="ask again")
        if held is not None and held() != rights_of(order.manifest):
            raise TargetUnfit(
                "the account could do something else than was decided",
                hint="something is granted to PUBLIC: taskpass doctor names it",
                code="wider_than_manifest",
            )

    def enable(self, role: RoleName, *, lifetime: int, audit_head: str) -> None:
        lease = self._own(role)

        def once() -> None:
            with (
                self._connections.use() as connection,
                driver_errors("enabling the account"),
                giving(connection),
            ):
                connection.execute("SELECT taskpass.enable(%s, %s, %s)", [lease, lifetime, audit_head])

        _again(once)

    # ---- migrating ----

    def read_script(self, text: str) -> Script:
        return split(text).script

    def snapshot(self) -> Snapshot:
        with self._connections.use() as connection:
            return migrate.take_snapshot(connection)

    def session_settings(self, migration: Migration) -> Mapping[str, str]:
        return {"role": migration.owner}

    def run_script(
        self, role: RoleName, secret: Secret, owner: str, text: str, tell: Callable[[Progress], None]
    ) -> Ran:
        self._own(role)
        own = Connections(self._target, BrokerLogin(role, secret, migrate.settings(owner)))
        try:
            with own.use() as connection:
                return migrate.Run(connection, split(text), tell)()
        finally:
            own.close()

    # ---- rehearsing ----

    def rehearse(self, role: RoleName, secret: Secret, *, audit_head: str) -> None:
        lease, verifier = self._own(role), scram.verifier(secret, self._entropy)

        def once() -> None:
            with self._connections.use() as connection, driver_errors("rehearsing"):
                connection.execute("SELECT taskpass.rehearse(%s, %s, %s)", [lease, verifier, audit_head])

        _again(once)

    def drill(self, role: RoleName, secret: Secret, *, reads: int | None) -> PostgresDrill:
        self._own(role)
        return PostgresDrill(self._target, role, secret, reads=reads, broker=self._connections, entropy=self._entropy)

    # ---- taking back ----

    def close(self, role: RoleName, *, audit_head: str) -> Taken:
        return Closing(self._closing, self._target, self._entropy, self._own(role), role, audit_head).run()

    def expect(self, timeline: int) -> None:
        self._timeline.highest = max(self._timeline.highest, timeline)

    def end_overdue(self) -> list[Overdue]:
        """Every node, also after one failed; raises what failed first if nothing was ended."""
        found: list[Overdue] = []
        failed = None
        for number, address in enumerate((self._target.address, *self._target.nodes)):
            try:
                with self._closing.use(address) as connection, driver_errors("looking for sessions over their limits"):
                    rows = connection.execute('SELECT lease, "limit" FROM taskpass.overdue()').fetchall()
                found += [Overdue(lease, limit, number) for lease, limit in rows]
            except TaskpassError as error:
                failed = failed or error
        if failed and not found:
            raise failed
        return found

    def sweep(self, role: RoleName) -> int:
        lease = self._own(role)
        ended, failed = 0, None
        for address in (self._target.address, *self._target.nodes):
            try:
                with self._closing.use(address) as connection, driver_errors("ending sessions"):
                    row = connection.execute("SELECT cardinality(taskpass.sweep(%s))", [lease]).fetchone()
                    ended += row[0] if row else 0
            except TaskpassError as error:  # a node that is down shields no other one
                failed = failed or error
        if failed and not ended:
            raise failed
        return ended

    def clean(self, role: RoleName) -> bool:
        lease = self._own(role)

        def once() -> bool:
            with self._closing.use() as connection, driver_errors("removing the account"):
                row = connection.execute("SELECT cleaned FROM taskpass.clean(%s)", [lease]).fetchone()
                return row == (True,)

        return _again(once)

    def close_many(self, roles: Sequence[RoleName], *, audit_head: str) -> dict[RoleName, Taken | TaskpassError]:
        """Servers that follow are swept and probed by themselves, which is done for one at a time only."""
        if self._target.nodes:
            return close_each(self, roles, audit_head)
        leases = {self._own(role): role for role in roles}
        try:
            return BulkClosing(self._closing, self._target, self._entropy, leases, audit_head).run()
        except TargetUnfit as error:
            if error.code != "kit_missing":
                raise
            return close_each(self, roles, audit_head)  # An older kit closes one at a time.

    def sweep_many(self, roles: Sequence[RoleName]) -> dict[RoleName, int]:
        if self._target.nodes:
            return {role: found for role in roles if (found := self.sweep(role))}
        leases = {self._own(role): role for role in roles}
        with self._closing.use() as connection, driver_errors("ending sessions of many"):
            query = "SELECT lease, count(*) FROM taskpass.sweep_many(%s) GROUP BY lease"
            return {leases[lease]: count for lease, count in connection.execute(query, [list(leases)]).fetchall()}

    def clean_many(self, roles: Sequence[RoleName]) -> set[RoleName]:
        leases = {self._own(role): role for role in roles}

        def once() -> set[RoleName]:
            with self._closing.use() as connection, driver_errors("removing many accounts"):
                query = "SELECT lease FROM taskpass.clean_many(%s) AS lease"
                return {leases[row[0]] for row in connection.execute(query, [list(leases)]).fetchall()}

        return _again(once)

    def close_connections(self) -> None:
        self._connections.close()
        self._closing.close()

    # ---- helpers ----

    def _look_at_nodes(self, primary: Connection) -> list[Finding]:
        found, self._unlisted = nodes.check(self._connections, primary, self._target)
        return found

    def _unlisted_words(self) -> tuple[str, ...]:
        count = self._unlisted
        return (f"{count} server(s) replicate from it and are not listed",) if count else ()

    def _own(self, role: RoleName) -> LeaseId:
        lease = lease_of_role(self._installation, role)
        if lease is None:
            raise InvalidInput("that account is not one of this installation's")
        return lease

    def _rehearse(self) -> list[Finding]:
        """A throw-away account: it gets in with its password only, and closing it is proven."""
        lease = LeaseId(new_id("lse", self._clock.now(), self._entropy))
        role = role_name(self._installation, lease)
        try:
            self._rehearse_as(role)
        except TaskpassError as error:
            return [Finding("rehearsal", Severity.FATAL, error.message, error.hint)]
        finally:
            self._discard(role)
        return [Finding("rehearsal", Severity.OK, "an account was made, used, closed with proof and removed")]

    def _rehearse_as(self, role: RoleName) -> None:
        secret, wrong = scram.new_secret(self._entropy), scram.new_secret(self._entropy)
        self.rehearse(role, secret, audit_head="")
        for address in (self._target.address, *self._target.nodes):
            control(Place(address, self._target.tls.get("ca", "")), role, secret, wrong, self._entropy)
        self.close(role, audit_head="")
        if not self.clean(role):
            raise TargetUnfit("the rehearsed account could not be removed", code="rehearsal")

    def _discard(self, role: RoleName) -> None:
        try:
            self.close(role, audit_head="")
            self.clean(role)
        except TaskpassError:
            return  # It has no rights, dies within a minute, and the reconciler finds it.


_ROLES = """
SELECT r.rolname::text, r.rolcanlogin, (SELECT count(*) FROM pg_stat_activity a WHERE a.usesysid = r.oid)
  FROM pg_roles r WHERE starts_with(r.rolname::text, 'tp_') ORDER BY r.rolname
"""

_STATE = """
SELECT s.epoch, s.audit_seq, (extract(epoch FROM clock_timestamp()) * 1000)::bigint FROM taskpass.seen() s
"""


def _ask_for(connection: Connection, order: Order, verifier: str) -> psycopg.Cursor[Any]:
    """Send the kit what makes the account: one with rights of its own, or one that acts as an owner and has none."""
    asked = order.manifest.migration
    limits: list[object] = [verifier, order.lifetime, order.limits.connections, order.audit_head]
    if asked is not None:
        query = "SELECT taskpass.issue_owner(%s, %s, %s, %s, %s, %s)"
        return connection.execute(query, [order.lease, asked.owner_oid, *limits])
    query = "SELECT taskpass.issue(%s, %s::jsonb, %s, %s, %s, %s)"
    made = connection.execute(query, [order.lease, _wanted(order.manifest), *limits])
    if order.limits != Limits() or order.scope.tenant:
        made = connection.execute("SELECT taskpass.bind(%s, %s::jsonb, %s)", _binding(order))
    return made


def _resolve_inside(connection: Connection, scope: Scope) -> Manifest:
    if scope.level is Level.MIGRATE:
        return migrate.resolve(connection, scope)
    return catalogue.resolve(connection, scope, catalogue.none_asked)


def _wanted(manifest: Manifest) -> str:
    """``rights`` as the kit's ``issue`` takes them."""
    return json.dumps(
        [
            {
                "oid": o.oid,
                "columns": sorted(c.number for c in o.columns),
                "verbs": sorted(v.value for v in o.verbs),
                **({"sequences": sorted(s.oid for s in o.granted_sequences)} if o.granted_sequences else {}),
            }
            for o in manifest.objects
        ]
    )


def _binding(order: Order) -> list[str | None]:
    return [order.lease, json.dumps(order.limits.to_json()), order.scope.tenant or None]


def _listen(connection: Connection, warnings: list[str]) -> Callable[[psycopg.errors.Diagnostic], None]:
    """A GRANT without the right to it is only a warning, so any warning while granting is a failure."""

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized != "NOTICE":
            warnings.append(notice.sqlstate or "")

    connection.add_notice_handler(hear)
    return hear


def _again(effect: Callable[[], T]) -> T:
    """``effect``, again if it only met another one at the same catalogue row: then nothing of it was done."""
    for attempt in range(ATTEMPTS):
        try:
            return effect()
        except TargetUnavailable as error:
            if attempt == ATTEMPTS - 1 or error.code != MET_ANOTHER:
                raise
            time.sleep(0.005 * (attempt + 1))
    raise TargetUnavailable("the database did not do it now")
