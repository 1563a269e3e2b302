"""Play one access from issue to proof against the real target, and record how it went: a drill.

The access is like any other: recorded before it exists, taken back, proven, cleaned, and found by the reconciler if
this process dies in between. What is different is who uses it (clients of our own, which judge from their side whether
it ended) and what it can do: nothing, or, where policy permits a read to the drill itself without asking anybody, no
row of one table. Not for measuring load, and no replacement for looking at alarms.
"""

from __future__ import annotations

import contextlib
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from taskpass.broker.complete_task import complete_task, end_task
from taskpass.broker.context import Broker
from taskpass.broker.drill_lease import SECONDS, SPONSOR, Plan, intend, order_of, plan_of, task_of
from taskpass.broker.issue_lease import SECRET_BYTES
from taskpass.broker.take_back import clean_lease, close_lease, take_back
from taskpass.config.model import Resource
from taskpass.core.audit import Event
from taskpass.core.clock import Instant, rfc3339
from taskpass.core.errors import Conflict, IllegalTransition, NotProven, TargetUnfit, TaskpassError
from taskpass.core.guard import demand_sane_clock
from taskpass.core.ids import LeaseId, TaskId
from taskpass.core.lease import Lease, LeaseEvent, LeaseState
from taskpass.core.secret import Secret
from taskpass.core.task import Task, TaskState
from taskpass.issuers.base import DrillClients, Met
from taskpass.store.base import Unit


@dataclass(frozen=True, slots=True)
class Step:
    """``took_ms`` by the broker's clock; ``said`` is a safe line."""

    name: str
    passed: bool
    took_ms: int
    said: str = ""

    def to_json(self) -> dict[str, object]:
        return {"step": self.name, "passed": self.passed, "took_ms": self.took_ms, "said": self.said}


@dataclass(frozen=True, slots=True)
class Drilled:
    """How a drill went. ``error`` None: it passed. ``revoke_ms`` from the order to the proof. A stored format."""

    resource: str
    task: TaskId
    lease: LeaseId | None
    at: Instant
    took_ms: int
    revoke_ms: int | None
    reads: str
    steps: tuple[Step, ...]
    clients: tuple[Met, ...]
    error: TaskpassError | None

    @property
    def passed(self) -> bool:
        return self.error is None

    def to_json(self) -> dict[str, object]:
        return {
            "resource": self.resource,
            "passed": self.passed,
            "code": self.error.code if self.error else "",
            "message": self.error.message if self.error else "",
            "hint": self.error.hint if self.error else "",
            "at": rfc3339(self.at),
            "task": self.task,
            "lease": self.lease or "",
            "reads": self.reads,
            "took_ms": self.took_ms,
            "revoke_ms": self.revoke_ms,
            "steps": [step.to_json() for step in self.steps],
            "clients": [met.to_json() for met in self.clients],
        }


def drill(broker: Broker, resource: str, *, actor: str) -> Drilled:
    """Play an access to ``resource`` and record how it went, also if it failed.

    Raises ``Denied`` for an unknown resource, ``Conflict`` (drill_running) while another drill of it runs, and
    ``StoreUnavailable`` if it could not be recorded; nothing usable is left in any case.
    """
    offered = broker.resource(resource)
    task = _begin(broker, offered, actor)
    play = _Play(broker, offered, task)
    try:
        play.run()
    except TaskpassError as error:
        play.error = error
    finally:
        play.end()
    return _finish(broker, play, actor)


def end_stale_drills(broker: Broker) -> int:
    """At start: drills of an earlier process of this broker, and of dead ones, are over; how many.

    Their accesses are taken back. What another broker on the same store plays at this moment is left alone.
    """
    return _end_drills(broker, broker.owners.free)


def end_orphaned_drills(broker: Broker) -> int:
    """At any time: drills that dead brokers played are over; how many."""
    return _end_drills(broker, broker.owners.orphaned)


def _end_drills(broker: Broker, chosen: Callable[[Unit, Sequence[TaskId]], list[TaskId]]) -> int:
    with broker.store.read() as unit:
        played = [
            task.id
            for task in unit.tasks.list(state=TaskState.OPEN)
            if task.principal.sponsor == SPONSOR and (broker.owners.shared or task.principal.machine == broker.machine)
        ]
        stale = chosen(unit, played)
    for task_id in stale:
        end_task(broker, task_id, actor="broker", reason="drill_broke_off")
    return len(stale)


def subject_of(resource: str) -> str:
    """Under which the record finds the drills of a resource."""
    return f"drill:{resource}"


def _begin(broker: Broker, offered: Resource, actor: str) -> Task:
    task_id = TaskId(broker.new_id("tsk"))
    with broker.store.write() as unit:
        now = broker.now(unit)
        demand_sane_clock(broker.clock.now(), unit.installation.latest_seen)
        if unit.tasks.find_unattached(SPONSOR, None, offered.name):
            raise Conflict("a drill of this resource is running", hint="wait for it", code="drill_running")
        task = task_of(broker, task_id, offered.name, now)
        unit.tasks.add(task)
        broker.owners.take(unit, task.id)
        unit.audit.append(
            Event("drill.started", actor, {"task": task.id}, {"resource": offered.name, **task.to_json()}), now
        )
    return task


