"""What every verb works with: the ports, joined once by ``wiring``. No behaviour beyond naming and recording."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from taskpass.broker.late import LateBook
from taskpass.broker.owners import Owners
from taskpass.broker.progress import ProgressBook
from taskpass.broker.refusals import Refusals
from taskpass.broker.remembered import Remembered
from taskpass.config.model import Config, Human, Resource
from taskpass.core.audit import Record
from taskpass.core.clock import Clock, Entropy, Instant
from taskpass.core.errors import Denied, NotAuthenticated
from taskpass.core.ids import HumanId, LeaseId, RunId, new_id
from taskpass.core.lease import Target
from taskpass.core.limits import Limits
from taskpass.core.scope import Scope
from taskpass.gateways.base import Endpoints
from taskpass.identity.base import Caller, Peer
from taskpass.issuers.base import Issuer
from taskpass.policy.base import Policy
from taskpass.store.base import Store, Unit


class Holders(Protocol):
    """Processes whose end ends something: kept by the runtime, by pidfd."""

    def watch_lease(self, lease: LeaseId, caller: Caller) -> None:
        """Take ``lease`` back when the attested process of ``caller`` ends, also if it has ended already."""
        ...

    def forget_lease(self, lease: LeaseId) -> None: ...


class RunSockets(Protocol):
    """The private directory and listening socket of each run, and what is known of its sandbox; kept by the runtime."""

    def open(self, run: RunId, uid: int, launcher: Peer) -> str:
        """Create the run's private directory, passable for ``uid``, with its socket; the directory's path.

        Only processes that descend from ``launcher`` can make first contact.
        """
        ...

    def bound(self, run: RunId) -> None:
        """First contact was recorded: from now on the run ends when the init of its namespace ends."""
        ...

    def close(self, run: RunId) -> None:
        """Idempotent."""
        ...


class Fitness(Protocol):
    """Whether a target may be issued from: preflight, pins, and that this store is not a restored copy."""

    def demand(self, resource: str) -> None:
        """Raise ``TargetUnfit``, ``TargetUnavailable`` or ``Conflict`` while ``resource`` must not be issued from."""
        ...


class KeyedLocks:
    """One lock per key, so that the same lease is never closed twice at once in this process."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def hold(self, key: str) -> Generator[None]:
        with self._guard:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._locks[key]
                if users == 1:
                    del self._locks[key]
                else:
                    self._locks[key] = (lock, users - 1)


def in_a_thread(work: Callable[[], object]) -> None:
    """Start what outlives a call. It ends by itself, or when its lease is taken back: at the latest with the broker."""
    threading.Thread(target=work, name="migrate", daemon=True).start()


@dataclass(frozen=True)
class Broker:
    """The ports of one running broker.

    ``issuers`` serve the configured resources; ``issuer_of`` also builds one for the target that a lease remembers, so
    that taking back never depends on the config. ``verify_signature(public key, data, signature)`` never raises.
    ``release_reserve`` frees the disk space that is kept for recording revocations. ``store_is_copy`` tells whether the
    store contradicts the witness that was kept beside it, ``witnessed`` its audit number, and ``accept_store`` replaces
    it by the record of the adoption. ``start_work`` begins what outlives a call, and returns at once.
    ``free_disk`` tells how many bytes are free where the store is, None if that cannot be seen.
    ``reserve_thread`` puts the calling thread, which takes back and nothing else, before all others at the store.
    """

    store: Store
    policy: Policy
    issuers: Mapping[str, Issuer]
    issuer_of: Callable[[Target], Issuer]
    endpoints: Endpoints
    holders: Holders
    run_sockets: RunSockets
    fitness: Fitness
    config: Config
    clock: Clock
    entropy: Entropy
    machine: str
    verify_signature: Callable[[str, bytes, str], bool]
    os_user: Callable[[int], str]
    release_reserve: Callable[[], bool]
    runtime_directory: str
    store_is_copy: Callable[[], bool] = lambda: False
    witnessed: Callable[[], int | None] = lambda: None
    accept_store: Callable[[Record], None] = lambda record: None
    owners: Owners = field(default_factory=Owners)
    late: LateBook = field(default_factory=LateBook)
    remembered: Remembered = field(default_factory=Remembered)
    closing: KeyedLocks = field(default_factory=KeyedLocks)
    refusals: Refusals = field(default_factory=Refusals)
    progress: ProgressBook = field(default_factory=ProgressBook)
    start_work: Callable[[Callable[[], object]], object] = in_a_thread
    free_disk: Callable[[], int | None] = lambda: None
    reserve_thread: Callable[[], None] = lambda: None

    def now(self, unit: Unit) -> Instant:
        """The time of this unit of work: never earlier than any time seen before."""
        return unit.see_time(self.clock.now())

    def new_id(self, kind: str) -> str:
        return new_id(kind, self.clock.now(), self.entropy)

    def resource(self, name: str) -> Resource:
        """The configured resource; the same refusal for one that does not exist and one that is not offered."""
        found = self.config.resources.get(name)
        if found is None:
            raise Denied("no such resource is offered here", hint="taskpass status lists what may be asked for")
        return found

    def limits_of(self, scope: Scope) -> Limits:
        """As configured now; the defaults for an access that left the configuration."""
        resource = self.config.resources.get(scope.resource)
        access = resource.access.get(scope.access) if resource else None
        return access.limits if access else Limits()

    def issuer(self, resource: str) -> Issuer:
        if resource not in self.issuers:
            raise Denied("no such resource is offered here", hint="taskpass status lists what may be asked for")
        return self.issuers[resource]

    def human_of_uid(self, uid: int) -> HumanId:
        """The one human whose account ``uid`` is; an account of nobody is nobody."""
        user = self.os_user(uid)
        for human in self.config.people.humans.values():
            if user in human.os_users:
                return human.id
        raise NotAuthenticated(
            "this account belongs to no person that Taskpass knows",
            hint="an operator adds it to os_users of a person in taskpass.toml",
            code="unknown_person",
        )

    def human(self, human_id: str) -> Human:
        found = self.config.people.humans.get(HumanId(human_id))
        if found is None:
            raise NotAuthenticated("no such person", hint="taskpass people ls", code="unknown_person")
        return found
