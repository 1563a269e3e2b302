from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

import pytest

from taskpass.keys import files
from taskpass.store.open import Create, open_store
from taskpass.testing.suites.records import NOW, Counting, FixedClock


class Home:
    """A broker's directory with a key, in which a store can be opened as often as needed."""

    def __init__(self, directory):
        directory.chmod(0o700)
        self.directory = directory
        self.path = directory / "taskpass.db"
        self.url = f"sqlite:///{self.path}"
        self.key = files.create(directory / "keys", files.AUDIT, entropy=Counting(), at=NOW)
        self.opened = []

    def open(self, create=None, **options):
        made = open_store(
            options.pop("url", self.url),
            clock=FixedClock(),
            entropy=Counting(),
            audit_key=options.pop("audit_key", self.key),
            create=create,
            **options,
        )
        self.opened.append(made)
        return made

    def create(self, **options):
        return self.open(Create(), **options)

    def raw(self, *statements):
        """Run statements past the store; the rows of the last one."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            rows = [connection.execute(statement).fetchall() for statement in statements]
        return rows[-1]


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path)
    yield made
    for store in made.opened:
        store.close()


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A new store's file. Copying it is quicker than creating one for each test, and gives the same."""
    home = Home(tmp_path_factory.mktemp("template"))
    home.create().close()
    return home.path


@pytest.fixture
def store(home, template):
    shutil.copyfile(template, home.path)
    home.path.chmod(0o600)
    return home.open()