@dataclass
class _Play:
    """One drill while it runs."""

    broker: Broker
    offered: Resource
    task: Task
    began: Instant = field(init=False)
    revoke_ms: int | None = None
    plan: Plan | None = None
    lease: Lease | None = None
    clients: DrillClients | None = None
    met: tuple[Met, ...] = ()
    steps: list[Step] = field(default_factory=list[Step])
    error: TaskpassError | None = None

    def __post_init__(self) -> None:
        self.began = self.broker.clock.now()
        self._secret = Secret(urlsafe_b64encode(self.broker.entropy.bytes(SECRET_BYTES)).decode())

    def run(self) -> None:
        """All steps in order; the first that fails raises."""
        for step in (self._fit, self._issue, self._control, self._open, self._revoke, self._ended, self._clean):
            self._step(step)

    def _step(self, step: Callable[[], str]) -> None:
        name, started = step.__name__.removeprefix("_"), self.broker.clock.now()
        try:
            said, error = step(), None
        except TaskpassError as caught:
            said, error = f"{caught.message} [{caught.code}]", caught
        self.steps.append(Step(name, error is None, max(0, self.broker.clock.now() - started), said))
        if error:
            raise error

    def _fit(self) -> str:
        self.broker.fitness.demand(self.offered.name)
        self.plan = plan_of(self.broker, self.offered, self.task)
        return f"reads no row of {self.plan.table}" if self.plan.reads else "without a right on any table"

    def _issue(self) -> str:
        assert self.plan is not None
        issuer = self.broker.issuer(self.offered.name)
        self.lease, head = intend(self.broker, self.task, self.plan)
        self.broker.remembered.keep(self.lease, self.task, head)
        if self.plan.reads is None:
            issuer.rehearse(self.lease.role, self._secret, audit_head=head)
            self._activate()
        else:
            issuer.create(order_of(self.lease, self.plan, self._secret, head))
            issuer.enable(self.lease.role, lifetime=SECONDS, audit_head=self._activate())
        self.clients = issuer.drill(self.lease.role, self._secret, reads=self.plan.reads)
        return self.lease.role

    def _activate(self) -> str:
        assert self.lease is not None
        subject = {"task": self.task.id, "lease": self.lease.id}
        with self.broker.store.write() as unit:
            now = self.broker.now(unit)
            unit.leases.advance(self.lease.id, LeaseEvent.CREATED, now)
            record = unit.audit.append(Event("lease.activated", "broker", subject, {"role": self.lease.role}), now)
        return f"{record.seq}:{record.hash}"

    def _control(self) -> str:
        assert self.clients is not None
        self.clients.control()
        return "its password lets it in, another one does not"

    def _open(self) -> str:
        assert self.clients is not None
        return ", ".join(self.clients.open())

    def _revoke(self) -> str:
        assert self.clients is not None
        assert self.lease is not None
        self.clients.ordered()
        ordered = self.broker.clock.now()
        take_back(self.broker, [self.lease.id], reason="drill", actor="broker")
        proof = close_lease(self.broker, self.lease.id)
        lease = self._now()
        if proof is None and lease.state is LeaseState.CLOSING:
            raise NotProven(
                f"the end of the access is not proven: {lease.last_error or 'the target did not answer'}",
                hint="no access to this target would end with proof now; look at taskpass doctor and lease ls --debt",
                code="drill_not_proven",
            )
        self.revoke_ms = max(0, self.broker.clock.now() - ordered)
        return str(lease.proof.get("answer", ""))

    def _ended(self) -> str:
        assert self.clients is not None
        self.met = self.clients.met()
        working = [each.kind for each in self.met if not each.ended]
        if working:
            raise NotProven(
                f"still working after the proof: {', '.join(working)}",
                hint="revoke everything on this target and report it: a proof that does not hold is a defect",
                code="drill_still_works",
            )
        return f"{len(self.met)} clients were refused"

    def _clean(self) -> str:
        assert self.lease is not None
        # The sweeper may do it at the same moment: then it is done.
        with contextlib.suppress(IllegalTransition):
            clean_lease(self.broker, self.lease.id)
        lease = self._now()
        if lease.incidents:
            raise NotProven("sessions were found after the proof", code="drill_still_works")
        found = self.broker.issuer(self.offered.name).inventory().own
        if lease.state is not LeaseState.CLEANED or any(role.name == lease.role for role in found):
            raise TargetUnfit(
                "the account is closed, but something in the target keeps it from being removed",
                hint="it cannot log in; removing it is tried again; the database's log says what holds it",
                code="drill_not_clean",
            )
        return "the account is gone"

    def _now(self) -> Lease:
        assert self.lease is not None
        with self.broker.store.read() as unit:
            return unit.leases.get(self.lease.id)

    def end(self) -> None:
        """Nothing of it stays open, however it went. What cannot be closed now is the sweeper's."""
        if self.clients is not None:
            self.clients.close()
        with contextlib.suppress(TaskpassError):
            complete_task(self.broker, self.task.id, actor="broker", reason="drill_ended")


def _finish(broker: Broker, play: _Play, actor: str) -> Drilled:
    drilled = Drilled(
        resource=play.offered.name,
        task=play.task.id,
        lease=play.lease.id if play.lease else None,
        at=play.began,
        took_ms=max(0, broker.clock.now() - play.began),
        revoke_ms=play.revoke_ms,
        reads=play.plan.table if play.plan else "",
        steps=tuple(play.steps),
        clients=play.met,
        error=play.error,
    )
    subject = {"task": drilled.task, "drill": subject_of(drilled.resource)}
    if drilled.lease:
        subject["lease"] = drilled.lease
    with broker.store.write() as unit:
        unit.audit.append(Event("drill.finished", actor, subject, drilled.to_json()), broker.now(unit))
    return drilled
