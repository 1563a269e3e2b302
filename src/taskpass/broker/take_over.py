"""What a broker does for others on the same store: it finishes what the dead served.

An endpoint's secret dies with the process that served it, and a run's socket with its machine, so leases are taken back
and runs end. Not for a store with one broker, where ``take_back_unserved`` does it at the next start.
"""

from __future__ import annotations

from taskpass.broker.context import Broker
from taskpass.broker.drill import end_orphaned_drills
from taskpass.broker.runs import end_run
from taskpass.broker.take_back import cut_elsewhere_taken_back, take_back
from taskpass.core.lease import LeaseState

REASON = "broker_gone"


def be_seen(broker: Broker) -> None:
    """Raises ``StoreUnavailable``; who is not seen for ``owners.DEAD_AFTER`` seconds loses what it serves."""
    if broker.owners.shared:
        with broker.store.write() as unit:
            broker.owners.beat(unit, broker.machine)


def say_goodbye(broker: Broker) -> None:
    """This broker has stopped: what it did not finish is free at once."""
    if broker.owners.shared:
        with broker.store.write() as unit:
            broker.owners.end(unit)


def take_over(broker: Broker) -> int:
    """Take back what dead brokers served, end their runs and drills, and cut here what others took back.

    How many leases were taken back.
    """
    if not broker.owners.shared:
        return 0
    cut_elsewhere_taken_back(broker)
    with broker.store.read() as unit:
        leases = broker.owners.orphaned(unit, unit.leases.ids([LeaseState.INTENDED, LeaseState.ACTIVE]))
        runs = broker.owners.orphaned(unit, [run.id for run in unit.runs.unended()])
    taken = take_back(broker, leases, reason=REASON, actor="broker")
    for run in runs:
        end_run(broker, run, reason=REASON)
    end_orphaned_drills(broker)
    return len(taken)
