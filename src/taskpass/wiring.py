"""The composition root: the only module that joins adapters to the broker. No rules here.

``assemble`` builds a broker from a directory and serves nothing; ``run_broker`` serves it until it is told to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import platform
import resource
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from taskpass.broker.context import Broker
from taskpass.broker.drill import end_stale_drills
from taskpass.broker.owners import Owners
from taskpass.broker.reconcile import demand_known_store, take_back_unserved
from taskpass.broker.rotate_login import Kept
from taskpass.broker.runs import end_run
from taskpass.broker.take_back import take_back
from taskpass.broker.take_over import be_seen, say_goodbye
from taskpass.config.credentials import read_credential
from taskpass.config.load import load
from taskpass.config.model import Config
from taskpass.config.paths import operator_socket, runtime_directory
from taskpass.core.audit import Record
from taskpass.core.errors import ConfigInvalid, StoreUnavailable, TaskpassError
from taskpass.core.ids import LeaseId, RunId
from taskpass.core.lease import Target
from taskpass.gateways.postgres.endpoint import PostgresEndpoints
from taskpass.identity.local import LocalAttestor
from taskpass.issuers.base import Issuer
from taskpass.issuers.postgres.issuer import PostgresIssuer
from taskpass.issuers.postgres.kit import broker_login
from taskpass.keys import files as key_files
from taskpass.keys import reviewer
from taskpass.policy.cedar import CedarPolicy
from taskpass.runtime.endpoint_peers import EndpointPeers
from taskpass.runtime.fitness import TargetFitness
from taskpass.runtime.holders import LeaseHolders
from taskpass.runtime.only_broker import broker_name, only_broker
from taskpass.runtime.rotation import Rotation
from taskpass.runtime.run_sockets import RunSocketServer
from taskpass.runtime.sweeper import Sweeper
from taskpass.runtime.system import SystemClock, SystemEntropy, monotonic, os_user
from taskpass.runtime.watcher import ProcessWatcher
from taskpass.server.agent_methods import AgentMethods
from taskpass.server.changed import Changed
from taskpass.server.line import Line, LineServers
from taskpass.server.people_methods import PeopleMethods
from taskpass.server.sockets import private_directory
from taskpass.store.configured import open_configured
from taskpass.store.reserve import Reserve
from taskpass.store.turn import reserve_this_thread
from taskpass.store.unit import SqlStore

AGENT_THREADS = 128
"""Agents may wait up to 45 s in a call, so they have many: four times what one account may use (``server.line``).

