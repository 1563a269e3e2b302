"""A whole broker in one process without a server, a socket or a second of waiting: for tests of the verbs.

Everything that decides or remembers is real: the verbs, the store on a file, the chain, reviewers' signatures, the
sweeper, the fitness of targets. Targets, endpoints, processes, policy and time are in the test's hands.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from taskpass.audit.witness import Witness
from taskpass.broker.acquire import acquire_access
from taskpass.broker.context import Broker
from taskpass.broker.issue_lease import Issued, issue_lease
from taskpass.broker.open_task import open_task
from taskpass.broker.reconcile import demand_known_store, take_back_unserved
from taskpass.broker.request_access import Wish, request_access
from taskpass.broker.review_request import Ballot, prepare_vote, vote
from taskpass.broker.runs import bind_run, prepare_run
from taskpass.config.model import Access, BrokerSettings, Config, Human, People, Resource
from taskpass.core.approval import Verdict
from taskpass.core.budgets import Budgets
from taskpass.core.ids import HumanId, LeaseId, RequestId, RunId
from taskpass.core.lease import UNENDED, Lease, LeaseState, Target
from taskpass.core.manifest import Keep
from taskpass.core.request import AccessRequest
from taskpass.core.scope import Level
from taskpass.core.separation import Environment, Separation
from taskpass.core.task import Task
from taskpass.identity.base import Caller
from taskpass.issuers.base import Issuer
from taskpass.keys import ed25519, reviewer
from taskpass.runtime.fitness import TargetFitness
from taskpass.runtime.sweeper import Sweeper
from taskpass.store.open import Create, open_store
from taskpass.store.unit import SqlStore
from taskpass.testing.broker_parts import (
    BreakableStore,
    ByEnvironment,
    FakeEndpoints,
    FakeHolders,
    FakePeer,
    FakeRunSockets,
    Inline,
    event_of,
)
from taskpass.testing.clock import FakeClock, SeededEntropy
from taskpass.testing.unkind_issuer import OpenSession, UnkindIssuer, UnkindTarget

BOOT = "00000000-0000-4000-8000-000000000000"
USERS = {0: "root", 1000: "dora", 1001: "ana", 1002: "ben", 1003: "carl", 1004: "eve"}
DORA, ANA, BEN, CARL, EVE = (HumanId(f"{name}@acme.example") for name in ("dora", "ana", "ben", "carl", "eve"))
GROUPS: dict[str, frozenset[HumanId]] = {
    "dba": frozenset({DORA, ANA, BEN}),
    "security": frozenset({CARL, ANA}),
}
DEV, STAGING, PRODUCTION = "orders-dev", "orders-staging", "orders-production"
ENVIRONMENTS = {DEV: Environment.DEV, STAGING: Environment.STAGING, PRODUCTION: Environment.PRODUCTION}


class MemorySigner:
    """An audit key that lives as long as the test."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)

    @property
    def key_id(self) -> str:
        return ed25519.key_id(ed25519.public_of(self._private))

    @property
    def public(self) -> str:
        return ed25519.AUDIT_PREFIX + ed25519.public_of(self._private)

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)


@functools.cache
def reviewer_key(human: HumanId, generation: int = 1) -> tuple[Ed25519PrivateKey, str, str]:
    """A person's private key, public key and salt, derived as ``review`` does; once for each, because it is slow."""
    entropy = SeededEntropy(int.from_bytes(f"{human}/{generation}".encode()))
    secret, salt = reviewer.new_reviewer_secret(entropy), reviewer.new_salt(entropy)
    private = reviewer.derive(secret, salt)
    return private, ed25519.public_of(private), salt


@dataclass
class Agent:
    """One agent process as the broker sees it."""

    harness: Harness
    caller: Caller

    def open_task(
        self,
        repository: str = "acme/shop",
        branch: str = "main",
        ticket: str = "SHOP-1",
        child: str | None = None,
    ) -> Task:
        return open_task(
            self.harness.broker, self.caller, repository=repository, branch=branch, ticket=ticket, child=child
        )

    def request(self, resource: str = DEV, **wishes: Any) -> AccessRequest:
        wanted: dict[str, Any] = {"access": "read", **wishes}
        return request_access(self.harness.broker, self.caller, Wish(resource, **wanted))

    def acquire(self, resource: str = DEV, **wishes: Any) -> tuple[AccessRequest, Issued | None]:
        wanted: dict[str, Any] = {"access": "read", **wishes}
        wish = Wish(resource, **wanted)
        return acquire_access(self.harness.broker, self.caller, wish, until_process_ends=False)

    def issue(self, request: AccessRequest, *, until_process_ends: bool = False) -> Issued:
        return issue_lease(self.harness.broker, self.caller, request.id, until_process_ends=until_process_ends)

    def lease(self, resource: str = DEV, **wishes: Any) -> Lease:
        """A permitted lease, issued."""
        return self.issue(self.request(resource, **wishes)).lease

    def connect(self, lease: Lease) -> OpenSession:
        """Through the endpoint, with the secret that only it knows."""
        order = self.harness.endpoints.open_orders[lease.id]
        return self.harness.server_of(lease.target).login(order.role, order.secret.reveal())


