"""A database in memory without the target kit's own fences, for tests of what the broker must hold by itself.

``fake_issuer`` behaves as the kit does; this target is worse. A role that was closed can be enabled again, a call can
take effect and still report a failure, a late ``CREATE`` lands after everything else, an open session survives
``NOLOGIN``, a table means its identity and not its name and can come to lead to an excluded one. A broker that relies
on the target to mend its own races is found out here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from taskpass.core.aftermath import Ran
from taskpass.core.clock import SECOND, Clock, Instant
from taskpass.core.errors import ManifestChanged, NotProven, TargetUnavailable, TargetUnfit, TaskpassError
from taskpass.core.ids import InstallationId, RoleName, lease_of_role
from taskpass.core.lease import Target
from taskpass.core.limits import BOUNDS, Enforced
from taskpass.core.manifest import (
    Column,
    Dropped,
    DropReason,
    Held,
    Kind,
    Manifest,
    Migration,
    ObjectRights,
    Reach,
    Through,
    accept,
    is_within,
)
from taskpass.core.scope import Level, Scope, Verb
from taskpass.core.script import Script
from taskpass.core.secret import Secret
from taskpass.core.widening import Item, Snapshot
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
    Taken,
    close_each,
)
from taskpass.testing import fake_scripts
from taskpass.testing.fake_drill import FakeDrill

PROOF = "AuthenticationOk,28000"
NEVER = Instant(0)

Grants = dict[int, frozenset[int]]


@dataclass(eq=False)
class OpenSession:
    """A connection. ``SET ROLE`` and cursors do not matter here: it works until it is terminated."""

    role: Role
    alive: bool = True


@dataclass(eq=False)
class Role:
    """A login role. ``password`` None lets nobody in."""

    name: str
    login: bool = False
    password: str | None = None
    valid_until: Instant = NEVER
    grants: Grants = field(default_factory=dict[int, frozenset[int]])
    sessions: list[OpenSession] = field(default_factory=list[OpenSession])

    @property
    def open(self) -> list[OpenSession]:
        return [session for session in self.sessions if session.alive]


@dataclass(eq=False)
class Table:
    """Oids: ``partitions`` are read through this one, rows of ``cascades`` are deleted with its rows."""

    oid: int
    schema: str
    name: str
    columns: dict[int, str]
    kind: Kind = Kind.TABLE
    owner: str = "owner"
    partitions: list[int] = field(default_factory=list[int])
    cascades: list[int] = field(default_factory=list[int])


class LoginRefused(Exception):
    """A login that failed; ``code`` is the SQLSTATE that the server would send."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class UnkindTarget:
    """One database of one cluster, with the roles of the cluster.

    ``skew`` moves its clock against the broker's. ``down``: nothing answers. ``unprovable``: closing takes effect but
    the answer proves nothing. ``blocked`` names roles that cannot be cleaned, ``block_all`` means all. ``unfit`` are
    preflight findings. ``calls`` lists every call; ``before`` and ``after`` run around each one, outside the lock, with
    its name. ``fail_at`` makes the call of that number (from 1) fail, after its effect if ``fail_late``. ``overdue``:
    sessions that will be found over a limit. ``doors`` is
    what a snapshot shows; ``scripts`` are the files that were run, and ``runs`` is what running one does.
    """

    def __init__(self, clock: Clock, *, cluster: str = "7000000000000000001", database: int = 16384) -> None:
        self._clock = clock
        self.cluster = cluster
        self.database = database
        self.lock = threading.RLock()
        self.tables: dict[int, Table] = {}
        self.roles: dict[str, Role] = {}
        self.skew = 0.0
        self.down = False
        self.unprovable = False
        self.blocked: set[str] = set()
        self.block_all = False
        self.unfit: list[Finding] = []
        self.calls: list[str] = []
        self.before: Callable[[str], None] = lambda call: None
        self.after: Callable[[str], None] = lambda call: None
        self.fail_at: int | None = None
        self.fail_late = False
        self.late_creates = False
        self.overdue: list[Overdue] = []
        self.epoch = 0
        self.audit_seq = 0
        self.doors: dict[str, Item] = {}
        self.scripts: list[str] = []
        self.runs: Callable[[str], Ran] = lambda text: Ran.COMMITTED
        self._waiting: list[Callable[[], None]] = []
        self._oids = iter(range(16400, 1_000_000))

    def now(self) -> Instant:
        return Instant(self._clock.now() + round(self.skew * SECOND))

    # What a DBA or a migration does.

    def table(self, name: str, *columns: str, schema: str = "public") -> Table:
        oid = next(self._oids)
        made = Table(oid, schema, name, dict(enumerate(columns or ("id", "note"), 1)))
        self.tables[oid] = made
        return made

    def named(self, name: str) -> Table:
        return next(table for table in self.tables.values() if table.name == name)

    def rename(self, name: str, to: str) -> None:
        self.named(name).name = to

    def drop(self, name: str) -> None:
        oid = self.named(name).oid
        del self.tables[oid]
        for role in self.roles.values():
            role.grants.pop(oid, None)

    def recreate(self, name: str) -> Table:
        """Same name and columns, another object: earlier grants are gone with the first one."""
        columns = list(self.named(name).columns.values())
        self.drop(name)
        return self.table(name, *columns)

    def add_column(self, name: str, column: str) -> None:
        columns = self.named(name).columns
        columns[max(columns) + 1] = column

    def attach(self, parent: str, child: str) -> None:
        """Rows of ``child`` are from now on read through ``parent``."""
        self.named(parent).partitions.append(self.named(child).oid)

    def land_late_creates(self) -> int:
        """What the server was still executing when its client had given up takes effect now; how many."""
        waiting, self._waiting = self._waiting, []
        for create in waiting:
            create()
        return len(waiting)

    # What an agent can do once it knows a password.

    def login(self, role: str, password: str) -> OpenSession:
        """In the server's order: the password, its end, and only then the login flag. Raises ``LoginRefused``."""
        with self.lock:
            found = self.roles.get(role)
            if self.down:
                raise TargetUnavailable("the target does not answer")
            if found is None or password != found.password or self.now() >= found.valid_until:
                raise LoginRefused("28P01")
            if not found.login:
                raise LoginRefused("28000")
            session = OpenSession(found)
            found.sessions.append(session)
            return session

    def reads(self, session: OpenSession, table: str, column: str) -> bool:
        """Whether the session can read that column now; False too when it was ended."""
        with self.lock:
            if not session.alive or self.down:
                return False
            found = self.named(table)
            return any(found.columns.get(number) == column for number in session.role.grants.get(found.oid, ()))

    def rekey(self, session: OpenSession, password: str) -> None:
        """A role may change its own password."""
        with self.lock:
            if session.alive:
                session.role.password = password

    # What tests ask.

    def usable(self) -> set[str]:
        """Roles that somebody could use now: an open session, or a login that could succeed."""
        with self.lock:
            now = self.now()
            return {role.name for role in self.roles.values() if role.open or (role.login and now < role.valid_until)}

    # For the issuer.

    @contextmanager
    def call(self, name: str) -> Generator[None]:
        """One call, with everything that can go wrong around it."""
        self.before(name)
        with self.lock:
            self.calls.append(name)
            failing = self.fail_at is not None and len(self.calls) == self.fail_at
            if self.down or (failing and not self.fail_late):
                raise TargetUnavailable("the target does not answer", hint="it is retried")
            yield
            if failing:
                raise TargetUnavailable("the connection was lost", hint="it is retried")
        self.after(name)

    def later(self, create: Callable[[], None]) -> None:
        self._waiting.append(create)


