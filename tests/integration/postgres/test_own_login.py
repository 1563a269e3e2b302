"""The broker's own login on real servers: its password is replaced, and nobody is locked out or overheard."""

from __future__ import annotations

import contextlib
import os
import signal

import psycopg
import pytest

from taskpass.broker.rotate_login import Kept, rotate_login
from taskpass.config.credentials import Credential, read_credential, write_credential
from taskpass.core.errors import TargetUnavailable
from taskpass.issuers.postgres import kit, scram
from taskpass.issuers.postgres.issuer import PostgresIssuer
from taskpass.testing.broker import make_harness
from tests.integration.postgres.enrolled import CLOCK, ENTROPY, TABLES, Broker

pytestmark = pytest.mark.service


@pytest.fixture
def shop(database):
    database.execute(*TABLES)
    return database


@pytest.fixture
def broker(shop):
    made = Broker(shop)
    yield made
    made.forget()


@pytest.fixture
def private_directory(tmp_path):
    tmp_path.chmod(0o700)
    return tmp_path


class Process:
    """One broker process: an issuer that reads the same file as others of it."""

    def __init__(self, broker, passwords, name, **options):
        self.issuer = PostgresIssuer(
            broker.issuer.target,
            broker.installation,
            passwords[-1],
            clock=CLOCK,
            entropy=ENTROPY,
            passwords=lambda: list(passwords),
            name=name,
            **options,
        )

    def __enter__(self):
        return self.issuer

    def __exit__(self, *_):
        self.issuer.close_connections()


def test_the_old_password_is_dead_and_every_issuer_of_the_process_follows_the_file(broker):
    passwords = [broker.password]
    with Process(broker, passwords, "taskpass a") as first, Process(broker, passwords, "taskpass a") as second:
        second.inventory()
        fresh = first.own_login.propose()
        passwords.insert(0, fresh)
        first.own_login.replace(fresh)
        assert first.own_login.accepts(fresh)
        assert not first.own_login.accepts(broker.password)
        with pytest.raises(psycopg.OperationalError):
            broker.connect()
        second.close_connections()
        assert second.inventory().own == ()
        del passwords[1:]
        assert second.preflight(thorough=True)[-1].check == "rehearsal"


def test_without_the_new_password_in_the_file_the_broker_is_refused(broker):
    with Process(broker, [broker.password], "taskpass a") as issuer:
        issuer.own_login.replace(issuer.own_login.propose())
        issuer.close_connections()
        with pytest.raises(TargetUnavailable):
            issuer.inventory()


def test_sessions_of_another_process_are_seen_and_its_own_are_not(broker):
    with (
        Process(broker, [broker.password], "taskpass a") as ours,
        Process(broker, [broker.password], "taskpass b") as theirs,
    ):
        ours.inventory()
        assert ours.own_login.others() == 0
        theirs.inventory()
        assert ours.own_login.others() == 1


def test_the_server_s_log_holds_the_verifier_and_never_the_password(broker, shop):
    shop.server.configure(log_statement="all")
    try:
        with Process(broker, [broker.password], "taskpass a") as issuer:
            fresh = issuer.own_login.propose()
            issuer.own_login.replace(fresh)
            assert issuer.own_login.accepts(fresh)
    finally:
        shop.server.configure(log_statement="none")
    text = shop.server.log_text()
    assert "ALTER ROLE CURRENT_USER PASSWORD 'SCRAM-SHA-256$4096:" in text
    assert fresh.reveal() not in text


