"""What happens when the disk, the file or another process does not play along."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import replace

import pytest
from sqlalchemy import event as hook

from taskpass.audit import witness
from taskpass.audit.verify import verify
from taskpass.core.audit import GENESIS
from taskpass.core.errors import Internal, StoreUnavailable, TaskpassError
from taskpass.core.lease import LeaseEvent
from taskpass.keys.ed25519 import PublicKeys
from taskpass.store.kept import Kept
from taskpass.store.open import open_reader
from taskpass.store.reserve import Reserve
from taskpass.testing.suites.records import NOW, Records, event


def append(store, count=1, first=0):
    for number in range(first, first + count):
        with store.write() as unit:
            unit.audit.append(event(number), NOW)


def checked(home, store):
    """The report of an auditor with the trusted key and the witness."""
    with store.read() as unit:
        installation = unit.installation.id
    head = witness.read(home.directory / "audit-head")
    return verify(store.iterate_audit(), installation, PublicKeys([home.key.public]), witness=head)


def code_of(action):
    with pytest.raises(StoreUnavailable) as found:
        action()
    assert found.value.hint
    assert found.value.retryable
    assert "\n" not in found.value.message
    return found.value.code


# Another process


def test_a_store_that_another_process_holds_is_locked_for_a_bounded_time(home):
    store = home.create(timeout=0.05)
    with closing(sqlite3.connect(home.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        assert code_of(lambda: append(store)) == "store_locked"
        assert code_of(lambda: home.open(timeout=0.05)) == "store_locked"
        assert time.monotonic() - started < 20
        with store.read() as unit:
            assert unit.audit.head() == (0, GENESIS)
        other.execute("ROLLBACK")
    append(store)


def test_a_process_that_is_creating_keeps_others_waiting_for_a_bounded_time(home):
    home.create()
    holder = "import fcntl,sys; f=open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", holder, f"{home.path}.lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert code_of(lambda: home.open(timeout=0.05)) == "store_locked"
        other.stdin.close()
    home.open(timeout=5)


def test_a_unit_of_work_inside_another_is_a_defect_and_not_a_deadlock(store):
    with pytest.raises(Internal), store.write(), store.write():
        pass
    append(store)


# Full disk


def bounded(store, pages):
    """Let the database grow to ``pages`` pages only: SQLite then answers as on a full disk."""
    with store.database.engine.connect() as connection:
        now = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages if pages > now else now}")


def test_a_full_disk_is_said_and_reading_goes_on(home, store):
    append(store, 3)
    bounded(store, 0)

    def fill():
        with store.write() as unit:
            for _ in range(100):
                unit.audit.append(replace(event(), data={"x": "x" * 4000}), NOW)

    assert code_of(fill) == "store_full"
    assert (checked(home, store).seq, checked(home, store).fault) == (3, None)
    bounded(store, 10**6)
    fill()
    assert checked(home, store).seq == 103


FULL = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from taskpass.core.errors import StoreUnavailable
from taskpass.store.reserve import Reserve
from taskpass.testing.suites.records import NOW, event
from tests.unit.store.conftest import Home
home = Home(Path(sys.argv[1]))
store = home.create()
reserve = Reserve(home.directory / "reserve", 2 * 2**20)
assert reserve.restore() and reserve.held
with store.write() as unit:
    unit.audit.append(event(), NOW)
filler = os.open(home.directory / "filler", os.O_WRONLY | os.O_CREAT)
try:
    while os.write(filler, b"x" * 4096) == 4096: pass
except OSError: pass
def append():
    with store.write() as unit:
        return unit.audit.append(event(), NOW)
for _ in range(3):
    try:
        for _ in range(2000): append()
    except StoreUnavailable as error:
        assert error.code == "store_full", error.code
    else:
        raise SystemExit("never full")
with store.read() as unit:
    before = unit.audit.head()[0]
assert not Reserve(home.directory / "second").restore()
assert not (home.directory / "second").exists()
assert reserve.release()
assert append().seq == before + 1
assert not Reserve(home.directory / "reserve").restore()
os.ftruncate(filler, 0)
assert reserve.restore()
store.close()
home.open()
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root to mount a small disk")
def test_on_a_disk_that_is_really_full_the_reserve_lets_a_revocation_be_recorded(tmp_path, pytestconfig):
    # In a mount namespace of its own, so that nothing is left mounted whatever happens.
    script = 'mount -t tmpfs -o size=8m,mode=700 none "$1" && exec "$2" -c "$3" "$1" "$4"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", tmp_path, sys.executable, FULL, pytestconfig.rootpath]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip("this machine lets nobody mount")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("limit", range(0, 48 * 1024, 8192))
def test_a_write_that_is_cut_anywhere_leaves_nothing_half_made(home, limit):
    """The kernel refuses to let a file grow past ``limit`` more bytes: each write of the log fails in turn."""
    home.create().close()
    code = CUT.format(limit=limit)
    done = subprocess.run([sys.executable, "-c", code, home.directory], capture_output=True, timeout=60, check=False)
    assert done.returncode in (0, 7), done.stderr
    store = home.open()
    report = checked(home, store)
    assert report.fault is None
    assert report.seq in ((0, 4) if done.returncode == 7 else (4,))
    with store.read() as unit:
        assert len(unit.tasks.list()) == (report.seq > 0)


CUT = """
import resource, sys
from pathlib import Path
from taskpass.core.errors import StoreUnavailable
from taskpass.keys import files
from taskpass.store.open import open_store
from taskpass.testing.suites.records import NOW, Counting, FixedClock, Records, event
directory = Path(sys.argv[1])
key = files.load(directory / "keys", files.AUDIT)
url = f"sqlite:///{{directory}}/taskpass.db"
store = open_store(url, clock=FixedClock(), entropy=Counting(), audit_key=key)
grown = max(directory.joinpath(name).stat().st_size for name in ("taskpass.db-wal", "taskpass.db-shm"))
resource.setrlimit(resource.RLIMIT_FSIZE, (grown + {limit}, resource.RLIM_INFINITY))
try:
    with store.write() as unit:
        unit.tasks.add(Records(unit.installation.id).task(reason="r" * 2000))
        for number in range(4):
            unit.audit.append(event(number, text="t" * 2000), NOW)
