"""Read a PostgreSQL catalogue: what a scope means there now, as a manifest of object identities.

Runs as an ordinary login without a right on any table, also inside the granting transaction. Everything is by oid;
names are compared here, by ``core.scope``, with what the server says, so nothing is ever quoted or parsed. Rows reach a
lease through more than one name, so the graph of views, partitions and inheritance is followed in both directions:

* down, from a granted table to what it reads (its partitions and children), and from a view to its base relations;
* up, because a partition or child of an excluded table holds rows of that table.

Not for: what a lease already has (the issuer reads that back), and not for what a routine's body reads: a SECURITY
DEFINER routine that PUBLIC may execute is refused whatever it does.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from taskpass.core.errors import TargetUnfit
from taskpass.core.manifest import Column, Dropped, DropReason, Kind, Manifest, ObjectRights, Reach, Through
from taskpass.core.scope import WRITE_VERBS, Scope, matches
from taskpass.issuers.postgres import connection as connecting
from taskpass.issuers.postgres import row_limits, writes

KIT_SCHEMA = "taskpass"
"""The target kit's own schema: never part of a scope, whatever the patterns say."""

Connection = psycopg.Connection[Any]

_KINDS = {
    "r": Kind.TABLE,
    "p": Kind.PARTITIONED,
    "v": Kind.VIEW,
    "m": Kind.MATERIALISED_VIEW,
    "f": Kind.FOREIGN_TABLE,
}
_GRANTED = frozenset({Kind.TABLE, Kind.PARTITIONED})
_HOLDS_ROWS_OF_UPPER = frozenset({Through.PARTITION, Through.INHERITANCE})


@dataclass(frozen=True, slots=True)
class Opening:
    """Something that PUBLIC may do and that no lease may inherit. ``named`` and ``fix`` are quoted by the server.

    ``schema`` is empty where the opening counts whatever schemas a lease may use.
    """

    what: str
    schema: str
    named: str
    fix: str


