"""Every issuer passes the shared suite: PostgreSQL's on real servers, and the fake that other tests rely on."""

from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest

from taskpass.core.errors import NotProven, TargetUnavailable
from taskpass.core.ids import new_installation_id
from taskpass.core.lease import Target
from taskpass.core.scope import VERBS_OF_LEVEL, Level, Scope
from taskpass.core.separation import Environment
from taskpass.issuers.postgres.kit import Writing
from taskpass.testing.fake_issuer import Account, FakeIssuer, FakeTarget, renamed
from taskpass.testing.suites.issuer import Files, IssuerSuite, LoginRefused, live, names, order
from tests.integration.postgres.enrolled import ENTROPY, TABLES, Broker, until


class MovableClock:
    def __init__(self):
        self.at = 1_790_000_000_000

    def now(self):
        return self.at


class FakeRig:
    def __init__(self):
        self.clock = MovableClock()
        self.target = FakeTarget(self.clock)
        self.issuer = FakeIssuer(self.target, new_installation_id(ENTROPY))
        self.other = FakeIssuer(self.target, new_installation_id(ENTROPY))
        self.scope = Scope("shop", "read", Level.READ, ("shop.orders",))
        self.writing = Scope("shop", "write", Level.WRITE, ("shop.orders",))
        self.entropy = ENTROPY

    @property
    def files(self):
        return Files(
            scope=Scope("shop", "migrate", Level.MIGRATE, (), owner="app_owner"),
            good="ADD notes\nFILL notes",
            failing="ADD notes\nFAIL",
            open_door="ADD notes\nOPEN notes",
            refused="ADD notes\n\\! id",
            done=lambda: "ADD notes" in self.target.changes,
        )

    def enter(self, role, secret):
        try:
            number = self.target.login(role, secret.reveal())
        except NotProven as refused:
            raise LoginRefused from refused
        return FakeSession(self.target, number)

    def change_meaning(self):
        renamed(self.target, 16384, "orders_renamed")

    def make_by_hand(self, name):
        self.target.accounts[name] = Account({}, None, self.clock.now())

    def outlive(self, seconds):
        self.clock.at += seconds * 1000

    def cut_off(self):
        self.target.down = True


class FakeSession:
    def __init__(self, target, number):
        self.target, self.number = target, number

    def alive(self):
        return self.target.alive(self.number)


class PostgresRig:
    def __init__(self, database):
        database.execute(*TABLES)
        self.database = database
        self.owner = database.role("owner")
        database.execute(f"CREATE SCHEMA moved AUTHORIZATION {self.owner}")
        writes = (Writing(("shop.*",), ("shop.hidden",), VERBS_OF_LEVEL[Level.WRITE]),)
        self.brokers = [Broker(database, owners=(self.owner,), writes=writes)]
        self.issuer = self.brokers[0].issuer
        self.scope, self.entropy = self.brokers[0].scope, ENTROPY
        self.writing = replace(self.scope, access="write", level=Level.WRITE, verbs=frozenset())

    @property
    def files(self):
        table = "CREATE TABLE moved.notes (id int);\n"
        return Files(
            scope=Scope("shop", "migrate", Level.MIGRATE, (), owner=self.owner),
            good=table + "INSERT INTO moved.notes VALUES (1)",
            failing=table + "INSERT INTO moved.nothing VALUES (1)",
            open_door=table + "GRANT DELETE ON moved.notes TO PUBLIC",
            refused="SELECT 1;\n\\! id",
            done=lambda: self.database.fetch("SELECT to_regclass('moved.notes') IS NOT NULL")[0][0],
        )

    @property
    def other(self):
        if len(self.brokers) == 1:
            self.brokers.append(Broker(self.database))
        return self.brokers[1].issuer

    def enter(self, role, secret):
        try:
            return PostgresSession(self.database.connect(role, secret))
        except psycopg.OperationalError as refused:
            raise LoginRefused from refused

    def change_meaning(self):
        self.database.execute("ALTER TABLE shop.orders ADD COLUMN iban text")

    def make_by_hand(self, name):
        self.database.execute(f'CREATE ROLE "{name}" NOLOGIN')

    def outlive(self, seconds):
        end = self.database.fetch("SELECT clock_timestamp() + make_interval(secs => %s)", seconds)[0][0]
        until(lambda: self.database.fetch("SELECT clock_timestamp() > %s", end)[0][0])

    def cut_off(self):
        # Another address instead of a stopped server: the server is shared by the session's tests.
        self.issuer.close_connections()
        elsewhere = self.database.address.replace(f":{self.database.server.port}/", ":1/")
        self.issuer = self.brokers[0].new_issuer(address=elsewhere)

    def close(self):
        self.issuer.close_connections()
        for broker in self.brokers:
            broker.forget()
        self.database.execute("DROP ROLE IF EXISTS tp_hand_made")


class PostgresSession:
    def __init__(self, connection):
        self.connection = connection

    def alive(self):
        try:
            self.connection.execute("SELECT count(*) FROM shop.orders")
        except psycopg.Error:
            return False
        return True


class TestFake(IssuerSuite):
    @pytest.fixture
    def rig(self):
        return FakeRig()


@pytest.mark.service
class TestPostgres(IssuerSuite):
    @pytest.fixture
    def rig(self, database):
        made = PostgresRig(database)
        yield made
        made.close()


def test_the_fake_answers_as_often_as_it_is_told():
    rig = FakeRig()
    rig.target.breaks_after = 2
    made = order(rig)
    rig.issuer.create(made.order)
    with pytest.raises(TargetUnavailable):
        rig.issuer.enable(made.role, lifetime=60, audit_head="")


def test_a_close_that_the_fake_does_not_prove_is_not_proven_and_may_be_repeated():
    rig = FakeRig()
    made = live(rig)
    rig.target.unproven = "it was let in"
    with pytest.raises(NotProven):
        rig.issuer.close(made.role, audit_head="")
    rig.target.unproven = ""
    assert not rig.issuer.close(made.role, audit_head="").absent


def test_blocked_cleaning_in_the_fake_leaves_the_closed_account():
    rig = FakeRig()
    made = live(rig)
    rig.issuer.close(made.role, audit_head="")
    rig.target.blocked = True
    assert not rig.issuer.clean(made.role)
    assert made.role in names(rig.issuer.inventory())


def test_a_late_session_in_the_fake_is_found_once():
    rig = FakeRig()
    made = live(rig)
    rig.issuer.close(made.role, audit_head="")
    rig.target.late = 1
    assert (rig.issuer.sweep(made.role), rig.issuer.sweep(made.role)) == (1, 0)
    assert isinstance(rig.issuer.target, Target)
    assert rig.issuer.target.environment is Environment.DEV
