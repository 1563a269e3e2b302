"""Streaming standbys of a server of the tests, and the agent's side of them."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

import psycopg

from taskpass.testing.postgres import EmbeddedServer
from tests.integration.postgres.enrolled import until


@contextlib.contextmanager
def streaming(primary: EmbeddedServer, **options: str) -> Iterator[EmbeddedServer]:
    """A standby of ``primary``, started from a copy of its files and removed at the end. Its port is its own."""
    conninfo = f"host=127.0.0.1 port={primary.port} user=postgres password={primary.password.reveal()}"
    copy = EmbeddedServer(
        primary.version,
        options={
            "primary_conninfo": conninfo,
            "max_prepared_transactions": "20",
            "wal_retrieve_retry_interval": "20ms",
            **options,
        },
        durable=False,
    )
    directory = copy._make_directory()
    # Each new database and each copy is a checkpoint, and a checkpoint removes what a slow walsender has yet to send.
    primary.configure(wal_keep_size="1GB")
    with primary.connect() as admin:
        admin.execute("SELECT pg_backup_start('standby', true)")
        ignored = shutil.ignore_patterns("postmaster.*", "pg_stat_tmp", "pg_replslot")
        shutil.copytree(primary.data, directory / "data", ignore=ignored, dirs_exist_ok=True)
        (label,) = admin.execute("SELECT labelfile FROM pg_backup_stop(false)").fetchone()
    (directory / "data/pg_replslot").mkdir(exist_ok=True)
    (directory / "data/backup_label").write_text(label)
    (directory / "data/standby.signal").touch()
    for path in [directory / "data", *(directory / "data").rglob("*")]:
        os.chown(path, copy._account.uid, copy._account.gid)
    (directory / "data").chmod(0o700)
    copy._directory, copy.password = directory, primary.password
    with copy:
        yield copy


def caught_up(primary: EmbeddedServer, copy: EmbeddedServer) -> bool:
    """Whether ``copy`` has replayed everything that ``primary`` has written so far."""
    with primary.connect() as here, copy.connect() as there:
        (written,) = here.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        return there.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [written]).fetchone() == (True,)


def catch_up(primary: EmbeddedServer, copy: EmbeddedServer) -> None:
    """Wait until ``copy`` has replayed all that there is; what both servers logged last says why it does not."""
    try:
        until(lambda: caught_up(primary, copy), what="replay")
    except AssertionError as late:
        logs = {name: server.log_text()[-3000:] for name, server in (("primary", primary), ("standby", copy))}
        raise AssertionError("\n".join([str(late), *(f"--- {name}\n{text}" for name, text in logs.items())])) from None


def enter(copy: EmbeddedServer, database: str, made) -> psycopg.Connection:
    """A session of the lease there, as soon as the standby has heard of it."""

    def entered():
        with contextlib.suppress(psycopg.OperationalError):
            return copy.connect(database, made.role, made.secret, connect_timeout=10)

    return until(entered, what="a session on the standby")