@dataclass(frozen=True, slots=True)
class _Relation:
    oid: int
    kind: Kind
    schema: str
    name: str
    owner: str
    row_security: bool

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What one statement read: relations by oid, and for each oid what lies below it."""

    cluster: str
    database: int
    database_name: str
    relations: dict[int, _Relation]
    below: dict[int, list[tuple[int, Through]]]
    open_schemas: frozenset[str]
    ambient: tuple[str, ...]

    def reach(self, oid: int) -> dict[int, Through]:
        """Everything that can be read through ``oid``, at any depth, with the kind of the last step."""
        found: dict[int, Through] = {}
        todo = [oid]
        while todo:
            for lower, through in self.below.get(todo.pop(), ()):
                if lower not in found and lower in self.relations:
                    found[lower] = through
                    todo.append(lower)
        found.pop(oid, None)
        return found


def none_asked(_: Connection) -> Sequence[Opening]:
    """For ``resolve`` where what PUBLIC may do is found in another way."""
    return ()


def read_openings(connection: Connection) -> list[Opening]:
    """What PUBLIC may do that no lease may inherit. Driver errors come through, as with ``fetch``."""
    return [Opening(*row) for row in fetch(connection, query("public_reach"))]


def resolve(
    connection: Connection, scope: Scope, openings: Callable[[Connection], Sequence[Opening]] = read_openings
) -> Manifest:
    """The manifest that ``scope`` means in the connected database now; the same catalogue gives the same digest.

    ``openings`` gives what PUBLIC may do besides, which is no part of a manifest. The granting transaction passes
    ``none_asked``: it reads back what the account can read, PUBLIC's grants included.

    Raises ``TargetUnfit`` if PUBLIC may do something there that every lease would inherit, or if the catalogue cannot
    be read; ``TargetUnavailable`` if the server does not answer.
    """
    with driver_errors("reading the catalogue"):
        snapshot = _read(connection)
        choice = _choose(snapshot, scope)
        columns = _columns(connection, choice.granted)
        effects = _effects(connection) if choice.granted and scope.verbs & WRITE_VERBS else None
        public = openings(connection)
    objects, without_columns = _objects(snapshot, scope, choice.granted, columns)
    if effects:
        objects = _with_effects(snapshot, scope, objects, effects)
    _refuse(relevant_openings(public, snapshot.open_schemas | {item.schema for item in objects}))
    limited = _limited(snapshot, scope, objects)
    if limited:
        with driver_errors("reading the policies of row security"):
            row_limits.demand(connection, limited)
    return Manifest(
        cluster=snapshot.cluster,
        database=snapshot.database,
        database_name=snapshot.database_name,
        level=scope.level,
        objects=objects,
        dropped=tuple(sorted([*choice.dropped, *without_columns], key=lambda item: item.oid)),
        ambient=tuple(sorted([*snapshot.ambient, *_row_security(snapshot, objects), *_tenant(scope, limited)])),
    )


def estimate_rows(connection: Connection, manifest: Manifest) -> dict[int, int]:
    """Rows by object oid as the planner believes, with what is reached through the object. Unknown: left out."""
    stored = {item.oid: _stored_in(item) for item in manifest.objects}
    wanted = sorted({oid for oids in stored.values() for oid in oids})
    with driver_errors("reading row estimates"):
        rows = fetch(
            connection, "SELECT oid::bigint, reltuples::bigint FROM pg_catalog.pg_class WHERE oid = ANY(%s)", [wanted]
        )
    known = {oid: count for oid, count in rows if count >= 0}
    totals = {oid: [known[part] for part in parts if part in known] for oid, parts in stored.items()}
    return {oid: sum(counts) for oid, counts in totals.items() if counts}


def public_openings(connection: Connection, kit_schemas: Iterable[str] = ()) -> tuple[list[Opening], list[Opening]]:
    """For preflight: what every login can use now, and what it can use once a lease opens one of ``kit_schemas``.

    Errors as ``resolve``.
    """
    with driver_errors("reading what PUBLIC may do"):
        openings, now = read_openings(connection), _read(connection).open_schemas
    usable = relevant_openings(openings, now)
    return usable, [o for o in relevant_openings(openings, frozenset(kit_schemas)) if o not in usable]


def relevant_openings(openings: Iterable[Opening], schemas: frozenset[str]) -> list[Opening]:
    """The openings that a login which may use ``schemas`` (and the system's own) can really use."""
    usable = {"", "pg_catalog", "information_schema", *schemas}
    return [opening for opening in openings if opening.schema in usable]


@contextlib.contextmanager
def driver_errors(doing: str) -> Generator[None]:
    """Turn the driver's exceptions into ours; what may not be read here is the catalogue, not the kit."""
    with connecting.driver_errors(doing):
        try:
            yield
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
            raise TargetUnfit(
                f"{doing}: the broker's login may not read the system catalogue",
                hint="grant back what PUBLIC usually has: SELECT on pg_catalog, EXECUTE on pg_control_system()",
            ) from None
        except UnicodeError:
            raise TargetUnfit(
                f"{doing}: a name in the database is not valid text", hint="the database's encoding must be UTF8"
            ) from None


def _read(connection: Connection) -> _Snapshot:
    row = fetch(connection, query("catalogue"))[0]
    cluster, database, name, relations, edges, open_schemas, temporary, elsewhere, large_objects = row
    if not isinstance(name, str):
        # The driver gives bytes where the database does not say what its bytes mean (SQL_ASCII).
        raise UnicodeError
    below: dict[int, list[tuple[int, Through]]] = defaultdict(list)
    for upper, lower, through in sorted(edges):
        below[upper].append((lower, Through(through)))
    words = {"TEMP": temporary, "CONNECT other databases": elsewhere, "LARGE OBJECTS": large_objects}
    return _Snapshot(
        cluster=cluster,
        database=database,
        database_name=name,
        relations={oid: _Relation(oid, _KINDS[kind], *rest) for oid, kind, *rest in relations},
        below=below,
        open_schemas=frozenset(open_schemas),
        ambient=("CATALOGUE", *(word for word, open_to_public in words.items() if open_to_public)),
    )


@dataclass(slots=True)
class _Choice:
    granted: list[_Relation] = field(default_factory=list[_Relation])
    dropped: list[Dropped] = field(default_factory=list[Dropped])


def _choose(snapshot: _Snapshot, scope: Scope) -> _Choice:
    """Sort what the patterns match into granted and dropped."""
    choice = _Choice()
    tainted = _rows_of(snapshot, scope.exclude)
    for relation in snapshot.relations.values():
        if relation.schema == KIT_SCHEMA or not _asked(scope, relation):
            continue
        because = _read_through(snapshot, tainted, relation.oid)
        if scope.excludes(relation.schema, relation.name):
            choice.dropped.append(_dropped(relation, DropReason.EXCLUDED))
        elif because:
            choice.dropped.append(_dropped(relation, DropReason.REACHES_EXCLUDED, because))
        elif relation.kind not in _GRANTED:
            choice.dropped.append(_dropped(relation, DropReason.NOT_A_TABLE))
        else:
            choice.granted.append(relation)
    return choice


def _asked(scope: Scope, relation: _Relation) -> bool:
    return matches(scope.tables, relation.schema, relation.name) and (
        not scope.only or matches(scope.only, relation.schema, relation.name)
    )


def _rows_of(snapshot: _Snapshot, patterns: tuple[str, ...]) -> dict[int, str]:
    """Oid -> name of the relation of ``patterns`` whose rows it holds: itself, or as partition or child of it."""
    tainted: dict[int, str] = {}
    if not patterns:
        return tainted
    todo = sorted(r.oid for r in snapshot.relations.values() if matches(patterns, r.schema, r.name))
    tainted.update((oid, snapshot.relations[oid].full_name) for oid in todo)
    while todo:
        upper = todo.pop(0)
        for lower, through in snapshot.below.get(upper, ()):
            if through in _HOLDS_ROWS_OF_UPPER and lower not in tainted:
                tainted[lower] = tainted[upper]
                todo.append(lower)
    return tainted


def _read_through(snapshot: _Snapshot, tainted: dict[int, str], oid: int) -> str:
    """The name of a tainted relation whose rows can be read through ``oid``, or empty."""
    if not tainted:
        return ""
    return min((tainted[found] for found in (oid, *snapshot.reach(oid)) if found in tainted), default="")


def _dropped(relation: _Relation, reason: DropReason, because: str = "") -> Dropped:
    return Dropped(relation.oid, relation.kind, relation.schema, relation.name, reason, because)


def _columns(connection: Connection, granted: Sequence[_Relation]) -> dict[int, tuple[Column, ...]]:
    if not granted:
        return {}
    found: dict[int, list[Column]] = defaultdict(list)
    for oid, number, name, origins in fetch(connection, _COLUMNS, [[relation.oid for relation in granted]]):
        found[oid].append(Column(number, name, tuple(origins)))
    return {oid: tuple(columns) for oid, columns in found.items()}


def _objects(
    snapshot: _Snapshot, scope: Scope, granted: Sequence[_Relation], columns: dict[int, tuple[Column, ...]]
) -> tuple[tuple[ObjectRights, ...], list[Dropped]]:
    """The rights on each granted relation. One without a column cannot be granted by column: it is dropped."""
    bare = [_dropped(r, DropReason.NOT_A_TABLE, "it has no columns") for r in granted if r.oid not in columns]
    rights = [
        ObjectRights(
            oid=relation.oid,
            kind=relation.kind,
            schema=relation.schema,
            name=relation.name,
            owner=relation.owner,
            columns=columns[relation.oid],
            verbs=scope.verbs,
            reach=_reach(snapshot, relation.oid),
        )
        for relation in sorted(granted, key=lambda relation: relation.oid)
        if relation.oid in columns
    ]
    return tuple(rights), bare


def _effects(connection: Connection) -> writes.Effects:
    return writes.read(fetch(connection, query("writes"))[0])


def _with_effects(
    snapshot: _Snapshot, scope: Scope, objects: Iterable[ObjectRights], effects: writes.Effects
) -> tuple[ObjectRights, ...]:
    """``objects`` with what writing to them does elsewhere; a verb that does it to something excluded is held back."""
    places = {r.oid: writes.Place(r.kind, r.schema, r.name) for r in snapshot.relations.values()}
    excluded = _rows_of(snapshot, scope.exclude)

    def one(item: ObjectRights) -> ObjectRights:
        found = writes.written(item.oid, item.verbs, effects, places=places, below=snapshot.below, excluded=excluded)
        numbers = {column.number for column in item.columns}
        return replace(
            item,
            verbs=item.verbs - {held.verb for held in found.held},
            reach=tuple(sorted([*item.reach, *found.reach])),
            sequences=tuple(sorted(s for s in effects.sequences.get(item.oid, ()) if s.column in numbers)),
            held=found.held,
        )

    return tuple(one(item) for item in objects)


def _reach(snapshot: _Snapshot, oid: int) -> tuple[Reach, ...]:
    found = ((snapshot.relations[lower], through) for lower, through in snapshot.reach(oid).items())
    return tuple(sorted(Reach(r.oid, r.kind, r.schema, r.name, through) for r, through in found))


def _row_security(snapshot: _Snapshot, objects: Iterable[ObjectRights]) -> Iterable[str]:
    """Policies of a table limit what a lease sees (often to nothing), so people are told and a change of it shows."""
    return (f"ROW SECURITY {o.schema}.{o.name}" for o in objects if snapshot.relations[o.oid].row_security)


def _limited(snapshot: _Snapshot, scope: Scope, objects: Iterable[ObjectRights]) -> list[ObjectRights]:
    """Whatever shows rows of a limited table, by any of its names: only policies of the table that is asked count."""
    tainted = _rows_of(snapshot, scope.limited_rows)
    return [item for item in objects if _read_through(snapshot, tainted, item.oid)]


def _tenant(scope: Scope, limited: Iterable[ObjectRights]) -> Iterable[str]:
    """Part of what is approved: another tenant is another manifest."""
    return (f"ROWS OF TENANT {scope.tenant} {o.schema}.{o.name}" for o in limited)


def _refuse(openings: Sequence[Opening]) -> None:
    if openings:
        raise TargetUnfit(
            f"PUBLIC may use {len(openings)} object(s) of this database in a way that every lease would inherit",
            hint="'taskpass doctor' names them with the SQL that closes them",
            code="public_reach",
        )


def _stored_in(item: ObjectRights) -> list[int]:
    """The relations that hold the rows of ``item``: itself unless it is partitioned, and what it reaches."""
    below = [reach.oid for reach in item.reach if reach.kind is not Kind.PARTITIONED]
    return below if item.kind is Kind.PARTITIONED else [item.oid, *below]


def fetch(connection: Connection, query: str, parameters: Sequence[object] | None = None) -> list[tuple[Any, ...]]:
    """The rows of one statement. Driver errors come through: callers are inside ``driver_errors``."""
    with connection.cursor(row_factory=tuple_row) as cursor:
        # Prepared, because planning takes longer than running and the same session asks again for each lease.
        return cursor.execute(query.encode(), parameters, prepare=True).fetchall()


@cache
def query(name: str) -> str:
    """The text of one of the ``.sql`` files beside this module."""
    return resources.files("taskpass.issuers.postgres").joinpath(f"{name}.sql").read_text(encoding="utf-8")


_COLUMNS = """
SELECT a.attrelid::bigint, a.attnum::int, a.attname::text, CASE WHEN a.attgenerated = '' THEN '{}'::int[] ELSE ARRAY(
           SELECT DISTINCT d.refobjsubid FROM pg_catalog.pg_attrdef f
           JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = a.attrelid
               AND d.refobjsubid NOT IN (0, a.attnum)
               AND ((d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = f.oid)
                    OR (d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = a.attrelid AND d.objsubid = a.attnum))
           WHERE f.adrelid = a.attrelid AND f.adnum = a.attnum ORDER BY 1) END
FROM pg_catalog.pg_attribute a
WHERE a.attrelid = ANY(%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1, 2
"""
