"""A database with the target kit installed, and the agent's side of it: for tests of the kit, closing and issuing."""

from __future__ import annotations

import contextlib
import os
import time

import psycopg
from psycopg import sql

from taskpass.core.ids import InstallationId, LeaseId, new_id, new_installation_id, role_name
from taskpass.core.lease import Target
from taskpass.core.scope import Level, Scope
from taskpass.core.separation import Environment
from taskpass.issuers.base import Order
from taskpass.issuers.postgres import kit, scram
from taskpass.issuers.postgres.issuer import PostgresIssuer

DEADLINE = 30.0
ENDING = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = ANY(%s)"
TABLES = (
    "CREATE SCHEMA shop",
    "CREATE TABLE shop.orders (id int PRIMARY KEY, total int, note text)",
    "INSERT INTO shop.orders SELECT n, n * 10, 'x' FROM generate_series(1, 1000) n",
    "CREATE TABLE shop.hidden (id int)",
)


class SystemEntropy:
    def bytes(self, count):
        return os.urandom(count)


class SystemClock:
    def now(self):
        return int(time.time() * 1000)


ENTROPY, CLOCK = SystemEntropy(), SystemClock()


class Made:
    def __init__(self, order):
        self.order, self.lease, self.role, self.secret = order, order.lease, order.role, order.secret


class Broker:
    """One installation in one database: its login, its issuer."""

    def __init__(
        self, database, *, tables=("shop.*",), exclude=("shop.hidden",), admin=None, installation=None, **ceiling
    ):
        self.database = database
        self.installation: InstallationId = installation or new_installation_id(ENTROPY)
        self.password = scram.new_secret(ENTROPY)
        self.login = kit.broker_login(self.installation)
        self.scope = Scope("shop", "read", Level.READ, ("shop.*",), ("shop.hidden",))
        with contextlib.closing(admin or database.server.connect(database.name)) as connection:
            verifier = scram.verifier(self.password, ENTROPY, iterations=1)  # as few as will do: quick logins
            self.install(connection, verifier, kit.Enrolment(self.installation, verifier, tables, exclude, **ceiling))
        self.issuer = self.new_issuer()

    def install(self, connection, verifier, enrolment):
        connection.execute(kit.install_sql(connection.info.server_version, enrolment).encode())

    def role_name(self, lease):
        return role_name(self.installation, lease)

    def new_issuer(self, **changes):
        target = Target(
            **{
                "resource": "shop",
                "issuer": "postgres",
                "environment": Environment.DEV,
                "address": self.database.address,
                "nodes": (),
                "tls": {},
                "login": {"file": "broker"},
                **changes,
            }
        )
        return PostgresIssuer(target, self.installation, self.password, clock=CLOCK, entropy=ENTROPY)

    def connect(self, **options):
        """As the broker's own login, to try what it may do."""
        return self.database.connect(self.login, self.password, **options)

    def new_lease(self) -> LeaseId:
        return LeaseId(new_id("lse", CLOCK.now(), ENTROPY))

    def order(self, *, scope=None, manifest=None, lifetime=300, issuer=None):
        scope = scope or self.scope
        resolved = (issuer or self.issuer).resolve(scope)
        lease = self.new_lease()
        role = role_name(self.installation, lease)
        secret = scram.new_secret(ENTROPY)
        return Made(
            Order(lease, role, scope, resolved.digest(), manifest or resolved, lifetime, secret, "7:sha256:00ff")
        )

    def live(self, **options):
        made = self.order(**options)
        self.issuer.create(made.order)
        self.issuer.enable(made.role, lifetime=made.order.lifetime, audit_head="8:sha256:00ff")
        return made

    def enter(self, made, secret=None, **options):
        """As the agent. Raises ``psycopg.OperationalError`` if it is refused."""
        return self.database.connect(made.role, secret or made.secret, connect_timeout=10, **options)

    def refused(self, made, secret=None):
        try:
            self.enter(made, secret).close()
        except psycopg.OperationalError:
            return True
        return False

    def sessions(self, made):
        """Open sessions by the number of the role, as the superuser sees them."""
        query = "SELECT pid FROM pg_stat_activity WHERE usesysid = (SELECT oid FROM pg_roles WHERE rolname = %s)"
        return [pid for (pid,) in self.database.fetch(query, made.role)]

    def role(self, made):
        """(can log in, has a password, roles lent to) or None."""
        query = (
            "SELECT rolcanlogin, rolpassword IS NOT NULL,"
            " array(SELECT member::regrole::text FROM pg_auth_members m WHERE m.roleid = a.oid ORDER BY 1)"
            " FROM pg_authid a WHERE rolname = %s"
        )
        found = self.database.fetch(query, made.role)
        return found[0] if found else None

    def forget(self):
        """Drop every role of this installation, whatever state the test left it in."""
        self.issuer.close_connections()
        server = self.database.server
        with server.connect(self.database.name) as admin:
            query = "SELECT rolname FROM pg_roles WHERE strpos(rolname, %s) > 0 ORDER BY rolname"
            names = [name for (name,) in admin.execute(query, [self.installation]).fetchall()]
            # Polled, because the server's own wait for an end looks every 100 ms.
            until(lambda: not admin.execute(ENDING, [names]).fetchall(), what="the end of every session")
            for gid, owner in admin.execute("SELECT gid, owner FROM pg_prepared_xacts").fetchall():
                if owner in names:
                    admin.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
            for name in names:
                admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
                if name.startswith(("tp_", "tpm_")):
                    # DROP OWNED revokes only what the one who runs it granted, and the grantor of leases is the kit.
                    admin.execute("SET ROLE taskpass_kit")
                    with contextlib.suppress(psycopg.Error):
                        admin.execute("SELECT taskpass.release_sequences(%s)", [name])
                    admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
                    admin.execute("RESET ROLE")
            for name in names:
                admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def until(true, *, seconds=DEADLINE, what="it"):
    """Poll until ``true()``; a failure, not a hang, at the deadline."""
    deadline = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.005)
    return answer


def outcome(call):
    """The SQLSTATE with which a call is refused, or None."""
    try:
        call()
    except psycopg.Error as error:
        return error.sqlstate
    return None
