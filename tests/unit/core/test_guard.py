"""A clock that runs backwards revives nothing and issues nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskpass.core.clock import Instant
from taskpass.core.errors import Conflict
from taskpass.core.guard import TOLERANCE, demand_sane_clock, effective_now

instants = st.integers(0, 2**42).map(Instant)


@given(instants, instants)
def test_time_never_runs_backwards(now, seen):
    assert effective_now(now, seen) >= seen
    assert effective_now(now, seen) in (now, seen)


@given(instants)
def test_a_clock_that_goes_forward_is_sane(now):
    demand_sane_clock(now, now)
    demand_sane_clock(Instant(now + 10**9), now)


@pytest.mark.parametrize(("behind", "sane"), [(0, True), (TOLERANCE, True), (TOLERANCE + 1, False), (10**10, False)])
def test_a_clock_may_be_behind_by_the_tolerance_and_no_more(behind, sane):
    seen = Instant(10**12)
    if sane:
        demand_sane_clock(Instant(seen - behind), seen)
        return
    with pytest.raises(Conflict) as caught:
        demand_sane_clock(Instant(seen - behind), seen)
    assert caught.value.code == "clock_behind"
    assert caught.value.hint
