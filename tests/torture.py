"""Kill the broker again and again, and look at what is left in the database and in the record.

``make torture N=…``. Each round lets clients ask, connect, query and let go, kills the broker with SIGKILL at a random
moment (also while it starts), starts it again and waits until it says that nothing is open. Then:

* no role of ours can log in and no session of one is left, because no lease is active (I1, I4);
* every lease is closed or cleaned (I7).

Every so many rounds and at the end, because what is missing from a record stays missing:

* each issue, enable and close that the database logged stands in the audit record too (I3), and the chain verifies.

The seed is printed; the same seed makes the same delays. Zero in N says: below 3/N with 95 % confidence.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import threading
import time
from dataclasses import dataclass, field

import psycopg

from taskpass.client.line import LineClient
from taskpass.core.errors import TaskpassError
from taskpass.testing.stage import Stage

RESOURCE = "orders-dev"
CLIENTS = 4
SETTLE_SECONDS = 40.0
RECORD_EVERY = 10
"""Rounds from one look at the whole record to the next."""
RECORD_OF = {"issue": "lease.intended", "enable": "lease.activated", "close": "lease.closing"}
"""Each effect in the database, and the event that must have been durable before it."""
_ANCHOR = re.compile(r"taskpass: (issue|enable|close|rehearse) installation=\w+ lease=(lse_\w+)")


@dataclass
class Report:
    seed: int
    kills: int = 0
    issued: int = 0
    queries: int = 0
    usable: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    broken_chain: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.usable or self.lost or self.unfinished or self.broken_chain)

    def __str__(self) -> str:
        bound = 100 * 3 / max(1, self.kills)
        found = {
            "usable credentials without an active lease": self.usable,
            "effects without a record": self.lost,
            "leases left open": self.unfinished,
            "broken chains": self.broken_chain,
        }
        counts = "; ".join(f"{what}: {len(items)}" for what, items in found.items())
        return (
            f"seed {self.seed}: {self.kills} kills, {self.issued} leases, {self.queries} queries; {counts}"
            f" (0 of {self.kills}: below {bound:.1f} % with 95 % confidence)"
        )


def campaign(kills: int, seed: int, *, version: int = 16, say: bool = False, store: str = "sqlite") -> Report:
    """Run ``kills`` rounds and return what was found; stops at the first round that finds something.

    ``store`` is ``sqlite`` or ``postgres``: the store is then on the same server, in a database of its own.
    """
    report, dice = Report(seed), random.Random(seed)
    with Stage(durable=False) as stage:
        server = stage.start_server(RESOURCE, version, rows=500)
        if store == "postgres":
            stage.found_on_postgres("sam", server)
        else:
            stage.found("sam")
        stage.set_broker("allow_root_agents = true")
        stage.set_budgets()
        stage.enrol(RESOURCE, environment="dev", exclude=["shop.customers"])
        for _ in range(kills):
            _round(stage, dice, report)
            report.kills += 1
            report.issued = len(set(_logged(stage)["enable"]))
            _judge(stage, report)
            if report.kills == kills or report.kills % RECORD_EVERY == 0 or not report.ok:
                _judge_record(stage, report)
            if say:
                print(report, flush=True)
            if not report.ok:
                print(stage.log.read_text()[-3000:], flush=True)
                break
    return report


def _round(stage: Stage, dice: random.Random, report: Report) -> None:
    """Work, kill at a random moment, start again; now and then the kill comes while it starts."""
    if dice.random() < 0.2:
        stage.stop_broker()
        killer = threading.Timer(dice.uniform(0.1, 1.0), lambda: stage.broker and stage.broker.kill())
        killer.start()
        with contextlib.suppress(TaskpassError):
            stage.start_broker()
        killer.join()
    else:
        if stage.broker is None:
            stage.start_broker()
        stop = threading.Event()
        clients = [threading.Thread(target=_client, args=(stage, stop, dice.random(), report)) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(dice.uniform(0.05, 1.2))
        assert stage.broker
        stage.broker.kill()
        stop.set()
        for client in clients:
            client.join(30)
    if stage.broker:
        stage.broker.wait()
        stage.broker = None
    stage.start_broker()
    _settle(stage)


def _client(stage: Stage, stop: threading.Event, chance: float, report: Report) -> None:
    """Ask, connect, query, and let go in one of three ways, until the broker dies."""
    dice = random.Random(chance)
    while not stop.is_set():
        try:
            with LineClient(stage.runtime / "line.sock") as client:
                job = {"repository": f"repo-{dice.randrange(3)}", "branch": "main", "ticket": "T-1"}
                task = client.call("open_task", job, timeout=10)["task"]
                asked = client.call("request_access", {"resource": RESOURCE, "task": task}, timeout=10)
                lease = client.call("issue", {"request": asked["request"]}, timeout=10)
                with psycopg.connect(lease["endpoint"]["dsn"], connect_timeout=5) as connection:
                    connection.execute("SELECT count(*) FROM shop.orders")
                    report.queries += 1
                way = dice.random()
                if way < 0.5:
                    client.call("release", {"lease": lease["lease"]}, timeout=10)
                elif way < 0.7:
                    client.call("complete_task", {"task": task}, timeout=10)
        except (TaskpassError, psycopg.Error, OSError):
            time.sleep(0.01)


def _settle(stage: Stage) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while stage.call("leases")["leases"] and time.monotonic() < deadline:
        time.sleep(0.05)


def _judge(stage: Stage, report: Report) -> None:
    for lease in stage.call("leases")["leases"]:
        report.unfinished.append(f"{lease['lease']} {lease['state']} {lease['reason']} {lease['last_error']}")
    with stage.servers[RESOURCE].connect("orders") as connection:
        rows = connection.execute(
            "SELECT r.rolname, r.rolcanlogin, count(a.pid) FROM pg_roles r LEFT JOIN pg_stat_activity a"
            " ON a.usesysid = r.oid WHERE r.rolname LIKE 'tp\\_%' GROUP BY 1, 2"
        ).fetchall()
    report.usable += [name for name, can_login, sessions in rows if can_login or sessions]


def _judge_record(stage: Stage, report: Report) -> None:
    known, logged = _recorded(stage), _logged(stage)
    for effect, event in RECORD_OF.items():
        for lease in set(logged[effect]) - set(logged["rehearse"]):
            if not {event, "orphan.found"} & known.get(lease, set()):
                report.lost.append(f"{effect} {lease}")
    done = stage.taskpass("audit", "verify", check=False)
    if done.returncode:
        report.broken_chain.append(done.stdout.strip()[:300])


def _recorded(stage: Stage) -> dict[str, set[str]]:
    """Names of the events of each lease, read from an export as an auditor would."""
    events: dict[str, set[str]] = {}
    for line in stage.taskpass("audit", "export").stdout.splitlines():
        record = json.loads(line)
        if "body" in record:
            body = json.loads(record["body"])
            events.setdefault(body["subject"].get("lease", ""), set()).add(body["event"])
    return events


def _logged(stage: Stage) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {effect: [] for effect in (*RECORD_OF, "rehearse")}
    for effect, lease in _ANCHOR.findall(stage.servers[RESOURCE].log_text()):
        found[effect].append(lease)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill the broker N times and look at what is left.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--version", type=int, default=16, help="PostgreSQL version")
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite", help="where the records are kept")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    report = campaign(given.kills, given.seed, version=given.version, say=True, store=given.store)
    for name in ("usable", "lost", "unfinished", "broken_chain"):
        for item in getattr(report, name):
            print(f"{name}: {item}")
    return 0 if report.ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