def test_a_second_broker_of_the_installation_has_a_login_of_its_own(broker, shop):
    other, password = f"{broker.login}_b", scram.new_secret(ENTROPY)
    shop.execute(
        f"CREATE ROLE \"{other}\" LOGIN NOINHERIT PASSWORD '{scram.verifier(password, ENTROPY, iterations=4096)}'",
        f"INSERT INTO taskpass.broker (login, installation) VALUES ('{other}', '{broker.installation}')",
        kit.upgrade_sql(),
    )
    made = broker.live()
    with Process(broker, [password], "taskpass b", user=other) as second:
        assert [finding.check for finding in second.preflight(thorough=True) if finding.severity == "fatal"] == []
        second.own_login.replace(second.own_login.propose())
        assert second.own_login.others() == 0
        broker.issuer.close_connections()
        assert broker.issuer.sweep(made.role) == 0, "the first one's password is as it was"
        # Either finishes the other's work.
        second.set_epoch(3)
        assert broker.issuer.inventory().epoch == second.inventory().epoch == 3
        assert second.close(made.role, audit_head="").answer == "AuthenticationOk,28000"
        assert broker.issuer.clean(made.role)


def test_a_script_that_a_dba_runs_again_leaves_the_replaced_password_alone(broker, shop):
    fresh = broker.issuer.own_login.propose()
    broker.issuer.own_login.replace(fresh)
    old = scram.verifier(broker.password, ENTROPY, iterations=4096)
    enrolment = kit.Enrolment(broker.installation, old, ("shop.*",), ("shop.hidden",), keep_password=True)
    shop.execute(kit.install_sql(shop.server.version * 10000, enrolment))
    assert broker.issuer.own_login.accepts(fresh)
    # What the script prints as a comment is for a broker whose directory was restored.
    (statement,) = [line for line in kit.give_password_sql(enrolment).splitlines() if "ALTER ROLE" in line]
    shop.execute(statement.removeprefix("-- "))
    assert broker.issuer.own_login.accepts(broker.password)
    broker.issuer.close_connections()


class DeadlyKept(Kept):
    """``moment`` is where the process is killed: nothing after it runs, no lock is given back, nothing is written."""

    def write(self, credential):
        super().write(credential)
        self.die("both in the file" if credential.next else "the new one alone")

    def die(self, moment):
        if self.login.moment == moment:
            os.kill(os.getpid(), signal.SIGKILL)


class DeadlyLogin:
    def __init__(self, login, moment):
        self.login, self.moment = login, moment
        self.cluster, self.propose, self.others = login.cluster, login.propose, login.others

    def replace(self, secret):
        self.login.replace(secret)
        self.die("replaced")

    def accepts(self, secret):
        answer = self.login.accepts(secret)
        self.die("tried")
        return answer

    def die(self, moment):
        if self.moment == moment:
            os.kill(os.getpid(), signal.SIGKILL)


def enters(broker, secret):
    """Whether the password works. The session ends before anybody counts those of other processes."""
    try:
        broker.database.connect(broker.login, secret).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.mark.parametrize("server", [16], indirect=True)
@pytest.mark.parametrize("moment", ["both in the file", "replaced", "tried", "the new one alone"])
def test_a_process_killed_while_it_rotates_leaves_a_password_that_works_and_the_next_one_settles_it(
    broker, private_directory, moment
):
    write_credential(private_directory, "shop.cred", Credential(broker.login, broker.password))
    h = make_harness(private_directory)
    h.stop()

    def rotate(how):
        h.start()
        passwords = list(read_credential(private_directory, {"file": "shop.cred"}).passwords)
        with Process(broker, passwords, "taskpass a") as issuer:
            kept = DeadlyKept(private_directory, "shop.cred", ("shop",), DeadlyLogin(issuer.own_login, how))
            rotate_login(h.broker, kept)
        h.stop()

    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            rotate(moment)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    known = read_credential(private_directory, {"file": "shop.cred"}).passwords
    assert len(known) == (1 if moment == "the new one alone" else 2)
    assert any(enters(broker, secret) for secret in known)
    rotate("never")
    (last,) = read_credential(private_directory, {"file": "shop.cred"}).passwords
    assert enters(broker, last)
    assert last.reveal() not in {secret.reveal() for secret in known}
