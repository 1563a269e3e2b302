"""The rights manifest: the exact objects, columns and verbs that a scope resolves to, and what is reachable through
them.

A name can come to mean something else between a yes and a grant; an object identity cannot. So what people approve,
what the digest covers and what is granted is this list (design: architecture.md, *Scope -> manifest*). The only way to
make another manifest from one is ``narrow``, whose law is ``narrow(a, b) ⊆ a``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from taskpass.core import digest
from taskpass.core.errors import InvalidInput
from taskpass.core.scope import Level, Verb
from taskpass.core.script import Script


class Kind(StrEnum):
    """What a catalogue object is. Only ``TABLE`` and ``PARTITIONED`` are ever granted by a pattern."""

    TABLE = "table"
    PARTITIONED = "partitioned table"
    VIEW = "view"
    MATERIALISED_VIEW = "materialised view"
    FOREIGN_TABLE = "foreign table"
    ROUTINE = "routine"
    SEQUENCE = "sequence"


class Through(StrEnum):
    """How one object is reached through another."""

    PARTITION = "partition"
    INHERITANCE = "inheritance"
    VIEW = "view"
    MATERIALISED_VIEW = "materialised view"
    ROUTINE = "security definer routine"


class DropReason(StrEnum):
    """Why an object that the patterns match is not part of the manifest."""

    EXCLUDED = "excluded"
    """It is on the resource's exclude list."""
    REACHES_EXCLUDED = "reaches_excluded"
    """Rows of an excluded object can be read through it."""
    NOT_A_TABLE = "not_a_table"
    """Patterns match plain and partitioned tables only."""


@dataclass(frozen=True, slots=True, order=True)
class Column:
    number: int
    name: str


@dataclass(frozen=True, slots=True, order=True)
class Reach:
    """An object whose rows can be read through a granted one."""

    oid: int
    kind: Kind
    schema: str
    name: str
    through: Through


