"""A whole installation on this machine: real servers, a broker process, enrolled databases. For demo, tests and bench.

Everything is done by the public commands, as a user would; what a user would type into a file (a second person, a
setting) is written into that file. Not for production: everything lives under one temporary directory.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from psycopg import sql

from taskpass.client.line import LineClient
from taskpass.config import write
from taskpass.config.load import FILE, load
from taskpass.config.model import Human
from taskpass.config.paths import operator_socket
from taskpass.core.errors import TargetUnavailable, TaskpassError
from taskpass.core.ids import HumanId
from taskpass.core.secret import Secret
from taskpass.keys import reviewer
from taskpass.runtime.system import SystemEntropy
from taskpass.testing import orders
from taskpass.testing.postgres import EmbeddedServer

START_SECONDS = 20.0
TASKPASS = (sys.executable, "-I", "-m", "taskpass")


@dataclass
class Person:
    """A human of the stage with the reviewer secret that only this process knows."""

    id: str
    secret: Secret


@dataclass
class Stage:
    """``tied`` ends the servers with this process; without it everything can be left running."""

    demo: bool = False
    tied: bool = True
    durable: bool = True
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    root: Path = field(init=False)
    servers: dict[str, EmbeddedServer] = field(init=False, default_factory=dict[str, EmbeddedServer])
    broker: subprocess.Popen[bytes] | None = field(init=False, default=None)
    founder: Person = field(init=False)
    broker_place: Path | None = field(init=False, default=None)

    def __enter__(self) -> Self:
        self.root = Path(tempfile.mkdtemp(prefix="tp-", dir="/tmp"))  # short: a socket path has at most 107 bytes
        self.runtime.mkdir(mode=0o700)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop everything and remove every file."""
        self.stop_broker()
        for server in self.servers.values():
            server.stop()
            server.remove()
        shutil.rmtree(self.root, ignore_errors=True)

    @property
    def directory(self) -> Path:
        """The broker's; ``broker_place`` puts it elsewhere than below ``root``."""
        return self.broker_place or self.root / "broker"

    @property
    def runtime(self) -> Path:
        return self.root / "run"

    @property
    def log(self) -> Path:
        return self.root / "broker.log"

    def environment(self) -> dict[str, str]:
        """What a person's shell would have: where the broker is."""
        around = {key: value for key, value in os.environ.items() if not key.startswith(("TASKPASS_", "PG"))}
        return around | {"TASKPASS_DIR": str(self.directory), "TASKPASS_RUNTIME_DIR": str(self.runtime)}

    # ---- databases ----

    def start_server(
        self, name: str, version: int, *, options: Mapping[str, str] | None = None, rows: int = 100_000
    ) -> EmbeddedServer:
        """A server with the sample database ``orders`` of that many orders."""
        server = EmbeddedServer(version, options=options, tied=self.tied, durable=self.durable)
        server.start()
        self.servers[name] = server
        with server.connect() as connection:
            connection.execute("CREATE DATABASE orders")
        with server.connect("orders") as connection:
            orders.load(connection, orders=rows)
        return server

    def found(self, person: str, *more: str, stdin: str = "") -> None:
        """``taskpass init``: the broker's directory with its first person; ``more`` are further words of it."""
        read, write_end = os.pipe()
        try:
            words = ("init", "--person", person, "--secret-fd", str(write_end), *(("--demo",) if self.demo else ()))
            self.taskpass(*words, *more, stdin=stdin, pass_fds=(write_end,))
        finally:
            os.close(write_end)
        with os.fdopen(read) as pipe:
            self.founder = Person(person, Secret(pipe.readline().strip()))

    def found_on_postgres(self, person: str, server: EmbeddedServer) -> None:
        """``taskpass init`` with the store in a fresh database of ``server``, under an account of its own."""
        store, login = self.store_database(server)
        self.found(person, "--store", store, "--store-login-stdin", stdin=login)

    def store_database(self, server: EmbeddedServer) -> tuple[str, str]:
        """A fresh database for the store on ``server``: its address, and user and password of an account of its own."""
        password = secrets.token_urlsafe(16)
        with server.connect() as connection:
            words = sql.SQL("CREATE ROLE taskpass_store LOGIN PASSWORD {}").format(sql.Literal(password))
            connection.execute(words)
            connection.execute("CREATE DATABASE taskpass_store OWNER taskpass_store TEMPLATE template0 ENCODING 'UTF8'")
        return f"postgresql://{server.address('taskpass_store')}", f"taskpass_store:{password}"

    def add_person(self, name: str, group: str, *, os_users: tuple[str, ...] = ()) -> Person:
        """What an operator would write into taskpass.toml: one more person, who is then the only one of ``group``."""
        entropy = SystemEntropy()
        secret = reviewer.new_reviewer_secret(entropy)
        key, salt = reviewer.verifier(secret, reviewer.new_salt(entropy))
        people = load(self.directory).people
        groups = {**{g: frozenset(map(str, members)) for g, members in people.groups.items()}, group: frozenset({name})}
        humans = [*people.humans.values(), Human(HumanId(name), os_users, key, salt)]
        self._rewrite_people("".join(write.render_human(human) for human in humans) + write.render_groups(groups))
        return Person(name, secret)

    def _rewrite_people(self, people: str) -> None:
        path = self.directory / FILE
        lines = path.read_text().split("\n")
        kept: list[str] = []
        inside = False
        for line in lines:
            if line.startswith("["):
                inside = line.startswith("[people")
            if not inside:
                kept.append(line)
        path.write_text("\n".join(kept).rstrip() + "\n\n" + people)

    def set_broker(self, line: str) -> None:
        """Add one line to ``[broker]`` of taskpass.toml."""
        path = self.directory / FILE
        path.write_text(path.read_text().replace("[broker]\n", f"[broker]\n{line}\n", 1))

    def set_budgets(self, **limits: int) -> None:
        """Write ``[budgets]`` into taskpass.toml; without words, budgets that a suite or a bench does not meet."""
        names = ("requests", "tasks", "prompts", "text_bytes", "record_bytes", "leases", "leases_of_task")
        chosen = limits or dict.fromkeys(names, 10**9)
        lines = "".join(f"{name} = {value}\n" for name, value in chosen.items())
        with (self.directory / FILE).open("a") as file:
            file.write(f"\n[budgets]\n{lines}")

    def enrol(self, server: str, *, environment: str, exclude: Sequence[str] = (), more: Sequence[str] = ()) -> None:
        """``taskpass init --postgres`` for the database of ``server``, under the server's name."""
        words = ["init", "--postgres", "--name", server, "--environment", environment, "--admin-dsn-stdin"]
        words += ["--table", f"{orders.SCHEMA}.*", "--close-other-databases"]
        words += [word for pattern in exclude for word in ("--exclude", pattern)]
        self.taskpass(*words, *more, stdin=self.admin(server))

    def admin(self, server: str) -> str:
        """The administrator's login for the database of ``server``."""
        running = self.servers[server]
        return f"postgresql://{running.superuser}:{running.password.reveal()}@{running.address('orders')}"

    # ---- the broker ----

    def start_broker(self) -> None:
        """``taskpass up``, and wait until it answers."""
        with self.log.open("ab") as log:
            self.broker = subprocess.Popen(
                [*TASKPASS, "up"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment()
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self.broker.poll() is not None:
                raise TargetUnavailable(f"the broker ended at once: {self.log.read_text()[-500:].strip()}")
            with contextlib.suppress(TaskpassError):
                self.call("health")
                return
            if time.monotonic() > deadline:
                raise TargetUnavailable("the broker does not answer")
            time.sleep(0.02)

    def stop_broker(self, *, kill: bool = False) -> None:
        """SIGTERM (or SIGKILL) and wait; nothing happens if none runs."""
        process, self.broker = self.broker, None
        if process is None:
            return
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """One call on the people's socket."""
        with LineClient(operator_socket(self.directory)) as client:
            return client.call(method, params, timeout=60)

    # ---- commands ----

    def taskpass(
        self, *words: str, stdin: str = "", pass_fds: Sequence[int] = (), check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """One public command, as a person's process. With ``check`` its failure is an error with what it said."""
        done = subprocess.run(
            [*TASKPASS, *words],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment(),
            pass_fds=pass_fds,
            check=False,
        )
        if check and done.returncode:
            raise TargetUnavailable(f"taskpass {' '.join(words[:2])} failed: {done.stderr.strip()[-600:]}")
        return done

    def review(self, request: str, person: Person, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``taskpass review`` by ``person``, whose secret goes through a pipe and never through arguments."""
        read, write_end = os.pipe()
        os.write(write_end, f"{person.secret.reveal()}\n".encode())
        os.close(write_end)
        try:
            base = ("review", request, "--directory", str(self.directory), "--as", person.id, "--secret-fd", str(read))
            return self.taskpass(*base, *words, pass_fds=(read,), check=check)
        finally:
            os.close(read)
