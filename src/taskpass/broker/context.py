"""What every verb works with: the ports, joined once by ``wiring``. No behaviour beyond naming and recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from taskpass.broker.late import LateBook
from taskpass.config.model import Config, Human, Resource
from taskpass.core.clock import Clock, Entropy, Instant
from taskpass.core.errors import Denied, NotAuthenticated
from taskpass.core.ids import HumanId, LeaseId, RunId, new_id
from taskpass.core.lease import Target
from taskpass.gateways.base import Endpoints
from taskpass.issuers.base import Issuer
from taskpass.policy.base import Policy
from taskpass.store.base import Store, Unit


class Holders(Protocol):
    """Processes whose end ends something: kept by the runtime, by pidfd."""

    def watch_lease(self, lease: LeaseId, pid: int) -> None:
        """Take ``lease`` back when process ``pid`` ends."""
        ...

    def forget_lease(self, lease: LeaseId) -> None: ...

    def watch_run(self, run: RunId, pid: int) -> None:
        """End ``run`` when process ``pid`` (the init of its pid namespace) ends."""
        ...


class RunSockets(Protocol):
    """The private directory and listening socket of each run; kept by the runtime."""

    def open(self, run: RunId, uid: int) -> str:
        """Create the run's private directory, owned by ``uid``, with its socket; the directory's path."""
        ...

    def close(self, run: RunId) -> None: ...


@dataclass(frozen=True)
class Broker:
    """The ports of one running broker.

    ``issuers`` serve the configured resources; ``issuer_of`` also builds one for the target that a lease remembers, so
    that taking back never depends on the config. ``verify_signature(public key, data, signature)`` never raises.
    ``release_reserve`` frees the disk space that is kept for recording revocations.
    """

    store: Store
    policy: Policy
    issuers: Mapping[str, Issuer]
    issuer_of: Callable[[Target], Issuer]
    endpoints: Endpoints
    holders: Holders
    run_sockets: RunSockets
    config: Config
    clock: Clock
    entropy: Entropy
    machine: str
    verify_signature: Callable[[str, bytes, str], bool]
    os_user: Callable[[int], str]
    release_reserve: Callable[[], bool]
    runtime_directory: str
    late: LateBook = field(default_factory=LateBook)

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
