"""What a DBA does by hand in the middle, and a server that is in trouble: the right state each time, seen there."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from taskpass.config.credentials import Credential
from taskpass.core.errors import NotProven, StoreUnavailable, TargetUnavailable, TargetUnfit, TaskpassError
from taskpass.core.manifest import keep_all, narrow
from taskpass.core.scope import VERBS_OF_LEVEL, Level, Scope
from taskpass.core.secret import Secret
from taskpass.issuers.postgres import enrol, kit, scram
from taskpass.issuers.postgres.kit import Writing
from taskpass.store.open import Access
from taskpass.testing import postgres
from taskpass.testing.postgres import EmbeddedServer, available
from tests.conftest import Database
from tests.integration.postgres.enrolled import ENTROPY, TABLES, Broker, outcome, until
from tests.missing import missing
from tests.postgres_stores import OWNER as STORE_OWNER
from tests.postgres_stores import StoreServer

pytestmark = pytest.mark.service

PROOF = "AuthenticationOk,28000"
WRITE = VERBS_OF_LEVEL[Level.WRITE]


@pytest.fixture
def shop(database):
    database.execute(*TABLES)
    return database


@pytest.fixture
def broker(shop):
    made = Broker(shop)
    yield made
    made.forget()


def changed(broker):
    return dict(broker.issuer.inventory().changed)


def closed(broker, made):
    taken = broker.issuer.close(made.role, audit_head="")
    assert broker.issuer.clean(made.role)
    return taken


# ---- a DBA's hand ----


def test_a_live_lease_that_nobody_touched_is_not_changed(broker, shop):
    made = broker.live()
    session = broker.enter(made)
    assert changed(broker) == {}
    assert closed(broker, made).answer == PROOF
    session.close()


def test_a_renamed_account_is_noticed_and_closed_with_proof_under_whatever_name(broker, shop):
    made = broker.live()
    session = broker.enter(made)
    shop.execute(f'ALTER ROLE "{made.role}" RENAME TO "{shop.name}_renamed"')
    assert changed(broker) == {made.lease: "renamed"}
    taken = broker.issuer.close(made.role, audit_head="")
    assert (taken.answer, taken.ended, taken.absent) == (PROOF, 1, False)
    assert outcome(lambda: session.execute("SELECT 1")) is not None
    with pytest.raises(psycopg.OperationalError):
        shop.connect(f"{shop.name}_renamed", made.secret)
    assert broker.issuer.clean(made.role)
    assert shop.fetch("SELECT FROM pg_roles WHERE rolname = %s", f"{shop.name}_renamed") == []


def test_an_account_that_was_renamed_and_replaced_is_debt_until_the_dba_says_which(broker, shop):
    made = broker.live()
    shop.execute(f'ALTER ROLE "{made.role}" RENAME TO "{shop.name}_renamed"', f'CREATE ROLE "{made.role}" LOGIN')
    with pytest.raises(TargetUnfit) as caught:
        broker.issuer.close(made.role, audit_head="")
    assert "another role has its name" in caught.value.message
    assert "drop the role" in caught.value.hint
    shop.execute(f'DROP ROLE "{made.role}"')
    assert closed(broker, made).answer == PROOF


def test_a_dropped_account_is_noticed_and_closed_as_absent(broker, shop):
    made = broker.live()
    shop.execute(f'SET ROLE taskpass_kit; DROP OWNED BY "{made.role}"; DROP ROLE "{made.role}"; RESET ROLE')
    assert changed(broker) == {made.lease: "gone"}
    taken = broker.issuer.close(made.role, audit_head="")
    assert (taken.answer, taken.absent) == ("absent", True)
    assert broker.issuer.clean(made.role)


def test_an_account_that_a_dba_gave_a_password_is_closed_with_proof(broker, shop):
    made = broker.live()
    shop.execute(f"ALTER ROLE \"{made.role}\" PASSWORD 'known-to-the-dba' VALID UNTIL 'infinity'")
    session = broker.enter(made, Secret("known-to-the-dba"))
    assert closed(broker, made).answer == PROOF
    assert outcome(lambda: session.execute("SELECT 1")) is not None
    assert broker.refused(made, Secret("known-to-the-dba"))


@pytest.mark.parametrize(
    ("by_hand", "why"),
    [
        ('GRANT "{app}" TO "{role}"', "member"),
        ('GRANT "{role}" TO "{app}"', "lent"),
        ('ALTER ROLE "{role}" BYPASSRLS', "privileged"),
        ('ALTER ROLE "{role}" CREATEROLE', "privileged"),
        ('GRANT SELECT ON shop.hidden TO "{role}"', "granted"),
    ],
)
def test_an_account_that_was_widened_by_hand_is_noticed_and_nothing_is_left_after_closing(broker, shop, by_hand, why):
    if why == "granted" and shop.server.version < 16:
        pytest.skip("up to 15 an account holds rights of its own")
    made = broker.live()
    app = shop.role("app")
    shop.execute(by_hand.format(app=app, role=made.role))
    session = broker.enter(made)
    assert changed(broker) == {made.lease: why}
    assert broker.issuer.close(made.role, audit_head="").answer == PROOF
    assert outcome(lambda: session.execute("SELECT 1")) is not None
    assert shop.fetch("SELECT has_any_column_privilege(%s, 'shop.orders', 'SELECT')", app) == [(False,)]
    cleaned = broker.issuer.clean(made.role)
    if not cleaned:  # What a superuser granted on a table only a superuser can take back.
        shop.execute(f'DROP OWNED BY "{made.role}"')
        assert broker.issuer.clean(made.role)
    assert shop.fetch("SELECT FROM pg_roles WHERE rolname = %s", made.role) == []


def test_an_account_made_superuser_is_debt_with_a_reason_until_the_dba_takes_that_back(broker, shop):
    made = broker.live()
    shop.execute(f'ALTER ROLE "{made.role}" SUPERUSER')
    assert changed(broker) == {made.lease: "privileged"}
    with pytest.raises(TaskpassError) as caught:
        broker.issuer.close(made.role, audit_head="")
    assert (caught.value.code, isinstance(caught.value, TargetUnfit | NotProven)) == ("kit_grant", True)
    shop.execute(f'ALTER ROLE "{made.role}" NOSUPERUSER')
    assert closed(broker, made).answer == PROOF


def test_a_routine_of_the_kit_that_was_dropped_is_debt_until_the_upgrade_script_is_run(broker, shop):
    made = broker.live()
    shop.execute("DROP FUNCTION taskpass.sweep")
    with pytest.raises(TargetUnfit) as caught:
        broker.issuer.close(made.role, audit_head="")
    assert caught.value.code == "kit_missing"
    assert broker.refused(made), "the login was forbidden before that"
    shop.execute(kit.upgrade_sql())
    assert closed(broker, made).answer == PROOF


def test_a_dropped_login_of_the_broker_is_debt_until_it_is_enrolled_again(broker, shop):
    made = broker.live()
    broker.issuer.close_connections()
    shop.execute(f'DROP OWNED BY "{broker.login}"; DROP ROLE "{broker.login}"')
    with pytest.raises(TargetUnavailable) as caught:
        broker.issuer.close(made.role, audit_head="")
    assert "broker's login" in caught.value.hint
    with contextlib.closing(shop.server.connect(shop.name)) as connection:
        verifier = scram.verifier(broker.password, ENTROPY, iterations=4096)
        broker.install(connection, verifier, kit.Enrolment(broker.installation, verifier, ("shop.*",)))
    assert closed(broker, made).answer == PROOF


# ---- names ----

NAME = "a\"b'c;--$do$ \\x %I {} Select \n\U0001f600"
"""Everything at once that a name can be misread by, for what exists once in a test: database, owner, and the rest."""


@pytest.fixture
def misnamed(server):
    with server.connect() as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 STRATEGY file_copy").format(sql.Identifier(NAME)))
        admin.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(NAME)))
    place = Database(server, NAME)
    with server.connect(NAME) as admin:
        name = sql.Identifier(NAME)
        admin.execute(sql.SQL("CREATE SCHEMA {0} AUTHORIZATION {0}").format(name))
        admin.execute(sql.SQL("SET ROLE {0}; CREATE TABLE {0}.{0} (id serial, {0} int)").format(name))
    broker = Broker(place, tables=("*.*",), exclude=(), writes=(Writing(("*.*",), (), WRITE),), owners=(NAME,))
    yield broker
    broker.forget()
    place.close()
    with server.connect() as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(NAME)))
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(NAME)))


def test_whatever_database_owner_schema_table_column_and_sequence_are_called_they_are_only_names(misnamed):
    broker, place = misnamed, misnamed.database
    with place.server.connect(NAME) as admin:
        admin.execute(kit.upgrade_sql().encode())
    assert kit.lacking(broker.connect()) == []
    scope = Scope("shop", "write", Level.WRITE, ("*.*",))
    made = broker.live(scope=scope, manifest=keep(broker.issuer.resolve(scope)))
    agent, name = broker.enter(made), sql.Identifier(NAME)
    assert agent.execute(sql.SQL("INSERT INTO {0}.{0} ({0}) VALUES (7) RETURNING id").format(name)).fetchone() == (1,)
    assert changed(broker) == {}
    taken = broker.issuer.close(made.role, audit_head="")
    assert (taken.answer, taken.ended) == (PROOF, 1)
    assert broker.issuer.clean(made.role)
    broker.issuer.close_connections()
    with place.server.connect(NAME) as admin:
        admin.execute(kit.uninstall_sql().encode())
        assert admin.execute("SELECT 1 FROM pg_namespace WHERE nspname = 'taskpass'").fetchone() is None


def keep(manifest):
    return narrow(manifest, keep_all(manifest))


# ---- a ceiling lowered under live leases ----


def test_a_ceiling_lowered_under_a_live_lease_ends_no_lease_and_lets_nothing_new_in(broker, shop):
    live, waiting = broker.live(lifetime=300), broker.order(lifetime=300)
    shop.execute("UPDATE taskpass.ceiling SET longest_seconds = 60 WHERE longest_seconds > 0")
    assert not broker.refused(live), "it keeps the end that it was given"
    with pytest.raises(TargetUnfit) as caught:
        broker.issuer.enable(live.role, lifetime=300, audit_head="")
    assert caught.value.code == "above_ceiling"
    assert not broker.refused(live), "a renewal that is refused changes nothing"
    with pytest.raises(TargetUnfit):
        broker.issuer.create(waiting.order)
    shop.execute("UPDATE taskpass.ceiling SET longest_seconds = 300, most_live = 0 WHERE longest_seconds > 0")
    with pytest.raises(TargetUnfit):
        broker.issuer.create(waiting.order)
    with pytest.raises(TargetUnfit):
        broker.issuer.enable(live.role, lifetime=60, audit_head="")
    assert shop.fetch("SELECT lease FROM taskpass.leases WHERE can_login") == [(live.lease,)]
    assert closed(broker, live).answer == PROOF


# ---- a server in trouble ----


@pytest.fixture(scope="module")
def small():
    """A server with few connections and few locks."""
    if 16 not in available():
        missing("PostgreSQL 16 is not installed")
    options = {"max_connections": "12", "max_locks_per_transaction": "10", "autovacuum": "off"}
    with EmbeddedServer(16, options=options, durable=False) as server:
        yield server


@pytest.fixture
def crowded(small):
    place = Database(small, "crowded")
    with small.connect() as admin:
        admin.execute("CREATE DATABASE crowded")
    place.execute(*TABLES)
    broker = Broker(place)
    yield broker
    broker.forget()
    place.drop()


def test_a_server_without_a_free_connection_is_unavailable_and_closes_later(crowded):
    made = crowded.live()
    crowded.issuer.close_connections()
    until(
        lambda: (
            crowded.database.fetch("SELECT count(*) FROM pg_stat_activity WHERE usename = %s", crowded.login) == [(0,)]
        )
    )
    filler = crowded.database.login("filler")
    held = []
    with contextlib.suppress(psycopg.OperationalError):
        while True:
            held.append(crowded.database.connect(*filler))
    with pytest.raises(TargetUnavailable):
        crowded.issuer.close(made.role, audit_head="")
    with pytest.raises(TargetUnavailable):
        crowded.issuer.inventory()
    for connection in held:
        connection.close()
    taken = until(lambda: quietly(lambda: crowded.issuer.close(made.role, audit_head="")), what="closing")
    assert taken.answer == PROOF
    assert crowded.issuer.clean(made.role)


def quietly(effect):
    try:
        return effect()
    except TargetUnavailable:
        return None


def test_a_server_without_a_free_lock_makes_nothing_and_leaves_nothing(crowded):
    crowded.database.execute(*(f"CREATE TABLE shop.many{n} (a int)" for n in range(900)))
    with pytest.raises(TargetUnavailable) as caught:
        crowded.live()
    assert "53200" in caught.value.message
    assert crowded.issuer.inventory().own == ()
    assert crowded.database.fetch("SELECT count(*) FROM pg_roles WHERE rolname ~ '^tpm?_'") == [(0,)]


def test_a_server_that_restarts_in_between_is_served_on(crowded, small):
    made = crowded.live()
    crowded.issuer.inventory()
    small.stop()
    with pytest.raises(TargetUnavailable):
        crowded.issuer.close(made.role, audit_head="")
    small.start()
    assert changed(crowded) == {}
    assert not crowded.refused(made)
    assert closed(crowded, made).answer == PROOF


@pytest.fixture
def on_a_small_disk(tmp_path):
    """A database on a server whose disk is 64 MiB, and that disk."""
    if 16 not in available():
        missing("PostgreSQL 16 is not installed")
    disk = Path(tempfile.mkdtemp(prefix="tp-disk-", dir="/tmp"))
    disk.chmod(0o755)
    words = ["mount", "-t", "tmpfs", "-o", "size=96m,mode=0755", "tmpfs", str(disk)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        disk.rmdir()
        pytest.skip("this machine does not let us mount")
    try:
        with EmbeddedServer(16, directory=disk / "server", options={"max_wal_size": "32MB"}, durable=False) as server:
            with server.connect() as admin:
                admin.execute("CREATE DATABASE small STRATEGY file_copy")
            place = Database(server, "small")
            place.execute(*TABLES)
            yield Broker(place), disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
        disk.rmdir()


def test_a_server_whose_disk_is_full_makes_nothing_and_closes_when_there_is_room(on_a_small_disk):
    broker, disk = on_a_small_disk
    order = broker.order()
    broker.issuer.inventory()
    with contextlib.suppress(OSError), (disk / "filler").open("wb") as filler:
        while True:
            filler.write(b"x" * 65536)
    with pytest.raises(TargetUnavailable) as caught:
        broker.issuer.create(order.order)
    assert "53100" in caught.value.message
    assert broker.issuer.inventory().own == ()
    (disk / "filler").unlink()
    made = broker.live()
    with contextlib.suppress(OSError), (disk / "filler").open("wb") as filler:
        while True:
            filler.write(b"x" * 65536)
    quietly(lambda: broker.issuer.close(made.role, audit_head=""))
    (disk / "filler").unlink()
    assert closed(broker, made).answer == PROOF
    broker.issuer.close_connections()


# ---- a server that speaks another language ----


@pytest.fixture(scope="module")
def german():
    """Debian's server brings translations; the variable chooses one without a locale of that language."""
    if 15 not in available():
        missing("PostgreSQL 15 is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres, "_ENVIRONMENT", {**postgres._ENVIRONMENT, "LC_ALL": "C.UTF-8", "LANGUAGE": "de"})
        with EmbeddedServer(15, options={"lc_messages": "C.UTF-8"}, durable=False) as server:
            with server.connect() as admin, pytest.raises(psycopg.errors.UndefinedTable) as caught:
                admin.execute("SELECT * FROM nothing")
            if "existiert nicht" not in str(caught.value):
                missing("a translated PostgreSQL is not installed")
            yield server


@pytest.fixture
def in_german(german):
    place = Database(german, "laden")
    with german.connect() as admin:
        admin.execute("CREATE DATABASE laden")
    place.execute(*TABLES)
    broker = Broker(place)
    yield broker
    broker.forget()
    place.drop()


def test_nothing_depends_on_the_words_of_a_server(in_german):
    made = in_german.live()
    session = in_german.enter(made)
    assert [f.check for f in in_german.issuer.preflight(thorough=True) if f.severity == "fatal"] == []
    assert closed(in_german, made).answer == PROOF
    assert outcome(lambda: session.execute("SELECT 1")) is not None
    in_german.database.execute("UPDATE taskpass.ceiling SET longest_seconds = 5 WHERE longest_seconds > 0")
    with pytest.raises(TargetUnfit) as caught:
        in_german.live()
    assert caught.value.code == "above_ceiling"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"user": "nobody_here"}, "target_auth"),
        ({"password": "wrong"}, "target_auth"),
        ({"database": "nothing"}, "target_absent"),
        ({"port": 1}, "target_unavailable"),
    ],
)
def test_why_a_login_failed_is_known_in_any_language(in_german, changes, code):
    server = in_german.database.server
    parts = {
        "user": server.superuser,
        "password": server.password.reveal(),
        "database": "laden",
        "port": server.port,
    } | changes
    address = f"{server.host}:{parts['port']}/{parts['database']}"
    login = enrol.Login(address, parts["user"], Secret(parts["password"]))
    with pytest.raises(TaskpassError) as caught, enrol.connected(login, ENTROPY):
        pass
    assert caught.value.code == code


def test_why_a_store_cannot_be_opened_is_known_in_any_language(german, tmp_path):
    place = StoreServer(german, tmp_path).fresh()
    wrong = Access(lambda: Credential(STORE_OWNER, Secret("canary-4711")))
    try:
        assert why(lambda: place.open(access=wrong)) == "store_login"
        assert why(lambda: place.open(url=place.url + "_else")) == "store_missing"
        with german.connect() as admin:
            admin.execute(f"ALTER ROLE {STORE_OWNER} CONNECTION LIMIT 0")
        assert why(place.open) == "store_connections"
        with german.connect() as admin:
            admin.execute(f"ALTER ROLE {STORE_OWNER} NOLOGIN")
        assert why(place.open) == "store_login"
    finally:
        place.drop()


def why(opened):
    with pytest.raises(StoreUnavailable) as caught:
        opened()
    assert "canary" not in f"{caught.value.message} {caught.value.hint}"
    return caught.value.code