except StoreUnavailable:
    sys.exit(7)
"""


# Failing at each statement


class Injected:
    """Makes the ``k``-th statement of the store fail as on a full disk, or the commit if there are fewer."""

    def __init__(self, store, k):
        self.left = k
        self.store = store
        hook.listen(store.database.engine, "before_cursor_execute", self.statement)
        hook.listen(store.database.engine, "commit", self.commit)
        # What goes straight to the driver passes no event of the library.
        self.kept = Kept.run
        Kept.run = lambda kept, connection, values: (self.statement(), self.kept(kept, connection, values))[1]

    def fail(self):
        error = sqlite3.OperationalError("injected")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    def statement(self, *_):
        self.left -= 1
        if self.left == 0:
            self.fail()

    def commit(self, connection):
        self.left -= 1
        if self.left == 0:
            self.fail()

    def remove(self):
        hook.remove(self.store.database.engine, "before_cursor_execute", self.statement)
        hook.remove(self.store.database.engine, "commit", self.commit)
        Kept.run = self.kept


def everything(store, records):
    """A unit of work that touches every table."""
    with store.write() as unit:
        run = records.run()
        task = records.task(run=run.id)
        request = records.request(task.id)
        approval = records.approval(request.id)
        grant = records.grant(request)
        lease = records.lease(grant)
        unit.see_time(NOW + 1)
        unit.runs.add(run)
        unit.tasks.add(task)
        unit.requests.add(request)
        unit.approvals.add(approval)
        unit.challenges.add("n", verb="approve", subject="x", human="h", expires_at=NOW)
        unit.grants.add(grant)
        unit.approvals.consume([approval.id], grant.id)
        unit.leases.add(lease)
        unit.leases.advance(lease.id, LeaseEvent.CREATED, NOW)
        unit.audit.append(event(1, lease=lease.id), NOW)
        unit.audit.append(event(2, lease=lease.id), NOW)


def dump(home):
    with closing(sqlite3.connect(home.path)) as connection:
        return list(connection.iterdump())


def test_whichever_statement_fails_nothing_is_half_made(home, store):
    records = Records("0000000z")
    before = dump(home)
    for k in range(1, 200):
        injected = Injected(store, k)
        try:
            assert code_of(lambda: everything(store, records)) == "store_full"
        except pytest.fail.Exception:
            break
        finally:
            injected.remove()
        assert dump(home) == before
        assert witness.read(home.directory / "audit-head") is None
    else:
        pytest.fail("the unit of work never ended")
    assert k > 20
    assert (checked(home, store).seq, checked(home, store).fault) == (2, None)


def _swallowing(unit):
    for number in range(4):
        with suppress(TaskpassError):
            unit.audit.append(event(number), NOW)


def test_a_caller_that_swallows_an_error_does_not_commit_a_part(home, store):
    before = dump(home)
    for k in range(1, 7):
        injected = Injected(store, k)
        try:
            with pytest.raises(Internal), store.write() as unit:
                _swallowing(unit)
        finally:
            injected.remove()
        assert dump(home) == before


# Read-only and damaged files


def test_a_store_that_cannot_be_written_says_so(store):
    append(store)
    with store.database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    assert code_of(lambda: append(store)) == "store_readonly"
    with store.read() as unit:
        assert unit.audit.head()[0] == 1


def test_a_file_without_write_permission_is_refused_for_writing(home):
    store = home.create()
    append(store)
    store.close()
    if os.geteuid() == 0:
        script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$2" -c "$3" "$1" "$4"'
        command = ["unshare", "-m", "sh", "-c", script, "sh", home.directory, sys.executable, READ_ONLY, os.getcwd()]
    else:
        home.path.chmod(0o400)
        home.directory.chmod(0o500)
        command = [sys.executable, "-c", READ_ONLY, home.directory, os.getcwd()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    home.directory.chmod(0o700)
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip("this machine lets nobody mount")
    assert (done.returncode, done.stderr) == (0, "")


READ_ONLY = """
import sys
from pathlib import Path
from taskpass.core.errors import StoreUnavailable
from taskpass.keys import files
from taskpass.store.open import open_reader, open_store
from taskpass.testing.suites.records import Counting, FixedClock
directory = Path(sys.argv[1])
url = f"sqlite:///{directory}/taskpass.db"
key = files.load(directory / "keys", files.AUDIT)
try:
    open_store(url, clock=FixedClock(), entropy=Counting(), audit_key=key)
