"""A database in memory with an issuer for it: for tests of everything that stands around issuing and taking back.

It keeps the contract of ``issuers.base`` and passes its suite. What can go wrong in a target is a lever of
``FakeTarget``: it does not answer (``down``), it answers and that is no proof (``unproven``), something blocks cleaning
(``blocked``), sessions come to life late (``late``), it ends after so many calls (``breaks_after``).
Not a simulation of PostgreSQL: rights are lists of columns and nothing is ever read. A file's statement is done by
being noted, ``FAIL`` fails, and ``OPEN name`` leaves a door open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import RLock

from taskpass.core.aftermath import Ran
from taskpass.core.clock import Clock, Instant, after
from taskpass.core.errors import (
    Conflict,
    InvalidInput,
    ManifestChanged,
    NotProven,
    TargetUnavailable,
    TargetUnfit,
    TaskpassError,
)
from taskpass.core.ids import InstallationId, LeaseId, RoleName, lease_of_role
from taskpass.core.lease import Target
from taskpass.core.limits import BOUNDS, Enforced
from taskpass.core.manifest import Column, Kind, Manifest, Migration, ObjectRights, accept, is_within
from taskpass.core.scope import Level, Scope
from taskpass.core.script import Script
from taskpass.core.secret import Secret
from taskpass.core.separation import Environment
from taskpass.core.widening import Change, Item, Snapshot
from taskpass.issuers.base import (
    Capabilities,
    Finding,
    FoundRole,
    Inventory,
    Order,
    Overdue,
    Progress,
    RevocationSpeed,
    Rights,
    Severity,
    Taken,
    close_each,
    rights_of,
)
from taskpass.testing import fake_scripts
from taskpass.testing.fake_drill import FakeDrill

PROOF = "AuthenticationOk,28000"


@dataclass(slots=True)
class Account:
    """A login role. ``sessions`` holds numbers of open sessions; ``closing`` marks what can never be enabled again."""

    rights: Rights
    password: str | None
    until: Instant
    can_login: bool = False
    closing: bool = False
    sessions: set[int] = field(default_factory=set[int])


@dataclass(slots=True)
class FakeTarget:
    """The database itself, shared by the issuers of several installations. Its clock is the given one."""

    clock: Clock
    resource: str = "shop"
    environment: Environment = Environment.DEV
    tables: dict[int, tuple[str, str, tuple[str, ...]]] = field(
        default_factory=lambda: {16384: ("shop", "orders", ("id", "total")), 16385: ("shop", "customers", ("id",))}
    )
    accounts: dict[str, Account] = field(default_factory=dict[str, Account])
    ended: set[str] = field(default_factory=set[str])
    """Roles that were closed here once: a late effect for them is refused."""
    epochs: dict[str, int] = field(default_factory=dict[str, int])
    heads: dict[str, int] = field(default_factory=dict[str, int])
    log: list[str] = field(default_factory=list[str])
    """Lines as the server's own log would hold them: what happened, lease, audit head."""

    down: bool = False
    unproven: str = ""
    blocked: bool = False
    late: int = 0
    findings: list[Finding] = field(default_factory=list[Finding])
    owners: set[str] = field(default_factory=lambda: {"app_owner"})
    """Whom migrations may run as."""
    changes: list[str] = field(default_factory=list[str])
    """Statements of files that were committed."""
    doors: dict[str, Item] = field(default_factory=dict[str, Item])
    """What a snapshot shows."""
    breaks_after: int | None = None
    """So many calls are answered, then the target is down."""
    before: Callable[[str], None] | None = None
    """Called with the method's name before each effect, outside the lock: for tests of what happens in between."""

    lock: RLock = field(default_factory=RLock, repr=False)
    _numbers: int = 0

    def login(self, role: str, password: str) -> int:
        """A session's number; raises ``NotProven`` if the account is refused (as an agent would see it)."""
        with self.lock:
            account = self.accounts.get(role)
            if account is None or account.password != password or self.clock.now() >= account.until:
                raise NotProven("28P01")
            if not account.can_login:
                raise NotProven("28000")
            self._numbers += 1
            account.sessions.add(self._numbers)
            return self._numbers

    def alive(self, session: int) -> bool:
        with self.lock:
            return any(session in account.sessions for account in self.accounts.values())

    def described(self) -> Target:
        return Target(
            resource=self.resource,
            issuer="fake",
            environment=self.environment,
            address=f"memory:5432/{self.resource}",
            nodes=(),
            tls={},
            login={"file": f"memory/{self.resource}"},
            cluster="1",
            database=1,
        )