@dataclass
class Harness:
    """One installation: a directory, targets, a clock, and the broker process that runs on them now."""

    directory: Path
    clock: FakeClock
    entropy: SeededEntropy
    servers: dict[str, UnkindTarget]
    policy: ByEnvironment
    trace: list[str]
    people: People
    store: BreakableStore = field(init=False)
    broker: Broker = field(init=False)
    endpoints: FakeEndpoints = field(init=False)
    holders: FakeHolders = field(init=False)
    runs: FakeRunSockets = field(init=False)
    fitness: TargetFitness = field(init=False)
    sweeper: Sweeper = field(init=False)
    reserve: int = 1
    hold_work: Callable[[Callable[[], object]], bool] = lambda work: False
    """What outlives a call runs inside it, unless this takes it and answers True."""
    machine: str = "laptop"
    budgets: Budgets = field(default_factory=Budgets)
    """Holds from the next start on."""
    _pids: Iterator[int] = field(default_factory=lambda: iter(range(5000, 1_000_000)))

    @property
    def witness(self) -> Witness:
        witness = self.store.inner.witness
        assert witness is not None
        return witness

    # The process.

    def start(self) -> None:
        """Start a broker process on what the store and the targets hold; the one before is simply gone."""
        self.store = BreakableStore(self._open(), self.trace.append)
        self.endpoints, self.holders, self.runs = FakeEndpoints(self.trace.append), FakeHolders(), FakeRunSockets()
        with self.store.read() as unit:
            installation = unit.installation.id
        pool: dict[str, Issuer] = {}

        def issuer_of(target: Target) -> Issuer:
            return pool.setdefault(target.address, UnkindIssuer(self.server_of(target), target, installation))

        config = self._config()
        issuers = {name: issuer_of(resource.target()) for name, resource in config.resources.items()}
        self.fitness = TargetFitness(
            issuers, lambda issuer: demand_known_store(self.broker, issuer, issuer.inventory())
        )
        self.broker = Broker(
            store=self.store,
            policy=self.policy,
            issuers=issuers,
            issuer_of=issuer_of,
            endpoints=self.endpoints,
            holders=self.holders,
            run_sockets=self.runs,
            fitness=self.fitness,
            config=config,
            clock=self.clock,
            entropy=self.entropy,
            machine=self.machine,
            verify_signature=reviewer.verify,
            os_user=lambda uid: USERS.get(uid, f"#{uid}"),
            release_reserve=self._release_reserve,
            runtime_directory="/run/taskpass",
            store_is_copy=lambda: self.witness.contradicted,
            witnessed=self.witness.seen,
            accept_store=self.witness.adopt,
            start_work=lambda work: None if self.hold_work(work) else work(),
        )
        self.sweeper = Sweeper(
            self.broker,
            self.fitness,
            restore_reserve=lambda: True,
            monotonic=self.clock.monotonic,
            executor=lambda threads, name: Inline(),
        )

    def restart(self) -> None:
        """A crash, and the start after it."""
        self.store.close()
        self.start()
        take_back_unserved(self.broker)

    def stop(self) -> None:
        self.store.close()

    def _open(self) -> SqlStore:
        return open_store(
            f"sqlite:///{self.directory}/taskpass.db", clock=self.clock, entropy=self.entropy, audit_key=MemorySigner()
        )

    def _release_reserve(self) -> bool:
        had, self.reserve = self.reserve, 0
        if had and self.store.down == "store_full":
            self.store.down = ""
        return bool(had)

    def _config(self) -> Config:
        tables, exclude = ("public.*",), ("public.customers_pii",)
        access = {
            "read": Access("read", Level.READ, tables, exclude),
            "write": Access("write", Level.WRITE, tables, exclude),
            "migrate": Access("migrate", Level.MIGRATE, owner="orders_owner"),
        }
        resources = {
            name: Resource(
                name=name,
                issuer="unkind",
                environment=environment,
                address=f"db.canary.example:5432/{name}",
                nodes=(),
                tls={},
                login={"file": f"{name}.cred"},
                cluster=self.servers[name].cluster,
                database=self.servers[name].database,
                shared_cluster=False,
                access=access,
            )
            for name, environment in ENVIRONMENTS.items()
        }
        return Config(self.directory, BrokerSettings("acme.example", ""), resources, self.people, budgets=self.budgets)

    def server_of(self, target: Target) -> UnkindTarget:
        return self.servers[target.resource]

    # Time and people.

    def tick(self, seconds: float = 0.0) -> None:
        """Let time pass, then let the sweeper do what is due."""
        self.clock.forward(seconds)
        self.sweeper.tick()

    def settle(self, seconds: int = 10) -> None:
        """Let that many seconds pass, ticking as often as the real clockwork in the first one and each second later."""
        for _ in range(4):
            self.tick(0.25)
        for _ in range(seconds - 1):
            self.tick(1)

    def change_people(self, people: People) -> None:
        """What an operator does with ``config apply`` and a restart, without the restart."""
        self.people = people
        self.broker = replace(self.broker, config=replace(self.broker.config, people=people))

    def set_human(self, human: Human) -> None:
        self.change_people(replace(self.people, humans={**self.people.humans, human.id: human}))

    def set_group(self, name: str, *members: HumanId) -> None:
        self.change_people(replace(self.people, groups={**self.people.groups, name: frozenset(members)}))

    def vote(
        self,
        human: HumanId,
        request: AccessRequest,
        verdict: Verdict = Verdict.APPROVE,
        *,
        keeps: tuple[Keep, ...] | None = None,
        lifetime: int | None = None,
        comment: str = "",
        generation: int = 1,
        accept: tuple[str, ...] = (),
    ) -> AccessRequest:
        """What ``taskpass review`` does: ask for the challenge, sign it, vote."""
        ballot = Ballot(verdict, keeps, lifetime, comment, accept)
        prepared = prepare_vote(self.broker, human, request.id, ballot)
        signature = ed25519.encode(reviewer_key(human, generation)[0].sign(prepared.data))
        return vote(self.broker, human, request.id, ballot, nonce=prepared.nonce, signature=signature)[0]

    # Agents.

    def agent(self, uid: int = 1000, separation: Separation = Separation.UID, run: RunId | None = None) -> Agent:
        pid = next(self._pids)
        namespace = f"{BOOT}/{run[-6:] if run else 'host'}"
        return Agent(self, Caller(pid, uid, namespace, separation, run, {"started_ticks": str(pid)}))

    def run(self, uid: int = 1000, tool: str = "claude-code") -> Agent:
        """An agent in a sandbox of its own, bound by first contact."""
        operator = FakePeer(Caller(next(self._pids), uid, f"{BOOT}/host", Separation.NONE, None))
        prepared = prepare_run(self.broker, operator, agent_uid=uid, tool=tool)
        agent = self.agent(uid, Separation.SANDBOX, prepared.run)
        bind_run(self.broker, agent.caller)
        return agent

    # What tests look at.

    def lease(self, lease_id: LeaseId) -> Lease:
        with self.store.inner.read() as unit:
            return unit.leases.get(lease_id)

    def leases(self) -> list[Lease]:
        with self.store.inner.read() as unit:
            return unit.leases.list(limit=None)

    def stored_request(self, request_id: RequestId) -> AccessRequest:
        with self.store.inner.read() as unit:
            return unit.requests.get(request_id)

    def events(self) -> list[str]:
        return [event_of(record) for record in self.store.iterate_audit()]

    def usable(self) -> set[str]:
        """Roles of any target that somebody could use now."""
        return {role for server in self.servers.values() for role in server.usable()}

    def unaccounted(self) -> set[str]:
        """I1: usable roles without an active lease that has not run out."""
        active = {
            lease.role
            for lease in self.leases()
            if lease.state is LeaseState.ACTIVE and self.clock.now() < lease.expires_at
        }
        return self.usable() - active

    def unended(self) -> list[Lease]:
        return [lease for lease in self.leases() if lease.state in UNENDED]


