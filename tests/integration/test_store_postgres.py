"""What is particular to a store on PostgreSQL, on a real server: rules, one chain, being told, and not being there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest

from taskpass.audit.verify import verify
from taskpass.config.credentials import Credential
from taskpass.core.errors import Conflict, StoreUnavailable
from taskpass.core.secret import Secret
from taskpass.keys.ed25519 import PublicKeys
from taskpass.server.changed import Changed
from taskpass.store import listen, patience, postgres, postgres_rules
from taskpass.store.open import Access, Create
from taskpass.store.rules import GUARDED
from taskpass.store.tables import metadata
from taskpass.testing.postgres import EmbeddedServer
from taskpass.testing.suites.records import NOW, Records, event
from tests.postgres_stores import OWNER, StoreServer

pytestmark = pytest.mark.service


@pytest.fixture(params=[pytest.param(v, id=f"pg{v}") for v in (15, 16, 18)])
def every(store_servers, request):
    made = store_servers(request.param).fresh()
    yield made
    made.drop()


@pytest.fixture
def place(store_servers):
    made = store_servers(16).fresh()
    yield made
    made.drop()


@pytest.fixture
def own(tmp_path):
    """A server that may be stopped, and a store in it."""
    with EmbeddedServer(16, durable=False, options={"max_connections": "12"}) as server:
        made = StoreServer(server, tmp_path).fresh()
        yield made
        made.close()


def append(store, number=0):
    with store.write() as unit:
        return unit.audit.append(event(number), NOW)


def code_of(action):
    with pytest.raises(StoreUnavailable) as found:
        action()
    assert found.value.hint
    return found.value.code


def fill(place):
    records = Records("0000000z")
    task = records.task()
    request = records.request(task.id)
    approval = records.approval(request.id)
    grant = records.grant(request)
    with place.open().write() as unit:
        unit.runs.add(records.run())
        unit.tasks.add(task)
        unit.requests.add(request)
        unit.approvals.add(approval)
        unit.grants.add(grant)
        unit.approvals.consume([approval.id], grant.id)
        unit.leases.add(records.lease(grant))
        unit.audit.append(event(task=task.id), NOW)


def test_what_must_not_change_is_refused_in_every_way_that_the_server_has(every):
    fill(every)
    for table in GUARDED:
        with pytest.raises(psycopg.errors.CheckViolation, match="taskpass: "):
            every.execute(f"TRUNCATE {table} CASCADE")
        if not every.raw(f"SELECT 1 FROM {table} LIMIT 1"):
            continue  # a table of another piece of work, whose own tests fill it
        column = f'"{metadata.tables[table].columns.keys()[0]}"'
        for statement in (
            f"DELETE FROM {table}",
            f"UPDATE {table} SET {column} = {column}",
            f"INSERT INTO {table} SELECT * FROM {table} ON CONFLICT ({_key(table)}) DO UPDATE SET {column} = DEFAULT",
        ):
            with pytest.raises(psycopg.errors.CheckViolation, match="taskpass: "):
                every.execute(statement)
    with every.server.connect(every.name) as administrator:
        administrator.execute("SET session_replication_role = replica")
        with pytest.raises(psycopg.errors.CheckViolation):
            administrator.execute("UPDATE taskpass_store.leases SET state = 'cleaned'")


def _key(table):
    return ", ".join(f'"{column.name}"' for column in metadata.tables[table].primary_key)


def test_without_its_rules_the_database_refuses_nothing_and_they_are_put_back(place):
    fill(place)
    wanted = place.raw(postgres_rules._NAMES)
    for name, table in wanted:
        place.execute(f"DROP TRIGGER {name} ON {table}")
    assert place.execute("UPDATE leases SET state = 'cleaned'") == 1
    place.open()
    assert sorted(place.raw(postgres_rules._NAMES)) == sorted(wanted)
    with pytest.raises(psycopg.errors.CheckViolation):
        place.execute("UPDATE leases SET state = 'active'")


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE leases DISABLE TRIGGER leases_step",
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        "DROP TRIGGER audit_keep ON audit",
    ],
)
def test_a_rule_that_was_weakened_is_put_back_at_the_next_start(place, change):
    fill(place)
    place.execute(change)
    place.open()
    for statement in ("UPDATE leases SET state = 'cleaned'", "DELETE FROM audit"):
        with pytest.raises(psycopg.errors.CheckViolation):
            place.execute(statement)


def test_texts_are_compared_by_code_point_whatever_the_database_thinks(place):
    columns = place.raw(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'taskpass_store'"
        " AND data_type = 'text' AND collation_name IS DISTINCT FROM 'C'"
    )
    assert [column for column in columns if column[0] in ("tasks", "leases", "audit", "grants", "requests")] == []


APPENDING = """
import sys
from pathlib import Path
from concurrent.futures import ThreadPoolExecutor
from taskpass.config.credentials import Credential
from taskpass.core.secret import Secret
from taskpass.keys import files
from taskpass.store.open import Access, open_store
from taskpass.testing.suites.records import NOW, Counting, FixedClock, event
url, keys, user = sys.argv[1:4]
password = Secret(sys.stdin.read())
store = open_store(url, clock=FixedClock(), entropy=Counting(), audit_key=files.load(Path(keys), files.AUDIT),
                   access=Access(lambda: Credential(user, password)), timeout=30)
