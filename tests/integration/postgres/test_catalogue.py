"""What a scope resolves to on real servers: object identities, reach, what is dropped, what PUBLIC opens."""

from __future__ import annotations

import psycopg
import pytest

from taskpass.core.errors import TargetUnavailable, TargetUnfit
from taskpass.core.manifest import Column, Dropped, DropReason, Kind, Reach, Through
from taskpass.core.scope import Level, Scope, Verb
from taskpass.issuers.postgres.catalogue import estimate_rows, public_openings, resolve
from taskpass.testing import orders

pytestmark = pytest.mark.service


def scope(*tables, exclude=(), only=()):
    return Scope("orders", "read", Level.READ, tables or ("public.*",), tuple(exclude), tuple(only))


@pytest.fixture
def broker(database):
    """A connection of an ordinary login: no right on any table, as the broker's own login."""
    return database.connect(*database.login())


@pytest.fixture
def personal(database):
    """``orders`` beside ``pii``, which is to stay out of reach; ``pii`` has one telltale row."""
    database.execute(
        "CREATE TABLE orders (id int, total int)",
        "CREATE TABLE pii (id int, email text)",
        "INSERT INTO pii VALUES (1, 'secret@example.test')",
    )
    return database


def names(manifest):
    return sorted(f"{item.schema}.{item.name}" for item in manifest.objects)


def dropped(manifest):
    return {f"{item.schema}.{item.name}": (item.reason, item.because) for item in manifest.dropped}


def oid(database, name):
    return database.fetch("SELECT %s::regclass::oid::bigint", name)[0][0]


def test_a_table_resolves_to_its_identity_columns_and_owner(database, broker):
    owner = database.role("owner")
    database.execute(
        "CREATE TABLE orders (id int, gone text, total numeric, note text)",
        "ALTER TABLE orders DROP COLUMN gone",
        f"ALTER TABLE orders OWNER TO {owner}",
        "CREATE SEQUENCE counter",
        "CREATE INDEX ON orders (id)",
    )
    manifest = resolve(broker, scope())
    (found,) = manifest.objects
    assert (found.oid, found.kind, found.owner) == (oid(database, "orders"), Kind.TABLE, owner)
    assert found.columns == (Column(1, "id"), Column(3, "total"), Column(4, "note"))
    assert found.verbs == {Verb.SELECT}
    assert found.reach == ()
    expected = database.fetch(
        "SELECT system_identifier::text, (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) "
        "FROM pg_control_system()"
    )
    assert (manifest.cluster, manifest.database) == expected[0]
    assert manifest.database_name == database.name
    assert manifest.dropped == ()


def test_the_same_catalogue_gives_the_same_digest_to_every_login(personal, broker):
    first = resolve(broker, scope(exclude=["public.pii"]))
    assert resolve(personal.connect(), scope(exclude=["public.pii"])).digest() == first.digest()
    assert resolve(personal.connect(*personal.login("second")), scope(exclude=["public.pii"])) == first


def test_only_what_the_caller_wants_is_granted_or_dropped(personal, broker):
    manifest = resolve(broker, scope(exclude=["public.pii"], only=["public.ord*"]))
    assert names(manifest) == ["public.orders"]
    assert manifest.dropped == ()


def test_a_scope_that_fits_nothing_is_empty(personal, broker):
    assert resolve(broker, scope("sales.*")).empty


