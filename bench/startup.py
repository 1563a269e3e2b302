"""A start with many live leases in the store, and what those cost the sweeper and people while they live.

A start: until everything an earlier process served is taken back and recorded; nothing is served before that. The
leases stand in the store only, because a start does not touch their roles: closing them is measured by ``storm``.
``python -m bench.startup 20000`` is the figure of the issue.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench.common import Figures, milliseconds
from bench.crowd import Crowd
from taskpass.broker.context import Broker
from taskpass.broker.reconcile import issuers_of_all, take_back_unserved
from taskpass.broker.renew_lease import end_wider_leases, renew_leases
from taskpass.core.lease import LeaseState

LEASES = 20_000


def run(figures: Figures, leases: int = LEASES) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="tp-start-") as directory,
        Crowd(Path(directory), leases=leases, roles=False) as crowd,
    ):
        _alive(figures, crowd.broker, leases)
        took = milliseconds(lambda: take_back_unserved(crowd.broker))
        assert crowd.counts()[LeaseState.CLOSING] == leases
    figures.note(f"start with {leases} live leases: all taken back and recorded in {took / 1000:.2f} s")
    figures.at_most("taking back at start", took / leases, 1, "ms a lease")


def _alive(figures: Figures, broker: Broker, leases: int) -> None:
    """The sweeper's looks at what lives, none of which finds anything to do, and the count that people ask for."""
    renew = milliseconds(lambda: renew_leases(broker))
    alike = milliseconds(lambda: end_wider_leases(broker))
    with broker.store.read() as unit:
        assert unit.leases.count_by_state() == {LeaseState.ACTIVE: leases}
    targets = milliseconds(lambda: issuers_of_all(broker))
    count = milliseconds(lambda: _count(broker))
    figures.note(
        f"with {leases} live leases: what is due for renewal {renew:.0f} ms (every second), manifests {alike:.0f} ms"
        f" (every 15 s), targets {targets:.0f} ms (every 5 s), counting them for people {count:.0f} ms"
    )
    figures.at_most("looking for what is to be renewed", renew, 500, "ms")
    figures.at_most("looking whether a manifest has become wider", alike, 1500, "ms")


def _count(broker: Broker) -> None:
    with broker.store.read() as unit:
        unit.leases.count_by_state()
        unit.leases.unproven()


if __name__ == "__main__":
    run(Figures(), *(int(word) for word in sys.argv[1:2]))
