"""Level ``write`` on real servers: what it grants, what it reaches, what is held back, what changes after a yes."""

from __future__ import annotations

import json
from dataclasses import replace

import psycopg
import pytest

from taskpass.core.errors import ManifestChanged, TargetUnfit
from taskpass.core.manifest import Held, Keep, Kind, Through, accept, held_back, keep_all, narrow
from taskpass.core.scope import VERBS_OF_LEVEL, Level, Scope, Verb
from taskpass.issuers.postgres.kit import Writing
from tests.integration.postgres.enrolled import Broker, outcome, until
from tests.integration.postgres.test_kit import verifier

pytestmark = pytest.mark.service

ALL = VERBS_OF_LEVEL[Level.WRITE]
DENIED = "42501"
TABLES = (
    "CREATE SCHEMA shop",
    "CREATE TABLE shop.orders (id int PRIMARY KEY, total int, note text)",
    "INSERT INTO shop.orders SELECT n, n * 10, 'x' FROM generate_series(1, 20) n",
    "CREATE TABLE shop.items (id serial PRIMARY KEY, number int GENERATED ALWAYS AS IDENTITY, what text)",
    "CREATE TABLE shop.pii (id int PRIMARY KEY, email text)",
)
CASCADE = "ALTER TABLE shop.pii ADD FOREIGN KEY (id) REFERENCES shop.orders (id) ON DELETE CASCADE"
ROUTINE = (
    "CREATE FUNCTION shop.keep() RETURNS trigger LANGUAGE plpgsql SECURITY {whose} SET search_path = pg_catalog AS"
    " 'BEGIN INSERT INTO shop.pii VALUES (NEW.id + 100, NEW.note); RETURN NEW; END'"
)
CLOSED = "REVOKE ALL ON FUNCTION shop.keep() FROM PUBLIC"
TRIGGER = "CREATE TRIGGER kept AFTER INSERT ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.keep()"


@pytest.fixture
def shop(database):
    database.execute(*TABLES)
    return database


@pytest.fixture
def enrol(shop):
    made = []

    def make(**options):
        writes = (Writing(("shop.*",), ("shop.pii",), ALL),)
        made.append(Broker(shop, **{"exclude": ("shop.pii",), "writes": writes, **options}))
        return made[-1]

    yield make
    for broker in made:
        broker.forget()


@pytest.fixture
def broker(enrol):
    return enrol()


def scope(*tables, verbs=(), exclude=("shop.pii",)):
    wanted = frozenset({Verb.SELECT, *map(Verb, verbs)}) if verbs else frozenset()
    return Scope("shop", "write", Level.WRITE, tables or ("shop.*",), tuple(exclude), verbs=wanted)


def lease(broker, wanted=None, *, accepting=(), only=None):
    """A live lease over what the scope means, as a person leaves it who accepts ``accepting``."""
    wanted = wanted or scope()
    manifest = accept(broker.issuer.resolve(wanted), accepting)
    return broker.live(scope=wanted, manifest=narrow(manifest, only or keep_all(manifest)))


def found(manifest, name):
    return next(item for item in manifest.objects if item.full_name == name)


def refused(connection, statement):
    return outcome(lambda: connection.execute(statement))


def test_the_granted_verbs_work_without_a_guard_rail_and_nothing_else_does(broker, shop):
    agent = broker.enter(lease(broker))
    assert agent.execute("INSERT INTO shop.orders (id, total) VALUES (100, 5) RETURNING total").fetchone() == (5,)
    assert agent.execute("UPDATE shop.orders SET total = 6 WHERE id = 100").rowcount == 1
    assert agent.execute("SELECT total FROM shop.orders WHERE id = 100").fetchone() == (6,)
    agent.execute("INSERT INTO shop.orders VALUES (100, 7) ON CONFLICT (id) DO UPDATE SET total = excluded.total")
    assert agent.execute("DELETE FROM shop.orders WHERE id = 100").rowcount == 1
    for statement in [
        "TRUNCATE shop.orders",
        "CREATE TRIGGER t BEFORE UPDATE ON shop.orders EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "CREATE TEMP TABLE mine (id int REFERENCES shop.orders)",
        "ALTER TABLE shop.orders ADD COLUMN mine int",
        "SELECT * FROM shop.pii",
        "INSERT INTO shop.pii VALUES (1)",
        "DELETE FROM shop.pii",
        "SELECT setval('shop.items_id_seq', 1)",
        "VACUUM FULL shop.orders",
    ]:
        agent.execute("BEGIN") if "VACUUM" not in statement else None
        code = refused(agent, statement)
        agent.execute("ROLLBACK")
        # Constraints of temporary tables may only refer to temporary ones; VACUUM only warns.
        assert code in ((DENIED, "42P16") if "VACUUM" not in statement else (None, DENIED)), statement
    assert shop.fetch("SELECT count(*) FROM shop.orders") == [(20,)]