People and taking back have threads of their own.
"""
AGENT_CALLS_PER_SECOND = 100
"""Of all agents of one account, after a burst: what is refused counts five times. Faster ones wait."""
PEOPLE_THREADS = 16

_log = logging.getLogger("taskpass")


class IssuerPool:
    """One issuer per target, made when first needed: also for a target that has left the config."""

    def __init__(self, config: Config, store: SqlStore) -> None:
        self._config = config
        with store.read() as unit:
            self._installation = unit.installation.id
        self._lock = threading.Lock()
        self._made: dict[str, Issuer] = {}
        self._name = f"taskpass {os.urandom(4).hex()}"

    def of(self, target: Target) -> Issuer:
        key = repr(sorted(target.to_json().items(), key=lambda item: item[0]))
        with self._lock:
            if key not in self._made:
                self._made[key] = self._make(target)
            return self._made[key]

    def _make(self, target: Target) -> Issuer:
        if target.issuer != "postgres":
            raise ConfigInvalid(f"{target.resource} names an issuer that does not exist", hint='issuer = "postgres"')
        login = read_credential(self._config.directory, target.login)
        return PostgresIssuer(
            target,
            self._installation,
            login.password,
            clock=SystemClock(),
            entropy=SystemEntropy(),
            user=login.user if login.user.startswith(broker_login(self._installation)) else "",
            passwords=lambda: read_credential(self._config.directory, target.login).passwords,
            name=self._name,
        )

    def kept_logins(self) -> list[Kept]:
        """The logins whose password lies in a file of ours and is used in one cluster only."""
        files: dict[str, list[tuple[str, PostgresIssuer]]] = {}
        for name, issuer in self.configured().items():
            file = issuer.target.login.get("file")
            if file and isinstance(issuer, PostgresIssuer):
                files.setdefault(file, []).append((name, issuer))
        return [
            Kept(self._config.directory, file, tuple(name for name, _ in users), users[0][1].own_login)
            for file, users in files.items()
            if len({issuer.target.cluster for _, issuer in users}) == 1
        ]

    def configured(self) -> Mapping[str, Issuer]:
        return {name: self.of(resource.target()) for name, resource in self._config.resources.items()}

    def close(self) -> None:
        for issuer in self._made.values():
            issuer.close_connections()


@dataclass
class Assembled:
    """A broker with everything that serves it; ``start`` and ``stop`` are its life."""

    broker: Broker
    sweeper: Sweeper
    rotation: Rotation
    fitness: TargetFitness
    servers_of_agents: LineServers
    servers_of_people: LineServers
    attestor: LocalAttestor
    runs: RunSocketServer
    watcher: ProcessWatcher
    issuers: IssuerPool
    store: SqlStore
    reserve: Reserve | None
    directory: Path
    runtime: Path

    def start(self) -> None:
        """Take back what an earlier process served, then serve. Called outside the loop's thread."""
        changed = Changed()
        self.store.listen(changed.announce)
        agents = AgentMethods(self.broker, changed=changed)
        people = PeopleMethods(self.broker, changed=changed, health=self._health)
        self.runs.handler = agents
        self.watcher.start()
        be_seen(self.broker)
        take_back_unserved(self.broker)
        end_stale_drills(self.broker)
        self._reopen_runs()
        self.sweeper.start()
        self.servers_of_agents.add(Line(self.runtime / "line.sock", agents, self.attestor.outside))
        self.servers_of_people.add(Line(operator_socket(self.directory), people, self.attestor.operator))

    def _reopen_runs(self) -> None:
        with self.broker.store.read() as unit:
            found = {run.id: run for run in unit.runs.unended()}
            runs = [found[run_id] for run_id in self.broker.owners.free(unit, list(found))]
        for run in runs:
            try:
                served = self.runs.reopen(run)
            except TaskpassError:
                served = False
            if not served:
                end_run(self.broker, run.id, reason="gone_while_broker_was_away")

    def _health(self) -> Mapping[str, object]:
        """Targets are looked at now, side by side: what was true half a minute ago is no answer to *does it hold*."""
        with ThreadPoolExecutor(max(1, len(self.broker.issuers)), thread_name_prefix="health") as pool:
            fitness = dict(zip(self.broker.issuers, pool.map(self.fitness.check, self.broker.issuers), strict=True))
        return {
            "resources": {
                name: {
                    "environment": issuer.target.environment.value,
                    "fit": None if name not in fitness else fitness[name].error is None,
                    "error": None if name not in fitness else _error(fitness[name].error),
                    "findings": [
                        {"check": f.check, "severity": f.severity.value, "message": f.message, "fix": f.fix}
                        for f in (fitness[name].findings if name in fitness else ())
                    ],
                }
                for name, issuer in self.broker.issuers.items()
            },
            "logins": self.rotation.report(),
            "foreign_roles": list(self.sweeper.reconciled.foreign),
            "unreachable": dict(self.sweeper.reconciled.unreachable),
            "store": {"kind": self.store.database.kind, "place": self.store.database.place},
            "store_is_copy": _is_copy(self.store),
            "reserve_held": self.reserve.held if self.reserve else None,
            "pid": os.getpid(),
        }

    def stop(self) -> None:
        """End every stream and close what can be closed now; what is left is found at the next start."""
        try:
            take_back_unserved(self.broker)
        except TaskpassError as error:
            _log.warning("%s: %s", error.code, error.message)
        self.sweeper.tick()
        self.sweeper.stop()
        self.watcher.stop()
        with contextlib.suppress(StoreUnavailable):
            say_goodbye(self.broker)
        self.issuers.close()
        self.store.close()


