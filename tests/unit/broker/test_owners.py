"""Several brokers on one store: who may work on what, and who counts as dead. Two clocks in the test's hands."""

from __future__ import annotations

import pytest

from taskpass.broker.owners import DEAD_AFTER, Owners
from taskpass.core.errors import Conflict
from taskpass.core.lease import LeaseState
from taskpass.store.base import Owner


class SharedStore:
    """What the brokers share: ``store.base.Owners`` in memory, with the database's clock, and the leases' states."""

    def __init__(self):
        self.now, self.seen, self.owned, self.states = 1000.0, {}, {}, {}
        self.owners = self.leases = self

    def beat(self, broker, machine):
        self.seen[broker] = (self.now, machine)

    def end(self, broker):
        self.seen[broker] = (0, self.seen[broker][1])

    def alive(self, seconds):
        return frozenset(self.machines(seconds))

    def machines(self, seconds):
        return {broker: machine for broker, (at, machine) in self.seen.items() if at and at > self.now - seconds}

    def give(self, subject, broker):
        assert broker in self.seen
        token = self.owned[subject].token + 1 if subject in self.owned else 1
        self.owned[subject] = Owner(broker, token)
        return token

    def of(self, subjects):
        return {subject: self.owned[subject] for subject in subjects if subject in self.owned}

    def ids(self, states):
        return [lease for lease, state in self.states.items() if state in states]


class Two:
    """Brokers ``a`` and ``b``. Time passes for the store and for both; who is not in ``forward`` is not seen."""

    def __init__(self):
        self.unit, self.clock = SharedStore(), 0.0
        self.a, self.b = Owners("brk_a", lambda: self.clock), Owners("brk_b", lambda: self.clock)
        self.beat(self.a, self.b)
        self.forward(DEAD_AFTER, self.a, self.b)

    def beat(self, *brokers):
        for each in brokers:
            each.beat(self.unit, "here")

    def forward(self, seconds, *seen):
        """A second at a time, in which those that live are seen."""
        for _ in range(seconds):
            self.clock += 1
            self.unit.now += 1
            self.beat(*seen)


@pytest.fixture
def two():
    return Two()


def test_what_another_broker_serves_is_not_ours_and_what_nobody_owns_is(two):
    two.a.take(two.unit, "lse_1")
    two.b.take(two.unit, "lse_2")
    every = ["lse_1", "lse_2", "lse_3"]
    assert two.a.mine(two.unit, every) == ["lse_1", "lse_3"]
    assert two.a.free(two.unit, every) == ["lse_1", "lse_3"]
    assert two.a.orphaned(two.unit, every) == []
    assert two.a.claim(two.unit, "lse_2") is None
    with pytest.raises(Conflict):
        two.a.demand(two.unit, "lse_2", None)


def test_what_the_dead_served_is_free_after_a_while_and_not_before(two):
    two.b.take(two.unit, "lse_2")
    two.forward(DEAD_AFTER - 1, two.a)
    assert two.a.orphaned(two.unit, ["lse_2"]) == []
    two.forward(1, two.a)
    assert two.a.orphaned(two.unit, ["lse_2"]) == ["lse_2"]
    assert two.a.living(two.unit) == {"brk_a": "here"}


def test_who_says_goodbye_leaves_everything_free_at_once(two):
    two.b.take(two.unit, "lse_2")
    two.b.end(two.unit)
    assert two.a.orphaned(two.unit, ["lse_2"]) == ["lse_2"]


def test_a_broker_that_was_paused_lost_what_was_taken_over_and_may_not_confirm_it(two):
    two.b.take(two.unit, "lse_2")
    held = two.b.claim(two.unit, "lse_2")
    two.forward(DEAD_AFTER, two.a)
    taken = two.a.claim(two.unit, "lse_2")
    assert taken.token == held.token + 1
    for with_what in (held, None):
        with pytest.raises(Conflict) as refused:
            two.b.demand(two.unit, "lse_2", with_what)
        assert refused.value.code == "taken_over"
    two.a.demand(two.unit, "lse_2", taken)
    assert two.b.mine(two.unit, ["lse_2"]) == []


def test_a_lease_that_came_back_to_the_same_broker_has_another_token(two):
    two.a.take(two.unit, "lse_1")
    held = two.a.claim(two.unit, "lse_1")
    two.b.take(two.unit, "lse_1")
    two.a.take(two.unit, "lse_1")
    with pytest.raises(Conflict):
        two.a.demand(two.unit, "lse_1", held)


def test_who_was_away_from_the_store_judges_nobody_until_the_others_had_time_to_be_seen(two):
    """As when the store was down for all: each finds the others unseen, and none is dead."""
    two.b.take(two.unit, "lse_2")
    two.forward(10 * DEAD_AFTER)
    two.beat(two.a)
    assert two.a.orphaned(two.unit, ["lse_2"]) == []
    two.forward(DEAD_AFTER - 1, two.a)
    assert two.a.orphaned(two.unit, ["lse_2"]) == []
    two.forward(1, two.a)
    assert two.a.orphaned(two.unit, ["lse_2"]) == ["lse_2"], "and now it had its time"


def test_who_has_just_started_judges_nobody_yet(two):
    two.b.take(two.unit, "lse_2")
    two.forward(2 * DEAD_AFTER, two.a)
    late = Owners("brk_c", lambda: two.clock)
    two.beat(late)
    assert late.free(two.unit, ["lse_2"]) == []
    two.forward(DEAD_AFTER, two.a, late)
    assert late.free(two.unit, ["lse_2"]) == ["lse_2"]


def test_one_broker_leads_and_another_does_when_it_is_gone(two):
    assert (two.a.leads(two.unit), two.b.leads(two.unit)) == (True, False)
    two.forward(DEAD_AFTER, two.b)
    assert two.b.leads(two.unit)


def test_nothing_is_confirmed_with_what_was_never_held(two):
    two.a.take(two.unit, "lse_1")
    with pytest.raises(Conflict):
        two.a.demand(two.unit, "lse_1", two.a.unconfirmable)


def test_what_is_served_here_and_was_taken_back_elsewhere_is_named(two):
    for lease, state in (("lse_1", LeaseState.ACTIVE), ("lse_2", LeaseState.CLOSED), ("lse_3", LeaseState.CLOSING)):
        two.unit.states[lease] = state
        two.a.serves(lease)
    assert two.a.served_in_vain(two.unit) == ["lse_2", "lse_3"]
    two.a.serves_no_more("lse_2")
    assert two.a.served_in_vain(two.unit) == ["lse_3"]
    assert two.b.served_in_vain(two.unit) == []


def test_where_there_is_one_broker_everything_is_its_own_and_nothing_is_asked_or_written():
    alone, nothing = Owners(), object()
    alone.take(nothing, "lse_1")
    for choose in (alone.mine, alone.free):
        assert choose(nothing, ["lse_1"]) == ["lse_1"]
    assert alone.orphaned(nothing, ["lse_1"]) == []
    assert alone.claim(nothing, "lse_1") == alone.unconfirmable
    alone.demand(nothing, "lse_1", None)
    assert alone.leads(nothing)
    assert alone.living(nothing) == {}
