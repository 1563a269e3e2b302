"""A store that moves to another database arrives whole, once, and the old one is not used any more."""

from __future__ import annotations

from contextlib import closing

import pytest

from taskpass.audit.verify import verify
from taskpass.core.errors import StoreUnavailable, TaskpassError
from taskpass.core.lease import LeaseEvent, LeaseState
from taskpass.keys import files
from taskpass.keys.ed25519 import PublicKeys
from taskpass.store.move import MOVED, move, record
from taskpass.store.open import Create, database_of, open_reader, open_store
from taskpass.store.tables import metadata
from taskpass.testing.suites.records import NOW, Counting, FixedClock, Records, event
from taskpass.testing.suites.store_place import lease_in


class Home:
    """One installation that moves from ``old`` to ``new``; ``access`` is how the new one is entered."""

    def __init__(self, directory, new, access=None):
        directory.chmod(0o700)
        self.key = files.create(directory / "keys", files.AUDIT, entropy=Counting(), at=NOW)
        self.old, self.new, self.access = f"sqlite:///{directory}/taskpass.db", new, access
        self._opened = []

    def open(self, url, create=None):
        made = open_store(
            url, clock=FixedClock(), entropy=Counting(), audit_key=self.key, create=create, access=self.access
        )
        self._opened.append(made)
        return made

    def database(self, url):
        made = database_of(url, self.access, timeout=5)
        self._opened.append(made)
        return made

    def fill(self):
        store = self.open(self.old, Create())
        with store.read() as unit:
            records = Records(unit.installation.id)
        leases = {state: lease_in(store, records, state) for state in LeaseState}
        with store.write() as unit:
            unit.challenges.add("n", verb="approve", subject="s", human="h", expires_at=NOW)
            for number in range(1005):
                unit.audit.append(event(number, task=leases[LeaseState.ACTIVE].task), NOW)
        store.close()
        return leases

    def move(self, new=None):
        return move(self.database(self.old), new or self.database(self.new))

    def close(self):
        for made in self._opened:
            made.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.service)])
def home(request, tmp_path):
    if request.param == "sqlite":
        (tmp_path / "new").mkdir(mode=0o700)
        made = Home(tmp_path, f"sqlite:///{tmp_path}/new/taskpass.db")
        yield made
        made.close()
        return
    place = request.getfixturevalue("store_servers")(16).empty()
    made = Home(tmp_path, place.url, place.access)
    yield made
    made.close()
    place.drop()


def everything(store):
    with store.database.engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(table.select()).all())) for table in metadata.sorted_tables
        }


def code(act):
    with pytest.raises(TaskpassError) as refused:
        act()
    return refused.value.code


def test_every_row_arrives_and_the_rules_hold_there(home):
    leases = home.fill()
    before = everything(open_reader(home.old))
    moved = home.move()
    new = home.open(home.new)
    assert everything(new) == before
    assert moved.rows["leases"] == len(LeaseState)
    assert moved.seq == 1005
    with new.write() as unit:
        unit.leases.advance(leases[LeaseState.ACTIVE].id, LeaseEvent.TAKE_BACK, NOW, reason="moved")
        unit.audit.append(event(), NOW)
    with pytest.raises(TaskpassError), new.write() as unit:
        unit.audit.append(event(), NOW, above=5000)
    with new.read() as unit:
        assert unit.leases.get(leases[LeaseState.ACTIVE].id).state is LeaseState.CLOSING
        owner = unit.installation.id
    assert verify(new.iterate_audit(), owner, PublicKeys([home.key.public])).ok


def test_the_old_store_is_not_opened_any_more_and_says_where_it_went(home):
    home.fill()
    moved = home.move()
    with pytest.raises(StoreUnavailable) as refused:
        home.open(home.old)
    assert refused.value.code == "store_moved"
    assert moved.place in refused.value.message
    assert len(list(open_reader(home.old).iterate_audit())) == 1005, "an auditor still reads it"


def test_the_same_move_again_changes_nothing_also_when_the_new_store_went_on(home):
    home.fill()
    first = home.move()
    new = home.open(home.new)
    record(new, first, "there", "human:ana", FixedClock())
    record(new, first, "there", "human:ana", FixedClock())
    again = home.move()
    assert (again.seq, again.head) == (first.seq, first.head)
    events = [item for item in new.iterate_audit() if f'"event":"{MOVED}"' in item.body]
    assert len(events) == 1


