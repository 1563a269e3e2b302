"""The launcher of throw-away servers: nobody is trusted, nothing is left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

from taskpass.core.errors import TargetUnavailable, TargetUnfit
from taskpass.core.secret import Secret
from taskpass.testing import postgres
from taskpass.testing.postgres import EmbeddedServer, available

pytestmark = pytest.mark.service


def _gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.01)
    return False


def test_every_version_of_the_suite_is_the_version_that_was_asked_for(server):
    assert server.version in available()
    with server.connect() as connection:
        assert connection.info.server_version // 10000 == server.version


@pytest.mark.parametrize("over_socket", [False, True], ids=["loopback", "socket"])
def test_a_wrong_password_is_refused_on_every_way_in(server, over_socket):
    server.connect(over_socket=over_socket).close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        server.connect(password=Secret("wrong"), over_socket=over_socket)


def test_only_the_servers_account_may_enter_its_folders_and_no_password_file_is_left(server):
    for folder in (server.directory, server.socket_directory, server.data):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in server.directory.iterdir()) == ["data", "log", "s"]
    assert server.password.reveal() not in server.log_text()


def test_it_never_runs_as_root(server):
    assert Path(f"/proc/{server.pid}").stat().st_uid == server.directory.stat().st_uid != 0


def test_options_are_set_and_can_be_changed_while_it_runs(server):
    with server.connect() as connection:
        assert connection.execute("SHOW max_prepared_transactions").fetchone() == ("20",)
    server.configure(log_statement="ddl", application_name="it's quoted")
    try:
        with server.connect() as connection:
            assert connection.execute("SHOW log_statement").fetchone() == ("ddl",)
            connection.execute("CREATE TEMP TABLE seen_in_the_log ()")
        assert "seen_in_the_log" in server.log_text()
    finally:
        server.configure(log_statement="none", application_name="")


def test_stopping_keeps_the_data_and_removing_leaves_nothing(servers):
    servers(16)
    with EmbeddedServer(16, durable=False) as server:
        pid, directory = server.pid, server.directory
        with server.connect() as connection:
            connection.execute("CREATE TABLE kept ()")
        server.stop()
        assert _gone(pid)
        assert server.pid == 0
        with pytest.raises(psycopg.OperationalError):
            server.connect()
        server.start()
        with server.connect() as connection:
            connection.execute("SELECT FROM kept")
        server.crash()
        server.start()
        with server.connect() as connection:
            connection.execute("SELECT FROM kept")
        last = server.pid
    assert _gone(last)
    assert not directory.exists()


def test_a_server_that_cannot_start_says_why(servers):
    servers(16)
    server = EmbeddedServer(16, options={"shared_buffers": "nonsense"}, durable=False)
    with pytest.raises(TargetUnavailable, match="shared_buffers"):
        server.start()
    server.remove()


def test_a_version_that_is_not_there_is_named():
    with pytest.raises(TargetUnfit, match="PostgreSQL 9 is not installed"):
        EmbeddedServer(9)


@pytest.mark.parametrize("tied", [True, False])
def test_it_dies_with_its_starter_unless_it_is_to_stay(servers, tied):
    servers(16)
    code = (
        "import os, sys; from taskpass.testing.postgres import EmbeddedServer\n"
        f"server = EmbeddedServer(16, durable=False, tied={tied}); server.start()\n"
        "print(server.pid, server.directory, flush=True); os.kill(os.getpid(), 9)"
    )
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    pid, directory = started.stdout.split()
    try:
        assert _gone(int(pid), seconds=10 if tied else 0.5) is tied
    finally:
        if not tied:
            os.kill(int(pid), 3)
            assert _gone(int(pid))
        subprocess.run(["rm", "-rf", directory], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root needs a copy")
@pytest.mark.parametrize("version", [16, 18])
def test_root_runs_a_copy_where_the_servers_account_cannot_read_the_package(servers, monkeypatch, version):
    servers(version)
    shared = tempfile.mkdtemp(dir="/tmp")
    os.chmod(shared, 0o755)
    monkeypatch.setattr(tempfile, "tempdir", shared)
    monkeypatch.setattr(postgres, "_enterable", lambda path: shared in str(path))
    try:
        for _ in range(2):
            with EmbeddedServer(version, durable=False) as server, server.connect() as connection:
                assert connection.info.server_version // 10000 == version
                connection.execute("DO $$ BEGIN END $$")
                assert os.readlink(f"/proc/{server.pid}/exe").startswith(shared)
        assert len(os.listdir(shared)) == 1
    finally:
        shutil.rmtree(shared)


@pytest.mark.skipif(os.getuid() != 0, reason="only root needs a copy")
def test_a_copy_that_somebody_else_could_have_written_is_refused(servers, monkeypatch):
    servers(16)
    shared = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    monkeypatch.setattr(postgres, "_enterable", lambda path: False)
    try:
        EmbeddedServer(16)
        (made,) = shared.iterdir()
        os.chown(made, 65534, 65534)
        with pytest.raises(TargetUnfit, match="belongs to somebody else"):
            EmbeddedServer(16)
    finally:
        shutil.rmtree(shared)


def test_what_a_killed_run_left_in_memory_goes_after_an_hour_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setattr(postgres, "_MEMORY", tmp_path)
    monkeypatch.setattr(postgres, "_account", lambda: postgres._Account(os.getuid(), os.getgid()))
    for name, pid in {"tp-pg-old": 2**22 + 1, "tp-pg-running": os.getpid(), "tp-pg-new": 2**22 + 1, "other": 1}.items():
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data/postmaster.pid").write_text(f"{pid}\n")
        if name != "tp-pg-new":
            os.utime(tmp_path / name, (1, 1))
    postgres._sweep_memory()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "tp-pg-new", "tp-pg-running"]
