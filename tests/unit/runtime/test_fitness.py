"""Whether a target may be issued from: the last yes holds for a while, a no is looked at again at once."""

from __future__ import annotations

import pytest

from taskpass.core.errors import Conflict, TargetUnavailable, TargetUnfit
from taskpass.issuers.base import Finding, Severity
from taskpass.runtime.fitness import TargetFitness
from taskpass.testing.broker import DEV

FATAL = Finding("trust", Severity.FATAL, "pg_hba trusts host canary")


@pytest.fixture
def looks(h):
    return lambda: h.servers[DEV].calls.count("preflight")


@pytest.fixture
def fitness(h):
    return TargetFitness(h.broker.issuers, lambda issuer: None)


def test_a_target_is_looked_at_before_its_first_use_and_then_trusted(fitness, looks):
    fitness.demand(DEV)
    fitness.demand(DEV)
    assert looks() == 1


def test_a_no_is_looked_at_again_each_time(h, fitness, looks):
    h.servers[DEV].unfit = [FATAL]
    for _ in range(2):
        with pytest.raises(TargetUnfit):
            fitness.demand(DEV)
    assert looks() == 2
    h.servers[DEV].unfit = []
    fitness.demand(DEV)


def test_only_a_fatal_finding_is_a_no(h, fitness):
    h.servers[DEV].unfit = [Finding("x", severity, "m") for severity in Severity if severity is not Severity.FATAL]
    fitness.demand(DEV)
    assert len(fitness.results()[DEV].findings) == 3


def test_a_target_that_is_away_is_a_no(h, fitness):
    h.servers[DEV].down = True
    with pytest.raises(TargetUnavailable):
        fitness.demand(DEV)


def test_what_is_wrong_beyond_the_target_is_a_no(h):
    def copied(issuer):
        raise Conflict("a copy", code="store_restored")

    with pytest.raises(Conflict):
        TargetFitness(h.broker.issuers, copied).demand(DEV)
