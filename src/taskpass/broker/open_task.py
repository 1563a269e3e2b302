"""Open a task: the unit that access is bound to and ends with."""

from __future__ import annotations

from taskpass.broker.context import Broker
from taskpass.broker.disk import demand_disk
from taskpass.core.audit import Event
from taskpass.core.budgets import wait_for_room, window_start
from taskpass.core.clock import Instant, after
from taskpass.core.decision import ABSOLUTE_MAX_TTL
from taskpass.core.errors import Conflict, Denied, NotAuthenticated, NotFound, OverBudget
from taskpass.core.ids import HumanId, RunId, TaskId
from taskpass.core.provenance import Fact, Provenance
from taskpass.core.separation import Separation
from taskpass.core.spiffe import agent_id, tool_name
from taskpass.core.task import Principal, Task, TaskState
from taskpass.core.text import accept
from taskpass.identity.base import Caller
from taskpass.store.base import Run, Unit

MAX_DEPTH = 4
"""A chain of tasks opened inside tasks is at most this long."""

MAX_OPEN = 64
"""Open tasks of one run, and of one sponsor outside any run: branch and repository are words that an agent chooses."""

TASK_SECONDS = ABSOLUTE_MAX_TTL


def open_task(
    broker: Broker, caller: Caller, *, repository: str, branch: str, ticket: str, child: str | None = None
) -> Task:
    """The caller's task for these job facts; opened if there is none, else the open one.

    ``child`` names a sub-agent that is a process of its own: inside a run it always opens a new task with an identity
    of its own, under the run's task, with which it ends. The name is claimed. What the caller says about repository,
    branch and ticket is *claimed*; nothing here makes it more. Inside a run the first task is the run's own and any
    further one its child; outside any run there is one unattached task per sponsor, machine and repository, so that
    leaving the process tree brings no fresh limits (threats.md, item 19).
    """
    facts = tuple(
        Fact(accept(text, what=what, empty=True), Provenance.CLAIMED)
        for text, what in ((repository, "the repository"), (branch, "the branch"), (ticket, "the ticket"))
    )
    if child is not None and caller.run is None:
        raise Conflict(
            "only inside a run does a sub-agent get a task of its own", hint="use taskpass run", code="no_run"
        )
    with broker.store.write() as unit:
        now = broker.now(unit)
        if caller.run:
            return _inside_run(broker, unit, caller, facts, now, None if child is None else tool_name(child))
        return _unattached(broker, unit, caller, facts, now)


def _inside_run(
    broker: Broker, unit: Unit, caller: Caller, facts: tuple[Fact, ...], now: Instant, child: str | None
) -> Task:
    assert caller.run is not None
    run = _live_run(unit, caller.run)
    # The run's own task is the one without parents; by time alone a tie could make a child the root.
    open_tasks = sorted(
        unit.tasks.list(state=TaskState.OPEN, run=run.id),
        key=lambda task: (len(task.principal.parents), task.opened_at),
    )
    for task in open_tasks:
        same = (task.repository, task.branch, task.ticket) == facts and task.principal.tool == run.tool
        if child is None and same:
            return task
    _demand_room(open_tasks)
    root = open_tasks[0] if open_tasks else None
    whole = after(now, TASK_SECONDS)
    if root is None and child is not None:
        # A sub-agent's name is a claim; at the root nothing would stand above it.
        root = _add(broker, unit, caller, facts, now, whole, run.sponsor, run.tool, run.id, ())
    parents = (*root.principal.parents, root.id) if root else ()
    if len(parents) >= MAX_DEPTH:
        raise Denied("tasks are nested too deeply", hint="complete the inner task first", code="too_deep")
    end = min(whole, root.expires_at) if root else whole
    return _add(broker, unit, caller, facts, now, end, run.sponsor, child or run.tool, run.id, parents)


def _live_run(unit: Unit, run_id: RunId) -> Run:
    run = unit.runs.get(run_id)
    if run.ended_at is not None:
        raise NotAuthenticated("this run has ended", hint="start the agent with taskpass run", code="run_ended")
    if not run.namespace:
        raise NotAuthenticated(
            "this run is not bound to a sandbox", hint="start the agent with taskpass run", code="run_not_bound"
        )
    return run


