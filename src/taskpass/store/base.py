"""What the broker remembers: the contract of every store.

A unit of work is one durable transaction; the audit records appended in it become durable with it or not at all.
Nothing may assume a single process: two brokers, or a broker and a command, may use one store at the same time.

Contract
    * ``Store.write()`` opens a serialised write transaction, commits at the normal end of the block and rolls back
      on any exception. ``Store.read()`` opens a consistent read. Neither is kept open across a call to a target.
    * Rows change state only through the ``advance`` methods, which apply the aggregate's transition table in one
      compare-and-set; a row that is not in the state the caller saw raises ``Conflict``. The database enforces the same
      tables with triggers, so a hand-written UPDATE fails too.
    * Errors: ``NotFound`` for an absent row, ``Conflict`` for a lost race or a broken uniqueness,
      ``StoreUnavailable`` for everything that the driver says (locked, full, read-only, corrupt). Driver exceptions
      never escape.
    * A ``limit`` of None means all: what ends or counts must never miss a row because there are many.
    * Methods block; callers run them in threads. A unit of work belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from taskpass.core.aftermath import Aftermath, AftermathEvent, AftermathState
from taskpass.core.approval import Approval
from taskpass.core.audit import Event, Record
from taskpass.core.budgets import Used
from taskpass.core.clock import Instant
from taskpass.core.decision import Delivery
from taskpass.core.grant import Grant
from taskpass.core.ids import ApprovalId, GrantId, HumanId, InstallationId, LeaseId, RequestId, RunId, TaskId
from taskpass.core.lease import Lease, LeaseEvent, LeaseState, Target
from taskpass.core.request import AccessRequest, RequestEvent, RequestState
from taskpass.core.task import Task, TaskEvent, TaskState


@dataclass(frozen=True, slots=True)
class Installation:
    """``epoch`` rises with every restore; ``demo`` is set at creation only and cannot be changed afterwards.

    ``latest_seen`` is the latest time that any unit of work carried (see ``core.guard``).
    """

    id: InstallationId
    epoch: int
    demo: bool
    created_at: Instant
    latest_seen: Instant


@dataclass(frozen=True, slots=True)
class Run:
    """One ``taskpass run``: a sandbox that the broker prepared a private directory and socket for.

    ``namespace`` is ``<boot id>/<pid namespace inode>`` once the sandbox made first contact, and empty before.
    """

    id: RunId
    tool: str
    sponsor: HumanId
    uid: int
    directory: str
    separation: str
    namespace: str
    created_at: Instant
    ended_at: Instant | None


class Runs(Protocol):
    def add(self, run: Run) -> None: ...
    def get(self, run_id: RunId) -> Run: ...
    def bind(self, run_id: RunId, *, namespace: str, separation: str) -> None:
        """Bind an unbound run to its namespace, once; ``Conflict`` if it is bound already."""
        ...

    def end(self, run_id: RunId, at: Instant) -> None:
        """Idempotent."""
        ...

    def unended(self) -> list[Run]: ...


class Tasks(Protocol):
    def add(self, task: Task) -> None: ...
    def get(self, task_id: TaskId) -> Task: ...
    def advance(self, task_id: TaskId, event: TaskEvent, at: Instant, *, reason: str) -> Task: ...
    def list(self, *, state: TaskState | None = None, run: RunId | None = None, limit: int | None = None) -> list[Task]:
        """Newest first. ``run`` filters on the run a task was opened in."""
        ...

    def find_unattached(self, sponsor: HumanId, machine: str | None, repository: str) -> Task | None:
        """The open task outside any run of that sponsor, machine (None: on any) and repository."""
        ...

    def opened(self, sponsor: HumanId, machine: str, *, since: Instant) -> tuple[int, Instant | None]:
        """How many tasks of that sponsor and machine were opened at ``since`` or later, and when the first of them."""
        ...

    def sponsors(self) -> list[HumanId]:
        """Of open tasks, in order of name."""
        ...

    def children(self, task_id: TaskId) -> list[Task]:
        """Open tasks that name ``task_id`` among their parents."""
        ...


class Requests(Protocol):
    def add(self, request: AccessRequest) -> None: ...
    def get(self, request_id: RequestId) -> AccessRequest: ...
    def advance(
        self,
        request_id: RequestId,
        event: RequestEvent,
        at: Instant,
        *,
        comment: str = "",
        lapses_at: Instant | None = None,
    ) -> AccessRequest: ...
    def list(
        self, *, state: RequestState | None = None, task: TaskId | None = None, limit: int | None = None
    ) -> list[AccessRequest]: ...
    def lapsing(self, now: Instant) -> list[AccessRequest]:
        """Pending or approved requests whose ``lapses_at`` has come."""
        ...

    def count_pending(self, sponsor: HumanId) -> int: ...
    def used(self, sponsor: HumanId, machine: str, *, since: Instant) -> Used:
        """What that sponsor and machine recorded at ``since`` or later."""
        ...

    def find_same(self, task: TaskId, digest: str, *, since: Instant) -> AccessRequest | None:
        """The newest request of ``task`` with that digest that is pending, or was denied at ``since`` or later."""
        ...

    def denied_by_people(self, sponsor: HumanId, machine: str, resource: str, *, since: Instant) -> list[AccessRequest]:
        """Requests for ``resource`` to which a person said no at ``since`` or later."""
        ...


class Approvals(Protocol):
    def add(self, approval: Approval) -> None:
        """``Conflict`` if this human has voted on this request already."""
        ...

    def of_request(self, request_id: RequestId) -> list[Approval]: ...
    def consume(self, approval_ids: Iterable[ApprovalId], grant: GrantId) -> None:
        """Mark as used by ``grant``; a unique constraint makes a second use ``Conflict``."""
        ...

    def consumed(self, approval_id: ApprovalId) -> GrantId | None: ...


class Challenges(Protocol):
    """Server nonces of people's actions: single use, short-lived."""

    def add(self, nonce: str, *, verb: str, subject: str, human: HumanId, expires_at: Instant) -> None: ...
    def take(self, nonce: str, *, verb: str, subject: str, human: HumanId, now: Instant) -> None:
        """Use a nonce up. ``Expired`` if it is unknown, used, too old or was made for something else."""
        ...