def append(number):
    with store.write() as unit:
        unit.audit.append(event(number), NOW)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(append, range(60)))
store.close()
"""


def test_writers_of_two_processes_make_one_chain_without_a_gap(place, store_servers):
    keys = store_servers(16).keys
    command = [sys.executable, "-c", APPENDING, place.url, str(keys), OWNER]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in running:
        process.stdin.write(place.password.reveal().encode())
        process.stdin.close()
        process.stdin = None
    for process in running:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, b"", b"")
    store = place.open()
    with store.read() as unit:
        installation = unit.installation.id
    report = verify(store.iterate_audit(), installation, PublicKeys([place.key.public]))
    assert (report.seq, report.fault) == (120, None)


def test_the_next_writer_works_while_the_one_before_waits_for_the_disk(place):
    first, second = place.open(), place.open()
    waiting, go = threading.Event(), threading.Event()
    settle = first.database.settle

    def held_up(connection):
        waiting.set()
        assert go.wait(20)
        settle(connection)

    first.database.settle = held_up
    thread = threading.Thread(target=append, args=(first,))
    thread.start()
    try:
        assert waiting.wait(20)
        assert append(second).seq == 2
    finally:
        go.set()
        thread.join()


def test_a_commit_waits_for_the_disk_whatever_the_database_was_told(place):
    with place.server.connect(place.name) as administrator:
        administrator.execute(f"ALTER DATABASE {place.name} SET synchronous_commit = off")
    with place.open().read() as unit:
        found = unit._session._connection.exec_driver_sql("SHOW synchronous_commit").scalar()
    assert found == "on"


# Being told


def waiter(store, poll, done):
    """Seconds that somebody waited for ``done`` with a broker's listener and a poll that slow."""
    changed = Changed()
    changed.POLL = poll
    store.listen(changed.announce)
    started = time.monotonic()
    changed.wait_until(done, 40)
    return time.monotonic() - started


def test_who_waits_is_woken_by_another_brokers_write(place):
    ours, theirs = place.open(), place.open()
    threading.Timer(0.5, append, [theirs]).start()

    def done():
        with ours.read() as unit:
            return unit.audit.head()[0] == 1

    assert waiter(ours, 20, done) < 15


def test_a_lost_listening_connection_is_made_again_and_polling_bridges_it(place, monkeypatch):
    monkeypatch.setattr(listen, "PAUSE_SECONDS", 0.05)
    store, heard = place.open(), threading.Event()
    store.listen(heard.set)
    assert heard.wait(30)
    heard.clear()
    with place.server.connect(place.name) as administrator:
        killed = administrator.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND query LIKE 'LISTEN%%'",
            [place.name],
        ).fetchall()
    assert killed == [(True,)]
    assert heard.wait(30), "connected again, and said so"


# Not being there


def test_a_server_that_is_down_is_said_at_start_and_in_the_middle_and_forgotten_when_it_is_back(own):
    store = own.open()
    append(store)
    with store.read(), store.read():
        pass
    own.server.stop()
    assert code_of(lambda: append(store)) == "store_down"
    assert code_of(lambda: store.read().__enter__()) == "store_down"
    assert code_of(lambda: own.open(timeout=1)) == "store_down"
    own.server.start()
    assert append(store).seq == 2
    own.server.stop()
    own.server.start()
    assert append(store).seq == 3, "no unit of work is lost to connections that died in the pool"


