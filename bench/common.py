"""What the benches share: percentiles, a line per figure with its limit, and a stage with one database."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from taskpass.testing.stage import Stage

RESOURCE = "orders-dev"


class Figures:
    """Prints figures as they come; ``missed`` collects those over their limit."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def note(self, text: str) -> None:
        print(f"  {text}", flush=True)

    def at_most(self, name: str, value: float, limit: float, unit: str) -> None:
        self._line(name, value, limit, unit, "at most", held=value <= limit)

    def at_least(self, name: str, value: float, limit: float, unit: str) -> None:
        self._line(name, value, limit, unit, "at least", held=value >= limit)

    def _line(self, name: str, value: float, limit: float, unit: str, word: str, *, held: bool) -> None:
        if not held:
            self.missed.append(name)
        mark = "ok  " if held else "MISS"
        print(f"{mark} {name}: {value:.4g} {unit} ({word} {limit:g} {unit})", flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; ``share`` between 0 and 1."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


@contextmanager
def stage(version: int = 18, rows: int = 5_000, *, budgets: Mapping[str, int] | None = None) -> Iterator[Stage]:
    """A durable server, a broker and one dev database; callers of any uid are served outside runs.

    ``budgets`` are those of the installation; left out, nothing that is counted over time meets one.
    """
    with Stage() as place:
        place.start_server(RESOURCE, version, rows=rows)
        place.found("sam")
        place.set_broker("allow_root_agents = true")
        place.set_budgets(**(budgets or {}))
        place.enrol(RESOURCE, environment="dev", exclude=["shop.customers"])
        place.start_broker()
        yield place