@pytest.mark.parametrize("verb", ["INSERT", "UPDATE", "DELETE"])
def test_one_verb_is_only_that_verb_and_always_with_select(broker, verb):
    agent = broker.enter(lease(broker, scope("shop.orders", verbs=[verb])))
    statements = {
        "INSERT": "INSERT INTO shop.orders (id) VALUES (900)",
        "UPDATE": "UPDATE shop.orders SET total = 1 WHERE id = 2",
        "DELETE": "DELETE FROM shop.orders WHERE id = 3",
    }
    assert agent.execute("SELECT count(*) FROM shop.orders").fetchone() == (20,)
    codes = {name: refused(agent, statement) for name, statement in statements.items()}
    assert codes == dict.fromkeys(statements, DENIED) | {verb: None}


def test_sequences_of_serial_and_identity_columns_can_be_used_and_not_set(broker):
    manifest = broker.issuer.resolve(scope())
    assert [s.name for s in found(manifest, "shop.items").sequences] == ["items_id_seq", "items_number_seq"]
    agent = broker.enter(lease(broker))
    assert agent.execute("INSERT INTO shop.items (what) VALUES ('a') RETURNING id, number").fetchone() == (1, 1)
    assert agent.execute("SELECT currval('shop.items_id_seq')").fetchone() == (1,)
    assert refused(agent, "SELECT setval('shop.items_id_seq', 900)") == DENIED


def test_a_narrowing_holds_for_every_verb_and_for_sequences(broker):
    manifest = broker.issuer.resolve(scope())
    orders, items = found(manifest, "shop.orders"), found(manifest, "shop.items")
    keeps = [
        Keep(orders.oid, frozenset({1, 2}), frozenset({Verb.SELECT, Verb.UPDATE})),
        Keep(items.oid, frozenset({3}), ALL),
    ]
    agent = broker.enter(lease(broker, only=keeps))
    assert refused(agent, "UPDATE shop.orders SET total = 1 WHERE id = 1") is None
    assert refused(agent, "UPDATE shop.orders SET note = '' WHERE id = 1") == DENIED
    assert refused(agent, "SELECT note FROM shop.orders") == DENIED
    assert refused(agent, "DELETE FROM shop.orders") == DENIED
    assert refused(agent, "SELECT nextval('shop.items_id_seq')") == DENIED


def test_update_without_select_is_issued_by_neither_side(broker, shop):
    orders = found(broker.issuer.resolve(scope()), "shop.orders")
    assert narrow(broker.issuer.resolve(scope()), [Keep(orders.oid, frozenset({1}), frozenset({Verb.UPDATE}))]).empty
    wanted = json.dumps([{"oid": orders.oid, "columns": [1], "verbs": ["UPDATE"]}])
    statement = "SELECT taskpass.issue(%s, %s, %s, 60, 5, '')"
    with broker.connect() as connection:
        code = outcome(lambda: connection.execute(statement, [broker.new_lease(), wanted, verifier()]))
    assert code == "TP001"


def test_the_kit_refuses_a_verb_above_its_ceiling_and_a_sequence_of_another_column(enrol, shop):
    broker = enrol(writes=(Writing(("shop.orders",), (), frozenset({Verb.SELECT, Verb.UPDATE})),))
    lease(broker, scope("shop.orders", verbs=["UPDATE"]))
    for wanted in [scope("shop.orders", verbs=["DELETE"]), scope("shop.items", verbs=["UPDATE"])]:
        with pytest.raises(TargetUnfit) as caught:
            lease(broker, wanted)
        assert caught.value.code == "above_ceiling", caught.value.message
    shop.execute("CREATE SEQUENCE shop.free")
    free, orders = (shop.fetch("SELECT %s::regclass::oid::bigint", n)[0][0] for n in ("shop.free", "shop.orders"))
    statement = "SELECT taskpass.issue(%s, %s, %s, 60, 5, '')"
    wanted = json.dumps([{"oid": orders, "columns": [1], "verbs": ["SELECT", "UPDATE"], "sequences": [free]}])
    with broker.connect() as connection:
        code = outcome(lambda: connection.execute(statement, [broker.new_lease(), wanted, verifier()]))
    assert code == "TP004"


