"""What a migration left that gives somebody access, or runs code as somebody else: two catalogue snapshots compared.

A lease that is closed and proven gone may leave a door open for ever (threats.md, item 8). So the catalogue is read
before and after, as items of what an issuer knows to matter, and whatever is more than the change itself needed is
*widening*: a person accepts it, or it is undone. Pure; not for reading a catalogue, and blind to copied data: rows that
a migration writes into another table are seen by whoever reads the file, not here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from taskpass.core import digest

ALWAYS = "always"
"""An excuse that holds in every snapshot: what the target itself gives with every new object."""


class Change(StrEnum):
    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Item:
    """One fact of a catalogue. ``kind`` and ``name`` identify it, ``detail`` is what may change about it.

    ``counts`` are the changes that widen: a guard that is removed counts as much as a right that is added. ``parent``
    is the key of the object that it hangs on, or empty: an item that is added with a new parent does not count if one
    of ``excuses`` (keys of items, or ``ALWAYS``) was there before, and one that goes with its parent does not count.
    """

    kind: str
    name: str
    detail: str = ""
    counts: frozenset[Change] = frozenset()
    parent: str = ""
    excuses: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name}"

    def to_json(self) -> list[object]:
        return [self.kind, self.name, self.detail, sorted(self.counts), self.parent, list(self.excuses)]

    @classmethod
    def from_json(cls, data: list[Any]) -> Item:
        kind, name, detail, counts, parent, excuses = data
        return cls(kind, name, detail, frozenset(Change(change) for change in counts), parent, tuple(excuses))


Snapshot = Mapping[str, Item]
"""Items by key."""


def snapshot(items: Iterable[Item]) -> dict[str, Item]:
    return {item.key: item for item in items}


@dataclass(frozen=True, slots=True, order=True)
class Widening:
    """One thing that widens: what it is, and how it was and is now (empty where it was or is not there)."""

    kind: str
    name: str
    change: Change
    before: str = ""
    after: str = ""

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name}"

    def to_json(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "name": self.name,
            "change": self.change.value,
            "before": self.before,
            "after": self.after,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Widening:
        return cls(data["kind"], data["name"], Change(data["change"]), data["before"], data["after"])


def widened(before: Snapshot, after: Snapshot) -> tuple[Widening, ...]:
    """What is wider in ``after`` than in ``before``, sorted."""
    found = [_appeared(before, item) for item in after.values()]
    found += [_removed(after, item) for key, item in before.items() if key not in after]
    return tuple(sorted(each for each in found if each is not None))


def _appeared(before: Snapshot, item: Item) -> Widening | None:
    known = before.get(item.key)
    if known is not None:
        changed = known.detail != item.detail and Change.CHANGED in item.counts | known.counts
        return Widening(item.kind, item.name, Change.CHANGED, known.detail, item.detail) if changed else None
    is_new = bool(item.parent) and item.parent not in before
    excused = is_new and any(excuse == ALWAYS or excuse in before for excuse in item.excuses)
    if Change.ADDED not in item.counts or excused:
        return None
    return Widening(item.kind, item.name, Change.ADDED, after=item.detail)


def _removed(after: Snapshot, item: Item) -> Widening | None:
    went_with_parent = bool(item.parent) and item.parent not in after
    if Change.REMOVED not in item.counts or went_with_parent:
        return None
    return Widening(item.kind, item.name, Change.REMOVED, before=item.detail)


def remaining(widening: Iterable[Widening], now: Snapshot) -> tuple[Widening, ...]:
    """What of ``widening`` still stands in ``now``. A thing that is different again is still not what it was."""
    return tuple(each for each in widening if _stands(each, now.get(each.key)))


def _stands(each: Widening, item: Item | None) -> bool:
    if each.change is Change.ADDED:
        return item is not None
    if each.change is Change.CHANGED:
        return item is not None and item.detail != each.before
    return item is None or item.detail != each.before


def widening_digest(lease: str, widening: Iterable[Widening]) -> str:
    """What a person signs who accepts what the migration of ``lease`` left."""
    return digest.digest(digest.WIDENING, {"lease": lease, "widening": [each.to_json() for each in widening]})
