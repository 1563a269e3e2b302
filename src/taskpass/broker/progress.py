"""What running files have told so far. In memory only: after a restart only the recorded end is left."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from taskpass.core.aftermath import Ran
from taskpass.core.ids import LeaseId
from taskpass.issuers.base import Progress

MAX_STEPS = 4000
"""Steps of one run that are kept: two for each of a thousand statements, notices, and the failure."""

MAX_RUNS = 64


@dataclass(slots=True)
class _Run:
    steps: list[Progress] = field(default_factory=list[Progress])
    ran: Ran | None = None
    """Set when everything is over, the closing included."""


class ProgressBook:
    """Runs by lease; of ``MAX_RUNS`` and more the oldest are forgotten. Safe in several threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._runs: OrderedDict[LeaseId, _Run] = OrderedDict()

    def open(self, lease: LeaseId) -> None:
        with self._changed:
            self._runs[lease] = _Run()
            while len(self._runs) > MAX_RUNS:
                self._runs.popitem(last=False)

    def tell(self, lease: LeaseId, step: Progress) -> None:
        with self._changed:
            run = self._runs.get(lease)
            if run and len(run.steps) < MAX_STEPS:
                run.steps.append(step)
            self._changed.notify_all()

    def finish(self, lease: LeaseId, ran: Ran) -> None:
        with self._changed:
            if lease in self._runs:
                self._runs[lease].ran = ran
            self._changed.notify_all()

    def read(self, lease: LeaseId, after: int, seconds: float) -> tuple[list[Progress], Ran | None]:
        """Steps from number ``after`` on, as soon as there are any or the run is over; waits ``seconds`` at most."""
        with self._changed:
            self._changed.wait_for(lambda: self._news(lease, after), seconds)
            run = self._runs.get(lease) or _Run()
            return run.steps[after:], run.ran

    def knows(self, lease: LeaseId) -> bool:
        with self._changed:
            return lease in self._runs

    def _news(self, lease: LeaseId, after: int) -> bool:
        run = self._runs.get(lease)
        return run is None or run.ran is not None or len(run.steps) > after
