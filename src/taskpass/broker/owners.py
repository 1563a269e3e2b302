"""Several brokers on one store: who serves a lease or a run, who finishes its work, and who takes over from the dead.

A lease belongs to the broker that makes it, and from its closing on to the one that took it back: one closes and cleans
it, because a second close would replace the password that the first one's proof needs. Whoever serves a lease or run
must be seen in the store again and again; what belongs to a broker that is not is free for the others. The token of
``store.base.Owner`` is what a broker that was paused meanwhile lacks: its confirmation is refused.

Not for a store with one broker, where everything is its own and nothing is asked or written.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from taskpass.core.errors import Conflict
from taskpass.core.ids import LeaseId
from taskpass.core.lease import LeaseState
from taskpass.store.base import Owner, Unit

BEAT_SECONDS = 2
DEAD_AFTER = 10
"""Seconds without being seen, by the store's clock, after which a broker's work is free for the others."""

_FOR_EVER = 10**9
_ALONE = Owner("", 0)

S = TypeVar("S", bound=str)


class Owners:
    """``me`` is this broker on the store it shares with others; empty where it is the only one."""

    def __init__(self, me: str = "", monotonic: Callable[[], float] = lambda: 0.0) -> None:
        self.me = me
        self._monotonic = monotonic
        self._beaten = -math.inf
        self._judges_from = -math.inf
        self._lock = threading.Lock()
        self._served: set[LeaseId] = set()

    @property
    def shared(self) -> bool:
        return bool(self.me)

    @property
    def unconfirmable(self) -> Owner:
        """What no confirmation goes through with, where there are others."""
        return Owner(self.me, -1) if self.shared else _ALONE

    def beat(self, unit: Unit, machine: str) -> None:
        """Seen now. Who could not reach the store for a while judges nobody until the others had time to be seen."""
        unit.owners.beat(self.me, machine)
        now = self._monotonic()
        if now - self._beaten > DEAD_AFTER / 2:
            self._judges_from = now + DEAD_AFTER
        self._beaten = now

    def living(self, unit: Unit) -> dict[str, str]:
        """The brokers that are seen on the store, with the machine that each is on; empty where there is only this."""
        return unit.owners.machines(DEAD_AFTER) if self.shared else {}

    def _alive(self, unit: Unit) -> frozenset[str]:
        """Those that count as living: all that did not say that they ended, while this broker cannot judge."""
        return unit.owners.alive(DEAD_AFTER if self._monotonic() >= self._judges_from else _FOR_EVER)

    def end(self, unit: Unit) -> None:
        unit.owners.end(self.me)

    def take(self, unit: Unit, subject: str) -> None:
        """It is this broker's from now on, with a new token."""
        if self.shared:
            unit.owners.give(subject, self.me)

    def mine(self, unit: Unit, subjects: Sequence[S]) -> list[S]:
        """Those that this broker owns, and those that nobody does."""
        if not self.shared:
            return list(subjects)
        found = unit.owners.of(subjects)
        return [subject for subject in subjects if subject not in found or found[subject].broker == self.me]

    def free(self, unit: Unit, subjects: Sequence[S]) -> list[S]:
        """As ``mine``, and those of brokers that are dead."""
        if not self.shared:
            return list(subjects)
        found, alive = unit.owners.of(subjects), self._alive(unit) - {self.me}
        return [subject for subject in subjects if subject not in found or found[subject].broker not in alive]

    def orphaned(self, unit: Unit, subjects: Sequence[S]) -> list[S]:
        """Those of other brokers that are dead."""
        own = set(self.mine(unit, subjects))
        return [subject for subject in self.free(unit, subjects) if subject not in own]

    def held(self, unit: Unit, subject: str) -> Owner | None:
        """What this broker works on ``subject`` with; None if it has to claim it first."""
        if not self.shared:
            return _ALONE
        found = unit.owners.of([subject]).get(subject)
        return found if found and found.broker == self.me else None

    def claim(self, unit: Unit, subject: str) -> Owner | None:
        """The token to work on ``subject`` with; it is taken over if its owner is dead, and None if another lives."""
        if not self.shared:
            return _ALONE
        if not self.free(unit, [subject]):
            return None
        return self.held(unit, subject) or Owner(self.me, unit.owners.give(subject, self.me))

    def demand(self, unit: Unit, subject: str, held: Owner | None) -> None:
        """Raise if somebody else took ``subject`` over since ``held`` was given: what was done since is not ours."""
        found = self.held(unit, subject)
        if self.shared and (found is None or (held is not None and held != found)):
            raise Conflict("another broker has taken this over", code="taken_over")

    def leads(self, unit: Unit) -> bool:
        """Whether this broker does what one of them has to do. Two that think so do no harm, only the work twice."""
        return not self.shared or self.me == min(self._alive(unit) | {self.me})

    def serves(self, lease_id: LeaseId) -> None:
        with self._lock:
            self._served.add(lease_id)

    def serves_no_more(self, lease_id: LeaseId) -> None:
        with self._lock:
            self._served.discard(lease_id)

    def served_in_vain(self, unit: Unit) -> list[LeaseId]:
        """Leases that are served here and that somebody has taken back elsewhere."""
        with self._lock:
            served = set(self._served)
        if not served:
            return []
        return sorted(served.difference(unit.leases.ids([LeaseState.INTENDED, LeaseState.ACTIVE])))
