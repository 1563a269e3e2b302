"""What a write does beyond the rows that it names, and which verbs are held back because of it. Pure, but for ``read``.

A verb on a table can delete or change rows of others through foreign keys, at any depth, run rewrite rules and call
triggers. Foreign keys and rules act with a table owner's rights, so grants do not bound them. Which rows those are is
known; what a routine does is not: its body is never read. So a routine that runs with more than the writer's own rights
(SECURITY DEFINER, or called by what a foreign key or rule does) counts as one that may change whatever is excluded.

Not for what can be read through an object: that is ``catalogue``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from taskpass.core.manifest import Held, Kind, OwnedSequence, Reach, Through
from taskpass.core.scope import Verb

_CHANGES = (Verb.INSERT, Verb.UPDATE, Verb.DELETE)


@dataclass(frozen=True, slots=True)
class Place:
    """A relation, as far as reach is told of it."""

    kind: Kind
    schema: str
    name: str


@dataclass(frozen=True, slots=True)
class Routine:
    """``definer`` runs it with its owner's rights; ``version`` is a digest of owner and definition."""

    schema: str
    name: str
    definer: bool
    version: str

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}()"


@dataclass(slots=True)
class Effects:
    """What follows a verb on a relation, by relation and verb: other relations with a verb there, and routines."""

    keys: dict[tuple[int, Verb], list[tuple[int, Verb]]] = field(default_factory=lambda: defaultdict(list))
    rules: dict[tuple[int, Verb], list[int]] = field(default_factory=lambda: defaultdict(list))
    triggers: dict[tuple[int, Verb], list[int]] = field(default_factory=lambda: defaultdict(list))
    routines: dict[int, Routine] = field(default_factory=dict[int, Routine])
    sequences: dict[int, list[OwnedSequence]] = field(default_factory=lambda: defaultdict(list))


def read(row: tuple[Any, ...]) -> Effects:
    """The effects that ``writes.sql`` answered with."""
    keys, rules, triggers, routines, sequences = row
    found = Effects()
    for upper, lower, verb, effect in keys:
        found.keys[upper, Verb(verb)].append((lower, Verb(effect)))
    for relation, other, verb in rules:
        found.rules[relation, Verb(verb)].append(other)
    for relation, routine, verbs in triggers:
        for verb in verbs:
            found.triggers[relation, Verb(verb)].append(routine)
    found.routines = {oid: Routine(*rest) for oid, *rest in routines}
    for table, column, oid, name in sequences:
        found.sequences[table].append(OwnedSequence(oid, name, column))
    return found


@dataclass(frozen=True, slots=True)
class Written:
    """What the writing verbs on one table reach, and which of them are held back for it."""

    reach: tuple[Reach, ...]
    held: tuple[Held, ...]


def written(
    table: int,
    verbs: Iterable[Verb],
    effects: Effects,
    *,
    places: Mapping[int, Place],
    below: Mapping[int, list[tuple[int, Through]]],
    excluded: Mapping[int, str],
) -> Written:
    """Follow every one of ``verbs`` on ``table``.

    ``below`` are partitions and children of a relation; ``excluded`` maps every relation that holds excluded rows to
    the name of the excluded one, and where it is empty nothing is held back.
    """
    by_reach: dict[tuple[int, Through, bool], set[Verb]] = defaultdict(set)
    held: set[Held] = set()
    for verb in sorted(set(verbs) - {Verb.SELECT}):
        for oid, through, is_routine in _follow(table, verb, effects, below):
            by_reach[oid, through, is_routine].add(verb)
            if is_routine and through is Through.OWNER_TRIGGER and excluded:
                held.add(Held(verb, effects.routines[oid].full_name, through))
            elif not is_routine and oid in excluded:
                held.add(Held(verb, excluded[oid], through))
    reach = (
        _routine(oid, effects.routines[oid], through, found) if is_routine else _place(oid, places[oid], through, found)
        for (oid, through, is_routine), found in by_reach.items()
        if is_routine or oid in places
    )
    return Written(tuple(sorted(reach)), tuple(sorted(held)))


def _follow(
    table: int, verb: Verb, effects: Effects, below: Mapping[int, list[tuple[int, Through]]]
) -> set[tuple[int, Through, bool]]:
    """(oid, how, whether it is a routine) of all that one verb on one table does something to."""
    found: set[tuple[int, Through, bool]] = set()
    seen: set[tuple[int, Verb, Through | None]] = set()
    todo: list[tuple[int, Verb, Through | None]] = [(table, verb, None)]

    def go(oid: int, effect: Verb, through: Through | None) -> None:
        if (oid, effect, through) not in seen:
            seen.add((oid, effect, through))
            todo.append((oid, effect, through))
            if through is not None:
                found.add((oid, through, False))

    while todo:
        oid, effect, through = todo.pop()
        for routine in effects.triggers.get((oid, effect), ()):
            more = through is not None or effects.routines[routine].definer
            found.add((routine, Through.OWNER_TRIGGER if more else Through.TRIGGER, True))
        for lower, how in below.get(oid, ()):
            for there in _beside(how, effect):
                go(lower, there, through)
        for lower, there in effects.keys.get((oid, effect), ()):
            go(lower, there, Through.CASCADE)
        for other in effects.rules.get((oid, effect), ()):
            for there in _CHANGES:
                go(other, there, Through.RULE)
    return found


def _beside(how: Through, effect: Verb) -> frozenset[Verb]:
    """What happens to rows that belong to a relation, or stand behind a view that a rule names.

    An update may move a row from one partition to another.
    """
    return frozenset(_CHANGES) if how is Through.PARTITION and effect is Verb.UPDATE else frozenset({effect})


def _place(oid: int, place: Place, through: Through, verbs: set[Verb]) -> Reach:
    return Reach(oid, place.kind, place.schema, place.name, through, tuple(sorted(verbs)))


def _routine(oid: int, routine: Routine, through: Through, verbs: set[Verb]) -> Reach:
    return Reach(oid, Kind.ROUTINE, routine.schema, routine.name, through, tuple(sorted(verbs)), routine.version)
