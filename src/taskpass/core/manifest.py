"""The rights manifest: the exact objects, columns and verbs that a scope resolves to, and what is reachable through
them.

A name can come to mean something else between a yes and a grant; an object identity cannot. So what people approve,
what the digest covers and what is granted is this list (design: architecture.md, *Scope -> manifest*). Two functions
make another manifest from one. ``narrow`` only takes away: ``narrow(a, b) ⊆ a``. ``accept`` gives back verbs that the
manifest itself holds back, and only for the names that a person accepted; they stand in it and so in what is signed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from taskpass.core import digest
from taskpass.core.errors import InvalidInput
from taskpass.core.scope import Level, Verb
from taskpass.core.script import Script

_ADVANCES_SEQUENCES = frozenset({Verb.INSERT, Verb.UPDATE})


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
    CASCADE = "cascade"
    """Rows of it are deleted or changed by a foreign key, with its owner's rights."""
    RULE = "rule"
    """A rewrite rule changes it, with the table owner's rights."""
    TRIGGER = "trigger"
    """A routine that a trigger calls with the writer's own rights."""
    OWNER_TRIGGER = "trigger with its owner's rights"
    """A routine that a trigger calls with more than the writer's rights: what it may touch is not known."""


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
    """``origins`` are the numbers of the columns that a generated one is computed from: reading it tells of those."""

    number: int
    name: str
    origins: tuple[int, ...] = ()

    def to_json(self) -> list[object]:
        return [self.number, self.name, *([list(self.origins)] if self.origins else [])]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Column:
        return cls(data[0], data[1], tuple(data[2]) if len(data) > 2 else ())


@dataclass(frozen=True, slots=True, order=True)
class OwnedSequence:
    """A sequence of the table's schema that belongs to one of its columns; ``USAGE`` on it comes with the column."""

    oid: int
    name: str
    column: int

    def to_json(self) -> list[object]:
        return [self.oid, self.name, self.column]


@dataclass(frozen=True, slots=True, order=True)
class Reach:
    """An object whose rows can be read, or that is changed or called, through a granted one.

    ``verbs`` are those on the granted object that do it; empty for what is read through it. ``version`` is a digest of
    a routine's definition, so that one with another body is another manifest.
    """

    oid: int
    kind: Kind
    schema: str
    name: str
    through: Through
    verbs: tuple[Verb, ...] = ()
    version: str = ""

    def to_json(self) -> list[object]:
        row: list[object] = [self.oid, self.kind.value, self.schema, self.name, self.through.value]
        return [*row, [verb.value for verb in self.verbs], self.version] if self.verbs else row

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Reach:
        oid, kind, schema, name, through, *more = data
        verbs, version = more or ((), "")
        return cls(oid, Kind(kind), schema, name, Through(through), tuple(Verb(verb) for verb in verbs), version)


@dataclass(frozen=True, slots=True, order=True)
class Held:
    """Why ``verb`` is not granted: it would change ``name``, which is excluded, or call a routine that might.

    ``name`` is what a person accepts: ``schema.table`` of the excluded object, or ``schema.routine()``.
    """

    verb: Verb
    name: str
    through: Through

    def to_json(self) -> list[object]:
        return [self.verb.value, self.name, self.through.value]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> Held:
        return cls(Verb(data[0]), data[1], Through(data[2]))


