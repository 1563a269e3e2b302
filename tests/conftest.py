"""Real PostgreSQL servers for every suite: one per version and session, a database of its own for each test."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from psycopg import sql

from taskpass.core.secret import Secret
from taskpass.testing.postgres import EmbeddedServer, available
from tests.databases import cheap_password, empty
from tests.missing import missing
from tests.postgres_stores import StoreServer

VERSIONS = (15, 16, 17, 18)
EMPTY = "empty_template"
LONGEST = (
    "tests/acceptance/test_torture.py",
    "tests/integration/postgres/test_close.py",
    "tests/acceptance/test_outages.py",
    "tests/integration/postgres/test_write.py",
    "tests/integration/postgres/test_kit.py",
    "tests/acceptance/test_bearer.py",
    "tests/acceptance/test_two_brokers.py",
    "tests/unit/broker/test_every_failure.py",
    "tests/integration/postgres/test_preflight.py",
    "tests/conformance/test_issuers.py",
    "tests/acceptance/test_demo.py",
    "tests/properties/test_leases.py",
    "tests/acceptance/test_cli.py",
    "tests/conformance/test_stores.py",
    "tests/integration/postgres/test_catalogue.py",
    "tests/acceptance/test_restored.py",
    "tests/acceptance/test_ends.py",
    "tests/acceptance/test_drill.py",
    "tests/unit/server/test_methods.py",
    "tests/properties/test_manifest.py",
    "tests/acceptance/test_store_away.py",
    "tests/integration/postgres/test_close_many.py",
    "tests/acceptance/test_bad_input.py",
    "tests/acceptance/test_canaries.py",
    "tests/integration/test_store_postgres.py",
    "tests/acceptance/test_two_installations.py",
    "tests/integration/postgres/test_endpoint.py",
    "tests/conformance/test_moving.py",
    "tests/unit/runtime/test_sweeper.py",
    "tests/integration/test_sandbox.py",
    "tests/integration/postgres/test_drill.py",
    "tests/integration/postgres/test_nodes.py",
    "tests/integration/postgres/test_limits.py",
    "tests/acceptance/test_write.py",
    "tests/acceptance/test_migrate.py",
)
"""About ten seconds and more, by their measured time. ``make test`` gives whole files to its workers in this order."""
_numbers = itertools.count(1)

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass
class Database:
    """A fresh database. Roles made here carry its name in front, because roles belong to the whole cluster."""

    server: EmbeddedServer
    name: str
    admin: Connection | None = None
    """The superuser's, in another database: used for the end if it is given."""
    _open: list[Connection] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.server.address(self.name)

    def connect(self, user: str = "", password: Secret | None = None, **options: Any) -> Connection:
        """A connection that is closed with the test; without ``user`` as the superuser."""
        connection = self.server.connect(self.name, user or self.server.superuser, password, **options)
        self._open.append(connection)
        return connection

    def execute(self, *statements: str) -> None:
        """Run ``statements`` as the superuser, each in a transaction of its own."""
        with self.server.connect(self.name) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def fetch(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self.server.connect(self.name) as connection:
            return connection.execute(statement.encode(), parameters or None).fetchall()

    def role(self, name: str, attributes: str = "NOLOGIN") -> str:
        """Make a role and return its full name."""
        full = f"{self.name}_{name}"
        self.execute(f'CREATE ROLE "{full}" {attributes}')
        return full

    def login(self, name: str = "broker") -> tuple[str, Secret]:
        """Make an ordinary login without any right of its own."""
        password = Secret(secrets.token_urlsafe(12))
        full = self.role(name, "LOGIN")
        with self.server.connect(self.name) as connection:
            words = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(full), sql.Literal(password.reveal()))
            connection.execute(words)
        return full, password

    def close(self) -> None:
        for connection in self._open:
            connection.close()

    def drop(self) -> None:
        self.close()
        if self.admin is not None and not self.admin.closed:
            self._drop(self.admin)
        else:
            with self.server.connect() as admin:
                self._drop(admin)

    def _drop(self, admin: Connection) -> None:
        empty(admin, self.name)
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(self.name)))
        mine = admin.execute(
            "SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)", [self.name + "_"]
        ).fetchall()
        # One role can own or have granted something of another one, so what is held goes before the roles.
        names = sql.SQL(", ").join(sql.Identifier(name) for (name,) in mine)
        if mine:
            admin.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(names))


class Cluster:
    """A server of the session as its databases are made and dropped: over one connection that stays open."""

    def __init__(self, server: EmbeddedServer):
        self.server = server
        self._admin = server.connect()
        self._admin.execute(f"CREATE DATABASE {EMPTY} TEMPLATE template0")
        # A first session writes the catalogue's cache file, which is then copied into each database.
        server.connect(EMPTY).close()
        empty(self._admin, EMPTY)

    @property
    def admin(self) -> Connection:
        if self._admin.closed:
            self._admin = self.server.connect()
        return self._admin

    def close(self) -> None:
        self._admin.close()

    def database(self) -> Database:
        """A new empty database."""
        made = Database(self.server, f"t{next(_numbers)}", self.admin)
        self.admin.execute(f"CREATE DATABASE {made.name} TEMPLATE {EMPTY} STRATEGY file_copy".encode())
        return made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest go first, so that no worker is left alone with one of them at the end."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


def require_version(version: int) -> None:
    if version in available():
        return
    missing(f"PostgreSQL {version} is not installed on this machine")


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[int], EmbeddedServer]]:
    """Gives the session's server of a version; it is started at the first call."""
    running: dict[int, EmbeddedServer] = {}

    def get(version: int) -> EmbeddedServer:
        require_version(version)
        if version not in running:
            server = EmbeddedServer(version, options={"max_prepared_transactions": "20"}, durable=False)
            server.start()
            running[version] = server
            with server.connect() as connection:
                connection.execute(cheap_password("ALTER ROLE", server.superuser, server.password))
        return running[version]

    yield get
    for server in running.values():
        server.stop()
        server.remove()


@pytest.fixture(scope="session", params=[pytest.param(v, id=f"pg{v}", marks=pytest.mark.service) for v in VERSIONS])
def server(request: pytest.FixtureRequest, servers: Callable[[int], EmbeddedServer]) -> EmbeddedServer:
    """The session's server, for each version in turn. Leave its configuration as you found it."""
    return servers(request.param)


@pytest.fixture(scope="session")
def clusters(servers: Callable[[int], EmbeddedServer]) -> Iterator[Callable[[EmbeddedServer], Cluster]]:
    """Gives what makes databases on a server of the session; it ends before the servers do."""
    made: dict[int, Cluster] = {}

    def get(server: EmbeddedServer) -> Cluster:
        if server.version not in made:
            made[server.version] = Cluster(server)
        return made[server.version]

    yield get
    for cluster in made.values():
        cluster.close()


@pytest.fixture
def database(server: EmbeddedServer, clusters: Callable[[EmbeddedServer], Cluster]) -> Iterator[Database]:
    """An empty database for one test."""
    made = clusters(server).database()
    yield made
    made.drop()


@pytest.fixture(scope="session")
def store_servers(
    servers: Callable[[int], EmbeddedServer], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], StoreServer]:
    """Gives the session's maker of stores on the server of a version."""
    made: dict[int, StoreServer] = {}

    def get(version: int) -> StoreServer:
        if version not in made:
            made[version] = StoreServer(servers(version), tmp_path_factory.mktemp("stores"))
        return made[version]

    return get
