"""Leases per second with one caller and with eight, beside the same steps in the database without a broker.

*The same steps* are those of ``bench.issue.Alone``: resolve, create, enable through the kit, by the issuer alone, in
one process as the broker's are. A round of each in turn; what a round made is closed and cleaned before the next one.
The server syncs every commit. No rate is held to a number, which would be one of the disk; what the broker costs is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from bench.common import RESOURCE, Figures, median, stage
from bench.issue import Alone
from taskpass.client.line import LineClient
from taskpass.testing.stage import Stage

CALLERS = (1, 8)
LEASES = 40
"""Made in one round, by all callers together."""
ROUNDS = 3
PATIENCE = 60.0


def run(figures: Figures) -> None:
    budgets = dict.fromkeys(("requests", "tasks", "text_bytes", "record_bytes", "leases", "leases_of_task"), 10**9)
    with stage(budgets=budgets) as place:
        alone = Alone(place)
        for callers in CALLERS:
            through = Through(place, callers)
            _one_round(through.run, callers), through.take_back()
            _one_round(alone.run, callers), alone.take_back()
            whole: list[float] = []
            steps: list[float] = []
            for _ in range(ROUNDS):
                whole.append(_one_round(through.run, callers))
                through.take_back()
                steps.append(_one_round(alone.run, callers))
                alone.take_back()
            through.close()
            _report(figures, callers, median(whole), median(steps))
        alone.issuer.close_connections()


def _report(figures: Figures, callers: int, whole: float, steps: float) -> None:
    who = "1 caller" if callers == 1 else f"{callers} callers"
    figures.note(f"{who}: {whole:.1f} leases/s; the same steps without a broker: {steps:.1f} leases/s")
    figures.at_least(f"issue rate, {who} / same steps without a broker", whole / steps, 0.5, "x")


def _one_round(work: Callable[[], object], callers: int) -> float:
    """How often per second ``work`` was done, by that many threads from one start on."""
    start = threading.Barrier(callers + 1)

    def each() -> None:
        start.wait()
        for _ in range(LEASES // callers):
            work()

    with ThreadPoolExecutor(callers) as pool:
        running = [pool.submit(each) for _ in range(callers)]
        start.wait()
        begun = time.perf_counter()
        for one in running:
            one.result()
        return LEASES / (time.perf_counter() - begun)


class Through:
    """Callers of one broker, each with a connection and a task of its own."""

    def __init__(self, place: Stage, callers: int) -> None:
        self._place = place
        self._idle: list[tuple[LineClient, str]] = []
        self._held: list[str] = []
        for number in range(callers):
            client = LineClient(place.runtime / "line.sock")
            task = client.call("open_task", {"repository": f"bench-{callers}-{number}", "branch": "main", "ticket": ""})
            self._idle.append((client, str(task["task"])))

    def run(self) -> None:
        client, task = self._idle.pop()
        answer = client.call("request_access", {"resource": RESOURCE, "task": task, "connect": True}, timeout=PATIENCE)
        self._held.append(str(answer["lease"]["lease"]))
        self._idle.append((client, task))

    def take_back(self) -> None:
        """Everything, until it is cleaned: that is no part of the next round."""
        self._place.call("revoke", level="all", reason="bench")
        deadline = time.monotonic() + PATIENCE
        while self._held:
            state = self._place.call("show_lease", lease=self._held[-1])["state"]
            if state == "cleaned":
                self._held.pop()
                continue
            assert time.monotonic() < deadline, f"{self._held[-1]} is {state}"
            time.sleep(0.05)

    def close(self) -> None:
        for client, _ in self._idle:
            client.close()


if __name__ == "__main__":
    run(Figures())
