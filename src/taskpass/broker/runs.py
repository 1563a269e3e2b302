"""Runs: one start of an agent in a sandbox. The launcher announces it, the sandbox makes first contact, its end ends
all.

The order matters: the private socket exists before the sandbox does, and the run is bound to the pid namespace of the
*first* caller on it, before the agent's own code runs. From then on only that namespace is served there.
"""

from __future__ import annotations

from dataclasses import dataclass

from taskpass.broker.complete_task import close_all, end_leases, end_task
from taskpass.broker.context import Broker
from taskpass.core.audit import Event
from taskpass.core.errors import Conflict, NotAuthenticated, StoreUnavailable, TaskpassError
from taskpass.core.ids import RunId
from taskpass.core.separation import Separation
from taskpass.core.spiffe import tool_name
from taskpass.core.task import TaskState
from taskpass.identity.base import Caller, Peer
from taskpass.store.base import Run


@dataclass(frozen=True, slots=True)
class PreparedRun:
    run: RunId
    directory: str


def prepare_run(broker: Broker, operator: Peer, *, agent_uid: int, tool: str) -> PreparedRun:
    """Announce a run for ``tool``: its private directory and socket, owned by ``agent_uid``.

    The sponsor is the human behind the account of ``operator``, the launcher that starts the sandbox.
    """
    tool_name(tool)
    sponsor = broker.human_of_uid(operator.caller.uid)
    run_id = RunId(broker.new_id("run"))
    directory = broker.run_sockets.open(run_id, agent_uid, operator)
    try:
        with broker.store.write() as unit:
            now = broker.now(unit)
            broker.owners.take(unit, run_id)
            unit.runs.add(Run(run_id, tool, sponsor, agent_uid, directory, "", "", now, None))
            unit.audit.append(
                Event(
                    "run.prepared",
                    f"human:{sponsor}",
                    {"run": run_id},
                    {"tool": tool, "agent_uid": agent_uid, "machine": broker.machine},
                ),
                now,
            )
    except TaskpassError:
        broker.run_sockets.close(run_id)
        raise
    return PreparedRun(run_id, directory)


def bind_run(broker: Broker, caller: Caller) -> Run:
    """First contact: bind the caller's run to its namespace, or confirm that this caller is inside it.

    Without separation a run is refused: its whole point is the sandbox.
    """
    if caller.run is None:
        raise Conflict("this socket belongs to no run", code="no_run")
    with broker.store.write() as unit:
        run = unit.runs.get(caller.run)
        if run.ended_at is not None:
            raise NotAuthenticated("this run has ended", code="run_ended")
        if run.namespace:
            return run
        if caller.separation is Separation.NONE:
            raise NotAuthenticated(
                "the first caller of this run is not in a sandbox",
                hint="start the agent with taskpass run",
                code="not_separated",
            )
        unit.runs.bind(run.id, namespace=caller.namespace, separation=caller.separation.word)
        unit.audit.append(
            Event(
                "run.bound",
                f"run:{run.id}",
                {"run": run.id},
                {"namespace": caller.namespace, "separation": caller.separation.word, "facts": dict(caller.facts)},
            ),
            broker.now(unit),
        )
        run = unit.runs.get(run.id)
    broker.run_sockets.bound(run.id)
    return run


def end_run(broker: Broker, run_id: RunId, *, reason: str) -> None:
    """The run is over: nothing is opened in it any more, its tasks end, its leases are taken back and closed, its
    socket goes. Idempotent; what cannot be recorded now is noted and ended again by the sweeper.
    """
    try:
        _record_end(broker, run_id, reason)
    except StoreUnavailable:
        broker.late.add_run(run_id, reason)
    try:
        try:
            with broker.store.read() as unit:
                tasks = unit.tasks.list(state=TaskState.OPEN, run=run_id)
        except StoreUnavailable:
            _take_back_remembered(broker, run_id)
            raise
        leases = [lease for task in tasks for lease in end_task(broker, task.id, actor=f"run:{run_id}", reason=reason)]
        close_all(broker, leases)
    finally:
        broker.run_sockets.close(run_id)
    with broker.store.read() as unit:
        if unit.tasks.list(state=TaskState.OPEN, run=run_id):
            broker.late.add_run(run_id, reason)


def _take_back_remembered(broker: Broker, run_id: RunId) -> None:
    """For a store that is away as a whole: what the run could use ends now, its records are ended later."""
    held = [lease.id for lease, task in broker.remembered.all() if task.principal.run == run_id]
    end_leases(broker, held, reason="task_ended", actor=f"run:{run_id}", writable=False)


def _record_end(broker: Broker, run_id: RunId, reason: str) -> None:
    with broker.store.write() as unit:
        if unit.runs.get(run_id).ended_at is None:
            now = broker.now(unit)
            unit.runs.end(run_id, now)
            unit.audit.append(Event("run.ended", f"run:{run_id}", {"run": run_id}, {"reason": reason}), now)