@dataclass(frozen=True, slots=True)
class ObjectRights:
    """The rights on one object: verbs on columns, and what is reachable through it."""

    oid: int
    kind: Kind
    schema: str
    name: str
    owner: str
    columns: tuple[Column, ...]
    verbs: frozenset[Verb]
    reach: tuple[Reach, ...] = ()

    def to_json(self) -> dict[str, object]:
        return {
            "oid": self.oid,
            "kind": self.kind.value,
            "schema": self.schema,
            "name": self.name,
            "owner": self.owner,
            "columns": [[column.number, column.name] for column in sorted(self.columns)],
            "verbs": sorted(verb.value for verb in self.verbs),
            "reach": [[r.oid, r.kind.value, r.schema, r.name, r.through.value] for r in sorted(self.reach)],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ObjectRights:
        return cls(
            oid=data["oid"],
            kind=Kind(data["kind"]),
            schema=data["schema"],
            name=data["name"],
            owner=data["owner"],
            columns=tuple(Column(number, name) for number, name in data["columns"]),
            verbs=frozenset(Verb(verb) for verb in data["verbs"]),
            reach=tuple(Reach(o, Kind(k), s, n, Through(t)) for o, k, s, n, t in data["reach"]),
        )


@dataclass(frozen=True, slots=True)
class Dropped:
    """An object that the scope matches and that is not granted, with the reason and the object it would reach."""

    oid: int
    kind: Kind
    schema: str
    name: str
    reason: DropReason
    because: str = ""

    def to_json(self) -> list[object]:
        return [self.oid, self.kind.value, self.schema, self.name, self.reason.value, self.because]


@dataclass(frozen=True, slots=True)
class Migration:
    """What a migration may do: everything that ``owner`` (a role, with its oid) owns.

    ``script`` is the one file that is run as the owner; None means hands-on, an endpoint as the owner.
    """

    owner: str
    owner_oid: int
    script: Script | None = None

    @property
    def hands_on(self) -> bool:
        return self.script is None

    def to_json(self) -> dict[str, object]:
        script = self.script.to_json() if self.script else None
        return {"owner": self.owner, "owner_oid": self.owner_oid, "script": script}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Migration:
        script = Script.from_json(data["script"]) if data["script"] else None
        return cls(str(data["owner"]), int(data["owner_oid"]), script)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Rights in one database of one cluster: on objects, or at level ``migrate`` a migration and no objects.

    ``cluster`` is the target's system identifier as text (it exceeds a safe integer); ``database`` its oid.
    ``ambient`` lists what every login can do there through PUBLIC (for example ``TEMP``); it is shown, never granted.
    """

    cluster: str
    database: int
    database_name: str
    level: Level
    objects: tuple[ObjectRights, ...]
    dropped: tuple[Dropped, ...] = ()
    ambient: tuple[str, ...] = ()
    migration: Migration | None = None
    _digest: str = field(default="", init=False, repr=False, compare=False)

    @property
    def empty(self) -> bool:
        return not self.objects and self.migration is None

    @property
    def hands_on(self) -> bool:
        """A migration without a file: an endpoint as the owner."""
        return self.migration is not None and self.migration.hands_on

    def to_json(self) -> dict[str, object]:
        return {
            "cluster": self.cluster,
            "database": self.database,
            "database_name": self.database_name,
            "level": self.level.value,
            "objects": [item.to_json() for item in sorted(self.objects, key=lambda o: o.oid)],
            "dropped": [item.to_json() for item in sorted(self.dropped, key=lambda d: d.oid)],
            "ambient": sorted(self.ambient),
            # Absent at other levels, so that the digests of what was granted before stay what they are.
            **({"migration": self.migration.to_json()} if self.migration else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        return cls(
            cluster=data["cluster"],
            database=data["database"],
            database_name=data["database_name"],
            level=Level(data["level"]),
            objects=tuple(ObjectRights.from_json(item) for item in data["objects"]),
            dropped=tuple(Dropped(o, Kind(k), s, n, DropReason(r), b) for o, k, s, n, r, b in data["dropped"]),
            ambient=tuple(data["ambient"]),
            migration=Migration.from_json(data["migration"]) if data.get("migration") else None,
        )

    def digest(self) -> str:
        """Over everything that is granted, reachable, dropped or ambient: any difference is another manifest."""
        if not self._digest:
            # A manifest never changes, and each request asks for its digest several times.
            object.__setattr__(self, "_digest", digest.digest(digest.MANIFEST, self.to_json()))
        return self._digest


@dataclass(frozen=True, slots=True)
class Keep:
    """What an approver leaves of one object. An object without a ``Keep`` is removed."""

    oid: int
    columns: frozenset[int]
    verbs: frozenset[Verb]

    def to_json(self) -> dict[str, object]:
        return {
            "oid": self.oid,
            "columns": sorted(self.columns),
            "verbs": sorted(verb.value for verb in self.verbs),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Keep:
        return cls(data["oid"], frozenset(data["columns"]), frozenset(Verb(v) for v in data["verbs"]))


def keep_all(manifest: Manifest) -> tuple[Keep, ...]:
    """The narrowing that changes nothing."""
    return tuple(Keep(o.oid, frozenset(c.number for c in o.columns), o.verbs) for o in manifest.objects)


def narrow(manifest: Manifest, keeps: Sequence[Keep]) -> Manifest:
    """``manifest`` with only what ``keeps`` leaves. Law: ``is_within(narrow(m, k), m)`` for every ``k``.

    Columns, verbs and objects that ``keeps`` names beyond the manifest have no effect. An object left without a column
    or a verb is removed. A migration stays as it is: nobody can approve a part of a file.
    """
    kept = {keep.oid: keep for keep in keeps}
    if len(kept) != len(keeps):
        raise InvalidInput("an object is named twice in the narrowing")
    left = (_narrow_object(item, kept[item.oid]) for item in manifest.objects if item.oid in kept)
    return replace(manifest, objects=tuple(item for item in left if item.columns and item.verbs))


def _narrow_object(item: ObjectRights, keep: Keep) -> ObjectRights:
    columns = tuple(column for column in item.columns if column.number in keep.columns)
    return replace(item, columns=columns, verbs=item.verbs & keep.verbs)


def is_within(inner: Manifest, outer: Manifest) -> bool:
    """Whether every right of ``inner`` is a right of ``outer``, on the same objects of the same database."""
    if (inner.cluster, inner.database, inner.level) != (outer.cluster, outer.database, outer.level):
        return False
    if inner.migration not in (None, outer.migration):
        return False
    theirs = {item.oid: item for item in outer.objects}
    return all(item.oid in theirs and _object_within(item, theirs[item.oid]) for item in inner.objects)


def _object_within(inner: ObjectRights, outer: ObjectRights) -> bool:
    return (
        set(inner.columns) <= set(outer.columns)
        and inner.verbs <= outer.verbs
        and set(inner.reach) <= set(outer.reach)
        and (inner.kind, inner.schema, inner.name, inner.owner) == (outer.kind, outer.schema, outer.name, outer.owner)
    )


def meet(first: Manifest, second: Manifest) -> Manifest:
    """The largest manifest within both: what two approvers who narrowed differently agree on.

    They agree on an object only if they were shown the same one: kind, name, owner and what is reachable through it.
    """
    if (first.cluster, first.database, first.level) != (second.cluster, second.database, second.level):
        return replace(first, objects=(), migration=None)
    if first.migration != second.migration:
        first = replace(first, migration=None)
    other = {item.oid: item for item in second.objects}
    shared = [item for item in first.objects if item.oid in other and _shown(item) == _shown(other[item.oid])]
    return narrow(
        replace(first, objects=tuple(shared)),
        [
            Keep(o.oid, frozenset(c.number for c in o.columns if c in other[o.oid].columns), other[o.oid].verbs)
            for o in shared
        ],
    )


def _shown(item: ObjectRights) -> tuple[object, ...]:
    return (item.kind, item.schema, item.name, item.owner, frozenset(item.reach))
