"""A policy whose answers are written in a script: for tests of what stands around policy.

It keeps the contract of ``policy.base``: the floor applies, nothing asked is a deny, and ``decide`` never raises.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from threading import Lock

from taskpass.core import digest
from taskpass.core.decision import Decision, Obligations, Outcome, floor
from taskpass.core.scope import Level
from taskpass.policy.base import Question

CODES = {Outcome.DENY: "policy_denied", Outcome.NEEDS_APPROVAL: "needs_approval", Outcome.PERMIT: "permitted"}


class FakePolicy:
    """Answers ``outcomes`` in order, the last one for ever; without any, everything is denied.

    ``asked`` keeps every question. ``change`` is what a new bundle would be: other outcomes under another snapshot.
    """

    def __init__(self, *outcomes: Outcome, obligations: Obligations | None = None) -> None:
        self.asked: list[Question] = []
        self._lock = Lock()
        self._obligations = obligations or Obligations()
        self._script = list(outcomes)
        self._version = 1

    @property
    def snapshot(self) -> str:
        return digest.digest(digest.SNAPSHOT, {"engine": "fake", "version": self._version})

    def change(self, outcomes: Iterable[Outcome], obligations: Obligations | None = None) -> None:
        with self._lock:
            self._script = list(outcomes)
            self._obligations = obligations or self._obligations
            self._version += 1

    def decide(self, question: Question) -> Decision:
        with self._lock:
            self.asked.append(question)
            outcome = self._next()
        decision = Decision(
            outcome, CODES[outcome], self._obligations, ("fake",), engine="fake", snapshot=self.snapshot
        )
        if question.manifest.empty:
            return replace(decision, outcome=Outcome.DENY, code="nothing_asked")
        return floor(
            decision,
            question.environment,
            writes=question.level is not Level.READ,
            hands_on=question.manifest.hands_on,
        )

    def _next(self) -> Outcome:
        if not self._script:
            return Outcome.DENY
        return self._script.pop(0) if len(self._script) > 1 else self._script[0]
