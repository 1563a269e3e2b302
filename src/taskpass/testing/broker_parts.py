"""What stands around a broker in one process: policy, endpoints, processes and a store that breaks, in a test's hands.

Not for targets (``unkind_issuer``, ``fake_issuer``), and not for joining all of it: that is ``testing.broker``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from taskpass.core import digest
from taskpass.core.audit import Record
from taskpass.core.decision import Decision, Obligations, Outcome, floor
from taskpass.core.errors import Internal, StoreUnavailable
from taskpass.core.ids import LeaseId, RunId
from taskpass.core.scope import Level
from taskpass.core.separation import Environment
from taskpass.gateways.base import Endpoint, EndpointOrder
from taskpass.identity.base import Caller, Peer
from taskpass.policy.base import Question
from taskpass.store.base import Unit
from taskpass.store.unit import SqlStore


class ByEnvironment:
    """A policy that answers by environment: dev is permitted, everything else asks one member of ``dba``."""

    def __init__(self) -> None:
        ask = (Outcome.NEEDS_APPROVAL, Obligations(quorum=1, approvers=frozenset({"dba"})))
        self.answers: dict[Environment, tuple[Outcome, Obligations]] = dict.fromkeys(Environment, ask)
        self.answers[Environment.DEV] = (Outcome.PERMIT, Obligations())
        self.version = 1

    @property
    def snapshot(self) -> str:
        return digest.digest(digest.SNAPSHOT, {"engine": "by environment", "version": self.version})

    def answer(self, environment: Environment, outcome: Outcome, **duties: Any) -> None:
        """Change an answer without changing the snapshot, as a rule about time of day would."""
        self.answers[environment] = (outcome, Obligations(**duties))

    def decide(self, question: Question) -> Decision:
        outcome, duties = self.answers[question.environment]
        decision = Decision(outcome, f"test_{outcome.word}", duties, ("rule-canary",), snapshot=self.snapshot)
        return floor(
            decision,
            question.environment,
            writes=question.level is not Level.READ,
            hands_on=question.manifest.hands_on,
        )


class FakeEndpoints:
    """Endpoints that only hold the secret. Unlike the real ones they open again for a lease that was closed."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self.open_orders: dict[LeaseId, EndpointOrder] = {}
        self.before: Callable[[str], None] = lambda call: None
        self.broken = False
        self.fail_open = False

    def open(self, order: EndpointOrder) -> Endpoint:
        self.before("open")
        self._note("endpoint.open")
        if self.fail_open:
            raise Internal("the endpoint cannot be opened")
        self.open_orders[order.lease] = order
        return Endpoint(order.directory, 5432, "orders", order.role)

    def close(self, lease: LeaseId, *, message: str) -> int:
        self.before("close")
        if self.broken:
            raise Internal("the endpoints' loop does not answer")
        if self.open_orders.pop(lease, None) is None:
            return 0
        self._note("endpoint.close")
        return 1

    def close_many(self, leases: Sequence[LeaseId], *, message: str) -> None:
        for lease in leases:
            self.close(lease, message=message)

    def extend(self, lease: LeaseId, seconds: float) -> None:
        if lease in self.open_orders:
            self.open_orders[lease] = replace(self.open_orders[lease], seconds=seconds)

    def connections(self, lease: LeaseId) -> int:
        return int(lease in self.open_orders)

    def connections_of(self, party: str) -> int:
        return sum(order.party == party for order in self.open_orders.values())


class FakeHolders:
    """Watched processes; ``dead`` pids count as ended when the watching begins."""

    def __init__(self) -> None:
        self.watched: dict[LeaseId, Caller] = {}
        self.dead: set[int] = set()
        self.ended: Callable[[LeaseId], None] = lambda lease: None

    def watch_lease(self, lease: LeaseId, caller: Caller) -> None:
        if caller.pid in self.dead:
            self.ended(lease)
        else:
            self.watched[lease] = caller

    def forget_lease(self, lease: LeaseId) -> None:
        self.watched.pop(lease, None)


class FakeRunSockets:
    def __init__(self) -> None:
        self.served: set[RunId] = set()

    def open(self, run: RunId, uid: int, launcher: Peer) -> str:
        self.served.add(run)
        return f"/run/taskpass/runs/{run[-12:]}"

    def bound(self, run: RunId) -> None:
        assert run in self.served

    def close(self, run: RunId) -> None:
        self.served.discard(run)


@dataclass
class FakePeer:
    caller: Caller

    def alive(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing is held."""


class BreakableStore:
    """A store whose writes can be made to fail.

    ``down`` is the code with which every write fails, ``unreadable`` makes reads fail too. ``fail_at`` is the number
    (from 1) of the write that fails: ``before`` it began, ``during`` (rolled back), or ``after`` it was durable.
    """

    def __init__(self, inner: SqlStore, note: Callable[[str], None]) -> None:
        self.inner = inner
        self.down = ""
        self.unreadable = False
        self.writes = 0
        self.fail_at: int | None = None
        self.fail_how = "before"
        self._note = note

    @contextmanager
    def write(self) -> Generator[Unit]:
        self.writes += 1
        how = self.fail_how if self.writes == self.fail_at else ""
        if self.down or how == "before":
            raise StoreUnavailable("the store cannot be written", code=self.down or "store_full")
        with self.inner.write() as unit:
            seq, _ = unit.audit.head()
            yield unit
            names = [event_of(record) for record in unit.audit.records(after=seq)]
            if how == "during":
                raise StoreUnavailable("the disk is full", code="store_full")
        for name in names:
            self._note(f"audit {name}")
        if how == "after":
            raise StoreUnavailable("the connection to the disk was lost")

    @contextmanager
    def read(self) -> Generator[Unit]:
        if self.unreadable:
            raise StoreUnavailable("the store cannot be read", code="store_corrupt")
        with self.inner.read() as unit:
            yield unit

    def close(self) -> None:
        self.inner.close()

    def iterate_audit(self, *, after: int = 0) -> Iterator[Record]:
        return self.inner.iterate_audit(after=after)


def event_of(record: Record) -> str:
    return record.body.partition('"event":"')[2].partition('"')[0]


class Inline(Executor):
    """Runs what is submitted at once, in the caller's thread."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - what an executor does
            done.set_exception(error)
        return done
