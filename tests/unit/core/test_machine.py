"""State machines: every pair of every table, and nothing else."""

from __future__ import annotations

import pytest

from taskpass.core.errors import IllegalTransition
from taskpass.core.lease import LEASE_TABLE, UNENDED, LeaseEvent, LeaseState
from taskpass.core.machine import advance, pairs, terminal
from taskpass.core.request import REQUEST_TABLE, RequestEvent, RequestState
from taskpass.core.task import TASK_TABLE, TaskEvent, TaskState

MACHINES = {
    "lease": (LEASE_TABLE, LeaseState, LeaseEvent),
    "request": (REQUEST_TABLE, RequestState, RequestEvent),
    "task": (TASK_TABLE, TaskState, TaskEvent),
}
EVERY = [
    pytest.param(table, state, event, id=f"{name}-{state}-{event}")
    for name, (table, states, events) in MACHINES.items()
    for state in states
    for event in events
]


@pytest.mark.parametrize(("table", "state", "event"), EVERY)
def test_a_listed_pair_advances_and_any_other_raises(table, state, event):
    if event in table[state]:
        assert advance(table, state, event) is table[state][event]
        return
    with pytest.raises(IllegalTransition) as caught:
        advance(table, state, event)
    assert caught.value.code == "illegal_transition"


@pytest.mark.parametrize("name", MACHINES)
def test_a_table_lists_every_state_and_reaches_it(name):
    table, states, _ = MACHINES[name]
    assert set(table) == set(states)
    first = next(iter(states))
    reached, open_ = {first}, [first]
    while open_:
        for target in table[open_.pop()].values():
            if target not in reached:
                reached.add(target)
                open_.append(target)
    assert reached == set(states)


def test_a_state_that_the_table_does_not_know_raises():
    with pytest.raises(IllegalTransition):
        advance({}, LeaseState.ACTIVE, LeaseEvent.RENEW)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("lease", {LeaseState.CLEANED}),
        ("task", {TaskState.COMPLETED}),
        (
            "request",
            {RequestState.FULFILLED, RequestState.DENIED, RequestState.CANCELLED, RequestState.EXPIRED},
        ),
    ],
)
def test_nothing_leaves_an_end(name, ends):
    assert terminal(MACHINES[name][0]) == ends


def test_a_lease_that_may_be_usable_leaves_that_state_by_proof_or_write_off_only():
    ways = {event for state in UNENDED for event, target in LEASE_TABLE[state].items() if target not in UNENDED}
    assert ways == {LeaseEvent.PROVEN, LeaseEvent.WRITE_OFF}


def test_a_closing_lease_never_becomes_active_again():
    assert ("closing", "active") not in pairs(LEASE_TABLE)
    assert ("closed", "active") not in pairs(LEASE_TABLE)


def test_pairs_are_what_the_store_enforces():
    assert pairs(TASK_TABLE) == {("open", "completed")}
    assert pairs(LEASE_TABLE) == {
        ("intended", "active"),
        ("intended", "closing"),
        ("active", "active"),
        ("active", "closing"),
        ("closing", "closed"),
        ("closed", "cleaned"),
    }