def people() -> People:
    humans = {
        human: Human(human, (user,), *reviewer_key(human)[1:])
        for human, user in ((DORA, "dora"), (ANA, "ana"), (BEN, "ben"), (CARL, "carl"), (EVE, "eve"))
    }
    return People(humans, GROUPS)


def _server(clock: FakeClock, number: int) -> UnkindTarget:
    server = UnkindTarget(clock, cluster=str(7_000_000_000_000_000_000 + number))
    server.table("orders", "id", "total", "note")
    server.table("customers", "id", "name")
    server.table("customers_pii", "id", "passport")
    return server


def make_harness(directory: Path, *, demo: bool = False, seed: int = 0, template: Path | None = None) -> Harness:
    """A started broker in ``directory``, which must be private. ``template`` is a store made before, to be copied."""
    clock, entropy, trace = FakeClock(), SeededEntropy(seed), list[str]()
    path = directory / "taskpass.db"
    if template is not None:
        shutil.copyfile(template, path)
        path.chmod(0o600)
    else:
        open_store(
            f"sqlite:///{path}", clock=clock, entropy=entropy, audit_key=MemorySigner(), create=Create(demo=demo)
        ).close()
    servers = {name: _server(clock, number) for number, name in enumerate(ENVIRONMENTS)}
    for server in servers.values():
        server.after = _noting(trace)
    made = Harness(directory, clock, entropy, servers, ByEnvironment(), trace, people())
    made.start()
    return made


def _noting(trace: list[str]) -> Callable[[str], None]:
    return lambda call: trace.append(f"target.{call}")
