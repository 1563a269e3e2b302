"""The story: what each process did, told in order, with every claim checked here and not believed.

The agent and its commands are processes of their own; this module reads what they print, plays the reviewer by the
public command, and asks the databases themselves.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psycopg

from taskpass.core.text import visible
from taskpass.demo import agent
from taskpass.demo.timeline import Timeline
from taskpass.testing.stage import TASKPASS, Person, Stage

STAGING, PRODUCTION = "orders-staging", "orders-production"
NARROWED_TABLE, NARROWED_COLUMN = "shop.payments", "shop.orders.note"
PATIENCE = 60.0

Said = dict[str, Any]


@dataclass
class Story:
    """``reviewer`` decides about production; the founder of the stage is the agent's sponsor."""

    stage: Stage
    reviewer: Person
    line: Timeline
    _direct: psycopg.Connection[Any] | str = "not tried"

    def play(self) -> None:
        """Every act in order; claims that do not hold are counted by the timeline."""
        process = self._start_agent()
        try:
            self._starts(process)
            self._staging(process)
            request = self._asks(process)
            self._review(request)
            self._production(process)
            rekeyed = self._holds(process)
            self._completes(process, rekeyed)
        finally:
            _end(process)
        self._audit()

    # ---- acts ----

    def _start_agent(self) -> subprocess.Popen[str]:
        words = ["run", "--tool", "demo-agent", "--repository", agent.REPOSITORY, "--branch", agent.BRANCH]
        words += ["--ticket", agent.TICKET, "--", sys.executable, "-I", "-m", "taskpass.demo.agent"]
        self.line.step("person", f"taskpass run --ticket {agent.TICKET} -- demo-agent")
        return subprocess.Popen(
            [*TASKPASS, *words, str(self.stage.directory), str(self.stage.log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.stage.root / "agent.log").open("w"),
            text=True,
            env=self.stage.environment(),
            cwd=self._worktree(),
        )

    def _worktree(self) -> Path:
        place = self.stage.root / "work"
        place.mkdir(exist_ok=True)
        return place

    def _starts(self, process: subprocess.Popen[str]) -> None:
        started = self._hear(process, "started")
        self.line.step("agent", f"started in its sandbox as pid {started['pid']}, uid {started['uid']}")
        separation = str(started["separation"])
        self.line.claim(
            f"the broker found it separated: {separation}", separation in ("sandbox", "uid"), found=separation
        )
        looked = self._hear(process, "looked")
        self.line.claim(
            "it cannot see the broker's directory", looked["hidden"] == looked["asked"], found=str(looked["hidden"])
        )
        task = self._hear(process, "task")
        self.line.step(
            "agent", f"task {task['task']}: {agent.REPOSITORY}, {agent.BRANCH}, {agent.TICKET} (all claimed)"
        )

    def _staging(self, process: subprocess.Popen[str]) -> None:
        self.line.step("agent", f"taskpass exec --resource {STAGING} --access read -- …")
        asked = self._hear(process, "query")
        self.line.claim(
            f"policy permits reading staging: {_first(asked)} orders in {asked.get('ms')} ms",
            "row" in asked,
            found=str(asked),
        )
        for event, what in (("write", "UPDATE"), ("create", "CREATE TABLE")):
            tried = self._hear(process, event)
            self.line.claim(
                f"{what} is refused by the database: {tried.get('message')}",
                tried.get("sqlstate") == "42501",
                found=str(tried),
            )
        self._hear(process, "staging")

    def _asks(self, process: subprocess.Popen[str]) -> str:
        asked = self._hear(process, "asked")
        self.line.step("agent", f'asks to read {PRODUCTION}: "{agent.REASON}"')
        self.line.claim("production needs a person", asked["state"] == "pending", found=str(asked))
        return str(asked["request"])

    def _review(self, request: str) -> None:
        self.line.step("reviewer", f"taskpass review {request} --drop {NARROWED_TABLE} --drop-column {NARROWED_COLUMN}")
        words = ("--drop", NARROWED_TABLE, "--drop-column", NARROWED_COLUMN, "--comment", "no payments, no notes")
        done = self.stage.review(request, self.reviewer, "--approve", *words)
        self.line.detail(done.stdout.rstrip())
        card = self.stage.call("show_request", request=request)
        dropped = {item[3]: item[4] for item in cast("list[list[Any]]", card["manifest"]["dropped"])}
        self.line.claim(
            "what reaches personal data was dropped and named: " + ", ".join(sorted(dropped)),
            dropped.get("customers") == "excluded" and dropped.get("customer_orders") == "reaches_excluded",
            found=str(dropped),
        )
        own = self.stage.review(request, self.stage.founder, "--approve", check=False)
        self.line.claim("the sponsor cannot approve it", own.returncode != 0, found=own.stdout)

    def _production(self, process: subprocess.Popen[str]) -> None:
        decided = self._hear(process, "decided")
        self.line.step("agent", f"taskpass wait: {decided['state']}; taskpass exec --request …")
        asked = self._hear(process, "query")
        self.line.claim(f"the query works: {_first(asked)} orders", "row" in asked, found=str(asked))
        for event, what in (
            ("personal", "personal data is refused directly"),
            ("personal_by_view", "personal data is refused through the view"),
            ("narrowed", "what the reviewer took out is refused"),
        ):
            tried = self._hear(process, event)
            self.line.claim(f"{what}: {tried.get('message')}", tried.get("sqlstate") == "42501", found=str(tried))

    def _holds(self, process: subprocess.Popen[str]) -> Said:
        cursor = self._hear(process, "cursor")
        rekeyed = self._hear(process, "rekeyed")
        self.line.step(
            "agent", f"holds two connections, one after {cursor['rows']} rows of a cursor, and re-keys its role"
        )
        self._direct = self._login(rekeyed)
        self.line.claim(
            "the new password opens the database directly, past the endpoint; that session stays open too",
            isinstance(self._direct, psycopg.Connection),
            found=str(self._direct),
        )
        return rekeyed

    def _completes(self, process: subprocess.Popen[str], rekeyed: Said) -> None:
        self.line.step("agent", "taskpass task complete")
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        completed = self._hear(process, "completed")
        answer = _json(str(completed["answer"]))
        leases = [lease for lease in answer.get("leases", []) if lease["resource"] == PRODUCTION]
        proof: Said = leases[0].get("proof", {}) if leases else {}
        self.line.claim(
            f"closed with proof: {proof.get('answer')} — the password was right, the role is refused",
            proof.get("answer") == "AuthenticationOk,28000",
            found=str(completed),
        )
        steps = ", ".join(f"{name} {ms} ms" for name, ms in proof.get("steps", []))
        self.line.detail(f"{proof.get('ended')} session(s) ended; proven after {proof.get('took_ms')} ms ({steps})")
        for event, what in (("after_idle", "the idle connection"), ("after_cursor", "the connection in the cursor")):
            met = self._hear(process, event)
            self.line.claim(f"{what} is dead: {met.get('sqlstate')}", "sqlstate" in met, found=str(met))
        again = self._hear(process, "after_connect")
        self.line.claim("no new connection through the endpoint", bool(again["refused"]), found=str(again))
        met = _ask(self._direct)
        self.line.claim(f"the direct session is dead: {met}", met == "57P01", found=met)
        refused = self._login(rekeyed)
        self.line.claim(
            f"the agent's own password is refused: {refused}", isinstance(refused, str), found="it was let in"
        )
        self.line.claim(
            "no session of the role is left", self._sessions(rekeyed) == 0, found=str(self._sessions(rekeyed))
        )

    def _audit(self) -> None:
        root = self.stage.root
        key, export, log = root / "audit.pub", root / "audit.jsonl", root / "production.log"
        key.write_text(str(_json(self.stage.taskpass("keys", "ls", "--json").stdout)["keys"][0]["public"]) + "\n")
        export.write_text(self.stage.taskpass("audit", "export").stdout)
        log.write_text(self.stage.servers[PRODUCTION].log_text())
        words = ("audit", "verify", "--trust", str(key), "--file", str(export), "--server-log", str(log))
        self.line.step("auditor", "taskpass audit verify --trust KEY --server-log production.log")
        good = self.stage.taskpass(*words, check=False)
        self.line.claim(_first_line(good.stdout), good.returncode == 0, found=good.stdout + good.stderr)
        self.line.step("auditor", "one byte of one record is flipped, and the record is verified again")
        flipped = _flip(export)
        bad = self.stage.taskpass(*words, check=False)
        said = _first_line(bad.stdout + bad.stderr)
        self.line.claim(f"it fails: {said}", bad.returncode != 0 and f"record {flipped}" in said, found=said)

    # ---- asking ----

    def _hear(self, process: subprocess.Popen[str], event: str) -> Said:
        """The next line of the agent, which must be about ``event``."""
        assert process.stdout is not None
        text = process.stdout.readline()
        said = _json(text)
        if said.get("event") != event:
            log = (self.stage.root / "agent.log").read_text()[-600:]
            raise RuntimeError(f"the agent was expected to say {event!r}: {text.strip()[:400]!r} {visible(log)}")
        return said

    def _login(self, rekeyed: Said) -> psycopg.Connection[Any] | str:
        """A direct session on production with the password that the agent chose, or what the server said."""
        server = self.stage.servers[PRODUCTION]
        try:
            return psycopg.connect(
                host=server.host,
                port=server.port,
                dbname="orders",
                user=str(rekeyed["role"]),
                password=str(rekeyed["password"]),
                connect_timeout=5,
                autocommit=True,
            )
        except psycopg.OperationalError as error:
            return str(error).strip().splitlines()[-1].rsplit("FATAL:", 1)[-1].strip()

    def _sessions(self, rekeyed: Said) -> int:
        with self.stage.servers[PRODUCTION].connect() as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE usename = %s", [rekeyed["role"]]
            ).fetchone()
        return int(row[0]) if row else -1


def _ask(session: psycopg.Connection[Any] | str) -> str:
    """The SQLSTATE that an open session now meets, or ``alive``."""
    if isinstance(session, str):
        return session
    try:
        session.execute("SELECT 1")
    except psycopg.Error as error:
        return error.sqlstate or type(error).__name__
    return "alive"


def _end(process: subprocess.Popen[str]) -> None:
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _json(text: str) -> Said:
    try:
        return cast("Said", json.loads(text))
    except ValueError:
        return {}


def _first(said: Said) -> str:
    row = said.get("row") or ["?"]
    return f"{int(row[0]):,}" if str(row[0]).isdecimal() else str(row[0])


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "(nothing)")


def _flip(export: Path) -> int:
    """Change one letter of the record that says the production access was closed; its number."""
    lines = export.read_text().splitlines(keepends=True)
    number = max(index for index, line in enumerate(lines) if "lease.closed" in line)
    lines[number] = lines[number].replace("AuthenticationOk", "AuthenticationOl", 1)
    export.write_text("".join(lines))
    return int(_json(lines[number])["seq"])
