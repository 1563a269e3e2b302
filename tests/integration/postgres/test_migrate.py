"""Migrating real databases: a file runs as the owner and as nobody else, and no door it leaves open stays unseen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from taskpass.core.aftermath import Ran
from taskpass.core.errors import ManifestChanged, TargetUnfit
from taskpass.core.scope import Level, Scope
from taskpass.core.widening import remaining, widened
from tests.conftest import Database
from tests.integration.postgres.enrolled import Broker, outcome
from tests.integration.postgres.test_hostile_world import NAME
from tests.integration.postgres.test_kit import HOSTILE_HEADS, HOSTILE_LEASES, HOSTILE_VERIFIERS, verifier

pytestmark = pytest.mark.service

CLEAN = """
-- what an ordinary migration does
ALTER TABLE shop.orders ADD COLUMN state text NOT NULL DEFAULT 'new', ALTER COLUMN note SET DEFAULT '';
CREATE TABLE shop.refunds (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, order_id int REFERENCES shop.orders,
    at timestamptz DEFAULT now());
CREATE INDEX ON shop.refunds (order_id);
CREATE TYPE shop.mood AS ENUM ('good', 'bad');
CREATE FUNCTION shop.twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
UPDATE shop.orders SET state = 'old' WHERE id <= 10;
INSERT INTO shop.refunds (order_id) SELECT id FROM shop.orders WHERE id <= 3;
DROP TABLE shop.gone;
"""


@dataclass
class Shop:
    """A database whose objects belong to ``owner``, which cannot log in; ``app`` reads, ``other`` may read nothing."""

    broker: Broker
    owner: str
    app: str
    other: str

    @property
    def scope(self):
        return Scope("shop", "migrate", Level.MIGRATE, (), owner=self.owner)

    def order(self, text):
        script = self.broker.issuer.read_script(text)
        return self.broker.order(scope=replace(self.scope, script=script))

    def run(self, text, tell=lambda step: None):
        """As the broker does: make, enable, run, take back. How it ended."""
        issuer, made = self.broker.issuer, self.order(text)
        issuer.create(made.order)
        issuer.enable(made.role, lifetime=60, audit_head="8:sha256:00ff")
        ran = issuer.run_script(made.role, made.secret, self.owner, text, tell)
        assert not issuer.close(made.role, audit_head="").absent
        assert issuer.clean(made.role)
        return ran

    def fetch(self, query):
        return self.broker.database.fetch(query)


def open_shop(database):
    owner, app, other = database.role("owner"), database.role("app"), database.role("other")
    helper = database.role("helper")
    database.execute(
        f"ALTER DATABASE {database.name} OWNER TO {owner}",
        f"GRANT {helper} TO {owner} WITH ADMIN OPTION",
        "CREATE FOREIGN DATA WRAPPER far",
        f"GRANT USAGE ON FOREIGN DATA WRAPPER far TO {owner}",
        f"CREATE SCHEMA shop AUTHORIZATION {owner}",
        f"SET ROLE {owner}",
    )
    with database.connect() as connection:
        connection.execute(f"SET ROLE {owner}".encode())
        for statement in (
            "CREATE TABLE shop.orders (id int PRIMARY KEY, total int, note text)",
            "INSERT INTO shop.orders SELECT n, n * 10, 'x' FROM generate_series(1, 1000) n",
            "CREATE TABLE shop.hidden (id int, email text)",
            "CREATE TABLE shop.gone (id int)",
            "CREATE TABLE shop.fenced (id int, tenant text)",
            "ALTER TABLE shop.fenced ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY mine ON shop.fenced USING (tenant = current_user)",
            "CREATE POLICY never ON shop.fenced AS RESTRICTIVE USING (id > 0)",
            "CREATE FUNCTION shop.total() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE FUNCTION shop.stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
            "CREATE VIEW shop.seen WITH (security_barrier) AS SELECT id FROM shop.orders",
            f"GRANT USAGE ON SCHEMA shop TO {app}, {other}",
            f"GRANT SELECT ON shop.orders, shop.seen TO {app}",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO {app}",
        ):
            connection.execute(statement.encode())
    return Shop(Broker(database, owners=(owner,)), owner, app, other)


@pytest.fixture
def shop(database):
    made = open_shop(database)
    yield made
    made.broker.forget()


@pytest.fixture(scope="module")
def standing(server):
    """One for all doors of a version: each is opened, seen, closed again, and seen to be closed."""
    database = Database(server, f"doors{server.version}")
    with server.connect() as connection:
        connection.execute(f"CREATE DATABASE {database.name} TEMPLATE template0 STRATEGY file_copy".encode())
    made = open_shop(database)
    yield made
    made.broker.forget()
    database.drop()


def test_a_clean_file_runs_as_the_owner_and_widens_nothing(shop):
    before = shop.broker.issuer.snapshot()
    steps = []
    assert shop.run(CLEAN, steps.append) is Ran.COMMITTED
    assert shop.fetch("SELECT count(*) FROM shop.refunds") == [(3,)]
    owners = shop.fetch(
        "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'shop'::regnamespace"
    )
    assert owners == [(shop.owner,)]
    done = [step for step in steps if step.what == "done"]
    assert [step.number for step in done] == list(range(1, 9))
    assert [step.rows for step in done if step.text.startswith(("UPDATE", "INSERT"))] == [10, 3]
    assert done[0].line == 3
    assert widened(before, shop.broker.issuer.snapshot()) == ()


def test_hands_on_is_refused_where_a_transaction_could_be_prepared_and_outlive_it(shop):
    """The servers of these tests let transactions be prepared. Such a one would be the owner's, not the lease's."""
    with pytest.raises(TargetUnfit) as refused:
        shop.broker.issuer.resolve(shop.scope)
    assert refused.value.code == "prepared_transactions"
    script = shop.broker.issuer.read_script("SELECT 1")
    assert shop.broker.issuer.resolve(replace(shop.scope, script=script)).migration is not None


DOORS = {
    "a security definer routine": (
        "CREATE FUNCTION shop.peek() RETURNS SETOF shop.hidden LANGUAGE sql SECURITY DEFINER AS 'TABLE shop.hidden'",
        "security definer routine shop.peek()",
        "DROP FUNCTION shop.peek()",
    ),
    "a grant to everybody": (
        "GRANT SELECT (email) ON shop.hidden TO PUBLIC",
        "grant SELECT on column shop.hidden.email to PUBLIC",
        "REVOKE SELECT (email) ON shop.hidden FROM PUBLIC",
    ),
    "default privileges for everybody": (
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC",
        "default privileges SELECT of r for {owner} in 0 to PUBLIC",
        "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} REVOKE SELECT ON TABLES FROM PUBLIC",
    ),
    "a trigger": (
        "CREATE TRIGGER stamp BEFORE UPDATE ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.stamp()",
        "trigger stamp on shop.orders",
        "DROP TRIGGER stamp ON shop.orders",
    ),
    "a rule": (
        "CREATE RULE copy AS ON INSERT TO shop.orders DO ALSO NOTIFY orders",
        "rule copy on shop.orders",
        "DROP RULE copy ON shop.orders",
    ),
    "row security switched off": (
        "ALTER TABLE shop.fenced DISABLE ROW LEVEL SECURITY",
        "row security shop.fenced",
        "ALTER TABLE shop.fenced ENABLE ROW LEVEL SECURITY",
    ),
    "a policy that lets everybody in": (
        "CREATE POLICY all_of_them ON shop.fenced USING (true)",
        "policy all_of_them on shop.fenced",
        "DROP POLICY all_of_them ON shop.fenced",
    ),
    "an extension": ("CREATE EXTENSION pgcrypto", "extension pgcrypto", "DROP EXTENSION pgcrypto"),
    "a membership": (
        "GRANT {helper} TO {other}",
        "membership {other} in {helper}",
        "REVOKE {helper} FROM {other} GRANTED BY {owner}",
    ),
    "a setting of a role": (
        "ALTER ROLE {owner} SET search_path = evil",
        "setting search_path of {owner} in every database",
        "ALTER ROLE {owner} RESET search_path",
    ),
    "a setting of the database": (
        "ALTER DATABASE {database} SET search_path = evil",
        "setting search_path of everybody in {database}",
        "ALTER DATABASE {database} RESET search_path",
    ),
    "a publication": (
        "CREATE PUBLICATION leak FOR TABLE shop.hidden",
        "publication leak",
        "DROP PUBLICATION leak",
    ),
    # Those were the twelve of the threat review; these are further ones.
    "a foreign server": ("CREATE SERVER away FOREIGN DATA WRAPPER far", "foreign server away", "DROP SERVER away"),
    "a routine that others call, replaced": (
        "CREATE OR REPLACE FUNCTION shop.total() RETURNS int LANGUAGE sql AS 'SELECT 2'",
        "routine body shop.total()",
        "CREATE OR REPLACE FUNCTION shop.total() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    ),
    "a view over what was hidden, opened by default privileges": (
        "CREATE VIEW shop.more AS TABLE shop.hidden",
        "view shop.more",
        "DROP VIEW shop.more",
    ),
    "a view that others read, replaced": (
        "CREATE OR REPLACE VIEW shop.seen AS SELECT id FROM shop.hidden",
        "view shop.seen",
        "CREATE OR REPLACE VIEW shop.seen WITH (security_barrier) AS SELECT id FROM shop.orders",
    ),
    "a restrictive policy dropped": (
        "DROP POLICY never ON shop.fenced",
        "restrictive policy never on shop.fenced",
        "CREATE POLICY never ON shop.fenced AS RESTRICTIVE USING (id > 0)",
    ),
    "a default that calls a routine": (
        "ALTER TABLE shop.orders ALTER COLUMN total SET DEFAULT shop.total()",
        "routine that runs by itself shop.total() for default value for column total of table shop.orders",
        "ALTER TABLE shop.orders ALTER COLUMN total DROP DEFAULT",
    ),
    "a hidden table under another name": (
        "ALTER TABLE shop.hidden RENAME TO report",
        "renamed relation {hidden}",
        "ALTER TABLE shop.report RENAME TO hidden",
    ),
    "a table that changes hands": (
        "GRANT CREATE ON SCHEMA shop TO {helper}; ALTER TABLE shop.hidden OWNER TO {helper}",
        "owner relation {hidden}",
        "ALTER TABLE shop.hidden OWNER TO {owner}; REVOKE CREATE ON SCHEMA shop FROM {helper}",
    ),
    "a routine in front of a system one": (
        "CREATE FUNCTION shop.lower(varchar) RETURNS text LANGUAGE sql AS 'SELECT NULL::text'",
        "routine in front of a system one shop.lower(character varying)",
        "DROP FUNCTION shop.lower(varchar)",
    ),
    "a schema that a role finds first": (
        "CREATE SCHEMA {other}",
        "schema that a role finds first {other}",
        "DROP SCHEMA {other}",
    ),
    "large objects": (
        "SELECT lo_create(77); GRANT SELECT ON LARGE OBJECT 77 TO PUBLIC",
        "grant SELECT on large object 77 to PUBLIC",
        "SELECT lo_unlink(77)",
    ),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_door_that_a_file_leaves_open_is_named_until_it_is_closed(standing, door):
    database = standing.broker.database
    ((hidden,),) = database.fetch("SELECT 'shop.hidden'::regclass::oid::text")
    names = {"owner": standing.owner, "other": standing.other, "helper": f"{database.name}_helper"}
    text, expected, undo = (each.format(**names, database=database.name, hidden=hidden) for each in DOORS[door])
    before = standing.broker.issuer.snapshot()
    if "EXTENSION" in text and not database.fetch("SELECT FROM pg_available_extensions WHERE name = 'pgcrypto'"):
        # The embedded servers have none that an owner may create, so other hands do it meanwhile.
        text, expected, undo = (each.replace("pgcrypto", "vector") for each in (text, expected, undo))
        database.execute(text)
    else:
        assert standing.run(text) is Ran.COMMITTED
    found = widened(before, standing.broker.issuer.snapshot())
    assert expected in [each.key for each in found]
    assert remaining(found, standing.broker.issuer.snapshot()) == found
    with database.server.connect(database.name) as admin:
        if "EXTENSION" not in undo:
            admin.execute(f"SET ROLE {standing.owner}".encode())
        admin.execute(undo.encode())
    now = standing.broker.issuer.snapshot()
    assert remaining(found, now) == ()
    assert widened(before, now) == ()


ISSUE = "SELECT taskpass.issue_owner(%s, %s, %s, %s, %s, %s)"


# ---- what the kit is asked, and what a DBA does meanwhile ----


def test_nothing_hostile_is_taken_for_an_owner_a_lease_or_a_lifetime(shop):
    broker, database = shop.broker, shop.broker.database
    connection, oid = broker.connect(), database.fetch("SELECT oid FROM pg_roles WHERE rolname = %s", shop.owner)[0][0]
    good = (broker.new_lease(), oid, verifier(), 60, 5, "")
    roles = dict(database.fetch("SELECT rolname::text, oid FROM pg_roles"))
    other = [roles[name] for name in ("taskpass_kit", "pg_read_all_data", "postgres", shop.app, broker.login)]
    wrong = {
        0: HOSTILE_LEASES,
        1: [None, 0, 1, 4294967295, *other],
        2: HOSTILE_VERIFIERS,
        3: [None, 0, -1, 2147483647],
        4: [None, 0, -1, 51, 2147483647],
        5: HOSTILE_HEADS,
    }
    for place, values in wrong.items():
        for value in values:
            asked = (*good[:place], value, *good[place + 1 :])
            found = outcome(lambda a=asked: connection.execute(ISSUE, a))
            assert found in ("TP001", "TP003", "TP007"), (place, value, found)
    for name in (None, "", "nobody", NAME, "pg_read_all_data", "postgres", 'x" OR true --'):
        ((judged,),) = connection.execute("SELECT taskpass.judge_owner(%s)", [name]).fetchall()
        assert judged is not None, name
    assert database.fetch("SELECT count(*) FROM taskpass.lease") == [(0,)]
    assert broker.issuer.inventory().own == ()


HANDS = {
    "owner can log in": ("ALTER ROLE {owner} LOGIN", "ALTER ROLE {owner} NOLOGIN"),
    "owner is privileged": ("ALTER ROLE {owner} CREATEROLE", "ALTER ROLE {owner} NOCREATEROLE"),
    "owner may become another": ("GRANT pg_read_all_data TO {owner}", "REVOKE pg_read_all_data FROM {owner}"),
    "consent taken back": ("DELETE FROM taskpass.owner", "INSERT INTO taskpass.owner VALUES ('{owner}', 3600, 5)"),
    "ceiling lowered": (
        "UPDATE taskpass.owner SET longest_seconds = 1, most_live = 0",
        "UPDATE taskpass.owner SET longest_seconds = 3600, most_live = 5",
    ),
    "owner renamed": ("ALTER ROLE {owner} RENAME TO {owner}_x", "ALTER ROLE {owner}_x RENAME TO {owner}"),
}


@pytest.mark.parametrize("server", [16], indirect=True)
@pytest.mark.parametrize("hand", HANDS)
def test_whatever_a_dba_changes_about_the_owner_nothing_new_gets_in_and_what_is_there_closes(standing, hand):
    broker = standing.broker
    text, undo = (each.format(owner=standing.owner) for each in HANDS[hand])
    asked, created, live = (standing.order("SELECT 1") for _ in range(3))
    for made in (created, live):
        broker.issuer.create(made.order)
    broker.issuer.enable(live.role, lifetime=60, audit_head="8:sha256:00ff")
    broker.database.execute(text)
    try:
        with pytest.raises((TargetUnfit, ManifestChanged)):
            broker.issuer.create(asked.order)
        for made in (created, live):
            with pytest.raises(TargetUnfit):
                broker.issuer.enable(made.role, lifetime=60, audit_head="8:sha256:00ff")
        assert broker.refused(created)
        for made in (created, live):
            assert broker.issuer.close(made.role, audit_head="").answer == "AuthenticationOk,28000"
            assert broker.issuer.clean(made.role)
        assert broker.issuer.inventory().own == ()
    finally:
        broker.database.execute(undo)