def test_what_public_may_write_makes_the_account_wider_and_is_refused(broker, shop):
    made = broker.order(scope=scope())
    shop.execute("GRANT UPDATE (email) ON shop.pii TO PUBLIC")
    with pytest.raises(TargetUnfit) as caught:
        broker.issuer.create(made.order)
    assert caught.value.code == "wider_than_manifest"
    assert broker.refused(made)


@pytest.mark.parametrize("right", ["TRUNCATE", "REFERENCES", "TRIGGER"])
def test_more_than_the_verbs_given_to_the_holder_of_the_rights_is_refused(broker, shop, right):
    lease(broker)
    holder = "SELECT rolname FROM pg_roles WHERE rolname LIKE %s"
    names = [name for (name,) in shop.fetch(holder, f"tpm_{broker.installation}%")]
    shop.execute(f"GRANT {right} ON shop.orders TO " + (f'"{names[0]}"' if names else "PUBLIC"))
    with pytest.raises(TargetUnfit):
        lease(broker)


def test_a_cascade_into_what_is_excluded_holds_the_verb_back_and_is_given_by_name(broker, shop):
    shop.execute(CASCADE, "INSERT INTO shop.pii VALUES (1, 'a@example.test'), (2, 'b@example.test')")
    manifest = broker.issuer.resolve(scope())
    orders = found(manifest, "shop.orders")
    assert orders.held == (Held(Verb.DELETE, "shop.pii", Through.CASCADE),)
    assert orders.verbs == ALL - {Verb.DELETE}
    assert [(r.name, r.through, r.verbs) for r in orders.reach] == [("pii", Through.CASCADE, (Verb.DELETE,))]
    assert held_back(manifest) == {"shop.pii"}
    agent = broker.enter(lease(broker))
    assert refused(agent, "DELETE FROM shop.orders WHERE id = 1") == DENIED
    assert refused(agent, "UPDATE shop.orders SET total = 1 WHERE id = 1") is None
    made = lease(broker, accepting=["shop.pii"])
    assert made.order.manifest.accepted == ("shop.pii",)
    broker.enter(made).execute("DELETE FROM shop.orders WHERE id = 1")
    assert shop.fetch("SELECT id FROM shop.pii") == [(2,)]


def test_a_verb_that_nobody_accepted_is_not_issued_even_if_the_order_names_it(broker, shop):
    shop.execute(CASCADE)
    made = broker.order(scope=scope(), manifest=accept(broker.issuer.resolve(scope()), ["shop.pii"]))
    forged = replace(made.order, manifest=replace(made.order.manifest, accepted=()))
    with pytest.raises(ManifestChanged):
        broker.issuer.create(forged)
    assert broker.refused(made)


