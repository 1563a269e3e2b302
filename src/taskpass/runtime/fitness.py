"""Whether each target may be issued from now: the runtime's implementation of ``broker.context.Fitness``.

Checked at start, on a timer, and at once when the last answer was a no, so that a mended target serves again without a
restart. A target that was never checked is checked before its first use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from taskpass.core.errors import TargetUnfit, TaskpassError
from taskpass.issuers.base import Finding, Issuer, Severity


@dataclass(frozen=True, slots=True)
class Checked:
    """``error`` None means fit."""

    error: TaskpassError | None
    findings: tuple[Finding, ...] = ()


class TargetFitness:
    """``extra(issuer)`` raises for what is wrong beyond the target itself (a restored store)."""

    def __init__(self, issuers: Mapping[str, Issuer], extra: Callable[[Issuer], None]) -> None:
        self._issuers = issuers
        self._extra = extra
        self._lock = threading.Lock()
        self._checked: dict[str, Checked] = {}

    def demand(self, resource: str) -> None:
        with self._lock:
            checked = self._checked.get(resource)
        if checked is None or checked.error is not None:
            checked = self.check(resource)
        if checked.error is not None:
            raise checked.error

    def check(self, resource: str) -> Checked:
        """Look again, now."""
        checked = self._look(self._issuers[resource])
        with self._lock:
            self._checked[resource] = checked
        return checked

    def results(self) -> dict[str, Checked]:
        """The last answers; a resource that was not checked yet is absent."""
        with self._lock:
            return dict(self._checked)

    def _look(self, issuer: Issuer) -> Checked:
        try:
            findings = tuple(issuer.preflight())
            fatal = [finding for finding in findings if finding.severity is Severity.FATAL]
            if fatal:
                return Checked(_unfit(issuer, fatal[0]), findings)
            self._extra(issuer)
        except TaskpassError as error:
            return Checked(error)
        return Checked(None, findings)


def _unfit(issuer: Issuer, finding: Finding) -> TargetUnfit:
    return TargetUnfit(
        f"{issuer.target.resource} is not fit to be used now",
        hint="an operator looks at taskpass doctor",
        code=f"target_unfit_{finding.check}",
    )
