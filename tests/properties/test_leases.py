"""A model of leases: any order of asking, deciding, using, failing and restarting keeps the invariants.

After each step: I1 nothing usable without an active lease (or one whose closing the target has not proven yet); I2 no
lease without a permit, or approvals that were signed by others and of which it is a part; I4 nothing works after
``closed``; I8 nothing outlives its parent. At the end: I7 everything reaches ``cleaned`` and the chain verifies.
Without an example that fails this takes about 15 seconds; ``HYPOTHESIS_PROFILE`` is not needed, a failure prints what
reproduces it.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskpass.audit.verify import verify
from taskpass.broker.complete_task import complete_task
from taskpass.broker.release_lease import release_lease
from taskpass.broker.request_access import cancel_request
from taskpass.broker.revoke import Selector, revoke
from taskpass.broker.runs import end_run
from taskpass.core.approval import Verdict
from taskpass.core.decision import Outcome
from taskpass.core.errors import TaskpassError
from taskpass.core.lease import LeaseState
from taskpass.core.manifest import Keep, is_within
from taskpass.core.request import RequestState
from taskpass.core.separation import Environment
from taskpass.core.task import TaskState
from taskpass.keys import ed25519
from taskpass.testing.broker import ANA, BEN, CARL, DEV, DORA, STAGING, MemorySigner, make_harness
from taskpass.testing.unkind_issuer import LoginRefused

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
RESOURCES = st.sampled_from([DEV, STAGING])
PEOPLE = st.sampled_from([ANA, BEN, CARL, DORA])
ENDED = (LeaseState.CLOSED, LeaseState.CLEANED)
_template: list[Path] = []
_kept: list[tempfile.TemporaryDirectory[str]] = []


def template() -> Path:
    if not _template:
        _kept.append(tempfile.TemporaryDirectory(dir=MEMORY))
        make_harness(Path(_kept[0].name)).stop()
        _template.append(Path(_kept[0].name) / "taskpass.db")
    return _template[0]


class Leases(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(dir=MEMORY)
        self.h = make_harness(Path(self.directory.name), template=template())
        self.agents = []
        self.requests = []
        self.sessions = []

    def teardown(self):
        self.h.store.down = ""
        for server in self.h.servers.values():
            server.down = server.unprovable = server.block_all = False
        try:
            self._everything_ends()
        finally:
            self.h.stop()
            self.directory.cleanup()

    def _everything_ends(self):
        self.h.settle(4)
        with self.h.store.read() as unit:
            open_tasks = unit.tasks.list(state=TaskState.OPEN)
        for task in open_tasks:
            complete_task(self.h.broker, task.id, actor="test", reason="completed")
        for _ in range(3):
            self.h.tick(61)
        self.h.settle(3)
        assert {lease.state for lease in self.h.leases()} <= {LeaseState.CLEANED}, "I7"
        assert all(server.roles == {} for server in self.h.servers.values())
        with self.h.store.read() as unit:
            installation = unit.installation.id
        report = verify(self.h.store.iterate_audit(), installation, ed25519.PublicKeys([MemorySigner().public]))
        assert report.ok, report.fault

    def attempt(self, call):
        """A refusal is an answer; only a defect or a broken invariant fails the model."""
        try:
            return call()
        except TaskpassError as error:
            note(f"{error.code}: {error.message}")
            return None

    # Agents.

    @initialize(quorum=st.sampled_from([1, 2]))
    def first_agent(self, quorum):
        self.h.policy.answer(Environment.STAGING, Outcome.NEEDS_APPROVAL, quorum=quorum, approvers=frozenset({"dba"}))
        self.start_run(1000)
        self.agents[0].open_task(branch="a")
        self.lease_from_start_to_use(DEV, 60)

    @precondition(lambda self: len(self.agents) < 4)
    @rule(uid=st.sampled_from([1000, 1001]))
    def start_run(self, uid):
        agent = self.attempt(lambda: self.h.run(uid))
        if agent:
            self.agents.append(agent)

    @rule(data=st.data(), branch=st.sampled_from(["a", "b", "c"]))
    def open_task(self, data, branch):
        agent = data.draw(st.sampled_from(self.agents)) if self.agents else None
        if agent:
            self.attempt(lambda: agent.open_task(branch=branch))

    @rule(
        data=st.data(),
        resource=RESOURCES,
        lifetime=st.sampled_from([20, 60, 900]),
        only=st.sampled_from([(), ("public.orders",)]),
    )
    def request(self, data, resource, lifetime, only):
        tasks = self._open_tasks()
        if not tasks:
            return
        agent, task = data.draw(st.sampled_from(tasks))
        made = self.attempt(lambda: agent.request(resource, lifetime=lifetime, only=only, task_id=task.id))
        if made:
            self.requests.append((agent, made.id))

    def _open_tasks(self):
        with self.h.store.inner.read() as unit:
            return [
                (agent, task)
                for agent in self.agents
                for task in unit.tasks.list(state=TaskState.OPEN, run=agent.caller.run)
            ]

    @rule(resource=RESOURCES, lifetime=st.sampled_from([20, 60, 900]))
    def lease_from_start_to_use(self, resource, lifetime):
        """The usual way, so that a model of a few steps gets somewhere."""
        for agent, task in self._open_tasks()[:1]:
            request = self.attempt(lambda a=agent, t=task: a.request(resource, lifetime=lifetime, task_id=t.id))
            for human in (ANA, BEN, CARL):
                if request and self.h.stored_request(request.id).state is RequestState.PENDING:
                    self.attempt(partial(self.h.vote, human, request))
            issued = self.attempt(lambda a=agent, r=request: a.issue(r)) if request else None
            if issued:
                with suppress(LoginRefused, TaskpassError):
                    self.sessions.append((issued.lease, agent.connect(issued.lease)))

    def something_is_open(self):
        return any(lease.state not in ENDED for lease in self.h.leases())

    def has_request(self, state):
        return any(self.h.stored_request(request_id).state is state for _, request_id in self.requests)

    @precondition(lambda self: self.has_request(RequestState.APPROVED))
    @rule(data=st.data(), how=st.integers(0, 3))
    def issue(self, data, how):
        for agent, request_id in self._some_requests(data, RequestState.APPROVED):
            issued = self.attempt(lambda a=agent, r=request_id: a.issue(self.h.stored_request(r)))
            if issued and how:
                with suppress(LoginRefused, TaskpassError, KeyError):
                    self.sessions.append((issued.lease, agent.connect(issued.lease)))

    def _some_requests(self, data, state):
        found = [pair for pair in self.requests if self.h.stored_request(pair[1]).state is state]
        return [data.draw(st.sampled_from(found))] if found else []

    @precondition(lambda self: self.has_request(RequestState.FULFILLED))
    @rule(data=st.data())
    def use_a_request_again(self, data):
        for agent, request_id in self._some_requests(data, RequestState.FULFILLED):
            assert self.attempt(lambda a=agent, r=request_id: a.issue(self.h.stored_request(r))) is None

    @precondition(lambda self: self.has_request(RequestState.PENDING))
    @rule(data=st.data())
    def cancel(self, data):
        for agent, request_id in self._some_requests(data, RequestState.PENDING):
            self.attempt(lambda a=agent, r=request_id: cancel_request(self.h.broker, a.caller, r))

    @precondition(something_is_open)
    @rule(data=st.data())
    def release(self, data):
        live = [lease for lease in self.h.leases() if lease.state is LeaseState.ACTIVE]
        if live and self.agents:
            lease, agent = data.draw(st.sampled_from(live)), data.draw(st.sampled_from(self.agents))
            self.attempt(lambda: release_lease(self.h.broker, agent.caller, lease.id))

    @precondition(lambda self: any(session.alive for _, session in self.sessions))
    @rule()
    def rekey(self):
        """The agent gives its role a password of its own and connects with it."""
        for lease, session in self.sessions:
            if session.alive:
                server = self.h.server_of(lease.target)
                server.rekey(session, "mine now")
                with suppress(LoginRefused, TaskpassError):
                    self.sessions.append((lease, server.login(lease.role, "mine now")))
                return

    @precondition(lambda self: self.sessions)
    @rule()
    def use_a_stolen_password(self):
        for lease, _ in self.sessions:
            with suppress(LoginRefused, TaskpassError):
                self.sessions.append((lease, self.h.server_of(lease.target).login(lease.role, "mine now")))
                return

    @rule(data=st.data())
    def end_a_task(self, data):
        tasks = self._open_tasks()
        if tasks:
            _, task = data.draw(st.sampled_from(tasks))
            self.attempt(lambda: complete_task(self.h.broker, task.id, actor="test", reason="completed"))

    @precondition(lambda self: len(self.agents) > 1)
    @rule(data=st.data())
    def end_a_run(self, data):
        agent = data.draw(st.sampled_from(self.agents))
        self.agents.remove(agent)
        self.attempt(lambda: end_run(self.h.broker, agent.caller.run, reason="process_ended"))

    # People.

    @precondition(lambda self: self.has_request(RequestState.PENDING))
    @rule(data=st.data(), human=PEOPLE, yes=st.integers(0, 4), lifetime=st.sampled_from([None, 20]), less=st.booleans())
    def vote(self, data, human, yes, lifetime, less):
        for _, request_id in self._some_requests(data, RequestState.PENDING):
            request = self.h.stored_request(request_id)
            verdict = Verdict.APPROVE if yes else Verdict.DENY
            keeps = None
            if less:
                keeps = tuple(
                    Keep(item.oid, frozenset(data.draw(st.sets(st.integers(1, 4), min_size=1))), item.verbs)
                    for item in request.manifest.objects
                )
            wishes = {"keeps": keeps, "lifetime": lifetime and min(lifetime, request.lifetime)}
            self.attempt(partial(self.h.vote, human, request, verdict, **wishes))

    @precondition(something_is_open)
    @rule(level=st.sampled_from(["all", "resource", "agent"]))
    def revoke(self, level):
        value = {"all": "", "resource": DEV, "agent": "claude-code"}[level]
        self.attempt(lambda: revoke(self.h.broker, Selector(level, value), actor="human:ana"))

    @rule(member=st.sampled_from([ANA, BEN]), inside=st.booleans())
    def change_group(self, member, inside):
        members = set(self.h.people.groups["dba"]) - {member} | ({member} if inside else set())
        self.h.set_group("dba", *members)

    @rule()
    def change_policy(self):
        self.h.policy.version += 1

    @rule(permits=st.booleans())
    def permit_dev(self, permits):
        outcome = Outcome.PERMIT if permits else Outcome.NEEDS_APPROVAL
        self.h.policy.answer(Environment.DEV, outcome, **({} if permits else {"approvers": frozenset({"dba"})}))

    # The world.

    @rule(seconds=st.sampled_from([1, 1, 5, 21, 61, 600]))
    def time_passes(self, seconds):
        self.h.tick(seconds)

    @precondition(something_is_open)
    @rule(seconds=st.sampled_from([-3600, -10, 10, 3600]))
    def clock_jumps(self, seconds):
        """The targets' own clocks do not jump with it."""
        self.h.clock.jump(seconds)
        for server in self.h.servers.values():
            server.skew -= seconds

    @rule()
    def somebody_sets_the_clock(self):
        with self.h.store.inner.read() as unit:
            behind = unit.installation.latest_seen - self.h.clock.now()
        if behind > 0:
            self.clock_jumps(behind / 1000 + 1)

    @precondition(something_is_open)
    @rule(resource=RESOURCES, kind=st.sampled_from(["down", "unprovable", "block_all"]), on=st.booleans())
    def target_fails(self, resource, kind, on):
        setattr(self.h.servers[resource], kind, on)

    @precondition(something_is_open)
    @rule(code=st.sampled_from(["store_full", "store_locked"]), reserve=st.booleans())
    def store_fails(self, code, reserve):
        self.h.reserve = int(reserve)
        self.h.store.down = code

    @precondition(lambda self: self.h.store.down)
    @rule()
    def store_is_mended(self):
        self.h.store.down = ""

    @precondition(something_is_open)
    @rule()
    def restart(self):
        self.h.store.down = ""
        self.h.restart()
        for agent in self.agents:
            self.h.runs.served.add(agent.caller.run)

    @precondition(something_is_open)
    @rule(resource=RESOURCES, change=st.sampled_from(["attach", "rename", "column", "table"]))
    def catalogue_changes(self, resource, change):
        server = self.h.servers[resource]
        names = {table.name for table in server.tables.values()}
        if change == "attach":
            server.attach("orders", "customers_pii")
        elif change == "rename" and "customers" in names:
            server.rename("customers", f"archive_{len(server.calls)}")
        elif change == "column":
            server.add_column("orders", f"c{len(server.calls)}")
        elif change == "table":
            server.table(f"t{len(server.calls)}")

    # What must hold.

    @invariant()
    def nothing_is_usable_without_a_lease(self):
        """I1, I4. What the target has not proven yet is the only exception, and it has no endpoint any more."""
        leases = {lease.role: lease for lease in self.h.leases()}
        late = self.h.broker.late
        for role in self.h.usable():
            lease = leases[role]
            assert lease.state not in ENDED, f"I4: {role} works after {lease.state}"
            assert lease.state is not LeaseState.INTENDED or lease.attempts, "I1: usable before it is active"
            if lease.state is LeaseState.CLOSING or late.is_closing(lease.id):
                assert lease.id not in self.h.endpoints.open_orders
        for lease_id in self.h.endpoints.open_orders:
            assert self.h.lease(lease_id).state is LeaseState.ACTIVE, "an endpoint without an active lease"

    @invariant()
    def every_lease_was_permitted_or_approved_by_others(self):
        """I2."""
        with self.h.store.inner.read() as unit:
            for grant in unit.grants.list():
                request = unit.requests.get(grant.request)
                assert is_within(grant.manifest, request.manifest)
                votes = {vote.id: vote for vote in unit.approvals.of_request(request.id)}
                counted = [votes[approval] for approval in grant.approvals]
                assert all(is_within(grant.manifest, vote.manifest) for vote in counted)
                assert len({vote.approver for vote in counted}) == len(counted)
                if request.decision.outcome is Outcome.NEEDS_APPROVAL:
                    assert len(counted) >= request.decision.obligations.quorum
                    assert grant.ends_at <= request.decided_at + 1000 * min(vote.lifetime for vote in counted)
                sponsor = unit.tasks.get(request.task).principal.sponsor
                if request.environment is Environment.STAGING:
                    assert sponsor not in {vote.approver for vote in counted}
                assert len(unit.leases.list(grant=grant.id)) == 1

    @invariant()
    def nothing_outlives_its_parent(self):
        """I8. While the store cannot be written, what has ended may still be called open in it, but holds nothing."""
        with self.h.store.inner.read() as unit:
            for lease in unit.leases.list(states=[LeaseState.ACTIVE]):
                task = unit.tasks.get(lease.task)
                ends = [task, *(unit.tasks.get(parent) for parent in task.principal.parents)]
                assert all(lease.expires_at <= item.expires_at for item in ends)
                if not self.h.broker.late.is_closing(lease.id):
                    assert all(item.state is TaskState.OPEN for item in ends)

    @invariant()
    def no_table_that_is_excluded_is_ever_read(self):
        for lease, session in self.sessions:
            server = self.h.server_of(lease.target)
            assert not server.reads(session, "customers_pii", "passport")


TestLeases = Leases.TestCase
TestLeases.settings = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    derandomize=os.environ.get("CI") == "true",
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
