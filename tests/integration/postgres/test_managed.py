"""A server that looks like a provider's: no superuser for us, the provider's roles and database. Not a real one."""

from __future__ import annotations

import io

import pytest
from psycopg import sql

from taskpass.cli.entry import main
from taskpass.core.limits import Enforced
from taskpass.issuers.base import Severity
from taskpass.issuers.postgres import enrol, kit
from taskpass.issuers.postgres.issuer import PostgresIssuer
from taskpass.testing.postgres import EmbeddedServer
from tests.conftest import Database, require_version
from tests.integration.postgres.enrolled import CLOCK, ENTROPY, TABLES, Broker

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def rds():
    """A server of its own, because these roles are the whole cluster's: (server, the administrator's password)."""
    require_version(18)
    with EmbeddedServer(18, durable=False) as server:
        with server.connect() as admin:
            admin.execute("CREATE ROLE rds_superuser CREATEROLE CREATEDB")
            admin.execute("CREATE DATABASE rdsadmin")
            admin.execute("CREATE ROLE master LOGIN CREATEROLE CREATEDB IN ROLE rds_superuser")
            admin.execute(sql.SQL("ALTER ROLE master PASSWORD {}").format(sql.Literal(server.password.reveal())))
            admin.execute("CREATE DATABASE shop OWNER master")
        yield server


def give_login(server, broker, name):
    """A login for a further broker with the password of the first, by the same administrator."""
    with server.connect("shop", "master") as master:
        master.execute(enrol.login_script(broker.installation, name, broker.password, ENTROPY).encode())
        held = "SELECT pg_has_role('master', 'taskpass_kit', 'USAGE')"
        assert master.execute(held).fetchone() == (False,), "the administrator keeps no right of the kit"


def test_the_provider_is_found_explained_and_served_without_a_superuser(rds):
    with rds.connect("shop", "master") as master:
        for statement in TABLES:
            master.execute(statement.encode())
        found = enrol.survey(master)
        assert "Amazon RDS" in found.managed[0].message
        assert "not tried on a real one" in found.managed[0].message
    database = Database(rds, "shop")
    broker = Broker(database, admin=rds.connect("shop", "master"))
    try:
        seen = [finding for finding in broker.issuer.preflight(thorough=True) if finding.check == "managed"]
        assert [finding.message for finding in seen] == [finding.message for finding in found.managed]
        assert Severity.FATAL not in {finding.severity for finding in broker.issuer.preflight()}
        # What only a superuser can pass on is stated as nobody's.
        assert broker.issuer.capabilities.limits["temp_megabytes"] is Enforced.NONE
        made = broker.live()
        with broker.enter(made) as session:
            assert session.execute("SELECT count(*) FROM shop.orders").fetchone() == (1000,)
        assert broker.issuer.close(made.role, audit_head="").answer == "AuthenticationOk,28000"
        assert broker.issuer.clean(made.role)
        give_login(rds, broker, "b")
        further = PostgresIssuer(
            broker.issuer.target,
            broker.installation,
            broker.password,
            clock=CLOCK,
            entropy=ENTROPY,
            user=kit.broker_login(broker.installation, "b"),
        )
        assert Severity.FATAL not in {finding.severity for finding in further.preflight(thorough=True)}
        further.close_connections()
    finally:
        broker.issuer.close_connections()
        database.close()


def test_an_administrator_who_may_not_install_is_told_what_is_different_there(rds, tmp_path, monkeypatch, capfd):
    with rds.connect() as admin:
        admin.execute("CREATE DATABASE theirs")
    login = f"postgresql://master:{rds.password.reveal()}@127.0.0.1:{rds.port}/theirs"
    monkeypatch.setattr("sys.stdin", io.StringIO(login))
    directory = tmp_path / "broker"
    assert main(["init", "--postgres", "--admin-dsn-stdin", "--directory", str(directory)]) != 0
    told = "".join(capfd.readouterr())
    assert "FATAL" in told
    assert "this looks like Amazon RDS" in told
    assert "GRANT owner_of_the_tables TO CURRENT_USER;" in told
    assert rds.password.reveal() not in told
    assert not directory.exists()