class FakeIssuer:
    """One installation's issuer for a ``FakeTarget``."""

    def __init__(self, target: FakeTarget, installation: InstallationId) -> None:
        self._place = target
        self._installation = installation
        self._target = target.described()
        self.calls: list[tuple[str, str]] = []
        """(method, role or empty), in order: for tests of what was asked for and how often."""

    @property
    def capabilities(self) -> Capabilities:
        return self.capabilities_of(Level.READ)

    def capabilities_of(self, level: Level) -> Capabilities:
        return Capabilities(
            cuts_open_sessions=True,
            expires_by_itself=True,
            revocation=RevocationSpeed.NOW,
            per_object=True,
            delivers_endpoint=True,
            changes_data=level is not Level.READ,
            changes_schema=level is Level.MIGRATE,
            limits=dict.fromkeys(BOUNDS, Enforced.TARGET),
        )

    @property
    def target(self) -> Target:
        return self._target

    @property
    def installation(self) -> InstallationId:
        return self._installation

    def preflight(self, *, thorough: bool = False) -> list[Finding]:
        self._reach("preflight")
        rehearsal = [Finding("rehearsal", Severity.OK, "an account was made, used, closed with proof and removed")]
        return [*self._place.findings, *(rehearsal if thorough else [])]

    def resolve(self, scope: Scope) -> Manifest:
        self._reach("resolve")
        with self._place.lock:
            return self._resolve(scope)

    def estimate_rows(self, manifest: Manifest) -> dict[int, int]:
        self._reach("estimate_rows")
        return {item.oid: 100 for item in manifest.objects}

    def create(self, order: Order) -> None:
        lease = self._effect("create", order.role)
        if order.manifest.empty:
            raise InvalidInput("there is nothing to grant")
        with self._place.lock:
            now = self._resolve(order.scope)
            if now.digest() != order.asked or not is_within(order.manifest, accept(now, order.manifest.accepted)):
                raise ManifestChanged("the database changed since this was decided", hint="ask again")
            rights = rights_of(order.manifest)
            known = self._place.accounts.get(order.role)
            if order.role in self._place.ended or (known and known.rights != rights):
                raise Conflict("the lease is closing, closed or has other rights", code="lease_ended")
            until = after(self._place.clock.now(), order.lifetime)
            sessions = known.sessions if known else set[int]()
            self._place.accounts[order.role] = Account(rights, order.secret.reveal(), until, sessions=sessions)
            self._anchor("issue", lease, order.audit_head)

    def enable(self, role: RoleName, *, lifetime: int, audit_head: str) -> None:
        lease = self._effect("enable", role)
        with self._place.lock:
            account = self._place.accounts.get(role)
            if account is None or account.closing:
                raise Conflict("the lease was not issued here, or is closing or closed", code="lease_ended")
            account.can_login = True
            account.until = after(self._place.clock.now(), lifetime)
            self._anchor("enable", lease, audit_head)

    def rights(self, role: RoleName) -> Rights:
        self._effect("rights", role)
        with self._place.lock:
            account = self._place.accounts.get(role)
            return dict(account.rights) if account and not account.closing else {}

    # ---- migrating ----

    def read_script(self, text: str) -> Script:
        return fake_scripts.read(text)

    def session_settings(self, migration: Migration) -> Mapping[str, str]:
        return {"role": migration.owner}

    def snapshot(self) -> Snapshot:
        self._reach("snapshot")
        with self._place.lock:
            return dict(self._place.doors)

    def run_script(
        self, role: RoleName, secret: Secret, owner: str, text: str, tell: Callable[[Progress], None]
    ) -> Ran:
        self._effect("run_script", role)
        try:
            self._place.login(role, secret.reveal())
        except NotProven as refused:
            raise TargetUnavailable("the lease could not log in") from refused
        lines = text.split("\n")
        for number, (line, kind) in enumerate(fake_scripts.read(text).statements, start=1):
            tell(Progress("begun", number, line, kind))
            if lines[line - 1].startswith("FAIL"):
                tell(Progress("failed", number, line, "it was told to fail"))
                return Ran.ROLLED_BACK
            tell(Progress("done", number, line, kind))
        self._commit([line for line in lines if line.strip()])
        return Ran.COMMITTED

    def _commit(self, statements: list[str]) -> None:
        with self._place.lock:
            self._place.changes += statements
            for name in (line.removeprefix("OPEN ") for line in statements if line.startswith("OPEN ")):
                door = Item("door", name, counts=frozenset({Change.ADDED}))
                self._place.doors[door.key] = door

    # ---- drills and taking back ----

    def rehearse(self, role: RoleName, secret: Secret, *, audit_head: str) -> None:
        lease = self._effect("rehearse", role)
        with self._place.lock:
            if role in self._place.ended:
                raise Conflict("the lease is closing or closed", code="lease_ended")
            until = after(self._place.clock.now(), 60)
            self._place.accounts[role] = Account({}, secret.reveal(), until, can_login=True)
            self._anchor("rehearse", lease, audit_head)

    def drill(self, role: RoleName, secret: Secret, *, reads: int | None) -> FakeDrill[int]:
        if lease_of_role(self._installation, role) is None:
            raise InvalidInput("that account is not one of this installation's")

        def enter(right: bool) -> int:
            return self._place.login(role, secret.reveal() if right else "another")

        return FakeDrill(enter, self._place.alive, NotProven)

    def close(self, role: RoleName, *, audit_head: str) -> Taken:
        lease = self._effect("close", role)
        with self._place.lock:
            self._anchor("close", lease, audit_head)
            self._place.ended.add(role)
            account = self._place.accounts.get(role)
            if account is None:
                return Taken(answer="absent", nodes={self._target.address: 2}, absent=True)
            ended = len(account.sessions)
            account.can_login, account.closing, account.password = False, True, None
            account.sessions.clear()
            if self._place.unproven:
                raise NotProven(self._place.unproven)
            return Taken(answer=PROOF, nodes={self._target.address: 2}, ended=ended, took_ms=1)

    def expect(self, timeline: int) -> None:
        """One server, which is never promoted."""

    def end_overdue(self) -> list[Overdue]:
        return []

    def sweep(self, role: RoleName) -> int:
        self._effect("sweep", role)
        with self._place.lock:
            late, self._place.late = self._place.late, 0
            account = self._place.accounts.get(role)
            found = len(account.sessions) if account else 0
            if account:
                account.sessions.clear()
            return found + late

    def clean(self, role: RoleName) -> bool:
        self._effect("clean", role)
        with self._place.lock:
            account = self._place.accounts.get(role)
            if account is None:
                return True
            if not account.closing:
                raise Conflict("only a closed lease is cleaned", code="lease_ended")
            if self._place.blocked:
                return False
            del self._place.accounts[role]
            return True

    def close_many(self, roles: Sequence[RoleName], *, audit_head: str) -> dict[RoleName, Taken | TaskpassError]:
        return close_each(self, roles, audit_head)

    def sweep_many(self, roles: Sequence[RoleName]) -> dict[RoleName, int]:
        return {role: found for role in roles if (found := self.sweep(role))}

    def clean_many(self, roles: Sequence[RoleName]) -> set[RoleName]:
        return {role for role in roles if self.clean(role)}

    def inventory(self) -> Inventory:
        self._reach("inventory")
        with self._place.lock:
            found = [
                FoundRole(name, lease_of_role(self._installation, name), account.can_login, len(account.sessions))
                for name, account in sorted(self._place.accounts.items())
            ]
            return Inventory(
                epoch=self._place.epochs.get(self._installation, 0),
                own=tuple(role for role in found if role.lease),
                foreign=tuple(role.name for role in found if not role.lease),
                now=self._place.clock.now(),
                audit_seq=self._place.heads.get(self._installation, 0),
            )

    def set_epoch(self, epoch: int) -> None:
        self._reach("set_epoch")
        with self._place.lock:
            self._place.epochs[self._installation] = max(epoch, self._place.epochs.get(self._installation, 0))

    def close_connections(self) -> None:
        """Nothing is kept open."""

    # ---- helpers ----

    def _effect(self, name: str, role: RoleName) -> LeaseId:
        lease = lease_of_role(self._installation, role)
        if lease is None:
            raise InvalidInput("that account is not one of this installation's")
        self._reach(name, role)
        return lease

    def _reach(self, name: str, role: str = "") -> None:
        if self._place.before:
            self._place.before(name)
        with self._place.lock:
            self.calls.append((name, role))
            if self._place.breaks_after is not None:
                self._place.breaks_after -= 1
                self._place.down = self._place.down or self._place.breaks_after < 0
            if self._place.down:
                raise TargetUnavailable(f"{self._place.resource} does not answer")

    def _resolve(self, scope: Scope) -> Manifest:
        if scope.level is Level.MIGRATE and scope.owner not in self._place.owners:
            raise TargetUnfit(f"the DBA has not allowed migrations as {scope.owner}", code="owner_not_enrolled")
        return Manifest(
            migration=Migration(scope.owner, 10, scope.script) if scope.level is Level.MIGRATE else None,
            cluster=self._target.cluster,
            database=self._target.database,
            database_name=self._place.resource,
            level=scope.level,
            objects=tuple(
                ObjectRights(
                    oid=oid,
                    kind=Kind.TABLE,
                    schema=schema,
                    name=name,
                    owner="app_owner",
                    columns=tuple(Column(number, column) for number, column in enumerate(columns, start=1)),
                    verbs=scope.verbs,
                )
                for oid, (schema, name, columns) in sorted(self._place.tables.items())
                if scope.level is not Level.MIGRATE and scope.wants(schema, name)
            ),
        )

    def _anchor(self, what: str, lease: LeaseId, head: str) -> None:
        self._place.log.append(f"taskpass: {what} installation={self._installation} lease={lease} head={head}")
        seq = head.split(":", 1)[0]
        if seq.isdecimal():
            self._place.heads[self._installation] = max(int(seq), self._place.heads.get(self._installation, 0))


def renamed(target: FakeTarget, oid: int, name: str) -> None:
    """What a migration does between a yes and a grant."""
    with target.lock:
        schema, _, columns = target.tables[oid]
        target.tables = {**target.tables, oid: (schema, name, columns)}
