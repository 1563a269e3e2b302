"""The triggers against hand-written statements, with a connection that has none of our settings."""

from __future__ import annotations

import sqlite3

import pytest

from taskpass.core.errors import StoreUnavailable
from taskpass.core.request import RequestState
from taskpass.store.tables import metadata
from taskpass.testing.suites.records import NOW, Records, event

GUARDED = sorted(metadata.tables.keys() - {"challenges"})


@pytest.fixture
def filled(home, store):
    """A store with a row in every table; the request's id."""
    records = Records("0000000z")
    run = records.run()
    task = records.task(run=run.id)
    request = records.request(task.id)
    approval = records.approval(request.id)
    grant = records.grant(request)
    with store.write() as unit:
        unit.runs.add(run)
        unit.tasks.add(task)
        unit.requests.add(request)
        unit.approvals.add(approval)
        unit.grants.add(grant)
        unit.approvals.consume([approval.id], grant.id)
        unit.leases.add(lease := records.lease(grant))
        unit.aftermaths.add(records.aftermath(lease))
        unit.scripts.add("sha256:00", "SELECT 1")
        unit.owners.beat("brk_1", "laptop")
        unit.owners.give("lse_1", "brk_1")
        unit.audit.append(event(task=task.id), NOW)
    return request.id


@pytest.mark.parametrize("table", GUARDED)
@pytest.mark.parametrize("verb", ["INSERT OR REPLACE", "INSERT OR IGNORE", "REPLACE", "INSERT"])
def test_a_row_cannot_be_put_in_place_of_another(home, filled, table, verb):
    assert home.raw(f"SELECT COUNT(*) FROM {table}") == [(1,)]
    with pytest.raises(sqlite3.IntegrityError, match="taskpass"):
        home.raw(f"{verb} INTO {table} SELECT * FROM {table}")


@pytest.mark.parametrize("table", GUARDED)
def test_a_row_cannot_be_deleted(home, filled, table):
    with pytest.raises(sqlite3.IntegrityError, match="never deleted"):
        home.raw(f"DELETE FROM {table}")


@pytest.mark.parametrize("state", ["active", "closing", "closed", "cleaned", "immortal", ""])
def test_a_lease_cannot_be_put_in_past_its_beginning(home, filled, state):
    columns = [column.name for column in metadata.tables["leases"].columns]
    values = [{"id": "'new'", "role": "'new'", "state": f"'{state}'"}.get(name, f'"{name}"') for name in columns]
    with pytest.raises(sqlite3.IntegrityError, match="illegal transition"):
        home.raw(f"INSERT INTO leases SELECT {', '.join(values)} FROM leases")


FIXED = {
    "runs": {"namespace", "separation", "ended_at"},
    "tasks": {"state", "ended_at", "reason"},
    "requests": {"state", "lapses_at", "decided_at", "comment"},
    "leases": {
        *("state", "expires_at", "renewals", "reason", "closing_at", "closed_at", "proof"),
        *("attempts", "retry_at", "last_error", "incidents"),
    },
    "aftermaths": {
        *("state", "before", "ran", "widening", "error", "looked_at", "decided_at", "decided_by", "comment"),
    },
    "installation": {"epoch", "latest_seen"},
    "brokers": {"machine", "seen_at"},
    "owners": {"broker", "token"},
}
"""What may change, of the tables of which anything may."""


@pytest.mark.parametrize("table", GUARDED)
def test_what_a_row_is_about_cannot_be_changed(home, filled, table):
    for column in metadata.tables[table].columns:
        if column.name not in FIXED.get(table, ()):
            with pytest.raises(sqlite3.IntegrityError, match="never changes"):
                home.raw(f'UPDATE {table} SET "{column.name}" = "{column.name}"')


def test_a_run_is_bound_and_ended_once(home, filled):
    home.raw("UPDATE runs SET namespace = 'boot/1', separation = 'sandbox'")
    for change in ("namespace = ''", "namespace = 'boot/2'", "separation = 'host'"):
        with pytest.raises(sqlite3.IntegrityError, match="bound once"):
            home.raw(f"UPDATE runs SET {change}")
    home.raw("UPDATE runs SET ended_at = 5")
    for change in ("NULL", "6"):
        with pytest.raises(sqlite3.IntegrityError, match="ends once"):
            home.raw(f"UPDATE runs SET ended_at = {change}")


def test_time_and_epoch_go_forward_only(home, store):
    home.raw("UPDATE installation SET latest_seen = latest_seen + 1, epoch = epoch + 1")
    for column in ("latest_seen", "epoch"):
        with pytest.raises(sqlite3.IntegrityError, match="never go back"):
            home.raw(f"UPDATE installation SET {column} = {column} - 1")


def test_a_second_installation_cannot_be_put_beside_the_first(home, store):
    with pytest.raises(sqlite3.IntegrityError):
        home.raw("INSERT INTO installation SELECT 2, 'x', 1, 1, 0, 0")


@pytest.mark.parametrize("column", ["manifest", "scope", "decision", "separation", "environment"])
def test_a_row_that_was_damaged_is_said_to_be_damaged(home, store, filled, column):
    home.raw("DROP TRIGGER requests_fixed", f"UPDATE requests SET {column} = '[]'")
    with store.read() as unit, pytest.raises(StoreUnavailable) as found:
        unit.requests.list(state=RequestState.PENDING)
    assert found.value.code == "store_corrupt"
