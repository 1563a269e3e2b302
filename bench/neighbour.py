"""One hostile sponsor doing everything at once: another sponsor's p99 stays under 2 x of its p99 alone.

Everything of threat item 22: it floods requests and questions, writes long texts, opens tasks, holds every lease and
connection it may, with transactions that stay open and tables that stay locked, asks for ever other sets of rights,
opens every connection to the broker it may, and waits in every call. The other one asks, connects, reads a row, and
gives back. The hostile sponsor's callers are processes of another account, so this runs as root only.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import pwd
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess

import psycopg

from bench.common import RESOURCE, Figures, median, milliseconds, percentile
from taskpass.client.line import LineClient
from taskpass.core.errors import TaskpassError
from taskpass.testing.stage import Stage

ASKS = "orders-asks"
"""A database whose every use a person is asked about."""
ACCOUNT = "daemon"
"""Any account of the machine that is nobody's: the hostile sponsor's."""
ROUNDS = 150
BUDGETS = {"requests": 2 * ROUNDS + 50, "record_bytes": 64 * 2**20}
"""Room for the other sponsor's rounds; the hostile one has as much. All others are as they come."""
HEAD_START, WARM = 1.5, 2.0
"""Seconds: for what is held, before the floods use the budgets up, and for those to connect before nobody can; and for
all of it, before anything is measured.
"""
_POLICY = f"""
@id("bench-asks")
@approvers("leads")
@quorum("1")
forbid (principal, action, resource in Taskpass::Database::"{ASKS}")
unless {{ context.approved }};
"""


def run(figures: Figures) -> None:
    if os.geteuid():
        figures.note("left out: a second account is needed, so this runs as root only")
        return
    with _stage() as place:
        alone = _rounds(place)
        with hostile(place) as told:
            time.sleep(WARM)
            beside = _rounds(place)
            answers = _people(place)
        refused = told()
        asked = len(place.call("requests", state="pending")["requests"])
    figures.note(f"refusals of the hostile sponsor: {', '.join(f'{code} {n}' for code, n in sorted(refused.items()))}")
    figures.note(f"questions that wait for people: {asked}")
    for name, took in (("alone", alone), ("beside it", beside)):
        figures.note(f"{name}: p50 {median(took):.1f} ms, p99 {percentile(took, 0.99):.1f} ms ({len(took)} rounds)")
    figures.note(f"meanwhile, slowest of ten: {', '.join(f'{name} {took:.0f} ms' for name, took in answers.items())}")
    figures.at_most("p99 beside a hostile sponsor / alone", percentile(beside, 0.99) / percentile(alone, 0.99), 2, "x")


@contextmanager
def _stage() -> Iterator[Stage]:
    """Two sponsors with accounts of their own, whom one socket serves; two databases, of which one asks people."""
    with Stage() as place:
        for name in (RESOURCE, ASKS):
            place.start_server(name, 18, rows=5_000)
        place.found("sam")
        place.set_broker("allow_root_agents = true")
        place.set_budgets(**BUDGETS)
        place.add_person("mallory", "strangers", os_users=(ACCOUNT,))
        place.add_person("lena", "leads")
        for name in (RESOURCE, ASKS):
            place.enrol(name, environment="dev", exclude=["shop.customers"])
        (place.directory / "policy" / "asks.cedar").write_text(_POLICY)
        place.start_broker()
        place.root.chmod(0o711)
        place.runtime.chmod(0o711)
        (place.runtime / "line.sock").chmod(0o666)
        yield place


def _rounds(place: Stage) -> list[float]:
    took: list[float] = []
    with LineClient(place.runtime / "line.sock") as client:
        task = client.call("open_task", {"repository": "quiet", "branch": "main", "ticket": ""})["task"]
        for _ in range(ROUNDS):
            held: list[str] = []
            took.append(milliseconds(partial(_ask_and_read, client, str(task), held)))
            client.call("release", {"lease": held[0]})
    return took


def _ask_and_read(client: LineClient, task: str, held: list[str]) -> None:
    answer = client.call("request_access", {"resource": RESOURCE, "task": task, "connect": True})
    held.append(str(answer["lease"]["lease"]))
    with psycopg.connect(str(answer["lease"]["endpoint"]["dsn"])) as session:
        session.execute("SELECT id FROM shop.orders LIMIT 1").fetchall()


def _people(place: Stage) -> dict[str, float]:
    """What must answer whatever an agent does, in ms: the slowest of ten. Taking back comes last, with all there is."""
    looks: dict[str, Callable[[], object]] = {
        "health": lambda: place.call("health"),
        "questions": lambda: place.call("requests", state="pending"),
    }
    took = {name: max(milliseconds(look) for _ in range(10)) for name, look in looks.items()}
    took["revoke"] = max(milliseconds(lambda: place.call("revoke", level="all", reason="bench")) for _ in range(10))
    return took


# ---- the hostile sponsor ----