def _demand_room(open_tasks: list[Task]) -> None:
    if len(open_tasks) >= MAX_OPEN:
        raise Conflict("too many tasks are open here", hint="complete one first", code="too_many_tasks")


def _unattached(broker: Broker, unit: Unit, caller: Caller, facts: tuple[Fact, ...], now: Instant) -> Task:
    sponsor = broker.human_of_uid(caller.uid)
    found = unit.tasks.find_unattached(sponsor, broker.machine, facts[0].value)
    if found and now < found.expires_at:
        return found
    if found:
        raise Conflict("the earlier task here has just run out", hint="try again in a second", code="task_ending")
    _demand_room(_outside_runs(broker, unit, sponsor))
    return _add(broker, unit, caller, facts, now, after(now, TASK_SECONDS), sponsor, "unattached", None, ())


def _add(
    broker: Broker,
    unit: Unit,
    caller: Caller,
    facts: tuple[Fact, ...],
    now: Instant,
    end: Instant,
    sponsor: HumanId,
    tool: str,
    run: RunId | None,
    parents: tuple[TaskId, ...],
) -> Task:
    demand_disk(broker)
    _demand_budget(broker, unit, sponsor, now)
    task_id = TaskId(broker.new_id("tsk"))
    instance = task_id if parents or run is None else run
    principal = Principal(
        spiffe_id=str(agent_id(broker.config.broker.trust_domain, tool, instance)),
        sponsor=sponsor,
        machine=broker.machine,
        tool=tool,
        separation=caller.separation,
        run=run,
        parents=parents,
    )
    task = Task(task_id, principal, facts[0], facts[1], facts[2], TaskState.OPEN, now, end)
    unit.tasks.add(task)
    unit.audit.append(
        Event(
            "task.opened",
            principal.spiffe_id,
            {"task": task_id, **({"run": run} if run else {})},
            {**task.to_json(), "process": {**caller.facts, "pid": caller.pid, "uid": caller.uid}},
        ),
        now,
    )
    return task


def _demand_budget(broker: Broker, unit: Unit, sponsor: HumanId, now: Instant) -> None:
    opened, oldest = unit.tasks.opened(sponsor, broker.machine, since=window_start(now))
    if opened >= broker.config.budgets.tasks:
        raise OverBudget(
            "too many tasks were opened lately",
            hint="go on in one that is open",
            code="too_many_new_tasks",
            retry_after=wait_for_room(oldest, now),
        )


def own_task(broker: Broker, unit: Unit, caller: Caller, task_id: str | None) -> Task:
    """The caller's own open task ``task_id``, or its only sensible one when None.

    A task of anyone else is reported as absent. ``TASKPASS_TASK`` ends up here: it selects among the caller's own tasks
    and grants nothing.
    """
    if caller.run:
        _live_run(unit, caller.run)
        mine = unit.tasks.list(state=TaskState.OPEN, run=caller.run)
    else:
        mine = _outside_runs(broker, unit, broker.human_of_uid(caller.uid))
    if task_id is not None:
        for task in mine:
            if task.id == task_id:
                return _reached(task, caller)
        raise NotFound("no such open task of yours", hint="open one with taskpass task open")
    if len(mine) == 1:
        return _reached(mine[0], caller)
    if not mine:
        raise NotFound("no task is open here", hint="open one with taskpass task open", code="no_task")
    raise Conflict("several tasks are open here", hint="name one with --task or TASKPASS_TASK", code="which_task")


def _outside_runs(broker: Broker, unit: Unit, sponsor: HumanId) -> list[Task]:
    return [
        task
        for task in unit.tasks.list(state=TaskState.OPEN)
        if task.principal.run is None and task.principal.sponsor == sponsor and task.principal.machine == broker.machine
    ]


def _reached(task: Task, caller: Caller) -> Task:
    """A caller that is less separated than the task was is not the principal that opened it."""
    if caller.separation < min(task.principal.separation, Separation.SANDBOX):
        raise NotAuthenticated("this process is outside the sandbox that opened the task", code="not_separated")
    return task