def test_a_store_that_was_moved_is_not_moved_elsewhere(home, tmp_path):
    home.fill()
    home.move()
    (tmp_path / "third").mkdir(mode=0o700)
    third = home.database(f"sqlite:///{tmp_path}/third/taskpass.db")
    assert code(lambda: home.move(third)) == "store_moved"


def test_another_store_is_never_written_over(home):
    home.fill()
    theirs = home.open(home.new, Create())
    with theirs.write() as unit:
        unit.audit.append(event(7), NOW)
    before = everything(theirs)
    assert code(home.move) == "store_exists"
    assert everything(theirs) == before


class Killed(BaseException):
    """What stands for a process that is killed at a commit."""


class Fragile:
    """A database in which the process dies ``before`` or ``after`` the commit of the copy."""

    def __init__(self, inner, when, error):
        self._inner, self._when, self._error = inner, when, error

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def commit(self, connection):
        if self._when == "before":
            raise self._error
        self._inner.commit(connection)
        if self._when == "after":
            raise self._error


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_move_that_was_cut_off_at_its_commit_is_finished_by_the_same_move(home, when):
    home.fill()
    before = everything(open_reader(home.old))
    with pytest.raises((Killed, TaskpassError)):
        home.move(Fragile(home.database(home.new), when, Killed()))
    home.move()
    assert everything(home.open(home.new)) == before
    assert code(lambda: home.open(home.old)) == "store_moved"


def test_a_move_that_fails_leaves_the_old_store_in_use(home):
    home.fill()
    full = StoreUnavailable("no space", code="store_full")
    assert code(lambda: home.move(Fragile(home.database(home.new), "before", full))) == "store_full"
    with home.open(home.old).write() as unit:
        unit.audit.append(event(), NOW)
    assert home.move().seq == 1006


def test_a_move_that_cannot_tell_whether_the_copy_arrived_leaves_the_old_store_sealed(home):
    home.fill()
    lost = StoreUnavailable("the connection is gone")
    with pytest.raises(StoreUnavailable):
        home.move(Fragile(home.database(home.new), "after", lost))
    assert code(lambda: home.open(home.old)) == "store_moved"
    assert home.move().seq == 1005


def test_a_server_does_not_end_the_copy_of_a_large_store_while_the_other_side_is_read(home):
    home.fill()
    seen = []

    class Looking(Fragile):
        def commit(self, connection):
            if connection.dialect.name == "postgresql":
                seen.append(connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar())
            self._inner.commit(connection)

    new = home.database(home.new)
    home.move(Looking(new, "", None))
    assert seen == (["0"] if new.kind == "PostgreSQL" else [])
    with new.begin(writes=False) as connection:
        if new.kind == "PostgreSQL":
            assert connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar() == "15s"


def test_a_broker_that_has_the_old_store_open_changes_nothing_in_it_any_more(home):
    leases = home.fill()
    late = home.open(home.old)
    home.move()

    def act(change):
        with late.write() as unit:
            change(unit)

    assert code(lambda: act(lambda unit: unit.audit.append(event(), NOW))) == "store_moved"
    assert code(lambda: act(lambda unit: unit.owners.beat("brk_late", "laptop"))) == "store_moved"
    with late.read() as unit:
        assert unit.leases.get(leases[LeaseState.ACTIVE].id).state is LeaseState.ACTIVE
    assert home.move().seq == 1005, "and finishing the move leaves it so"
    assert code(lambda: act(lambda unit: unit.audit.append(event(), NOW))) == "store_moved"


@pytest.mark.service
def test_a_store_on_a_server_is_sealed_as_well(store_servers):
    old, new = store_servers(16).fresh(), store_servers(16).empty()
    late = old.open()
    ends = [database_of(each.url, each.access, timeout=5) for each in (old, new)]
    with closing(ends[0]), closing(ends[1]):
        move(*ends)
    with pytest.raises(StoreUnavailable) as refused, late.write() as unit:
        unit.audit.append(event(), NOW)
    assert refused.value.code == "store_moved"
    for each in (old, new):
        each.drop()