def _reserved_pool(threads: int, name: str) -> ThreadPoolExecutor:
    """Threads for people and for taking back: their turn in the store comes before any agent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=reserve_this_thread)


def _is_copy(store: SqlStore) -> bool:
    return store.witness is not None and store.witness.contradicted


def _free_disk(directory: Path) -> int | None:
    try:
        found = os.statvfs(directory)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _witnessed(store: SqlStore) -> int | None:
    return store.witness.seen() if store.witness else None


def _accept(store: SqlStore, record: Record) -> None:
    if store.witness:
        store.witness.adopt(record)


def _error(error: TaskpassError | None) -> dict[str, object] | None:
    return None if error is None else error.to_json()


class _Ends:
    """What is told to a broker by its own parts, which are made before it: ``serve`` names it."""

    def serve(self, broker: Broker, sweeper: Sweeper) -> None:
        self._broker, self._sweeper = broker, sweeper

    def of_lease_holder(self, lease: LeaseId) -> None:
        reserve_this_thread()
        take_back(self._broker, [lease], reason="process_ended", actor="broker")
        self._sweeper.wake()

    def of_run(self, run: RunId) -> None:
        def end() -> None:
            reserve_this_thread()
            end_run(self._broker, run, reason="process_ended")

        threading.Thread(target=end, name="end-run").start()

    def demand_known_store(self, issuer: Issuer) -> None:
        demand_known_store(self._broker, issuer, issuer.inventory())


def assemble(directory: Path, loop: asyncio.AbstractEventLoop, *, runtime: Path | None = None) -> Assembled:
    """Load, open and join everything; serves nothing yet. ``loop`` must be running in another thread by ``start``."""
    clock, entropy = SystemClock(), SystemEntropy()
    config = load(directory)
    policy = CedarPolicy.load(config.policy_directory, groups=config.people.groups)
    key = key_files.load(directory / "keys", key_files.AUDIT)
    store = open_configured(config, clock=clock, entropy=entropy, audit_key=key)
    runtime = private_directory(runtime or runtime_directory())
    root = config.broker.allow_root_agents
    others = tuple(p.resolve() for p in config.other_directories)
    attestor = LocalAttestor(directory.resolve(), allow_root=root, others=others)
    issuers, watcher, ends = IssuerPool(config, store), ProcessWatcher(), _Ends()
    # What would be kept free here frees nothing on another machine.
    reserve = Reserve(directory / "reserve") if store.database.kind == "SQLite" else None
    agents = ThreadPoolExecutor(AGENT_THREADS, thread_name_prefix="agent")
    servers_of_agents = LineServers(loop, agents, calls_per_second=AGENT_CALLS_PER_SECOND)
    runs = RunSocketServer(servers_of_agents, runtime, attestor, watcher, ends.of_run)
    fitness = TargetFitness(issuers.configured(), ends.demand_known_store)
    broker = Broker(
        store=store,
        policy=policy,
        issuers=issuers.configured(),
        issuer_of=issuers.of,
        endpoints=PostgresEndpoints(loop, entropy=entropy, check_peer=EndpointPeers(runs, allow_root=root)),
        holders=LeaseHolders(watcher, ends.of_lease_holder),
        run_sockets=runs,
        fitness=fitness,
        config=config,
        clock=clock,
        entropy=entropy,
        machine=platform.node() or "unnamed",
        owners=Owners(broker_name(directory) if store.database.kind == "PostgreSQL" else "", monotonic),
        verify_signature=reviewer.verify,
        os_user=os_user,
        release_reserve=reserve.release if reserve else lambda: False,
        store_is_copy=partial(_is_copy, store),
        witnessed=partial(_witnessed, store),
        accept_store=partial(_accept, store),
        runtime_directory=str(runtime),
        free_disk=partial(_free_disk, Path(store.database.place).parent) if reserve else lambda: None,
        reserve_thread=reserve_this_thread,
    )
    rotation = Rotation(broker, issuers.kept_logins())
    sweeper = _sweeper(broker, fitness, reserve, rotation)
    ends.serve(broker, sweeper)
    return Assembled(
        broker=broker,
        sweeper=sweeper,
        rotation=rotation,
        fitness=fitness,
        servers_of_agents=servers_of_agents,
        servers_of_people=LineServers(loop, _reserved_pool(PEOPLE_THREADS, "people")),
        attestor=attestor,
        runs=runs,
        watcher=watcher,
        issuers=issuers,
        store=store,
        reserve=reserve,
        directory=directory,
        runtime=runtime,
    )


def _sweeper(broker: Broker, fitness: TargetFitness, reserve: Reserve | None, rotation: Rotation) -> Sweeper:
    return Sweeper(
        broker,
        fitness,
        restore_reserve=reserve.restore if reserve else lambda: True,
        rotate=rotation.run,
        executor=_reserved_pool,
        reserve_thread=reserve_this_thread,
    )


def run_broker(directory: Path, *, runtime: Path | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. Raises ``TaskpassError`` if it cannot start."""
    # Endpoints' secrets live in this process's memory and nowhere else; a core file would be a place of their own.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Each connection of an agent and each endpoint takes some; 1024, the usual limit, is soon used up.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    directory = directory.resolve()
    load(directory)  # before anything is made in it: a wrong place stays as it was
    with only_broker(directory), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(directory, runtime))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _serve(directory: Path, runtime: Path | None) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    assembled = await asyncio.to_thread(assemble, directory, loop, runtime=runtime)
    try:
        await asyncio.to_thread(assembled.start)
        # What is there by now stays: the collector need not look at it again and again.
        gc.freeze()
        print(f"taskpass is up: {directory}", file=sys.stderr, flush=True)  # noqa: T201 - the one word of an operator's start
        await stop.wait()
        print("taskpass is going down: closing what is open", file=sys.stderr, flush=True)  # noqa: T201
    finally:
        # Also after a start that failed half-way: what it began must not go on in a process that is leaving.
        await assembled.servers_of_agents.close()
        await assembled.servers_of_people.close()
        await asyncio.to_thread(assembled.stop)
    return 0
