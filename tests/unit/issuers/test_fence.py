"""The order of fence and scans, step by step: what real servers show only in a window of microseconds."""

from __future__ import annotations

import pytest

from taskpass.core.errors import NotProven
from taskpass.issuers.postgres import close
from taskpass.issuers.postgres.close import REFUSALS, Closing

NODE = object()
STARTING = (4711, "5/1")


class Scripted(Closing):
    """Closing against a node whose looks are written down: ``scans``, then ``default``, listed sessions."""

    def __init__(self, scans, *, refuses=False, default=0):
        super().__init__(None, None, None, "lse_x", "tp_x", "")
        self.scans = scans
        self.refuses = refuses
        self.default = default
        self.fenced = 0

    def _sweep(self, node, address):
        return self.scans.pop(0) if self.scans else self.default

    def _fence(self, primary, node, address, pending, refused):
        self.fenced += 1
        if self.refuses:
            refused.update(pending)


@pytest.fixture
def starting(monkeypatch):
    """What each look for starting sessions finds; the last one for ever."""

    def script(*looks):
        left = list(looks)
        monkeypatch.setattr(close, "starting", lambda node: set(left.pop(0) if len(left) > 1 else left[0]))

    monkeypatch.setattr(close, "PAUSE", 0)
    return script


def empty(closing):
    closing._empty(NODE, NODE, "here")
    return closing


def test_two_scans_in_a_row_must_be_clean(starting):
    starting([])
    assert empty(Scripted([1, 0, 1, 0, 0, 9])).scans == [9]


def test_a_session_that_comes_to_be_listed_while_it_is_fenced_is_seen_by_a_scan(starting):
    """It leaves the fence because it is listed now: scans from before that moment count for nothing."""
    starting([STARTING], [STARTING], [])
    assert empty(Scripted([0, 0, 1, 0, 0, 9])).scans == [9]


def test_a_starting_session_of_another_role_is_waited_for_only_a_few_times(starting):
    starting([STARTING])
    assert empty(Scripted([], refuses=True)).fenced == REFUSALS


def test_a_starting_session_of_ours_is_fenced_until_it_is_gone(starting):
    starting([STARTING], [STARTING], [STARTING], [STARTING], [STARTING], [])
    assert empty(Scripted([])).fenced == 5


def test_a_session_that_began_after_the_login_was_forbidden_is_not_waited_for(starting):
    starting([STARTING], [(1, "6/1")])
    assert empty(Scripted([])).fenced == 1


def test_a_session_that_does_not_end_makes_it_unproven(starting, monkeypatch):
    monkeypatch.setattr(close, "PATIENCE", 0.05)
    starting([])
    with pytest.raises(NotProven):
        empty(Scripted([], default=1))