except StoreUnavailable as error:
    assert error.code == "store_readonly", error.code
else:
    raise SystemExit("opened")
assert len(list(open_reader(url).iterate_audit())) == 1
"""


@pytest.mark.parametrize("damage", ["header", "schema", "page"])
def test_a_damaged_file_is_refused_at_open(home, damage):
    store = home.create()
    append(store, 200)
    store.close()
    data = bytearray(home.path.read_bytes())
    if damage == "header":
        data[0:16] = b"not a database!!"
    elif damage == "schema":
        data[100:200] = b"\xff" * 100
    else:
        middle = len(data) // 2 // 4096 * 4096
        data[middle : middle + 64] = b"\xff" * 64
    home.path.write_bytes(data)
    assert code_of(home.open) == "store_corrupt"


def test_a_file_of_something_else_is_refused(home):
    home.path.write_bytes(b"hello, world\n" * 1000)
    home.path.chmod(0o600)
    assert code_of(home.open) == "store_corrupt"


def test_a_record_that_is_no_text_any_more_is_named(home, store):
    append(store, 5)
    home.raw("DROP TRIGGER audit_fixed", "UPDATE audit SET body = CAST(x'ff' || body AS TEXT) WHERE seq = 4")
    report = checked(home, store)
    assert (report.seq, report.fault.seq) == (3, 4)


def test_a_flipped_byte_in_the_file_is_named(home, store):
    append(store, 5)
    store.close()
    data = home.path.read_bytes()
    assert data.count(b'"number":3') == 1
    home.path.write_bytes(data.replace(b'"number":3', b'"number":2'))
    report = checked(home, home.open())
    assert (report.seq, report.fault.seq) == (3, 4)
    assert "content" in report.fault.what


# An older store put back


def test_a_store_put_back_from_a_copy_is_noticed_and_stays_noticed(home, store):
    append(store, 3)
    store.close()
    copy = home.path.read_bytes()
    store = home.open()
    append(store, 3)
    store.close()
    home.path.write_bytes(copy)
    store = home.open()
    assert store.witness.contradicted
    assert checked(home, store).fault.seq == 4
    append(store, 5, first=100)
    assert checked(home, store).fault.seq == 6
    assert home.open().witness.contradicted
    append(store)
    store.witness.adopt(list(store.iterate_audit())[-1])
    assert checked(home, store).fault is None


# Reading without a broker


def test_a_reader_sees_what_a_running_broker_wrote_and_writes_nothing(home, store):
    append(store, 2)
    reader = open_reader(home.url)
    try:
        append(store)
        assert checked(home, reader).seq == 3
        assert code_of(lambda: append(reader)) == "store_readonly"
        with pytest.raises(TaskpassError), reader.read() as unit:
            unit.see_time(NOW + 1)
    finally:
        reader.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
@pytest.mark.parametrize("running", [False, True])
def test_an_auditor_without_write_access_can_read(home, tmp_path_factory, running):
    store = home.create()
    append(store, 2)
    if not running:
        store.close()
    for path in (home.directory, *home.directory.parents):
        if path.stat().st_mode & 0o005 != 0o005 and "pytest" in str(path):
            path.chmod(0o755)
    for path in home.directory.glob("taskpass.db*"):
        path.chmod(0o644)
    code = (
        "import os, sys; from taskpass.store.open import open_reader; os.setgid(65534); os.setuid(65534);"
        "print(len(list(open_reader(sys.argv[1]).iterate_audit())))"
    )
    before = sorted(path.name for path in home.directory.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", code, home.url], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("2\n", "")
    assert sorted(path.name for path in home.directory.iterdir()) == before


# The reserve


def test_the_reserve_occupies_its_space_until_released(tmp_path):
    reserve = Reserve(tmp_path / "reserve", 2**20)
    assert not reserve.held
    assert reserve.restore()
    assert reserve.held
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= 2**20
    assert reserve.restore()
    assert reserve.release()
    assert not reserve.held
    assert not reserve.release()


def test_a_reserve_without_its_space_is_not_held(tmp_path):
    reserve = Reserve(tmp_path / "reserve", 2**20)
    with (tmp_path / "reserve").open("wb") as stream:
        stream.truncate(2**20)
    assert not reserve.held
    assert reserve.restore()
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= 2**20
    with pytest.raises(StoreUnavailable):
        Reserve(tmp_path / "none" / "reserve").restore()


# Killed

APPENDING = """
import sys
from pathlib import Path
from taskpass.keys import files
from taskpass.store.open import open_store
from taskpass.testing.suites.records import NOW, Counting, FixedClock, event
key = files.load(Path(sys.argv[1]) / "keys", files.AUDIT)
store = open_store(
    f"sqlite:///{sys.argv[1]}/taskpass.db", clock=FixedClock(), entropy=Counting(), audit_key=key
)
while True:
    with store.write() as unit:
        seq = unit.audit.append(event(), NOW).seq
    print(seq, flush=True)
"""


def test_what_was_committed_before_a_kill_is_there_after_it(home, store):
    for wanted in (1, 20, 3):
        command = [sys.executable, "-c", APPENDING, home.directory]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
            for _ in range(wanted):
                running.stdout.readline()
            running.kill()
            told = [line for line in running.stdout.read().split("\n") if line]
        report = checked(home, store)
        assert report.fault is None
        assert report.seq >= (int(told[-1]) if told else wanted)
    home.open()