@contextmanager
def hostile(place: Stage) -> Iterator[Callable[[], Counter[str]]]:
    """Its processes, until the end of the block; the function then tells how often each code refused them."""
    context = multiprocessing.get_context("fork")
    told: multiprocessing.Queue[Counter[str]] = context.Queue()
    stop = context.Event()
    path = str(place.runtime / "line.sock")
    works = [_hold, _wait, _ask_people, _open_tasks, _flood, _flood, _flood, _flood, _crowd]
    processes: list[BaseProcess] = [
        context.Process(target=_as_account, args=(work, path, number, stop, told), daemon=True)
        for number, work in enumerate(works)
    ]
    for process in processes:
        process.start()
        time.sleep(HEAD_START if process in (processes[0], processes[-2]) else 0)
    refused: Counter[str] = Counter()
    try:
        yield lambda: refused
    finally:
        stop.set()
        for _ in processes:
            with contextlib.suppress(Exception):
                refused.update(told.get(timeout=10))
        for process in processes:
            process.terminate()
            process.join(10)


Work = Callable[[str, int, Counter[str]], Callable[[], None]]


def _as_account(work: Work, path: str, number: int, stop: object, told: object) -> None:
    account = pwd.getpwnam(ACCOUNT)
    os.setgroups([])
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    refused: Counter[str] = Counter()
    try:
        step = work(path, number, refused)
        while not stop.is_set():  # type: ignore[attr-defined]
            try:
                step()
            except TaskpassError as error:
                refused[error.code] += 1
            except (psycopg.Error, OSError) as error:
                refused[getattr(error, "sqlstate", None) or type(error).__name__] += 1
                time.sleep(0.05)
    finally:
        told.put(refused)  # type: ignore[attr-defined]


def _task(client: LineClient, name: str) -> str:
    return str(client.call("open_task", {"repository": name, "branch": "main", "ticket": ""})["task"])


def _flood(path: str, number: int, refused: Counter[str]) -> Callable[[], None]:
    """Requests as fast as they are answered, with the longest reasons, for ever other lifetimes and tables."""
    client = LineClient(path)
    task, turns = _task(client, f"flood-{number}"), itertools.count(60)
    tables = itertools.cycle([["shop.orders"], ["shop.items"], ["shop.*"], ["shop.orders", "shop.items"]])

    def step() -> None:
        wish = {"resource": RESOURCE, "task": task, "reason": "x" * 900, "ttl": next(turns), "tables": next(tables)}
        client.call("request_access", wish)

    return step


def _ask_people(path: str, number: int, refused: Counter[str]) -> Callable[[], None]:
    client = LineClient(path)
    task, turns = _task(client, "prompts"), itertools.count(60)
    return lambda: client.call("request_access", {"resource": ASKS, "task": task, "ttl": next(turns)}) and None


def _open_tasks(path: str, number: int, refused: Counter[str]) -> Callable[[], None]:
    client, turns = LineClient(path), itertools.count()
    return lambda: _task(client, f"task-{next(turns)}") and None


def _hold(path: str, number: int, refused: Counter[str]) -> Callable[[], None]:
    """Every lease it may have, every connection of each, and in each a transaction that keeps its locks."""
    client, turns = LineClient(path), itertools.count()
    held: list[psycopg.Connection] = []
    endpoints: list[str] = []

    def step() -> None:
        with contextlib.suppress(psycopg.Error):
            for dsn in endpoints:
                session = psycopg.connect(dsn, connect_timeout=5)
                session.execute("SELECT count(*) FROM shop.orders")
                held.append(session)
        task = _task(client, f"hold-{next(turns) % 5}")
        answer = client.call("request_access", {"resource": RESOURCE, "task": task, "connect": True})
        endpoints.append(str(answer["lease"]["endpoint"]["dsn"]))

    return step


def _wait(path: str, number: int, refused: Counter[str]) -> Callable[[], None]:
    """Calls that wait as long as they may, on as many connections as there are threads, and more."""
    client = LineClient(path)
    task = _task(client, "wait")
    request = client.call("request_access", {"resource": ASKS, "task": task, "ttl": 7})["request"]
    line = b'{"id":1,"method":"request_status","params":{"request":"%s","wait":45}}\n' % str(request).encode()
    sockets: list[socket.socket] = []

    def step() -> None:
        for _ in range(40 - len(sockets)):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(path)
            connection.sendall(8 * line)
            sockets.append(connection)
        time.sleep(0.2)

    return step


def _crowd(path: str, number: int, refused: Counter[str]) -> Callable[[], None]:
    """Connections that say nothing, and again and again one more."""
    sockets: list[socket.socket] = []

    def step() -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        sockets.append(connection)
        if len(sockets) > 300:
            connection.settimeout(5)
            refused["too_many_connections"] += b"too_many_connections" in connection.recv(1000)
            sockets.pop().close()
            time.sleep(0.02)

    return step


if __name__ == "__main__":
    run(Figures())
