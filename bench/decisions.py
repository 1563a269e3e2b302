"""Policy decisions per second, one thread, shipped policies, both evaluations each;
and one durable record with each.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.common import Figures
from taskpass.core.audit import Event
from taskpass.core.ids import HumanId
from taskpass.keys import files
from taskpass.policy.cedar import CedarPolicy
from taskpass.policy.example import question
from taskpass.policy.starter import write_shipped
from taskpass.runtime.system import SystemClock, SystemEntropy
from taskpass.store.open import Create, open_store

SECONDS = 2.0


def run(figures: Figures) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_shipped(place / "policy")
        policy = CedarPolicy.load(place / "policy", groups={"dba": frozenset({HumanId("dana")})})
        asked = question({})
        figures.at_least("decisions", _per_second(lambda: policy.decide(asked)), 500, "per s")
        clock, entropy = SystemClock(), SystemEntropy()
        key = files.create(place / "keys", files.AUDIT, entropy=entropy, at=clock.now())
        store = open_store(
            f"sqlite:///{place}/store.db", clock=clock, entropy=entropy, audit_key=key, create=Create(demo=False)
        )

        def recorded() -> None:
            decision = policy.decide(asked)
            with store.write() as unit:
                unit.audit.append(Event("bench.decided", "bench", {}, decision.to_json()), clock.now())

        figures.at_least("decisions with a durable, chained, signed record", _per_second(recorded), 200, "per s")
        store.close()


def _per_second(work) -> float:
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        work()
        count += 1
    return count / (time.perf_counter() - started)


if __name__ == "__main__":
    run(Figures())
