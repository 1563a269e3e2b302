"""When drills are played by themselves, and when the last one is an alarm."""

from __future__ import annotations

from dataclasses import replace

import pytest

from taskpass.broker.drill import drill
from taskpass.broker.drill_schedule import RETRY_SECONDS, SLACK_SECONDS, drill_due, drill_states
from taskpass.testing.broker import DEV, PRODUCTION, STAGING

HOUR = 3600


@pytest.fixture
def scheduled(h):
    config = h.broker.config
    return replace(h.broker, config=replace(config, broker=replace(config.broker, drill_every=HOUR)))


def test_without_a_schedule_none_is_played(h):
    assert drill_due(h.broker) == 0
    assert drill_states(h.broker) == {DEV: None, STAGING: None, PRODUCTION: None}


def test_each_resource_is_drilled_when_its_time_has_come(h, scheduled):
    assert drill_due(scheduled) == 3
    assert drill_due(scheduled) == 0
    h.clock.forward(HOUR - 1)
    assert drill_due(scheduled) == 0
    h.clock.forward(1)
    assert drill_due(scheduled) == 3


def test_a_drill_by_hand_counts(h, scheduled):
    drill(h.broker, DEV, actor="human:dora")
    assert drill_due(scheduled) == 2


def test_one_that_failed_is_played_again_sooner(h, scheduled):
    h.servers[DEV].down = True
    assert drill_due(scheduled) == 3
    h.servers[DEV].down = False
    assert drill_states(scheduled)[DEV]["passed"] is False
    h.clock.forward(RETRY_SECONDS)
    assert drill_due(scheduled) == 1
    assert drill_states(scheduled)[DEV]["passed"] is True


def test_a_target_that_is_away_keeps_no_other_one_from_being_drilled(h, scheduled):
    h.servers[DEV].down = True
    drill_due(scheduled)
    assert [drill_states(scheduled)[name]["passed"] for name in (DEV, STAGING, PRODUCTION)] == [False, True, True]


def test_a_schedule_that_was_not_kept_is_an_alarm(h, scheduled):
    drill_due(scheduled)
    h.clock.forward(2 * HOUR + SLACK_SECONDS)
    assert drill_states(scheduled)[DEV]["overdue"] is False
    h.clock.forward(1)
    assert drill_states(scheduled)[DEV]["overdue"] is True
    assert drill_states(h.broker)[DEV]["overdue"] is False, "nothing was scheduled"


def test_the_last_one_is_known_after_a_restart(h, scheduled):
    drill_due(scheduled)
    h.restart()
    assert drill_states(h.broker)[DEV]["passed"] is True
