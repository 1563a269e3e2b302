"""Statements that go straight to the driver say the same as those that the library runs."""

from __future__ import annotations

import pytest
from sqlalchemy import bindparam, insert, select, update

from taskpass.core.errors import Conflict, Internal
from taskpass.store.kept import Kept
from taskpass.store.session import Session
from taskpass.store.tables import brokers
from taskpass.testing.suites.records import NOW, event

ROWS = [{"id": f"brk_{n}", "machine": "m", "seen_at": n} for n in range(3)]
FOUND = select(brokers).where(brokers.c.machine == bindparam("machine"), brokers.c.seen_at >= 1).order_by(brokers.c.id)


@pytest.fixture
def session(store):
    connection = store.database.begin(writes=True)
    yield Session(connection, store.database, writable=True)
    connection.close()


def test_rows_counts_and_values_of_the_statement_itself_are_those_of_the_library(session):
    assert session.change(Kept(insert(brokers)), ROWS[0]) == 1
    assert session.change(Kept(insert(brokers)), ROWS[1:]) == 2
    found = Kept(FOUND)
    for _ in range(2):
        rows = session.rows(found, {"machine": "m"})
        assert rows == [dict(row) for row in session.rows(FOUND, {"machine": "m"})] == ROWS[1:]
    assert session.first(found, {"machine": "none"}) is None
    assert (
        session.change(Kept(update(brokers).where(brokers.c.seen_at < bindparam("at")).values(seen_at=9)), {"at": 2})
        == 2
    )


def test_a_statement_with_a_list_in_it_is_refused(session):
    listed = select(brokers).where(brokers.c.id.in_(bindparam("several", expanding=True)))
    with pytest.raises(Internal):
        session.rows(Kept(listed), {"several": ["a", "b"]})


@pytest.mark.parametrize("row", [{**ROWS[1], "more": 1}, {"id": "brk_9", "machine": "m"}])
def test_values_of_other_names_than_before_are_refused_and_none_is_left_out(session, row):
    kept = Kept(insert(brokers))
    session.change(kept, ROWS[0])
    with pytest.raises(Internal):
        session.change(kept, row)


def test_an_error_of_the_driver_becomes_ours_and_spends_the_unit(session):
    session.change(Kept(insert(brokers)), ROWS[0])
    with pytest.raises(Conflict):
        session.change(Kept(insert(brokers)), ROWS[0])
    with pytest.raises(Internal):
        session.rows(Kept(FOUND), {"machine": "m"})


def test_a_record_can_be_appended_through_each_connection_of_the_pool(store):
    for number in range(3):
        with store.read(), store.write() as unit:
            unit.audit.append(event(number), NOW)
    with store.read() as unit:
        assert unit.audit.head()[0] == 3