def test_a_server_that_freezes_is_given_up_in_bounded_time_and_not_asked_again_at_once(own, monkeypatch):
    monkeypatch.setattr(patience, "UNIT_SECONDS", 1.0)
    monkeypatch.setattr(postgres, "CONNECT_SECONDS", 2)
    store = own.open()
    append(store)
    pids = _processes(own.server.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert code_of(lambda: append(store)) == "store_down"
        assert code_of(lambda: own.open(timeout=1)) == "store_down"
        code_of(lambda: append(store))
        started = time.monotonic()
        for _ in range(50):
            assert code_of(lambda: append(store)) == "store_down"
        assert time.monotonic() - started < 5
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _processes(parent):
    return [parent, *map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())]


def test_a_server_without_a_connection_left_says_so(own):
    own.open().close()
    held = []
    try:
        while True:
            held.append(own.owner())
    except psycopg.OperationalError:
        pass
    try:
        assert code_of(own.open) == "store_connections"
    finally:
        for connection in held:
            connection.close()


def test_a_writer_that_stands_still_keeps_others_waiting_for_a_bounded_time(place):
    store, other = place.open(), place.open(timeout=0.2)
    with store.write():
        assert code_of(lambda: append(other)) == "store_locked"
        with other.read() as unit:
            assert unit.audit.head()[0] == 0
    append(other)


def test_a_store_that_became_read_only_is_read_and_not_written(place):
    store = place.open()
    append(store)
    store.close()
    with place.server.connect(place.name) as administrator:
        administrator.execute(f"ALTER DATABASE {place.name} SET default_transaction_read_only = on")
    reader = place.reader()
    assert len(list(reader.iterate_audit())) == 1
    assert code_of(lambda: append(reader)) == "store_readonly"
    assert code_of(lambda: append(place.open())) == "store_readonly"


def test_an_encoding_that_cannot_hold_every_text_is_refused(store_servers):
    made = store_servers(16).empty("ENCODING 'SQL_ASCII'")
    assert code_of(made.open) == "store_unfit"
    made.drop()


def test_nothing_is_created_unless_asked(store_servers):
    made = store_servers(16).empty()
    assert code_of(lambda: made.open(None)) == "store_missing"
    assert made.raw("SELECT to_regnamespace('taskpass_store')::text") == [(None,)]
    assert code_of(made.reader) == "store_missing"
    made.drop()


def test_a_newer_schema_is_refused_and_left_alone(place):
    place.execute("UPDATE alembic_version SET version_num = '9999'")
    assert code_of(place.open) == "store_newer"
    assert code_of(place.reader) == "store_newer"


def test_a_store_that_others_may_write_is_refused_and_one_that_others_may_read_is_not(place):
    with place.server.connect(place.name) as administrator:
        administrator.execute("CREATE ROLE auditor")
        administrator.execute("GRANT USAGE ON SCHEMA taskpass_store TO auditor")
        administrator.execute("GRANT SELECT ON ALL TABLES IN SCHEMA taskpass_store TO auditor")
        place.open()
        administrator.execute("GRANT UPDATE ON taskpass_store.leases TO auditor")
        assert code_of(place.open) == "store_unsafe"
        administrator.execute("REVOKE ALL ON ALL TABLES IN SCHEMA taskpass_store FROM auditor")
        administrator.execute("GRANT CREATE ON SCHEMA taskpass_store TO auditor")
        assert code_of(place.open) == "store_unsafe"
        administrator.execute("DROP OWNED BY auditor")
        administrator.execute("DROP ROLE auditor")


def test_another_installations_store_is_not_taken_for_a_new_one(place):
    append(place.open())
    with pytest.raises(Conflict) as found:
        place.open(Create(unused=True))
    assert found.value.code == "store_exists"


def test_a_refused_login_says_so_without_the_password(place):
    wrong = Secret("canary-4711")
    with pytest.raises(StoreUnavailable) as found:
        place.open(access=Access(lambda: Credential(OWNER, wrong)))
    assert found.value.code == "store_login"
    assert "canary" not in f"{found.value.message} {found.value.hint}"
    assert found.value.__cause__ is None
    assert "canary" not in place.server.log_text()
