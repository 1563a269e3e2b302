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
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from queue import Empty

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
PATIENCE = 60.0
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
    told: Queue[Counter[str]] = context.Queue()
    stop = context.Event()
    path = str(place.runtime / "line.sock")
    processes: list[BaseProcess] = []
    refused: Counter[str] = Counter()
    try:
        # What is held comes first, because the floods use its budgets up; last the crowd, after which nobody connects.
        for works in ((_hold,), (_wait, _ask_people, _open_tasks, _flood, _flood, _flood, _flood), (_crowd,)):
            ready = [context.Event() for _ in works]
            for work, event in zip(works, ready, strict=True):
                processes.append(context.Process(target=_as_account, args=(work, path, event, stop, told), daemon=True))
                processes[-1].start()
            for event in ready:
                assert event.wait(PATIENCE), "a caller of the hostile sponsor did not begin"
        yield lambda: refused
    finally:
        stop.set()
        for _ in processes:
            with contextlib.suppress(Empty):
                refused.update(told.get(timeout=15))
        for process in processes:
            process.terminate()
            process.join(10)


Step = Callable[[], object]


def _as_account(work: Callable[[str], Step], path: str, ready: Event, stop: Event, told: Queue[Counter[str]]) -> None:
    """One caller in a process of its own: again and again one step, from the first that was refused or done on."""
    account = pwd.getpwnam(ACCOUNT)
    os.setgroups([])
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    refused: Counter[str] = Counter()
    try:
        step = work(path)
        while not stop.is_set():
            try:
                refused.update(str(code) for code in [step()] if code)
            except TaskpassError as error:
                refused[error.code] += 1
            except psycopg.Error as error:
                refused[error.sqlstate or "connection refused"] += 1
                time.sleep(0.02)
            ready.set()
    finally:
        told.put(refused)


def _task(client: LineClient, name: str) -> str:
    return str(client.call("open_task", {"repository": name, "branch": "main", "ticket": ""})["task"])


def _flood(path: str) -> Step:
    """Requests as fast as they are answered, with the longest reasons, for ever other lifetimes and tables."""
    client = LineClient(path)
    task, turns = _task(client, f"flood-{os.getpid()}"), itertools.count(60)
    tables = itertools.cycle([["shop.orders"], ["shop.items"], ["shop.*"], ["shop.orders", "shop.items"]])

    def step() -> None:
        wish = {"resource": RESOURCE, "task": task, "reason": "x" * 900, "ttl": next(turns), "tables": next(tables)}
        client.call("request_access", wish)

    return step


def _ask_people(path: str) -> Step:
    client = LineClient(path)
    task, turns = _task(client, "prompts"), itertools.count(60)

    def step() -> None:
        client.call("request_access", {"resource": ASKS, "task": task, "ttl": next(turns)})

    return step


def _open_tasks(path: str) -> Step:
    client, turns = LineClient(path), itertools.count()

    def step() -> None:
        _task(client, f"task-{next(turns)}")

    return step


def _hold(path: str) -> Step:
    """Every lease it may have, every connection of each, and in each a transaction that keeps its locks; then, for
    ever, one more lease, or one more connection.
    """
    client = LineClient(path)
    tasks = [_task(client, f"hold-{number}") for number in range(4)]
    endpoints: list[str] = []
    held: list[psycopg.Connection] = []

    def take(task: str) -> None:
        answer = client.call("request_access", {"resource": RESOURCE, "task": task, "connect": True})
        endpoints.append(str(answer["lease"]["endpoint"]["dsn"]))

    def connect(endpoint: str) -> None:
        session = psycopg.connect(endpoint, connect_timeout=10)
        session.execute("SELECT count(*) FROM shop.orders")
        held.append(session)

    for task in tasks:
        with contextlib.suppress(TaskpassError):
            while True:
                take(task)
    for endpoint in endpoints:
        with contextlib.suppress(psycopg.Error):
            while True:
                connect(endpoint)
    more: Iterator[Step] = itertools.cycle([partial(take, tasks[0]), partial(connect, endpoints[0])])
    return lambda: next(more)()


def _wait(path: str) -> Step:
    """Calls that wait as long as they may: half of its places, so that the floods have the other half."""
    client = LineClient(path)
    request = client.call("request_access", {"resource": ASKS, "task": _task(client, "wait"), "ttl": 7})["request"]
    line = b'{"id":1,"method":"request_status","params":{"request":"%s","wait":45}}\n' % str(request).encode()
    sockets: list[socket.socket] = []
    for _ in range(8):
        sockets.append(socket.socket(socket.AF_UNIX))
        sockets[-1].connect(path)
        sockets[-1].sendall(line)
    return lambda: time.sleep(0.2)


def _crowd(path: str) -> Step:
    """Every connection it may have, which says nothing; then, for ever, one more."""
    sockets: list[socket.socket] = []

    def step() -> str:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        connection.settimeout(0.1 if len(sockets) < 200 else 5)
        try:
            refused = b"too_many_connections" in connection.recv(1000)
        except TimeoutError:
            refused = False
        if not refused:
            sockets.append(connection)
            return ""
        connection.close()
        time.sleep(0.02)
        return "too_many_connections"

    while not step():
        pass
    return step


if __name__ == "__main__":
    run(Figures())
