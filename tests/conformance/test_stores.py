"""Every store passes the shared suite; what is particular to a kind is in tests/unit/store and tests/integration."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from taskpass.audit.verify import verify
from taskpass.keys import files
from taskpass.keys.ed25519 import PublicKeys
from taskpass.store.open import Create, open_store
from taskpass.testing.suites.records import NOW, Counting, FixedClock
from taskpass.testing.suites.store import StoreSuite
from taskpass.testing.suites.store_units import UnitSuite


class SqlitePlace:
    """A SQLite store in a directory of the test."""

    def __init__(self, directory: Path) -> None:
        directory.chmod(0o700)
        self.path = directory / "taskpass.db"
        self.key = files.create(directory / "keys", files.AUDIT, entropy=Counting(), at=NOW)
        self.verifier = PublicKeys([self.key.public])
        self._open = []

    def open(self):
        made = open_store(
            f"sqlite:///{self.path}",
            clock=FixedClock(),
            entropy=Counting(),
            audit_key=self.key,
            create=Create(),
            timeout=20,
        )
        self._open.append(made)
        return made

    def execute(self, statement):
        connection = sqlite3.connect(self.path, timeout=20)
        try:
            with connection:
                return connection.execute(statement).rowcount
        finally:
            connection.close()

    def close(self):
        for store in self._open:
            store.close()


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A new store's file. Copying it is quicker than creating one for each test, and gives the same."""
    made = SqlitePlace(tmp_path_factory.mktemp("template"))
    made.open().close()
    return made.path


@pytest.fixture
def place(tmp_path, template):
    made = SqlitePlace(tmp_path)
    shutil.copyfile(template, made.path)
    made.path.chmod(0o600)
    yield made
    made.close()


class TestSqlite(StoreSuite):
    refused = sqlite3.IntegrityError


@pytest.mark.service
class TestPostgres16(StoreSuite):
    refused = psycopg.errors.CheckViolation

    @pytest.fixture
    def place(self, store_servers):
        made = store_servers(16).fresh()
        yield made
        made.drop()


@pytest.mark.service
class TestOtherPostgres(UnitSuite):
    """The short version: units of work and the audit log, where one version could differ from another."""

    refused = psycopg.errors.CheckViolation

    @pytest.fixture(params=[pytest.param(v, id=f"pg{v}") for v in (15, 18)])
    def place(self, store_servers, request):
        made = store_servers(request.param).fresh()
        yield made
        made.drop()


APPENDING = """
import sys
from pathlib import Path
from taskpass.keys import files
from taskpass.store.open import Create, open_store
from taskpass.testing.suites.records import NOW, Counting, FixedClock, event
directory = Path(sys.argv[1])
store = open_store(
    f"sqlite:///{directory}/taskpass.db", clock=FixedClock(), entropy=Counting(),
    audit_key=files.load(directory / "keys", files.AUDIT), create=Create(), timeout=20,
)
for number in range(25):
    with store.write() as unit:
        unit.audit.append(event(number), NOW)
store.close()
"""


def test_processes_that_create_and_append_at_once_make_one_chain(tmp_path):
    tmp_path.chmod(0o700)
    key = files.create(tmp_path / "keys", files.AUDIT, entropy=Counting(), at=NOW)
    command = [sys.executable, "-c", APPENDING, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, b"", b"")
    store = open_store(f"sqlite:///{tmp_path}/taskpass.db", clock=FixedClock(), entropy=Counting(), audit_key=key)
    with store.read() as unit:
        installation = unit.installation.id
    report = verify(store.iterate_audit(), installation, PublicKeys([key.public]))
    store.close()
    assert (report.seq, report.fault) == (75, None)