class Grants(Protocol):
    def add(self, grant: Grant) -> None: ...
    def get(self, grant_id: GrantId) -> Grant: ...
    def of_request(self, request_id: RequestId) -> Grant | None: ...
    def list(self, *, task: TaskId | None = None, limit: int | None = None) -> list[Grant]: ...


class Leases(Protocol):
    def add(self, lease: Lease) -> None:
        """``lease.state`` must be ``intended``."""
        ...

    def get(self, lease_id: LeaseId) -> Lease: ...
    def advance(self, lease_id: LeaseId, event: LeaseEvent, at: Instant, **changes: Any) -> Lease:
        """Apply ``event`` and set the fields in ``changes`` (of ``Lease``) in the same step."""
        ...

    def get_many(self, lease_ids: Sequence[LeaseId]) -> list[Lease]:
        """Those of ``lease_ids`` that exist, in no order."""
        ...

    def advance_many(
        self,
        lease_ids: Sequence[LeaseId],
        event: LeaseEvent,
        at: Instant,
        *,
        proofs: Mapping[LeaseId, Mapping[str, object]] | None = None,
        **changes: Any,
    ) -> list[LeaseId]:
        """``advance`` for every lease that ``event`` is legal for; those that moved. At most 1,000.

        ``changes`` are the same for all of them; ``proofs`` has one for each, where ``event`` needs it.
        """
        ...

    def note(self, lease_id: LeaseId, **changes: Any) -> Lease:
        """Set bookkeeping fields (``attempts``, ``retry_at``, ``last_error``, ``incidents``) without a transition."""
        ...

    def list(
        self,
        *,
        states: Iterable[LeaseState] | None = None,
        task: TaskId | None = None,
        grant: GrantId | None = None,
        resource: str | None = None,
        limit: int | None = None,
    ) -> list[Lease]: ...
    def ids(self, states: Iterable[LeaseState]) -> list[LeaseId]:
        """Those of ``list``, newest first, without reading the rest of each: for many leases at once."""
        ...

    def count_by_state(self) -> dict[LeaseState, int]:
        """Every state that a lease is in, and how many are."""
        ...

    def targets(self, states: Iterable[LeaseState]) -> list[Target]:
        """Each target of a lease in one of ``states``, once."""
        ...

    def unproven(self, *, limit: int | None = None) -> list[Lease]:
        """Closing leases with at least one failed attempt, newest first."""
        ...

    def renewable(self, now: Instant, *, noted: str) -> list[Lease]:
        """Active leases of renewable grants that are in the last third of the asked lifetime and end before the grant,
        and those whose last error is ``noted``.
        """
        ...

    def alike(self) -> list[list[LeaseId]]:
        """The active leases, grouped by equal target, manifest and scope: what holds for one of them holds for all."""
        ...

    def expiring(self, now: Instant) -> list[Lease]:
        """Intended and active leases whose ``expires_at`` has come."""
        ...

    def due(self, now: Instant, *, resource: str | None = None, alone: str = "", limit: int = 100) -> list[Lease]:
        """Closing leases whose ``retry_at`` is unset or has come, oldest first.

        With ``alone`` only those whose last error begins with it.
        """
        ...

    def due_by_resource(self, now: Instant) -> dict[str, int]:
        """How many are due for each resource: what waits for one must not hide another's."""
        ...

    def due_ids(self, now: Instant, *, resource: str, alone: str) -> list[LeaseId]:
        """The due leases of a resource whose last error does not begin with ``alone``, oldest first."""
        ...

    def closed_ids(self, *, but: str) -> list[tuple[LeaseId, str]]:
        """Id and resource of every closed lease whose proof does not hold the text ``but``."""
        ...

    def count_live(
        self,
        *,
        task: TaskId | None = None,
        sponsor: HumanId | None = None,
        resource: str | None = None,
        delivery: Delivery | None = None,
    ) -> int: ...
    def rights(self, sponsor: HumanId, machine: str, *, since: Instant) -> dict[str, Instant]:
        """The manifests, by digest, of that party's leases made at ``since`` or later, and when each first was."""
        ...

    def next_end(self, *, task: TaskId | None = None, sponsor: HumanId | None = None) -> Instant | None:
        """When the first of the leases that ``count_live`` counts ends by itself; None without any."""
        ...