SHAPES = {
    "set null": (
        ["ALTER TABLE shop.pii ADD owner int REFERENCES shop.orders (id) ON DELETE SET NULL"],
        {(Verb.DELETE, "shop.pii", Through.CASCADE)},
    ),
    "set default": (
        ["ALTER TABLE shop.pii ADD owner int DEFAULT 1 REFERENCES shop.orders (id) ON DELETE SET DEFAULT"],
        {(Verb.DELETE, "shop.pii", Through.CASCADE)},
    ),
    "update cascade": (
        ["ALTER TABLE shop.pii ADD FOREIGN KEY (id) REFERENCES shop.orders (id) ON UPDATE CASCADE"],
        {(Verb.UPDATE, "shop.pii", Through.CASCADE)},
    ),
    "a plain foreign key": (["ALTER TABLE shop.pii ADD FOREIGN KEY (id) REFERENCES shop.orders (id)"], set()),
    "through a table between": (
        [
            "CREATE TABLE shop.middle (id int PRIMARY KEY REFERENCES shop.orders ON DELETE CASCADE)",
            "ALTER TABLE shop.pii ADD FOREIGN KEY (id) REFERENCES shop.middle ON DELETE CASCADE",
        ],
        {(Verb.DELETE, "shop.pii", Through.CASCADE)},
    ),
    "a cascade to the partitioned parent of what is excluded": (
        [
            "DROP TABLE shop.pii",
            "CREATE TABLE shop.people (id int REFERENCES shop.orders ON DELETE CASCADE) PARTITION BY LIST (id)",
            "CREATE TABLE shop.pii PARTITION OF shop.people FOR VALUES IN (1)",
        ],
        {(Verb.DELETE, "shop.pii", Through.CASCADE)},
    ),
    "a rule": (
        ["CREATE RULE r AS ON UPDATE TO shop.orders DO ALSO DELETE FROM shop.pii WHERE id = OLD.id"],
        {(Verb.UPDATE, "shop.pii", Through.RULE)},
    ),
    "a rule that is switched off": (
        [
            "CREATE RULE r AS ON UPDATE TO shop.orders DO ALSO DELETE FROM shop.pii WHERE id = OLD.id",
            "ALTER TABLE shop.orders DISABLE RULE r",
        ],
        set(),
    ),
    "a routine with its owner's rights": (
        [ROUTINE.format(whose="DEFINER"), CLOSED, TRIGGER],
        {(Verb.INSERT, "shop.keep()", Through.OWNER_TRIGGER)},
    ),
    "a statement trigger with its owner's rights": (
        [
            ROUTINE.format(whose="DEFINER"),
            CLOSED,
            "CREATE TRIGGER kept BEFORE UPDATE OR DELETE ON shop.orders EXECUTE FUNCTION shop.keep()",
        ],
        {(Verb.UPDATE, "shop.keep()", Through.OWNER_TRIGGER), (Verb.DELETE, "shop.keep()", Through.OWNER_TRIGGER)},
    ),
    "a constraint trigger with its owner's rights": (
        [
            ROUTINE.format(whose="DEFINER"),
            CLOSED,
            TRIGGER.replace("TRIGGER", "CONSTRAINT TRIGGER"),
        ],
        {(Verb.INSERT, "shop.keep()", Through.OWNER_TRIGGER)},
    ),
    "a routine with the writer's rights": ([ROUTINE.format(whose="INVOKER"), TRIGGER], set()),
    "a trigger that is switched off": (
        [ROUTINE.format(whose="DEFINER"), CLOSED, TRIGGER, "ALTER TABLE shop.orders DISABLE TRIGGER kept"],
        set(),
    ),
    "the writer's trigger behind a cascade runs with the owner's rights": (
        [
            "CREATE TABLE shop.lines (id int REFERENCES shop.orders ON DELETE CASCADE)",
            ROUTINE.format(whose="INVOKER"),
            "CREATE TRIGGER kept BEFORE DELETE ON shop.lines FOR EACH ROW EXECUTE FUNCTION shop.keep()",
        ],
        {(Verb.DELETE, "shop.keep()", Through.OWNER_TRIGGER)},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_way_from_a_write_to_what_is_excluded_holds_the_verb_back(enrol, shop, shape):
    statements, expected = SHAPES[shape]
    shop.execute(*statements)
    orders = found(enrol().issuer.resolve(scope()), "shop.orders")
    assert {(held.verb, held.name, held.through) for held in orders.held} == expected
    assert orders.verbs == ALL - {verb for verb, _, _ in expected}


def test_a_trigger_that_writes_what_is_excluded_is_refused_and_accepted_by_the_routine_s_name(broker, shop):
    shop.execute(ROUTINE.format(whose="DEFINER"), CLOSED, TRIGGER)
    agent = broker.enter(lease(broker))
    assert refused(agent, "INSERT INTO shop.orders (id, note) VALUES (100, 'n')") == DENIED
    agent = broker.enter(lease(broker, accepting=["shop.keep()"]))
    agent.execute("INSERT INTO shop.orders (id, note) VALUES (100, 'n')")
    assert shop.fetch("SELECT id, email FROM shop.pii") == [(200, "n")]


def test_where_nothing_is_excluded_cascades_and_triggers_are_shown_and_granted(enrol, shop):
    shop.execute(CASCADE, ROUTINE.format(whose="DEFINER"), CLOSED, TRIGGER)
    broker = enrol(exclude=(), writes=(Writing(("shop.*",), (), ALL),))
    orders = found(broker.issuer.resolve(scope("shop.orders", exclude=())), "shop.orders")
    assert orders.held == ()
    assert orders.verbs == ALL
    assert [(r.kind, r.name, r.through, r.verbs) for r in sorted(orders.reach, key=lambda r: r.name)] == [
        (Kind.ROUTINE, "keep", Through.OWNER_TRIGGER, (Verb.INSERT,)),
        (Kind.TABLE, "pii", Through.CASCADE, (Verb.DELETE,)),
    ]


@pytest.mark.parametrize(
    "change",
    [
        [CASCADE],
        [ROUTINE.format(whose="INVOKER"), TRIGGER],
        ["CREATE RULE r AS ON DELETE TO shop.items DO ALSO NOTHING"],
        ["CREATE SEQUENCE shop.extra OWNED BY shop.orders.total"],
        ["ALTER TABLE shop.orders ADD COLUMN twice int GENERATED ALWAYS AS (total * 2) STORED"],
        ["GRANT UPDATE ON shop.pii TO PUBLIC"],
    ],
    ids=["cascade", "trigger", "rule", "sequence", "generated column", "public"],
)
def test_what_appears_between_the_yes_and_the_grant_is_issued_never(broker, shop, change):
    made = broker.order(scope=scope())
    shop.execute(*change)
    with pytest.raises((ManifestChanged, TargetUnfit)):
        broker.issuer.create(made.order)
    assert broker.refused(made)


def test_another_body_behind_the_same_trigger_is_issued_never(broker, shop):
    shop.execute(ROUTINE.format(whose="INVOKER"), TRIGGER)
    made = broker.order(scope=scope())
    shop.execute(ROUTINE.format(whose="INVOKER").replace("FUNCTION", "OR REPLACE FUNCTION").replace("+ 100", "+ 101"))
    with pytest.raises(ManifestChanged):
        broker.issuer.create(made.order)


def test_a_generated_column_says_what_it_is_computed_from(broker, shop):
    shop.execute("ALTER TABLE shop.orders ADD COLUMN twice int GENERATED ALWAYS AS (total * 2 + id) STORED")
    columns = {c.name: c.origins for c in found(broker.issuer.resolve(scope()), "shop.orders").columns}
    assert columns == {"id": (), "total": (), "note": (), "twice": (1, 2)}


def test_a_write_that_is_cut_in_the_middle_of_a_transaction_leaves_nothing(broker, shop):
    made = lease(broker)
    agent = broker.enter(made, autocommit=False)
    agent.execute("UPDATE shop.orders SET total = -1")
    assert broker.issuer.close(made.role, audit_head="").ended == 1
    with pytest.raises(psycopg.OperationalError):
        agent.execute("COMMIT")
    until(lambda: not broker.sessions(made), what="the end of the session")
    assert shop.fetch("SELECT count(*) FROM shop.orders WHERE total = -1") == [(0,)]
    assert broker.issuer.clean(made.role)


def test_tables_and_sequences_made_later_follow_without_the_dba(broker, shop):
    shop.execute("CREATE TABLE shop.later (id serial, what text)")
    agent = broker.enter(lease(broker))
    assert agent.execute("INSERT INTO shop.later (what) VALUES ('x') RETURNING id").fetchone() == (1,)


def test_what_the_kit_may_not_pass_on_is_named_with_the_sql_for_it(broker, shop):
    shop.execute(
        "REVOKE DELETE ON shop.orders FROM taskpass_kit",
        "REVOKE USAGE ON SEQUENCE shop.items_id_seq FROM taskpass_kit",
    )
    fixes = {f.fix for f in broker.issuer.preflight() if f.check == "kit_grant"}
    assert fixes == {
        "GRANT DELETE ON TABLE shop.orders TO taskpass_kit WITH GRANT OPTION;",
        "GRANT USAGE ON SEQUENCE shop.items_id_seq TO taskpass_kit WITH GRANT OPTION;",
    }
    with pytest.raises(TargetUnfit) as caught:
        lease(broker)
    assert caught.value.code == "kit_grant"
    assert narrow(broker.issuer.resolve(scope("shop.orders", verbs=["UPDATE"])), []).empty
    lease(broker, scope("shop.orders", verbs=["UPDATE"]))


def test_hostile_names_of_sequences_and_routines_are_only_names(enrol, shop):
    shop.execute(
        'CREATE TABLE shop."; DROP TABLE shop.orders; --" ("a"", b" serial, c text)',
        """CREATE FUNCTION shop."f""()'; --"() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'""",
        """CREATE TRIGGER t BEFORE INSERT ON shop."; DROP TABLE shop.orders; --" FOR EACH ROW"""
        """ EXECUTE FUNCTION shop."f""()'; --"()""",
    )
    broker = enrol()
    agent = broker.enter(lease(broker))
    agent.execute('INSERT INTO shop."; DROP TABLE shop.orders; --" (c) VALUES (1)')
    assert shop.fetch("SELECT count(*) FROM shop.orders") == [(20,)]
