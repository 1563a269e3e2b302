"""When the broker's own passwords are replaced: at its start and daily, and how that went.

Not for how one is replaced, which is ``broker.rotate_login``'s.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from taskpass.broker.context import Broker
from taskpass.broker.rotate_login import Kept, rotate_login
from taskpass.core.clock import SECOND, Instant
from taskpass.core.errors import TaskpassError

DAY = 24 * 3600 * SECOND


class Rotation:
    """One per broker process. ``run`` may be called as often as one likes; what is not due costs nothing."""

    def __init__(self, broker: Broker, kept: Sequence[Kept]) -> None:
        self._broker = broker
        self._kept = kept
        self._lock = threading.Lock()
        self._rotated: dict[str, Instant] = {}
        self._failed: dict[str, TaskpassError] = {}

    def run(self) -> int:
        """Replace what is due; the number replaced. A target that does not answer is tried again at the next call."""
        return sum(self._rotate(kept) for kept in self._kept if self._is_due(kept))

    def report(self) -> Mapping[str, object]:
        """For each resource with a password of ours: how long ago it was replaced (seconds), and why not since."""
        now = self._broker.clock.now()
        with self._lock:
            return {resource: self._state(kept, now) for kept in self._kept for resource in kept.resources}

    def _state(self, kept: Kept, now: Instant) -> dict[str, object]:
        last, error = _last(kept), self._failed.get(kept.file)
        age = None if last is None else max(0, (now - last) // SECOND)
        return {"age_seconds": age, "error": error.to_json() if error else None}

    def _is_due(self, kept: Kept) -> bool:
        with self._lock:
            last = self._rotated.get(kept.file)
        now = self._broker.clock.now()
        # A clock that was set back makes it due too: an unneeded rotation does no harm.
        return last is None or not last <= now < last + DAY

    def _rotate(self, kept: Kept) -> bool:
        try:
            at = rotate_login(self._broker, kept)
        except TaskpassError as error:
            with self._lock:
                self._failed[kept.file] = error
            return False
        with self._lock:
            self._rotated[kept.file] = at
            self._failed.pop(kept.file, None)
        return True


def _last(kept: Kept) -> Instant | None:
    try:
        return kept.read().rotated_at
    except TaskpassError:
        return None