@dataclass(frozen=True, slots=True)
class ObjectRights:
    """The rights on one object: verbs on columns, and what is reachable through it.

    ``held`` are verbs that the scope asks for and that reach something excluded: they are granted only after
    ``accept``. ``sequences`` belong to ``columns``; ``granted_sequences`` are those that the verbs make use of.
    """

    oid: int
    kind: Kind
    schema: str
    name: str
    owner: str
    columns: tuple[Column, ...]
    verbs: frozenset[Verb]
    reach: tuple[Reach, ...] = ()
    sequences: tuple[OwnedSequence, ...] = ()
    held: tuple[Held, ...] = ()

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def granted_sequences(self) -> tuple[OwnedSequence, ...]:
        """Those on which ``USAGE`` is granted: none without a verb that takes values from them."""
        return self.sequences if self.verbs & _ADVANCES_SEQUENCES else ()

    def to_json(self) -> dict[str, object]:
        """``sequences`` and ``held`` stand in it only where there are some."""
        return {
            "oid": self.oid,
            "kind": self.kind.value,
            "schema": self.schema,
            "name": self.name,
            "owner": self.owner,
            "columns": [column.to_json() for column in sorted(self.columns)],
            "verbs": sorted(verb.value for verb in self.verbs),
            "reach": [found.to_json() for found in sorted(self.reach)],
            **({"sequences": [found.to_json() for found in sorted(self.sequences)]} if self.sequences else {}),
            **({"held": [found.to_json() for found in sorted(self.held)]} if self.held else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ObjectRights:
        return cls(
            oid=data["oid"],
            kind=Kind(data["kind"]),
            schema=data["schema"],
            name=data["name"],
            owner=data["owner"],
            columns=tuple(Column.from_json(item) for item in data["columns"]),
            verbs=frozenset(Verb(verb) for verb in data["verbs"]),
            reach=tuple(Reach.from_json(item) for item in data["reach"]),
            sequences=tuple(OwnedSequence(*item) for item in data.get("sequences", ())),
            held=tuple(Held.from_json(item) for item in data.get("held", ())),
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
    ``accepted`` are the names that a person accepted to be changed by what is granted (see ``accept``).
    """

    cluster: str
    database: int
    database_name: str
    level: Level
    objects: tuple[ObjectRights, ...]
    dropped: tuple[Dropped, ...] = ()
    ambient: tuple[str, ...] = ()
    migration: Migration | None = None
    accepted: tuple[str, ...] = ()
    _text: str = field(default="", init=False, repr=False, compare=False)
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
            **({"accepted": sorted(self.accepted)} if self.accepted else {}),
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
            accepted=tuple(data.get("accepted", ())),
        )

    def text(self) -> str:
        """Its canonical JSON: what is digested and stored."""
        if not self._text:
            # A manifest never changes, and each request needs its text and its digest several times.
            object.__setattr__(self, "_text", digest.canonical(self.to_json()).decode())
        return self._text

    def digest(self) -> str:
        """Over everything that is granted, reachable, dropped or ambient: any difference is another manifest."""
        if not self._digest:
            object.__setattr__(self, "_digest", digest.digest_bytes(digest.MANIFEST, self.text().encode()))
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
    or without ``SELECT`` is removed: other verbs without it are never granted. A migration stays as it is: nobody can
    approve a part of a file.
    """
    kept = {keep.oid: keep for keep in keeps}
    if len(kept) != len(keeps):
        raise InvalidInput("an object is named twice in the narrowing")
    left = (_narrow_object(item, kept[item.oid]) for item in manifest.objects if item.oid in kept)
    return replace(manifest, objects=tuple(item for item in left if item.columns and Verb.SELECT in item.verbs))


def _narrow_object(item: ObjectRights, keep: Keep) -> ObjectRights:
    columns = tuple(column for column in item.columns if column.number in keep.columns)
    sequences = tuple(found for found in item.sequences if found.column in keep.columns)
    return replace(item, columns=columns, verbs=item.verbs & keep.verbs, sequences=sequences)


def held_back(manifest: Manifest) -> frozenset[str]:
    """Every name that stands before a verb and could be accepted."""
    return frozenset(held.name for item in manifest.objects for held in item.held)


def accept(manifest: Manifest, names: Iterable[str]) -> Manifest:
    """``manifest`` as a person leaves it who accepts that what is named may be changed through what is granted.

    A held verb comes back when every name that stands before it is accepted, the last of them now. Names that nothing
    is held back for have no effect. Laws: ``accept(m, ()) == m``; ``is_within(m, accept(m, n))``; more names never give
    less.
    """
    before = frozenset(manifest.accepted)
    fresh = (held_back(manifest) & frozenset(names)) - before
    if not fresh:
        return manifest
    objects = tuple(_accept_object(item, before, fresh) for item in manifest.objects)
    return replace(manifest, accepted=tuple(sorted(before | fresh)), objects=objects)


def _accept_object(item: ObjectRights, before: frozenset[str], fresh: frozenset[str]) -> ObjectRights:
    refused = {held.verb for held in item.held if held.name not in before | fresh}
    return replace(item, verbs=item.verbs | {held.verb for held in item.held if held.name in fresh} - refused)


def is_within(inner: Manifest, outer: Manifest) -> bool:
    """Whether every right of ``inner`` is a right of ``outer``, on the same objects of the same database."""
    if (inner.cluster, inner.database, inner.level) != (outer.cluster, outer.database, outer.level):
        return False
    if inner.migration not in (None, outer.migration) or not set(inner.accepted) <= set(outer.accepted):
        return False
    theirs = {item.oid: item for item in outer.objects}
    return all(item.oid in theirs and _object_within(item, theirs[item.oid]) for item in inner.objects)


def _object_within(inner: ObjectRights, outer: ObjectRights) -> bool:
    return (
        set(inner.columns) <= set(outer.columns)
        and inner.verbs <= outer.verbs
        and set(inner.sequences) <= set(outer.sequences)
        and set(inner.reach) <= set(outer.reach)
        and set(inner.held) == set(outer.held)
        and (inner.kind, inner.schema, inner.name, inner.owner) == (outer.kind, outer.schema, outer.name, outer.owner)
    )


def meet(first: Manifest, second: Manifest) -> Manifest:
    """The largest manifest within both: what two approvers who narrowed differently agree on.

    They agree on an object only if they were shown the same one: kind, name, owner and what is reachable through it.
    """
    if (first.cluster, first.database, first.level) != (second.cluster, second.database, second.level):
        return replace(first, objects=(), accepted=(), migration=None)
    if first.migration != second.migration:
        first = replace(first, migration=None)
    other = {item.oid: item for item in second.objects}
    shared = [
        _meet_object(o, other[o.oid]) for o in first.objects if o.oid in other and _shown(o) == _shown(other[o.oid])
    ]
    both = replace(
        first,
        objects=tuple(shared),
        accepted=tuple(name for name in first.accepted if name in second.accepted),
    )
    return narrow(both, keep_all(both))


def _meet_object(item: ObjectRights, other: ObjectRights) -> ObjectRights:
    return replace(
        item,
        columns=tuple(column for column in item.columns if column in other.columns),
        verbs=item.verbs & other.verbs,
        sequences=tuple(found for found in item.sequences if found in other.sequences),
    )


def _shown(item: ObjectRights) -> tuple[object, ...]:
    return (item.kind, item.schema, item.name, item.owner, frozenset(item.reach), frozenset(item.held))
