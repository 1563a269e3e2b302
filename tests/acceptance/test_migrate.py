"""Migrations with real processes: a person signs exactly one file, the broker runs it, what it leaves open blocks."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

from taskpass.testing.orders import OWNER
from taskpass.testing.postgres import available
from taskpass.testing.stage import TASKPASS, Stage
from tests.acceptance.actors import until
from tests.missing import missing

pytestmark = pytest.mark.service

POLICY = """
@id("dev-migration-asks")
@approvers("dba")
@quorum("1")
forbid (principal, action == Taskpass::Action::"migrate", resource)
when { resource.env == Taskpass::Environment::"dev" }
unless { context.approved };

@id("dev-hands-on")
permit (principal, action == Taskpass::Action::"migrate-hands-on", resource)
when { resource.env == Taskpass::Environment::"dev" };
"""
CLEAN = "ALTER TABLE shop.orders ADD COLUMN state text;\nUPDATE shop.orders SET state = 'new' WHERE id <= 5;\n"
DOOR = "SELECT 1;\nGRANT TRIGGER ON shop.customers TO orders_app; -- \u202e harmless\n"


class Migrated(Stage):
    def prepare(self):
        self.start_server("orders", 16, rows=100)
        self.found("ana")
        self.ben = self.add_person("ben", "dba")
        self.set_broker("allow_root_agents = true")
        self.enrol("orders", environment="dev", more=("--migrate-owner", OWNER))
        (self.directory / "policy" / "asks.cedar").write_text(POLICY)
        (self.directory / "policy" / "asks.cedar").chmod(0o600)
        self.start_broker()
        return self

    def migrate(self, text, *words):
        """As an agent that waits; the process."""
        path = self.root / "up.sql"
        path.write_text(text)
        return subprocess.Popen(
            [*TASKPASS, "migrate", "orders", str(path), "--repository", "acme/orders", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(),
        )

    def pending(self):
        found = until(lambda: self.call("requests", state="pending")["requests"], what="a question")
        return found[0]["request"]

    def fetch(self, query):
        with self.servers["orders"].connect("orders") as connection:
            done = connection.execute(query.encode())
            return done.fetchall() if done.description else []

    def accept(self, lease, *words, check=True):
        read, write_end = os.pipe()
        os.write(write_end, f"{self.ben.secret.reveal()}\n".encode())
        os.close(write_end)
        try:
            base = ("widening", "accept", lease, "--directory", str(self.directory), "--as", "ben")
            return self.taskpass(*base, "--secret-fd", str(read), *words, pass_fds=(read,), check=check)
        finally:
            os.close(read)


@pytest.fixture(scope="module")
def stage():
    if 16 not in available():
        missing("PostgreSQL 16 is not installed on this machine")
    with Migrated(durable=False) as made:
        yield made.prepare()


def test_a_file_runs_once_a_person_signed_it_and_a_clean_one_leaves_nothing_to_decide(stage):
    agent = stage.migrate(CLEAN)
    request = stage.pending()
    shown = stage.review(request, stage.ben, "--approve").stdout
    assert ">     1 | ALTER TABLE shop.orders ADD COLUMN state text;" in shown
    out, err = agent.communicate(timeout=60)
    assert agent.returncode == 0, err
    assert "UPDATE 5, 5 row(s)" in out
    assert stage.fetch("SELECT count(*) FROM shop.orders WHERE state = 'new'") == [(5,)]
    assert stage.fetch("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'tp!_%' ESCAPE '!' AND rolcanlogin") == [(0,)]
    assert stage.call("widenings")["migrations"] == []
    told = json.loads(stage.taskpass("widening", "ls", "--all", "--json").stdout)
    assert [(m["state"], m["ran"]) for m in told["migrations"]] == [("clean", "committed")]


def test_what_a_file_leaves_open_is_shown_and_blocks_until_somebody_signs_for_it(stage):
    agent = stage.migrate(DOOR)
    shown = stage.review(stage.pending(), stage.ben, "--approve").stdout
    assert "\\u{202e} harmless" in shown
    assert "\u202e" not in shown
    out, err = agent.communicate(timeout=60)
    assert agent.returncode == 1
    assert "committed" in out
    assert "left wider: grant TRIGGER on relation shop.customers to orders_app (added)" in err
    refused = stage.taskpass("exec", "--resource", "orders", "--access", "read", "--", "true", check=False)
    assert "[widened]" in refused.stderr
    lease = re.search(r"lse_\w{26}", err)[0]
    assert "TRIGGER on relation shop.customers to orders_app" in stage.taskpass("widening", "show", lease).stdout
    assert stage.taskpass("widening", "check", lease, check=False).returncode == 3
    assert stage.accept(lease, "--reason", "seen").stdout.strip().endswith("is accepted")
    assert stage.call("widenings")["migrations"] == []
    stage.fetch("REVOKE TRIGGER ON shop.customers FROM orders_app")


def test_hands_on_is_an_endpoint_as_the_owner_and_an_undone_door_blocks_no_more(stage):
    psql = "import os, psycopg; c = psycopg.connect(os.environ['DATABASE_URL'], autocommit=True); "
    made = psql + (
        "c.execute('RESET ROLE'); print(c.execute('SELECT current_user').fetchone()[0]);"
        "c.execute('CREATE TABLE shop.notes (id int)');"
        "c.execute('ALTER TABLE shop.notes ADD CONSTRAINT x CHECK (id > 0)');"
        "c.execute('GRANT TRIGGER ON shop.customers TO orders_app')"
    )
    base = ("exec", "--resource", "orders", "--access", "migrate", "--", str(TASKPASS[0]), "-I", "-c")
    done = stage.taskpass(*base, made)
    assert done.stdout.split() == [OWNER]
    assert stage.fetch("SELECT relowner::regrole::text FROM pg_class WHERE relname = 'notes'") == [(OWNER,)]
    (left,) = until(lambda: [m for m in stage.call("widenings")["migrations"] if m["state"] == "widened"])
    assert [w["name"] for w in left["widening"]] == ["TRIGGER on relation shop.customers to orders_app"]
    stage.fetch("REVOKE TRIGGER ON shop.customers FROM orders_app")
    assert stage.taskpass("widening", "check", left["lease"]).returncode == 0
    assert stage.taskpass("exec", "--resource", "orders", "--access", "read", "--", "true").returncode == 0


ENV = """
import os
from alembic import context
from sqlalchemy import create_engine

url = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:", 1)
with create_engine(url).connect() as connection:
    context.configure(connection=connection, version_table_schema="shop")
    with context.begin_transaction():
        context.run_migrations()
"""
FIRST = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "1", None

def upgrade():
    op.create_table("carts", sa.Column("id", sa.Integer, primary_key=True), schema="shop")
    op.add_column("payments", sa.Column("state", sa.Text, server_default="new", nullable=False), schema="shop")
    op.execute("UPDATE shop.payments SET state = 'old' WHERE id < 5")

def downgrade():
    op.drop_column("payments", "state", schema="shop")
    op.drop_table("carts", schema="shop")
"""
SECOND = """
from alembic import op

revision, down_revision = "2", "1"

def upgrade():
    with op.get_context().autocommit_block():
        op.create_index("payments_state", "payments", ["state"], schema="shop", postgresql_concurrently=True)

def downgrade():
    op.drop_index("payments_state", table_name="payments", schema="shop")
"""


def test_alembic_migrates_up_and_down_as_the_owner_and_leaves_nothing_to_decide(stage):
    place = stage.root / "alembic"
    (place / "versions").mkdir(parents=True)
    (place / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s\n")
    for name, text in (("env.py", ENV), ("versions/first.py", FIRST), ("versions/second.py", SECOND)):
        (place / name).write_text(text)
    # One process: starting each of its commands takes longer than they do.
    alembic = "import sys; from alembic.config import main; [main(['-c', sys.argv[1], *to]) for to in TO]"
    alembic = alembic.replace("TO", "(('upgrade', 'head'), ('downgrade', '1'))")
    base = ("exec", "--resource", "orders", "--access", "migrate", "--", str(TASKPASS[0]), "-I", "-c")
    stage.taskpass(*base, alembic, str(place / "alembic.ini"))
    indexed = "SELECT to_regclass('shop.payments_state') IS NOT NULL, relowner::regrole::text FROM pg_class"
    assert stage.fetch(f"{indexed} WHERE oid = 'shop.carts'::regclass") == [(False, OWNER)]
    assert stage.fetch("SELECT count(*) FROM shop.payments WHERE state = 'old'") == [(4,)]
    assert stage.fetch("SELECT version_num FROM shop.alembic_version") == [("1",)]
    until(lambda: stage.call("widenings")["migrations"] == [])


def test_what_is_no_sql_is_refused_by_its_line_before_anybody_is_asked(stage):
    refused = stage.migrate("SELECT 1;\n\\! id\n")
    _, err = refused.communicate(timeout=60)
    assert refused.returncode == 2
    assert "line 2: psql's meta commands are not SQL" in err
    assert stage.call("requests", state="pending")["requests"] == []


def test_a_failing_statement_rolls_the_whole_file_back_and_names_its_line(stage):
    agent = stage.migrate("CREATE TABLE shop.half (id int);\n\nINSERT INTO shop.half VALUES ('x');\n")
    stage.review(stage.pending(), stage.ben, "--approve")
    out, err = agent.communicate(timeout=60)
    assert agent.returncode == 1
    assert 'line 3: invalid input syntax for type integer: "x" [22P02]' in err
    assert "rolled back" in out
    assert stage.fetch("SELECT to_regclass('shop.half') IS NULL") == [(True,)]