class UnkindIssuer:
    """The issuer of ``server`` for one installation; ``target`` is where leases remember it."""

    def __init__(self, server: UnkindTarget, target: Target, installation: InstallationId) -> None:
        self._server = server
        self._target = replace(target, cluster=server.cluster, database=server.database)
        self._installation = installation

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
        with self._server.call("preflight"):
            return list(self._server.unfit)

    def resolve(self, scope: Scope) -> Manifest:
        with self._server.call("resolve"):
            return self._resolve(scope)

    def read_script(self, text: str) -> Script:
        return fake_scripts.read(text)

    def session_settings(self, migration: Migration) -> Mapping[str, str]:
        return {"role": migration.owner}

    def run_script(
        self, role: RoleName, secret: Secret, owner: str, text: str, tell: Callable[[Progress], None]
    ) -> Ran:
        with self._server.call("run_script"):
            session = self._server.login(role, secret.reveal())
        for line, kind in self.read_script(text).statements:
            tell(Progress("begun", line, line, kind))
        ran = self._server.runs(text)
        if not session.alive:
            tell(Progress("failed", text="the access ended while the file was run"))
            return Ran.ROLLED_BACK
        self._server.scripts.append(text)
        return ran

    def snapshot(self) -> Snapshot:
        with self._server.call("snapshot"):
            return dict(self._server.doors)

    def estimate_rows(self, manifest: Manifest) -> dict[int, int]:
        with self._server.call("estimate_rows"):
            return {item.oid: 1000 for item in manifest.objects if item.oid in self._server.tables}

    def create(self, order: Order) -> None:
        with self._server.call("create"):
            if self._server.late_creates:
                self._server.later(lambda: self._create(order))
                raise TargetUnavailable("the connection was lost while it was being made")
            self._create(order)

    def enable(self, role: RoleName, *, lifetime: int, audit_head: str) -> None:
        with self._server.call("enable"):
            found = self._server.roles.get(role)
            if found is None:
                raise TargetUnfit("there is no such login to enable")
            found.login = True
            found.valid_until = self._end(lifetime)
            self._remember(audit_head)

    def rights(self, role: RoleName) -> Rights:
        with self._server.call("rights"):
            found = self._server.roles.get(role)
            grants = found.grants if found else {}
            return {(oid, Verb.SELECT.value): columns for oid, columns in grants.items()}

    def rehearse(self, role: RoleName, secret: Secret, *, audit_head: str) -> None:
        with self._server.call("rehearse"):
            self._server.roles[role] = Role(role, True, secret.reveal(), self._end(60))
            self._remember(audit_head)

    def drill(self, role: RoleName, secret: Secret, *, reads: int | None) -> FakeDrill[OpenSession]:
        def enter(right: bool) -> OpenSession:
            return self._server.login(role, secret.reveal() if right else "another")

        return FakeDrill(enter, lambda session: session.alive, LoginRefused)

    def close(self, role: RoleName, *, audit_head: str) -> Taken:
        with self._server.call("close"):
            self._remember(audit_head)
            found = self._server.roles.get(role)
            if found is None:
                return Taken("absent", {self._target.address: 2}, absent=True)
            found.login, found.password = False, None
            ended = self._terminate(found)
            if self._server.unprovable:
                raise NotProven("the target's answer does not prove that the login is refused")
            return Taken(PROOF, {self._target.address: 2}, ended=ended)

    def expect(self, timeline: int) -> None:
        """One server, which is never promoted."""

    def end_overdue(self) -> list[Overdue]:
        with self._server.call("end_overdue"):
            ended, self._server.overdue = self._server.overdue, []
            return ended

    def sweep(self, role: RoleName) -> int:
        with self._server.call("sweep"):
            found = self._server.roles.get(role)
            return self._terminate(found) if found else 0

    def clean(self, role: RoleName) -> bool:
        with self._server.call("clean"):
            if self._server.block_all or role in self._server.blocked:
                return False
            self._server.roles.pop(role, None)
            return True

    def close_many(self, roles: Sequence[RoleName], *, audit_head: str) -> dict[RoleName, Taken | TaskpassError]:
        return close_each(self, roles, audit_head)

    def sweep_many(self, roles: Sequence[RoleName]) -> dict[RoleName, int]:
        return {role: found for role in roles if (found := self.sweep(role))}

    def clean_many(self, roles: Sequence[RoleName]) -> set[RoleName]:
        return {role for role in roles if self.clean(role)}

    def inventory(self) -> Inventory:
        with self._server.call("inventory"):
            found = [
                FoundRole(role.name, lease_of_role(self._installation, role.name), role.login, len(role.open))
                for role in self._server.roles.values()
                if role.name.startswith("tp_")
            ]
            return Inventory(
                epoch=self._server.epoch,
                own=tuple(role for role in found if role.lease),
                foreign=tuple(role.name for role in found if not role.lease),
                now=self._server.now(),
                audit_seq=self._server.audit_seq,
            )

    def set_epoch(self, epoch: int) -> None:
        with self._server.call("set_epoch"):
            self._server.epoch = max(self._server.epoch, epoch)

    def close_connections(self) -> None:
        """Nothing is kept open."""

    def _end(self, lifetime: int) -> Instant:
        return Instant(self._server.now() + lifetime * SECOND)

    def _remember(self, audit_head: str) -> None:
        self._server.audit_seq = max(self._server.audit_seq, int(audit_head.partition(":")[0]))

    def _terminate(self, role: Role) -> int:
        ended = len(role.open)
        for session in role.sessions:
            session.alive = False
        return ended

    def _create(self, order: Order) -> None:
        meant = self._resolve(order.scope)
        if meant.digest() != order.asked or not is_within(order.manifest, accept(meant, order.manifest.accepted)):
            raise ManifestChanged("what would be granted is not what was decided", hint="ask again")
        self._server.roles[order.role] = Role(
            order.role,
            password=order.secret.reveal(),
            valid_until=self._end(order.lifetime),
            grants={item.oid: frozenset(c.number for c in item.columns) for item in order.manifest.objects},
        )
        self._remember(order.audit_head)

    def _resolve(self, scope: Scope) -> Manifest:
        if scope.level is Level.MIGRATE:
            return Manifest(
                cluster=self._server.cluster,
                database=self._server.database,
                database_name="orders",
                level=scope.level,
                objects=(),
                migration=Migration(scope.owner, 10, scope.script),
            )
        objects: list[ObjectRights] = []
        dropped: list[Dropped] = []
        for table in sorted(self._server.tables.values(), key=lambda t: t.oid):
            if scope.excludes(table.schema, table.name):
                dropped.append(_dropped(table, DropReason.EXCLUDED))
            if not scope.wants(table.schema, table.name):
                continue
            reached = list(self._reached(table))
            bad = next((other for other in reached if scope.excludes(other.schema, other.name)), None)
            if bad:
                dropped.append(_dropped(table, DropReason.REACHES_EXCLUDED, f"{bad.schema}.{bad.name}"))
            else:
                cascades = [self._server.tables[oid] for oid in table.cascades if Verb.DELETE in scope.verbs]
                objects.append(_rights(table, reached, cascades, scope))
        return Manifest(
            cluster=self._server.cluster,
            database=self._server.database,
            database_name="orders",
            level=scope.level,
            objects=tuple(objects),
            dropped=tuple(dropped),
            ambient=("TEMP",),
        )

    def _reached(self, table: Table) -> Iterator[Table]:
        for oid in table.partitions:
            if oid in self._server.tables:
                yield self._server.tables[oid]
                yield from self._reached(self._server.tables[oid])


def _dropped(table: Table, reason: DropReason, because: str = "") -> Dropped:
    return Dropped(table.oid, table.kind, table.schema, table.name, reason, because)


def _rights(table: Table, reached: list[Table], cascades: list[Table], scope: Scope) -> ObjectRights:
    held = tuple(
        Held(Verb.DELETE, f"{other.schema}.{other.name}", Through.CASCADE)
        for other in cascades
        if scope.excludes(other.schema, other.name)
    )
    deleted = (Verb.DELETE,)
    return ObjectRights(
        oid=table.oid,
        kind=table.kind,
        schema=table.schema,
        name=table.name,
        owner=table.owner,
        columns=tuple(Column(number, name) for number, name in sorted(table.columns.items())),
        verbs=scope.verbs - {back.verb for back in held},
        reach=(
            *(Reach(other.oid, other.kind, other.schema, other.name, Through.PARTITION) for other in reached),
            *(Reach(other.oid, other.kind, other.schema, other.name, Through.CASCADE, deleted) for other in cascades),
        ),
        held=held,
    )
