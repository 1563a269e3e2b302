"""What ``exec --deliver secret`` means on a server with TLS: the enrolled server, or nobody, sees the login."""

from __future__ import annotations

import os
import shutil
import subprocess

import psycopg
import pytest

from taskpass.cli.exec import environment
from taskpass.client import password_file
from taskpass.core.bearer import Bearer
from tests.integration.postgres.certificates import certificate
from tests.integration.postgres.enrolled import TABLES, Broker

pytestmark = pytest.mark.service


@pytest.fixture
def broker(database):
    database.execute(*TABLES)
    made = Broker(database)
    yield made
    made.forget()


@pytest.fixture
def encrypted(broker, tmp_path):
    """The server with a certificate of its own; the path of the authority that made it, and of another one."""
    if broker.database.fetch("SHOW ssl_library") == [("",)]:
        pytest.skip("this server was built without TLS")
    server = broker.database.server
    for path in certificate(tmp_path, "server"):
        shutil.copy(path, server.data)
        place = server.data / path.name
        os.chown(place, server.data.stat().st_uid, server.data.stat().st_gid)
        place.chmod(0o600)
    server.configure(ssl="on", ssl_cert_file="server.crt", ssl_key_file="server.key")
    yield tmp_path / "server.crt", certificate(tmp_path, "other")[0]
    server.configure(ssl="off")


def given(broker, made, ca):
    """The environment of the command, and the descriptor that it inherits."""
    server = broker.database.server
    place = Bearer(server.host, server.port, broker.database.name, made.role, str(ca), made.secret)
    lease = {"task": "tsk_1", "bearer": place.reveal()}
    file = password_file.password_file(lease["bearer"])
    return environment(dict(os.environ), lease) | {"PGPASSFILE": password_file.path_of(file)}, file


def psql(around, file):
    program = shutil.which("psql")
    if program is None:
        pytest.skip("psql is not installed")
    return subprocess.run(
        [program, "-XAtwc", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"],
        env=around, pass_fds=[file], capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_the_client_speaks_tls_to_the_enrolled_server(broker, encrypted, monkeypatch):
    right, _ = encrypted
    around, file = given(broker, broker.live(), right)
    done = psql(around, file)
    assert (done.stdout, done.stderr) == ("t\n", "")
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    with psycopg.connect("") as connection:
        assert connection.execute("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").fetchone() == (True,)
    os.close(file)


def test_a_server_of_another_authority_gets_nothing(broker, encrypted):
    _, wrong = encrypted
    around, file = given(broker, broker.live(), wrong)
    done = psql(around, file)
    os.close(file)
    assert done.returncode != 0
    assert "certificate verify failed" in done.stderr
