"""Where a fact about the job comes from, and so how far it may be believed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Provenance(IntEnum):
    """Ordered from least to most trustworthy; policy may demand a level.

    No code path yields ``VERIFIED`` from the local machine (design: architecture.md, *Provenance*).
    """

    CLAIMED = 0
    """The requesting side said so."""
    OBSERVED = 1
    """Seen by us on a machine that the requesting side controls: processes, local git."""
    FETCHED = 2
    """Authentic, but the requesting side may have written it."""
    VERIFIED = 3
    """From the system of record, and not writable by the requesting side."""

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Fact:
    """A value together with its provenance. ``value`` is untrusted text until shown through ``core.text``."""

    value: str
    provenance: Provenance

    def to_json(self) -> dict[str, str]:
        return {"value": self.value, "provenance": self.provenance.word}

    @classmethod
    def from_json(cls, data: dict[str, str]) -> Fact:
        return cls(data["value"], Provenance[data["provenance"].upper()])
