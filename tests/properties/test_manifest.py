"""Laws of manifests: narrowing only narrows, within is an order, meet is the greatest lower bound, digests see all."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from taskpass.core import digest
from taskpass.core.errors import InvalidInput
from taskpass.core.manifest import (
    Column,
    Dropped,
    DropReason,
    Held,
    Keep,
    Kind,
    Manifest,
    Migration,
    ObjectRights,
    OwnedSequence,
    Reach,
    Through,
    accept,
    held_back,
    is_within,
    keep_all,
    meet,
    narrow,
)
from taskpass.core.scope import WRITE_VERBS, Level, Verb
from taskpass.core.script import Script

ADVANCING = {Verb.INSERT, Verb.UPDATE}

# Drawn from a few, some alike and some hostile: made letter by letter they would take most of the suite's time.
names = st.sampled_from(["a", "A", "a.b", "orders", "ORDERS", " x ", 'q"q', "l\nb", "\x1b[2J", "ä", "a\u0308", "🐘"])
oids = st.integers(1, 8)
origins = st.lists(st.integers(1, 6), max_size=2, unique=True).map(tuple)
columns = st.lists(
    st.builds(Column, st.integers(1, 6), names, origins), min_size=1, max_size=4, unique_by=lambda column: column.number
).map(tuple)
some_verbs = st.lists(st.sampled_from(sorted(WRITE_VERBS)), max_size=3, unique=True)
reaches = st.lists(
    st.builds(
        Reach, oids, st.sampled_from(Kind), names, names, st.sampled_from(Through), some_verbs.map(sorted).map(tuple)
    ),
    max_size=2,
    unique=True,
).map(tuple)
pii = st.sampled_from(["hr.pay", "hr.note()", "a.b"])
held = st.lists(
    st.builds(Held, st.sampled_from(sorted(WRITE_VERBS)), pii, st.just(Through.CASCADE)), max_size=3, unique=True
).map(tuple)


@st.composite
def _objects(draw):
    """As resolving makes them: what is held back is not granted, and a sequence belongs to one of the columns."""
    made, back = draw(columns), draw(held)
    owned = st.builds(OwnedSequence, oids, names, st.sampled_from([column.number for column in made]))
    return ObjectRights(
        oid=draw(oids),
        kind=draw(st.sampled_from([Kind.TABLE, Kind.PARTITIONED])),
        schema=draw(names),
        name=draw(names),
        owner=draw(names),
        columns=made,
        verbs=frozenset({Verb.SELECT, *draw(some_verbs)}) - {found.verb for found in back},
        reach=draw(reaches),
        sequences=draw(st.lists(owned, max_size=2, unique_by=lambda found: found.oid).map(tuple)),
        held=back,
    )


objects = _objects()
dropped = st.builds(Dropped, oids, st.sampled_from(Kind), names, names, st.sampled_from(DropReason), names)
manifests = st.builds(
    Manifest,
    cluster=st.sampled_from(["7000000000000000001", "7000000000000000002"]),
    database=st.sampled_from([5, 16384]),
    database_name=st.just("orders"),
    level=st.just(Level.WRITE),
    objects=st.lists(objects, max_size=3, unique_by=lambda item: item.oid).map(tuple),
    dropped=st.lists(dropped, max_size=2, unique_by=lambda item: item.oid).map(tuple),
    ambient=st.lists(names, max_size=2, unique=True).map(tuple),
)
keeps = st.lists(
    st.builds(Keep, oids, st.frozensets(st.integers(1, 8)), st.frozensets(st.sampled_from(Verb))),
    max_size=4,
    unique_by=lambda keep: keep.oid,
)


def rights(manifest):
    """What is granted, as a set of single rights: the meaning that the laws are about."""
    tables = {(item.oid, column, verb) for item in manifest.objects for column in item.columns for verb in item.verbs}
    return tables | {(item.oid, found, "USAGE") for item in manifest.objects for found in item.granted_sequences}


@given(manifests, keeps)
def test_narrowing_only_narrows(manifest, some):
    left = narrow(manifest, some)
    assert is_within(left, manifest)
    assert rights(left) <= rights(manifest)


@given(manifests, keeps)
def test_narrowing_leaves_exactly_what_is_kept(manifest, some):
    """Nothing of an object without its SELECT: to change rows that cannot be picked is to change them all."""
    kept = {keep.oid: keep for keep in some if Verb.SELECT in keep.verbs}

    def stays(oid, what, verb):
        keep = kept.get(oid)
        if verb == "USAGE":
            return keep and what.column in keep.columns and any(v in keep.verbs for v in verbs[oid] & ADVANCING)
        return keep and what.number in keep.columns and verb in keep.verbs

    verbs = {item.oid: item.verbs for item in manifest.objects}
    assert rights(narrow(manifest, some)) == {right for right in rights(manifest) if stays(*right)}


@given(manifests)
def test_a_verb_that_was_not_there_is_not_kept(manifest):
    bare = replace(manifest, objects=tuple(replace(item, verbs=frozenset()) for item in manifest.objects))
    assert narrow(bare, keep_all(manifest)).empty


@given(manifests, keeps)
def test_narrowing_leaves_no_object_without_a_column_or_select(manifest, some):
    assert all(item.columns and Verb.SELECT in item.verbs for item in narrow(manifest, some).objects)


accepted = st.lists(pii, max_size=3)


@given(manifests, keeps, accepted)
def test_what_was_not_accepted_is_never_granted(manifest, some, names):
    for left in (manifest, narrow(manifest, some), narrow(accept(manifest, names), some)):
        assert set(left.accepted) <= set(names)
        for item in left.objects:
            assert not {back.verb for back in item.held if back.name not in left.accepted} & item.verbs


@given(manifests, accepted)
def test_accepting_gives_back_exactly_the_verbs_whose_every_name_is_accepted(manifest, names):
    for before, after in zip(manifest.objects, accept(manifest, names).objects, strict=True):
        back = {found.verb for found in before.held}
        refused = {found.verb for found in before.held if found.name not in names}
        assert after.verbs == before.verbs | (back - refused)


@given(manifests, keeps, accepted)
def test_accepting_nothing_new_changes_nothing(manifest, some, names):
    left = narrow(accept(manifest, names), some)
    assert accept(left, ()) == left
    assert accept(left, names) == left
    assert accept(manifest, ["nobody.holds"]) == manifest


@given(manifests, keeps, accepted)
def test_what_one_leaves_who_accepts_is_within_all_that_could_be_accepted(manifest, some, names):
    most = accept(manifest, held_back(manifest))
    assert is_within(manifest, most)
    assert is_within(narrow(accept(manifest, names), some), most)


@given(manifests, accepted)
def test_acceptance_is_part_of_the_digest(manifest, names):
    after = accept(manifest, names)
    assert (after.digest() == manifest.digest()) == (after == manifest)


@given(manifests, accepted, accepted)
def test_approvers_agree_on_what_both_accepted(manifest, one, other):
    both = meet(accept(manifest, one), accept(manifest, other))
    assert rights(both) == rights(accept(manifest, set(one) & set(other)))


@given(manifests, accepted)
def test_what_was_accepted_is_not_within_what_was_not(manifest, names):
    after = accept(manifest, names)
    assert after == manifest or not is_within(after, manifest)


@given(manifests, keeps)
def test_narrowing_twice_alike_changes_nothing_more(manifest, some):
    assert narrow(narrow(manifest, some), some) == narrow(manifest, some)


@given(manifests, keeps, keeps)
def test_the_order_of_narrowings_does_not_matter(manifest, some, others):
    assert narrow(narrow(manifest, some), others) == narrow(narrow(manifest, others), some)


@given(manifests)
def test_keeping_all_changes_nothing(manifest):
    assert narrow(manifest, keep_all(manifest)) == manifest


@given(manifests, keeps, st.data())
def test_an_object_named_twice_is_refused(manifest, some, data):
    assume(some)
    with pytest.raises(InvalidInput):
        narrow(manifest, [*some, data.draw(st.sampled_from(some))])


@given(manifests)
def test_within_is_reflexive(manifest):
    assert is_within(manifest, manifest)


@given(manifests, keeps, keeps)
def test_within_is_transitive(manifest, some, others):
    middle = narrow(manifest, some)
    inner = narrow(middle, others)
    assert is_within(inner, middle)
    assert is_within(inner, manifest)


@given(manifests, keeps, keeps)
def test_within_is_antisymmetric_as_far_as_rights_go(manifest, some, others):
    one, other = narrow(manifest, some), narrow(manifest, others)
    assert (is_within(one, other) and is_within(other, one)) == (rights(one) == rights(other))


@given(manifests, manifests)
def test_within_means_that_every_right_is_there(one, other):
    if is_within(one, other):
        assert rights(one) <= rights(other)
        assert (one.cluster, one.database, one.level) == (other.cluster, other.database, other.level)


@given(manifests, keeps, keeps)
def test_meet_of_two_narrowings_is_within_both_and_exactly_what_both_leave(manifest, some, others):
    one, other = narrow(manifest, some), narrow(manifest, others)
    both = meet(one, other)
    assert is_within(both, one)
    assert is_within(both, other)
    assert rights(both) == rights(one) & rights(other)


@given(manifests, keeps, keeps, keeps)
def test_meet_is_the_greatest_lower_bound(manifest, some, others, third):
    one, other, inner = (narrow(manifest, keep) for keep in (some, others, third))
    if is_within(inner, one) and is_within(inner, other):
        assert is_within(inner, meet(one, other))


@given(manifests, keeps, keeps, keeps)
def test_meet_is_commutative_associative_and_idempotent_in_rights(manifest, some, others, third):
    a, b, c = (narrow(manifest, keep) for keep in (some, others, third))
    assert rights(meet(a, b)) == rights(meet(b, a))
    assert rights(meet(a, meet(b, c))) == rights(meet(meet(a, b), c))
    assert meet(a, a) == a


@given(manifests, manifests)
def test_meet_is_within_both_whatever_they_are(one, other):
    assert is_within(meet(one, other), one)
    assert meet(one, other).empty or is_within(meet(one, other), other)


@given(manifests, st.sampled_from(["schema", "name", "owner", "kind"]))
def test_approvers_who_were_shown_another_object_agree_on_nothing(manifest, field):
    assume(manifest.objects)
    changed = {"kind": Kind.VIEW}.get(field, "another name")
    other = replace(manifest, objects=tuple(replace(item, **{field: changed}) for item in manifest.objects))
    assert meet(manifest, other).empty
    assert not is_within(manifest, other)


@given(manifests)
def test_more_is_reachable_is_not_within(manifest):
    assume(manifest.objects)
    more = Reach(99, Kind.TABLE, "hr", "salaries", Through.VIEW)
    wider = replace(manifest, objects=tuple(replace(item, reach=(*item.reach, more)) for item in manifest.objects))
    assert not is_within(wider, manifest)
    assert meet(wider, manifest).empty


@given(manifests)
def test_json_round_trip(manifest):
    again = Manifest.from_json(json.loads(json.dumps(manifest.to_json())))
    assert again.digest() == manifest.digest()
    assert rights(again) == rights(manifest)
    assert is_within(again, manifest)
    assert is_within(manifest, again)


@given(keeps)
def test_keeps_survive_json(some):
    assert [Keep.from_json(json.loads(json.dumps(keep.to_json()))) for keep in some] == some


@given(manifests, st.randoms())
def test_the_digest_does_not_depend_on_order(manifest, random):
    def shuffled(items):
        return tuple(random.sample(items, len(items)))

    turned = [
        replace(
            o,
            columns=shuffled(o.columns),
            reach=shuffled(o.reach),
            sequences=shuffled(o.sequences),
            held=shuffled(o.held),
        )
        for o in manifest.objects
    ]
    other = replace(
        manifest, objects=shuffled(turned), dropped=shuffled(manifest.dropped), ambient=shuffled(manifest.ambient)
    )
    assert other.digest() == manifest.digest()


BASE = Manifest(
    cluster="7000000000000000001",
    database=16384,
    database_name="orders",
    level=Level.WRITE,
    objects=(
        ObjectRights(
            oid=1,
            kind=Kind.TABLE,
            schema="public",
            name="orders",
            owner="owner",
            columns=(Column(1, "id"), Column(2, "total", (1,))),
            verbs=frozenset({Verb.SELECT}),
            reach=(
                Reach(2, Kind.TABLE, "public", "part", Through.PARTITION),
                Reach(4, Kind.ROUTINE, "public", "note", Through.TRIGGER, (Verb.INSERT,), "sha256:0"),
            ),
            sequences=(OwnedSequence(5, "orders_id_seq", 1),),
            held=(Held(Verb.DELETE, "public.pii", Through.CASCADE),),
        ),
    ),
    dropped=(Dropped(3, Kind.VIEW, "public", "v", DropReason.NOT_A_TABLE, "x"),),
    ambient=("TEMP",),
    accepted=("public.pii",),
)


def changes():
    """``BASE`` with each leaf of its JSON changed, one at a time."""

    def leaves(node, path=()):
        if isinstance(node, dict):
            for key, item in node.items():
                yield from leaves(item, (*path, key))
        elif isinstance(node, list):
            yield (*path, "+"), None
            for index, item in enumerate(node):
                yield from leaves(item, (*path, index))
        else:
            yield path, node

    def changed(node, path, value):
        if not path:
            return value
        copy = dict(node) if isinstance(node, dict) else list(node)
        if path == ("+",):
            return copy[:-1]
        copy[path[0]] = changed(copy[path[0]], path[1:], value)
        return copy

    data = BASE.to_json()
    for path, value in leaves(data):
        other = value + 1 if isinstance(value, int) else f"{value} "
        yield path, changed(data, path, other)


@pytest.mark.parametrize(("path", "data"), list(changes()), ids=lambda value: str(value)[:60])
def test_the_digest_changes_with_every_leaf(path, data):
    assert digest.digest(digest.MANIFEST, data) != BASE.digest()


FIELDS = {
    "cluster": "7",
    "database": 5,
    "database_name": "other",
    "objects": (),
    "dropped": (),
    "ambient": (),
    "accepted": (),
    "level": Level.MIGRATE,
    "migration": Migration("owner", 1),
}
SCRIPT = Script("sha256:00", 10, True, ((1, "CREATE TABLE"),))
MIGRATION_FIELDS = {"owner": "other", "owner_oid": 2, "script": None}
SCRIPT_FIELDS = {"digest": "sha256:01", "size": 11, "one_transaction": False, "statements": ((2, "CREATE TABLE"),)}
OBJECT_FIELDS = {
    "oid": 9,
    "kind": Kind.PARTITIONED,
    "schema": "other",
    "name": "other",
    "owner": "other",
    "columns": (Column(1, "id"),),
    "verbs": frozenset(),
    "reach": (),
    "sequences": (),
    "held": (),
}


@pytest.mark.parametrize("field", FIELDS)
def test_the_digest_covers_every_field(field):
    assert replace(BASE, **{field: FIELDS[field]}).digest() != BASE.digest()


@pytest.mark.parametrize("field", OBJECT_FIELDS)
def test_the_digest_covers_every_field_of_an_object(field):
    changed = replace(BASE.objects[0], **{field: OBJECT_FIELDS[field]})
    assert replace(BASE, objects=(changed,)).digest() != BASE.digest()


@pytest.mark.parametrize("field", MIGRATION_FIELDS)
def test_the_digest_covers_every_field_of_a_migration(field):
    base = replace(BASE, migration=Migration("owner", 1, SCRIPT))
    changed = replace(base.migration, **{field: MIGRATION_FIELDS[field]})
    assert replace(base, migration=changed).digest() != base.digest()


@pytest.mark.parametrize("field", SCRIPT_FIELDS)
def test_the_digest_covers_every_field_of_a_file(field):
    base = replace(BASE, migration=Migration("owner", 1, SCRIPT))
    changed = Migration("owner", 1, replace(SCRIPT, **{field: SCRIPT_FIELDS[field]}))
    assert replace(base, migration=changed).digest() != base.digest()


def test_a_migration_cannot_be_narrowed_and_two_files_have_nothing_in_common():
    migration = replace(BASE, objects=(), migration=Migration("owner", 1, SCRIPT))
    other = replace(migration, migration=Migration("owner", 1, replace(SCRIPT, digest="sha256:01")))
    assert narrow(migration, []) == migration
    assert not migration.empty
    assert meet(migration, migration) == migration
    assert meet(migration, other).empty
    assert not is_within(migration, other)


def test_no_field_is_forgotten_here():
    """Every field must be changed above. The kept digest is no content."""
    assert set(FIELDS) == {name for name, found in Manifest.__dataclass_fields__.items() if found.init}
    assert set(OBJECT_FIELDS) == set(ObjectRights.__dataclass_fields__)
    assert set(MIGRATION_FIELDS) == set(Migration.__dataclass_fields__)
    assert set(SCRIPT_FIELDS) == set(Script.__dataclass_fields__)
