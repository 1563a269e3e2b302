"""How much one lease may use of its target at a time, and who holds it to that.

The values are the operator's, per access, within hard bounds. What they are worth differs by limit and by target, so
each is stated with who enforces it: a setting that the agent's own session may change is a default and no control.
Not for: lifetimes (policy) and rows (row security in the target).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum

from taskpass.core.errors import InvalidInput


class Enforced(StrEnum):
    """Who holds a session to a limit, strongest first."""

    TARGET = "target"
    """The target itself; the agent cannot change it."""
    BROKER = "broker"
    """A default in the target, which the agent can change; the broker looks from outside and ends the session."""
    DEFAULT = "default"
    """A default in the target, which the agent can change."""
    NONE = "none"
    """Nobody on this target."""


BOUNDS: Mapping[str, tuple[int, int]] = {
    "connections": (1, 50),
    "statement_seconds": (1, 3600),
    "transaction_seconds": (1, 14400),
    "idle_in_transaction_seconds": (1, 3600),
    "idle_seconds": (10, 28800),
    "temp_megabytes": (1, 1_048_576),
}
"""Smallest and largest value of each limit. There is no value for *none*: a limit that is off is no limit."""

UNITS: Mapping[str, str] = {
    name: "sessions" if name == "connections" else "megabytes" if name.endswith("megabytes") else "seconds"
    for name in BOUNDS
}


@dataclass(frozen=True, slots=True)
class Limits:
    """``temp_megabytes`` is what one session may write to temporary files at a time (2**20 bytes each).

    The defaults suit a person or an agent that looks at data: ordinary pools get their five connections, and nothing
    holds back vacuum for longer than ten minutes.
    """

    connections: int = 5
    statement_seconds: int = 60
    transaction_seconds: int = 600
    idle_in_transaction_seconds: int = 60
    idle_seconds: int = 600
    temp_megabytes: int = 1024

    def __post_init__(self) -> None:
        for item in fields(self):
            value, (least, most) = getattr(self, item.name), BOUNDS[item.name]
            if not least <= value <= most:
                raise InvalidInput(f"the limit {item.name} must be {least} to {most}")

    def to_json(self) -> dict[str, int]:
        return asdict(self)
