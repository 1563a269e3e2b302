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
from tests.missing import missing
from tests.postgres_stores import StoreServer

VERSIONS = (15, 16, 17, 18)
_numbers = itertools.count(1)

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass
class Database:
    """A fresh database. Roles made here carry its name in front, because roles belong to the whole cluster."""

    server: EmbeddedServer
    name: str
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
        with self.server.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(self.name)))
            mine = connection.execute(
                "SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)", [self.name + "_"]
            ).fetchall()
            # One role can own or have granted something of another one, so what is held goes before the roles.
            names = sql.SQL(", ").join(sql.Identifier(name) for (name,) in mine)
            if mine:
                connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(names))


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
        return running[version]

    yield get
    for server in running.values():
        server.stop()
        server.remove()


@pytest.fixture(scope="session", params=[pytest.param(v, id=f"pg{v}", marks=pytest.mark.service) for v in VERSIONS])
def server(request: pytest.FixtureRequest, servers: Callable[[int], EmbeddedServer]) -> EmbeddedServer:
    """The session's server, for each version in turn. Leave its configuration as you found it."""
    return servers(request.param)


@pytest.fixture
def database(server: EmbeddedServer) -> Iterator[Database]:
    """An empty database for one test."""
    made = Database(server, f"t{next(_numbers)}")
    with server.connect() as connection:
        connection.execute(f"CREATE DATABASE {made.name} TEMPLATE template0 STRATEGY file_copy".encode())
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