class Aftermaths(Protocol):
    """What migrations left in their databases, one for each migrate lease."""

    def add(self, aftermath: Aftermath) -> None:
        """``aftermath.state`` must be ``open``."""
        ...

    def get(self, lease_id: LeaseId) -> Aftermath: ...
    def advance(self, lease_id: LeaseId, event: AftermathEvent, **changes: Any) -> Aftermath:
        """Apply ``event``, set the fields in ``changes`` in the same step, and forget ``before``."""
        ...

    def note(self, lease_id: LeaseId, **changes: Any) -> Aftermath:
        """Set ``ran``, ``error`` or ``looked_at`` without a transition."""
        ...

    def list(
        self, *, states: Iterable[AftermathState] | None = None, task: TaskId | None = None, limit: int | None = None
    ) -> list[Aftermath]:
        """Newest first."""
        ...

    def blocking(self, cluster: str, database: int) -> list[Aftermath]:
        """Those of that database that are neither clean nor decided."""
        ...


class Scripts(Protocol):
    """Migration files by the digest of their bytes."""

    def add(self, digest: str, text: str) -> None:
        """Idempotent."""
        ...

    def get(self, digest: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Owner:
    """``token`` rises with every change of owner: work that was begun under an older one is refused."""

    broker: str
    token: int


class Owners(Protocol):
    """For several brokers on one store: who serves a lease or a run, and finishes its work. Only who lives counts."""

    def beat(self, broker: str, machine: str) -> None:
        """``broker`` lives now, by the database's clock."""
        ...

    def end(self, broker: str) -> None:
        """``broker`` has stopped: what it served is free at once."""
        ...

    def alive(self, seconds: int) -> frozenset[str]:
        """Brokers that were seen within the last ``seconds``."""
        ...

    def machines(self, seconds: int) -> dict[str, str]:
        """As ``alive``, with the machine that each said it is on."""
        ...

    def give(self, subject: str, broker: str) -> int:
        """``broker``, which has been seen, owns ``subject`` from now on; the new token."""
        ...

    def of(self, subjects: Iterable[str]) -> dict[str, Owner]:
        """The owners of those that have one."""
        ...


class Audit(Protocol):
    def append(self, event: Event, at: Instant, *, above: int = 0, about: Iterable[str] = ()) -> Record:
        """Chain, sign and insert ``event``; durable with the unit of work.

        ``above`` leaves out the numbers up to it: for ``core.audit.ADOPTED`` only, and the database holds to that.
        ``about`` are further ids that ``about()`` finds it under; they must stand in its data.
        """
        ...

    def head(self) -> tuple[int, str]:
        """Sequence number and hash of the newest record (0 and the genesis hash when there is none)."""
        ...

    def records(self, *, after: int = 0, limit: int = 1000) -> list[Record]: ...
    def about(self, subject_id: str, *, limit: int = 1000) -> list[Record]:
        """Records whose subject names ``subject_id``, oldest first."""
        ...

    def latest(self, subject_id: str) -> Record | None:
        """The newest record whose subject names ``subject_id``."""
        ...


class Unit(Protocol):
    """One unit of work."""

    @property
    def installation(self) -> Installation: ...
    @property
    def runs(self) -> Runs: ...
    @property
    def tasks(self) -> Tasks: ...
    @property
    def requests(self) -> Requests: ...
    @property
    def approvals(self) -> Approvals: ...
    @property
    def challenges(self) -> Challenges: ...
    @property
    def grants(self) -> Grants: ...
    @property
    def leases(self) -> Leases: ...
    @property
    def aftermaths(self) -> Aftermaths: ...
    @property
    def scripts(self) -> Scripts: ...
    @property
    def owners(self) -> Owners: ...
    @property
    def audit(self) -> Audit: ...
    def see_time(self, now: Instant) -> Instant:
        """Raise ``latest_seen`` to ``now`` if it is later, and return the later of the two."""
        ...

    def raise_epoch(self, above: int) -> Installation:
        """Set the epoch above both ``above`` and its present value: what adopting a restored store does."""
        ...

    def audit_keys(self) -> dict[str, str]:
        """Key id to printable public key of every key that ever signed here: for a self-check, no root of trust."""
        ...


class Store(Protocol):
    def write(self) -> AbstractContextManager[Unit]: ...
    def read(self) -> AbstractContextManager[Unit]: ...
    def close(self) -> None: ...
    def iterate_audit(self, *, after: int = 0) -> Iterator[Record]:
        """All records in order, read in batches outside any unit of work."""
        ...
