"""A start with many live leases in the store: until everything an earlier process served is taken back and recorded.

Nothing is served before that. ``python -m bench.startup 20000`` is the figure of the issue.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench.common import Figures, milliseconds
from bench.crowd import Crowd
from taskpass.broker.reconcile import take_back_unserved
from taskpass.core.lease import LeaseState

LEASES = 1_000


def run(figures: Figures, leases: int = LEASES) -> None:
    with tempfile.TemporaryDirectory(prefix="tp-start-") as directory, Crowd(Path(directory), leases=leases) as crowd:
        took = milliseconds(lambda: take_back_unserved(crowd.broker))
        assert crowd.counts()[LeaseState.CLOSING] == leases
    figures.note(f"start with {leases} live leases: all taken back and recorded in {took / 1000:.2f} s")
    figures.at_most("taking back at start", took / leases, 1, "ms a lease")


if __name__ == "__main__":
    run(Figures(), *(int(word) for word in sys.argv[1:2]))