SHAPES = {
    "view": ("leak", ["CREATE VIEW leak AS SELECT email FROM pii"]),
    "view that joins": ("leak", ["CREATE VIEW leak AS SELECT email FROM orders RIGHT JOIN pii USING (id)"]),
    "subquery in a view": ("leak", ["CREATE VIEW leak AS SELECT (SELECT max(email) FROM pii) AS email"]),
    "chain of views": (
        "leak",
        ["CREATE VIEW a AS SELECT * FROM pii", "CREATE VIEW b AS SELECT * FROM a", "CREATE VIEW leak AS TABLE b"],
    ),
    "chain through another schema": (
        "leak",
        ["CREATE SCHEMA s", "CREATE VIEW s.a AS SELECT * FROM pii", "CREATE VIEW leak AS SELECT * FROM s.a"],
    ),
    "materialised view": ("leak", ["CREATE MATERIALIZED VIEW leak AS SELECT email FROM pii"]),
    "view over a materialised view": (
        "leak",
        ["CREATE MATERIALIZED VIEW m AS SELECT email FROM pii", "CREATE VIEW leak AS SELECT email FROM m"],
    ),
    "parent of an excluded partition": (
        "leak",
        [
            "DROP TABLE pii",
            "CREATE TABLE leak (id int, email text) PARTITION BY LIST (id)",
            "CREATE TABLE pii PARTITION OF leak FOR VALUES IN (1)",
            "INSERT INTO leak VALUES (1, 'secret@example.test')",
        ],
    ),
    "grandparent of an excluded partition": (
        "leak",
        [
            "DROP TABLE pii",
            "CREATE TABLE leak (id int, email text) PARTITION BY LIST (id)",
            "CREATE TABLE middle PARTITION OF leak FOR VALUES IN (1) PARTITION BY LIST (id)",
            "CREATE TABLE pii PARTITION OF middle FOR VALUES IN (1)",
            "INSERT INTO leak VALUES (1, 'secret@example.test')",
        ],
    ),
    "parent of an excluded child": (
        "leak",
        ["CREATE TABLE leak (id int, email text)", "ALTER TABLE pii INHERIT leak"],
    ),
    "partition of an excluded table": (
        "leak",
        [
            "DROP TABLE pii",
            "CREATE TABLE pii (id int, email text) PARTITION BY LIST (id)",
            "CREATE TABLE leak PARTITION OF pii FOR VALUES IN (1)",
            "INSERT INTO pii VALUES (1, 'secret@example.test')",
        ],
    ),
    "child of an excluded table": (
        "leak",
        ["CREATE TABLE leak () INHERITS (pii)", "INSERT INTO leak VALUES (1, 'secret@example.test')"],
    ),
    "view over a partition of an excluded table": (
        "leak",
        [
            "DROP TABLE pii",
            "CREATE TABLE pii (id int, email text) PARTITION BY LIST (id)",
            "CREATE TABLE part PARTITION OF pii FOR VALUES IN (1)",
            "INSERT INTO pii VALUES (1, 'secret@example.test')",
            "CREATE VIEW leak AS SELECT email FROM part",
        ],
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_an_excluded_row_can_be_read_through_is_dropped_and_named(personal, broker, shape):
    through, statements = SHAPES[shape]
    personal.execute(*statements)
    user, password = personal.login("reader")
    personal.execute(f"GRANT SELECT ON {through} TO {user}")
    # The shape is a real leak: with SELECT on nothing but the object, the telltale row can be read.
    assert personal.connect(user, password).execute(f"SELECT email FROM {through}").fetchall() == [
        ("secret@example.test",)
    ]
    manifest = resolve(broker, scope(exclude=["public.pii"]))
    assert dropped(manifest)[f"public.{through}"] == (DropReason.REACHES_EXCLUDED, "public.pii")
    assert dropped(manifest)["public.pii"] == (DropReason.EXCLUDED, "")
    assert "public.orders" in names(manifest)
    assert not {"public.leak", "public.pii", "public.middle", "public.part"} & set(names(manifest))


def test_a_security_definer_routine_for_everybody_refuses_the_database_until_it_is_closed(personal, broker):
    personal.execute(
        "CREATE FUNCTION leak() RETURNS SETOF pii LANGUAGE sql SECURITY DEFINER AS 'SELECT * FROM public.pii'"
    )
    assert broker.execute("SELECT email FROM leak()").fetchall() == [("secret@example.test",)]
    with pytest.raises(TargetUnfit) as refused:
        resolve(broker, scope(exclude=["public.pii"]))
    assert refused.value.code == "public_reach"
    assert "leak" not in refused.value.message
    (opening,), _ = public_openings(broker)
    assert opening.named == "public.leak()"
    personal.execute(opening.fix)
    assert names(resolve(broker, scope(exclude=["public.pii"]))) == ["public.orders"]


def test_an_exclude_pattern_outside_the_tables_counts_too(personal, broker):
    personal.execute("CREATE SCHEMA hidden", "ALTER TABLE pii SET SCHEMA hidden", "CREATE VIEW v AS TABLE hidden.pii")
    manifest = resolve(broker, scope(exclude=["hidden.*"]))
    assert dropped(manifest) == {"public.v": (DropReason.REACHES_EXCLUDED, "hidden.pii")}


def test_views_and_foreign_tables_are_no_tables_for_a_pattern(personal, broker):
    personal.execute(
        "CREATE VIEW v AS SELECT id FROM orders",
        "CREATE VIEW invoker WITH (security_invoker) AS SELECT id FROM orders",
        "CREATE MATERIALIZED VIEW m AS SELECT id FROM orders",
        "CREATE FOREIGN DATA WRAPPER w",
        "CREATE SERVER s FOREIGN DATA WRAPPER w",
        "CREATE FOREIGN TABLE f (id int) SERVER s",
    )
    manifest = resolve(broker, scope(exclude=["public.pii"]))
    none = (DropReason.NOT_A_TABLE, "")
    assert dropped(manifest) == {
        "public.v": none,
        "public.invoker": none,
        "public.m": none,
        "public.f": none,
        "public.pii": (DropReason.EXCLUDED, ""),
    }
    assert names(manifest) == ["public.orders"]


def test_an_excluded_view_is_dropped_and_what_it_reads_stays(personal, broker):
    personal.execute("CREATE VIEW v AS SELECT * FROM orders")
    manifest = resolve(broker, scope("public.orders", "public.v", exclude=["public.v"]))
    assert names(manifest) == ["public.orders"]
    assert dropped(manifest) == {"public.v": (DropReason.EXCLUDED, "")}


def test_partitions_of_all_levels_and_children_are_shown_as_reach_even_outside_the_patterns(database, broker):
    database.execute(
        "CREATE SCHEMA parts",
        "CREATE TABLE events (id int, at int) PARTITION BY LIST (id)",
        "CREATE TABLE parts.one PARTITION OF events FOR VALUES IN (1) PARTITION BY LIST (at)",
        "CREATE TABLE parts.leaf PARTITION OF parts.one FOR VALUES IN (1)",
        "CREATE FOREIGN DATA WRAPPER w",
        "CREATE SERVER s FOREIGN DATA WRAPPER w",
        "CREATE FOREIGN TABLE parts.remote PARTITION OF events FOR VALUES IN (2) SERVER s",
        "CREATE TABLE parent (id int)",
        "CREATE TABLE parts.child (more int) INHERITS (parent)",
        "CREATE INDEX ON events (id)",
    )
    manifest = resolve(broker, scope())
    found = {item.name: item for item in manifest.objects}
    assert {name: item.kind for name, item in found.items()} == {"events": Kind.PARTITIONED, "parent": Kind.TABLE}
    assert set(found["events"].reach) == {
        Reach(oid(database, "parts.one"), Kind.PARTITIONED, "parts", "one", Through.PARTITION),
        Reach(oid(database, "parts.leaf"), Kind.TABLE, "parts", "leaf", Through.PARTITION),
        Reach(oid(database, "parts.remote"), Kind.FOREIGN_TABLE, "parts", "remote", Through.PARTITION),
    }
    assert found["parent"].reach == (
        Reach(oid(database, "parts.child"), Kind.TABLE, "parts", "child", Through.INHERITANCE),
    )


def test_a_table_without_columns_is_dropped_and_the_reason_said(database, broker):
    database.execute("CREATE TABLE bare ()")
    manifest = resolve(broker, scope())
    assert manifest.objects == ()
    assert dropped(manifest) == {"public.bare": (DropReason.NOT_A_TABLE, "it has no columns")}


def test_system_temporary_and_kit_schemas_never_fit_a_pattern(personal, broker):
    temporary = personal.connect()
    temporary.execute("CREATE TEMP TABLE passing (id int)")
    personal.execute("CREATE SCHEMA taskpass", "CREATE TABLE taskpass.ceiling (id int)")
    everything = scope("*.*", "pg_catalog.pg_class", "pg_temp*.*", "information_schema.*")
    assert names(resolve(broker, everything)) == ["public.orders", "public.pii"]


CHANGES = {
    "rename": "ALTER TABLE orders RENAME TO report",
    "another table takes the name": "ALTER TABLE orders RENAME TO old; ALTER TABLE pii RENAME TO orders",
    "drop and recreate": "DROP TABLE orders; CREATE TABLE orders (id int, total int)",
    "new column": "ALTER TABLE orders ADD COLUMN email text",
    "column renamed": "ALTER TABLE orders RENAME COLUMN total TO email",
    "column dropped and added": "ALTER TABLE orders DROP COLUMN total; ALTER TABLE orders ADD COLUMN total int",
    "new table": "CREATE TABLE more (id int)",
    "other owner": "ALTER TABLE orders OWNER TO {owner}",
    "new child": "CREATE TABLE other.child () INHERITS (orders)",
    "moved to another schema": "ALTER TABLE orders SET SCHEMA other",
    "row security switched on": "ALTER TABLE orders ENABLE ROW LEVEL SECURITY",
    "a view appears": "CREATE VIEW v AS TABLE orders",
    "less for everybody": "REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_what_would_be_granted_or_reached_changes_the_digest(personal, broker, change):
    personal.execute("CREATE SCHEMA other")
    before = resolve(broker, scope(exclude=["public.pii"])).digest()
    owner = personal.role("owner")
    personal.execute(CHANGES[change].format(owner=owner, name=personal.name))
    assert resolve(broker, scope(exclude=["public.pii"])).digest() != before


@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE other.unrelated (id int)",
        "INSERT INTO orders SELECT 1, 1",
        "CREATE INDEX ON orders (id)",
        "CREATE SEQUENCE counter",
        "GRANT SELECT ON orders TO {owner}",
        "ANALYZE orders",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER TABLE orders ALTER COLUMN id SET DEFAULT 7",
    ],
)
def test_what_does_not_concern_the_scope_leaves_the_digest_alone(personal, broker, change):
    personal.execute("CREATE SCHEMA other")
    owner = personal.role("owner")
    before = resolve(broker, scope(exclude=["public.pii"])).digest()
    personal.execute(change.format(owner=owner))
    assert resolve(broker, scope(exclude=["public.pii"])).digest() == before


def test_a_change_in_an_open_transaction_is_seen_there(personal):
    connection = personal.connect(autocommit=False)
    before = resolve(connection, scope()).digest()
    connection.execute("ALTER TABLE orders ADD COLUMN email text")
    assert resolve(connection, scope()).digest() != before
    connection.rollback()
    assert resolve(connection, scope()).digest() == before


HOSTILE = [
    'q"uote',
    "it's",
    "a.b",
    "sel*ect",
    "SELECT",
    "Ordérs 🧾",
    "new\nline",
    "x" * 63,
    "%s",
    "\\",
    "public.pii",
    " ",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_come_back_as_they_are(database, broker, name):
    database.execute(f'CREATE TABLE "{name.replace(chr(34), chr(34) * 2)}" ("{name.replace(chr(34), "")}" int)')
    (found,) = resolve(broker, scope()).objects
    assert (found.schema, found.name) == ("public", name)
    assert found.columns == (Column(1, name.replace('"', "")),)


def test_a_dot_in_a_name_never_moves_the_border_between_schema_and_table(database, broker):
    database.execute(
        'CREATE SCHEMA "public.a"',
        'CREATE TABLE "public.a".b (id int)',
        'CREATE TABLE public."a.b" (id int)',
        "CREATE TABLE public.a (id int)",
    )
    (found,) = resolve(broker, scope("public.a.b")).objects
    assert (found.schema, found.name) == ("public", "a.b")
    excluded = resolve(broker, scope("*.*", exclude=["public.a.b"]))
    assert {(item.schema, item.name) for item in excluded.objects} == {("public.a", "b"), ("public", "a")}


def test_a_quote_or_a_backslash_in_a_pattern_is_only_text(personal, broker):
    for text in ("public.'; DROP TABLE orders; --", 'public."orders"', "public.ORDERS", "public.order_", "public.%"):
        assert resolve(broker, scope(text)).empty
    assert names(resolve(broker, scope("public.orders"))) == ["public.orders"]


OPENINGS = {
    "table grant": "GRANT SELECT ON orders TO PUBLIC",
    "write grant": "GRANT INSERT ON pii TO PUBLIC",
    "column grant": "GRANT SELECT (email) ON pii TO PUBLIC",
    "view grant": "CREATE VIEW v AS TABLE pii; GRANT SELECT ON v TO PUBLIC",
    "sequence grant": "CREATE SEQUENCE counter; GRANT UPDATE ON SEQUENCE counter TO PUBLIC",
    "schema create": "GRANT CREATE ON SCHEMA public TO PUBLIC",
    "database create": "GRANT CREATE ON DATABASE {name} TO PUBLIC",
    "security definer": "CREATE PROCEDURE \"do it\"(a int, b text) LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
    "trigger function": "CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN END'",
    "in the system's schema": (
        "CREATE FUNCTION pg_catalog.tp_f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'"
    ),
    "file function": "GRANT EXECUTE ON FUNCTION pg_read_file(text) TO PUBLIC",
    "large object import": "GRANT EXECUTE ON FUNCTION lo_import(text) TO PUBLIC",
    "password hashes": "GRANT SELECT ON pg_authid TO PUBLIC",
    "foreign server": (
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;"
        "GRANT USAGE ON FOREIGN SERVER s TO PUBLIC"
    ),
    "foreign data wrapper": "CREATE FOREIGN DATA WRAPPER w; GRANT USAGE ON FOREIGN DATA WRAPPER w TO PUBLIC",
    "own C function": "CREATE FUNCTION c() RETURNS trigger LANGUAGE c AS '$libdir/plpgsql', 'plpgsql_call_handler'",
}


@pytest.mark.parametrize("opening", OPENINGS)
def test_what_public_may_do_beyond_a_lease_refuses_until_the_shown_sql_has_run(personal, broker, opening):
    assert names(resolve(broker, scope())) == ["public.orders", "public.pii"]
    personal.execute(OPENINGS[opening].format(name=personal.name))
    with pytest.raises(TargetUnfit) as refused:
        resolve(broker, scope())
    assert refused.value.code == "public_reach"
    (found,), _ = public_openings(broker)
    personal.execute(found.fix)
    assert public_openings(broker) == ([], [])
    assert names(resolve(broker, scope())) == ["public.orders", "public.pii"]


def test_a_parameter_that_everybody_may_set_refuses(personal, broker):
    personal.execute("GRANT SET ON PARAMETER session_replication_role TO PUBLIC")
    try:
        with pytest.raises(TargetUnfit):
            resolve(broker, scope())
        (found,), _ = public_openings(broker)
        personal.execute(found.fix)
        assert resolve(broker, scope())
    finally:
        personal.execute("REVOKE ALL ON PARAMETER session_replication_role FROM PUBLIC")


def test_network_functions_of_an_extension_refuse(personal, broker):
    if not personal.fetch("SELECT FROM pg_available_extensions WHERE name = 'dblink'"):
        pytest.skip("these binaries have no contrib modules")
    personal.execute("CREATE EXTENSION dblink")
    with pytest.raises(TargetUnfit):
        resolve(broker, scope())
    personal.execute(*(found.fix for found in public_openings(broker)[0]))
    assert resolve(broker, scope())


def test_what_an_extension_lets_everybody_read_is_no_exception(personal, broker):
    if not personal.fetch("SELECT FROM pg_available_extensions WHERE name = 'pg_stat_statements'"):
        pytest.skip("these binaries have no contrib modules")
    personal.execute("CREATE EXTENSION pg_stat_statements")
    with pytest.raises(TargetUnfit):
        resolve(broker, scope())
    personal.execute(*(found.fix for found in public_openings(broker)[0]))
    assert "public.orders" in names(resolve(broker, scope()))


def test_a_closed_schema_hides_its_openings_until_a_lease_would_open_it(personal, broker):
    personal.execute(
        "CREATE SCHEMA inner_part",
        "CREATE TABLE inner_part.stock (id int)",
        "CREATE FUNCTION inner_part.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
    )
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        broker.execute("SELECT inner_part.f()")
    assert names(resolve(broker, scope())) == ["public.orders", "public.pii"]
    with pytest.raises(TargetUnfit):
        resolve(broker, scope("inner_part.*"))
    personal.execute("GRANT USAGE ON SCHEMA inner_part TO PUBLIC")
    with pytest.raises(TargetUnfit):
        resolve(broker, scope())


def test_what_every_login_may_do_anyway_is_listed_and_can_be_closed(personal, broker):
    before = resolve(broker, scope()).ambient
    assert before == ("CATALOGUE", "CONNECT other databases", "LARGE OBJECTS", "TEMP")
    personal.execute(f"REVOKE TEMPORARY ON DATABASE {personal.name} FROM PUBLIC")
    assert "TEMP" not in resolve(broker, scope()).ambient


def test_row_security_is_shown(personal, broker):
    personal.execute("ALTER TABLE orders ENABLE ROW LEVEL SECURITY")
    assert "ROW SECURITY public.orders" in resolve(broker, scope()).ambient


def test_row_estimates_count_what_is_reached_and_leave_out_the_unknown(personal, broker):
    personal.execute(
        "CREATE TABLE events (id int) PARTITION BY LIST (id)",
        "CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1)",
        "CREATE TABLE events_2 PARTITION OF events FOR VALUES IN (2)",
        "INSERT INTO events SELECT 1 + (n % 2) FROM generate_series(1, 100) n",
        "ANALYZE events",
        "ANALYZE pii",
    )
    manifest = resolve(broker, scope())
    by_name = {item.name: item.oid for item in manifest.objects}
    estimates = estimate_rows(broker, manifest)
    assert estimates[by_name["events"]] == 100
    assert estimates[by_name["events_1"]] == 50
    assert estimates[by_name["pii"]] == 1
    assert by_name["orders"] not in estimates


def test_a_lost_connection_is_the_targets_absence_and_a_closed_catalogue_its_unfitness(personal, broker):
    personal.execute("REVOKE SELECT ON pg_depend FROM PUBLIC")
    try:
        with pytest.raises(TargetUnfit, match="may not read the system catalogue"):
            resolve(broker, scope())
    finally:
        personal.execute("GRANT SELECT ON pg_depend TO PUBLIC")
    broker.close()
    with pytest.raises(TargetUnavailable):
        resolve(broker, scope())
    with pytest.raises(TargetUnavailable):
        estimate_rows(broker, resolve(personal.connect(), scope()))


def test_dropped_entries_are_in_one_order(personal, broker):
    personal.execute("CREATE VIEW z AS TABLE pii", "CREATE VIEW a AS TABLE orders")
    manifest = resolve(broker, scope(exclude=["public.pii"]))
    assert [item.oid for item in manifest.dropped] == sorted(item.oid for item in manifest.dropped)
    assert all(isinstance(item, Dropped) for item in manifest.dropped)


def test_the_sample_database_hides_customers_and_every_way_to_them(database, broker):
    with database.server.connect(database.name) as connection:
        orders.load(connection, orders=1000)
    manifest = resolve(broker, scope(f"{orders.SCHEMA}.*", exclude=[f"{orders.SCHEMA}.customers"]))
    through = (DropReason.REACHES_EXCLUDED, "shop.customers")
    assert dropped(manifest) == {
        "shop.customers": (DropReason.EXCLUDED, ""),
        "shop.customer_orders": through,
        "shop.best_customers": through,
    }
    assert {"shop.orders", "shop.items", "shop.payments", "shop.order_events"} <= set(names(manifest))
    assert {item.owner for item in manifest.objects} == {orders.OWNER}
    counts = database.fetch(
        "SELECT (SELECT count(*) FROM shop.orders), (SELECT count(*) FROM shop.order_events),"
        " (SELECT count(*) FROM shop.customer_orders), (SELECT max(total_cents) FROM shop.orders)"
    )
    assert counts == [(1000, 1000, 1000, 20498)]
    assert database.fetch("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", orders.OWNER) == [(False,)]
