"""Stores on a real PostgreSQL server: an account of the broker, a database made from a template, the store in it."""

from __future__ import annotations

import itertools
import secrets

import psycopg

from taskpass.config.credentials import Credential
from taskpass.core.secret import Secret
from taskpass.keys import files
from taskpass.store.open import Access, Create, open_reader, open_store
from taskpass.testing.suites.records import NOW, Counting, FixedClock
from tests.databases import cheap_password, empty

OWNER = "store_broker"
TEMPLATE = "store_template"
_numbers = itertools.count(1)


class StoreServer:
    """The account and the template on a server of the session. Making the store once and copying it is quicker."""

    def __init__(self, server, directory):
        self.server = server
        self.password = Secret(secrets.token_urlsafe(12))
        self.keys = directory / f"keys-{server.version}"
        self.key = files.create(self.keys, files.AUDIT, entropy=Counting(), at=NOW)
        with server.connect() as connection:
            connection.execute(cheap_password("CREATE ROLE", OWNER, self.password))
            connection.execute(f"CREATE DATABASE {TEMPLATE} OWNER {OWNER} TEMPLATE template0 ENCODING 'UTF8'")
        self.place(TEMPLATE).open().close()

    def empty(self, options="ENCODING 'UTF8'"):
        """A database without a store."""
        return self._made(f"TEMPLATE template0 {options}")

    def fresh(self):
        """A store that was created and never used."""
        return self._made(f"TEMPLATE {TEMPLATE}")

    def _made(self, options):
        name = f"store_{next(_numbers)}"
        with self.server.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} OWNER {OWNER} {options} STRATEGY file_copy")
        return self.place(name)

    def place(self, name):
        return PostgresPlace(self, name)


class PostgresPlace:
    """A store in one database; see ``store_place.Place``."""

    def __init__(self, owner, name):
        self.server = owner.server
        self.name = name
        self.url = f"postgresql://{owner.server.address(name)}"
        self.key = owner.key
        self.password = owner.password
        self._opened = []

    @property
    def verifier(self):
        from taskpass.keys.ed25519 import PublicKeys

        return PublicKeys([self.key.public])

    @property
    def access(self):
        return Access(lambda: Credential(OWNER, self.password))

    def open(self, create=Create(), **options):  # noqa: B008 - frozen
        made = open_store(
            options.pop("url", self.url),
            clock=FixedClock(),
            entropy=Counting(),
            audit_key=options.pop("audit_key", self.key),
            create=create,
            access=options.pop("access", self.access),
            **{"timeout": 20, **options},
        )
        self._opened.append(made)
        return made

    def reader(self):
        made = open_reader(self.url, access=self.access)
        self._opened.append(made)
        return made

    def execute(self, statement):
        with self.owner() as connection:
            return connection.execute(statement).rowcount

    def raw(self, *statements):
        """Run statements past the store; the rows of the last one."""
        with self.owner() as connection:
            for statement in statements:
                done = connection.execute(statement)
            return done.fetchall() if done.description else []

    def owner(self):
        """A connection of the account that the store belongs to, with none of the store's settings but the schema."""
        return psycopg.connect(
            host=self.server.host,
            port=self.server.port,
            dbname=self.name,
            user=OWNER,
            password=self.password.reveal(),
            options="-c search_path=taskpass_store",
            autocommit=True,
        )

    def close(self):
        for store in self._opened:
            store.close()

    def drop(self):
        self.close()
        with self.server.connect() as connection:
            empty(connection, self.name)
            connection.execute(f"DROP DATABASE {self.name} WITH (FORCE)")
