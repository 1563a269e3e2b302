"""Instants: whole milliseconds, never rounded in an agent's favour."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskpass.core.clock import Instant, after, rfc3339, seconds_between


@pytest.mark.parametrize(
    ("start", "end", "seconds"),
    [(0, 0, 0), (0, 999, 0), (0, 1000, 1), (0, 1999, 1), (5, 1004, 0), (1000, 0, 0), (1000, 999, 0)],
)
def test_a_life_is_rounded_down_and_never_negative(start, end, seconds):
    assert seconds_between(Instant(start), Instant(end)) == seconds


@given(st.integers(0, 2**42), st.integers(0, 10**6))
def test_after_and_between_agree(start, seconds):
    assert seconds_between(Instant(start), after(Instant(start), seconds)) == seconds


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (1_767_225_599_999, "2025-12-31T23:59:59.999Z"),
        (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
    ],
)
def test_times_are_written_in_utc_with_three_decimals(at, text):
    assert rfc3339(Instant(at)) == text


@given(st.integers(0, 2**42), st.integers(0, 2**42))
def test_written_times_sort_like_times(one, other):
    assert (rfc3339(Instant(one)) < rfc3339(Instant(other))) == (one < other)
