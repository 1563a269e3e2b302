"""When a drill is due, and how the last one went. Not for playing it: that is ``broker.drill``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from taskpass.broker.context import Broker
from taskpass.broker.drill import drill, subject_of
from taskpass.core.clock import SECOND, Instant
from taskpass.core.errors import Conflict

RETRY_SECONDS = 15 * 60
"""A drill that failed is played again after this, unless the schedule is quicker: a mended target should show soon."""

SLACK_SECONDS = 10 * 60
"""How late a scheduled drill may be, beyond one that was left out, before it is an alarm."""


@dataclass(frozen=True, slots=True)
class Last:
    """The last drill of a resource, as the record has it. ``found`` is ``broker.drill.Drilled`` as JSON."""

    at: Instant
    found: dict[str, Any]

    @property
    def passed(self) -> bool:
        return self.found["passed"] is True


def last_drill(broker: Broker, resource: str) -> Last | None:
    with broker.store.read() as unit:
        record = unit.audit.latest(subject_of(resource))
    if record is None:
        return None
    body: dict[str, Any] = json.loads(record.body)
    return Last(Instant(round(datetime.fromisoformat(body["at"]).timestamp() * SECOND)), body["data"])


def drill_due(broker: Broker) -> int:
    """Play the drills that are due, one after the other; how many. Each is recorded, also if it failed.

    One broker of those on a store does it for all.
    """
    every, played = broker.config.broker.drill_every, 0
    if not every or not _leads(broker):
        return 0
    for resource in broker.issuers:
        last = last_drill(broker, resource)
        if last is None or broker.clock.now() - last.at >= SECOND * _pause(last, every):
            try:
                drill(broker, resource, actor="broker")
                played += 1
            except Conflict:  # somebody plays one at this moment
                continue
    return played


def _leads(broker: Broker) -> bool:
    with broker.store.read() as unit:
        return broker.owners.leads(unit)


def _pause(last: Last, every: int) -> int:
    return every if last.passed else min(every, RETRY_SECONDS)


def drill_states(broker: Broker) -> dict[str, object]:
    """For ``health``: the last drill of each resource, or None, and whether the schedule was not kept."""
    return {resource: _state(broker, last_drill(broker, resource)) for resource in broker.issuers}


def _state(broker: Broker, last: Last | None) -> dict[str, object] | None:
    if last is None:
        return None
    every = broker.config.broker.drill_every
    overdue = bool(every) and broker.clock.now() - last.at > SECOND * (2 * every + SLACK_SECONDS)
    shown = ("passed", "at", "lease", "revoke_ms", "code", "message", "hint")
    return {"overdue": overdue, **{name: last.found[name] for name in shown}}
