"""Issuers make credentials in a target and take them back: the contract of every one.

Contract
    * All effects are idempotent by lease id. Creating again for the same lease replaces the secret and creates no
      second account; taking back what is gone, or never was, is success.
    * An issuer never decides. It is told what was decided, recomputes what it would grant inside the granting
      transaction and raises ``ManifestChanged`` if that differs.
    * ``close`` returns only when the target itself proved that the account is refused; otherwise it raises
      ``NotProven`` (the target answered, the answer is no proof) or ``TargetUnavailable`` (no answer). Both are
      retried for ever.
    * Errors: ``TargetUnavailable``, ``TargetUnfit``, ``ManifestChanged``, ``NotProven``, ``InvalidInput``. Driver
      exceptions never escape, and no message holds a secret.
    * Methods block (callers run them in threads), are safe to call from several threads, and bound their own time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from taskpass.core.aftermath import Ran
from taskpass.core.clock import Instant
from taskpass.core.decision import Delivery
from taskpass.core.errors import TaskpassError
from taskpass.core.ids import InstallationId, LeaseId, RoleName
from taskpass.core.lease import Target
from taskpass.core.limits import Enforced, Limits
from taskpass.core.manifest import Manifest, Migration
from taskpass.core.scope import Level, Scope, Verb
from taskpass.core.script import Script
from taskpass.core.secret import Secret
from taskpass.core.widening import Snapshot

BULK = 250
"""Leases that are closed in one transaction of a target, each of them proven by its own attempt."""

STORM_BULK = 1000
"""As many at most where more than that wait at one target; how they are proven is the issuer's to say."""

CLEAN_BULK = 50
"""Leases that are cleaned in one transaction, which nobody can issue beside: issuing must not wait for it."""

CLOSE_ALONE = "close_alone"
"""Code of ``NotProven`` for what a bulk leaves to the closing of one; nothing is wrong with it yet."""


class RevocationSpeed(StrEnum):
    NOW = "now"
    NEXT_REQUEST = "next request"
    AT_EXPIRY = "at expiry"
    GATEWAY_ONLY = "only through our gateway"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this issuer can do on its target at one level; shown before approval, asked for by tests and policy.

    ``limits`` maps each limit of ``core.limits`` to who enforces it there. ``row_limits``: whether rows can be bound to
    the lease's tenant by the target. ``changes_data`` and ``changes_schema``: what the level can do at all.
    ``unlisted_nodes`` counts servers that were seen to replicate from the target and are not listed, None where the
    target does not show them: a revocation is proven on the primary and on listed nodes only.
    """

    cuts_open_sessions: bool
    expires_by_itself: bool
    revocation: RevocationSpeed
    per_object: bool
    delivers_endpoint: bool
    changes_data: bool = False
    changes_schema: bool = False
    row_limits: bool = False
    limits: Mapping[str, Enforced] = field(default_factory=dict[str, Enforced], hash=False)
    unlisted_nodes: int | None = 0

    def to_json(self) -> dict[str, object]:
        return {
            "cuts_open_sessions": self.cuts_open_sessions,
            "expires_by_itself": self.expires_by_itself,
            "revocation": self.revocation.value,
            "per_object": self.per_object,
            "delivers_endpoint": self.delivers_endpoint,
            "changes_data": self.changes_data,
            "changes_schema": self.changes_schema,
            "row_limits": self.row_limits,
            "unlisted_nodes": self.unlisted_nodes,
        }


Rights = dict[tuple[int, str], frozenset[int]]
"""By (object oid, privilege) the numbers of the columns, none for a privilege that knows no columns. Privileges are
``Verb``s on tables, ``USAGE`` on sequences, and whatever else the target knows: what it says, not what was wanted."""


def rights_of(manifest: Manifest) -> Rights:
    """The rights that ``manifest`` means, as ``Issuer.rights`` tells them. A migration's are its owner's: none."""
    found: Rights = {}
    for item in manifest.objects:
        columns = frozenset(column.number for column in item.columns)
        found |= {(item.oid, v.value): frozenset[int]() if v is Verb.DELETE else columns for v in item.verbs}
        found |= {(sequence.oid, "USAGE"): frozenset[int]() for sequence in item.granted_sequences}
    return found


class Severity(StrEnum):
    OK = "ok"
    NOTE = "note"
    """True and worth knowing; nothing is refused."""
    WARNING = "warning"
    """Shown by ``doctor`` for as long as it stands."""
    FATAL = "fatal"
    """The resource is refused."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a preflight check, in words a DBA can act on. ``fix`` is SQL or a sentence, or empty."""

    check: str
    severity: Severity
    message: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """What to create for one lease.

    ``asked`` is the digest of the manifest that ``scope`` resolved to when it was decided: the recomputed one must have
    the same. ``manifest`` (within it) is what is granted. ``lifetime`` in seconds from now by the target's clock.
    ``verifier_of`` is the secret whose SCRAM verifier is sent; the secret itself never is. ``audit_head`` goes into the
    target's own log as an outside anchor. ``delivery`` says who logs in with the secret: the broker alone, or whoever
    was handed it, with any client.
    """

    lease: LeaseId
    role: RoleName
    scope: Scope
    asked: str
    manifest: Manifest
    lifetime: int
    secret: Secret = field(repr=False)
    audit_head: str = ""
    limits: Limits = field(default_factory=Limits)
    delivery: Delivery = Delivery.ENDPOINT


@dataclass(frozen=True, slots=True)
class Taken:
    """The proof that an access is gone, as the target gave it. This is a stored format.

    ``answer`` names what was read on the wire (``AuthenticationOk,28000``), or says what else it rests on; ``nodes``
    maps each node that was swept to the number of clean scans; ``ended`` counts sessions that were cut; ``fenced``
    starting ones; ``prepared`` prepared transactions rolled back; ``absent`` is True if the role did not exist;
    ``took_ms`` from the call to the proof.
    """

    answer: str
    nodes: dict[str, int]
    ended: int = 0
    fenced: int = 0
    prepared: int = 0
    absent: bool = False
    took_ms: int = 0
    steps: tuple[tuple[str, int], ...] = ()
    """(step, milliseconds since the call) in order."""
    unlisted: int | None = 0
    """Servers that replicated from the target at that time and are not listed, so nothing was proven there. None where
    the target does not show them.
    """

    def to_json(self) -> dict[str, object]:
        return {
            "answer": self.answer,
            "nodes": dict(self.nodes),
            "ended": self.ended,
            "fenced": self.fenced,
            "prepared": self.prepared,
            "absent": self.absent,
            "took_ms": self.took_ms,
            "steps": [list(step) for step in self.steps],
            "unlisted": self.unlisted,
        }


@dataclass(frozen=True, slots=True)
class FoundRole:
    """A role with our prefix that exists in the target.
    ``lease`` is None for another installation's or a hand-made one.
    """

    name: str
    lease: LeaseId | None
    can_login: bool
    sessions: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """What stands in the target now.

    ``epoch`` and ``audit_seq`` are the highest epoch and audit sequence number that the target remembers of this
    installation (from the heads that come with issue, enable and close): a store behind either is a restored copy.
    """

    epoch: int
    own: tuple[FoundRole, ...]
    foreign: tuple[str, ...]
    now: Instant
    unlisted_nodes: tuple[str, ...] = ()
    audit_seq: int = 0
    timeline: int = 0
    """Raised by the target with each promotion; 0 where it does not tell."""
    changed: tuple[tuple[LeaseId, str], ...] = ()
    """Live leases whose account is not any more what was made, and how: ``gone``, ``renamed``, or wider by another hand
    (``privileged``, ``member``, ``lent``, ``granted``)."""


@dataclass(frozen=True, slots=True)
class Met:
    """What one client of a drill met. This is a stored format.

    ``ended`` says how its access ended, in the target's words (a SQLSTATE) or ours; empty if it still worked after the
    proof. ``after_ms`` from the order to take back until the client noticed; None where nothing has to be noticed.
    """

    kind: str
    ended: str
    after_ms: int | None = None

    def to_json(self) -> dict[str, object]:
        return {"kind": self.kind, "ended": self.ended, "after_ms": self.after_ms}


class DrillClients(Protocol):
    """The clients of a drill: they hold sessions of one account open, and judge from their side whether it ended.

    Called in the order of the methods, from one thread; ``close`` at any time.
    """

    def control(self) -> None:
        """Show that the judgement can fail: the account gets in with its password and with no other one, on every
        node. Raises ``TargetUnfit``.
        """
        ...

    def open(self) -> tuple[str, ...]:
        """Open a session of each kind, each of which has got an answer; the kinds."""
        ...

    def ordered(self) -> None:
        """The access is taken back from now on: the clients' clocks start."""
        ...

    def met(self) -> tuple[Met, ...]:
        """To be called after the proof: every client tries again. One that still gets an answer has an empty
        ``ended``.
        """
        ...

    def close(self) -> None:
        """Give everything up. Idempotent; raises nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Overdue:
    """A session that was ended because it was over ``limit``. ``node`` is 0 for the primary, else counts nodes."""

    lease: str
    limit: str
    node: int = 0


class Issuer(Protocol):
    """One resource's issuer: bound to one target and one installation."""

    @property
    def capabilities(self) -> Capabilities:
        """Those of ``read``."""
        ...

    def capabilities_of(self, level: Level) -> Capabilities:
        """Without asking the target: what depends on it is as ``preflight`` found it last."""
        ...

    @property
    def target(self) -> Target: ...

    @property
    def installation(self) -> InstallationId: ...

    def preflight(self, *, thorough: bool = False) -> list[Finding]:
        """Whether the target can be served.
        ``thorough`` also rehearses with a real throw-away role (positive control).
        """
        ...

    def resolve(self, scope: Scope) -> Manifest:
        """Read the catalogue: the manifest that ``scope`` means now. Raises ``TargetUnfit`` for fatal PUBLIC reach."""
        ...

    def estimate_rows(self, manifest: Manifest) -> dict[int, int]:
        """The target's own row estimates by object oid, for people; never part of a digest."""
        ...

    def create(self, order: Order) -> None:
        """Create the account *disabled* with exactly the granted rights; nothing can log in yet."""
        ...

    def enable(self, role: RoleName, *, lifetime: int, audit_head: str) -> None:
        """Let the account log in for ``lifetime`` seconds from now by the target's clock. Also used to renew."""
        ...

    def rights(self, role: RoleName) -> Rights:
        """Read back what the account can do itself; empty for one that is gone, or that acts as an owner."""
        ...

    def rehearse(self, role: RoleName, secret: Secret, *, audit_head: str) -> None:
        """Create an account without a right on any object, which can log in for a minute."""
        ...

    def drill(self, role: RoleName, secret: Secret, *, reads: int | None) -> DrillClients:
        """Clients for the live account ``role``; they read no row of the table ``reads`` (its oid), or no table."""
        ...

    def close(self, role: RoleName, *, audit_head: str) -> Taken:
        """Take everything away and prove it (design: architecture.md, *closing*)."""
        ...

    def expect(self, timeline: int) -> None:
        """The target was seen on ``timeline``: a server on an earlier one is a former primary, on which nothing is
        done and nothing is proven (``TargetUnfit``, ``former_primary``). Never lowers what was expected.
        """
        ...

    def end_overdue(self) -> list[Overdue]:
        """End the sessions of this installation's live leases that are over a limit of theirs, and say which."""
        ...

    def sweep(self, role: RoleName) -> int:
        """Late sweep after ``close``: end and count the sessions found. More than 0 is an incident."""
        ...

    def clean(self, role: RoleName) -> bool:
        """Remove what is left. False if something still blocks it (to be retried); True if nothing is left."""
        ...

    def close_many(self, roles: Sequence[RoleName], *, audit_head: str) -> dict[RoleName, Taken | TaskpassError]:
        """``close`` for many at once: a proof, or what keeps it from one, for each. At most ``STORM_BULK``.

        ``NotProven`` with code ``close_alone`` means that it takes ``close``. Raises what concerns all of them.
        """
        ...

    def sweep_many(self, roles: Sequence[RoleName]) -> dict[RoleName, int]:
        """``sweep`` for many at once; only those of which sessions were found."""
        ...

    def clean_many(self, roles: Sequence[RoleName]) -> set[RoleName]:
        """``clean`` for many at once; those of which nothing is left. The others take ``clean``."""
        ...

    def inventory(self) -> Inventory: ...

    def set_epoch(self, epoch: int) -> None:
        """Raise the epoch that the target remembers; never lowers it."""
        ...

    def close_connections(self) -> None:
        """Give back pooled connections; the issuer stays usable."""
        ...


def close_each(issuer: Issuer, roles: Sequence[RoleName], audit_head: str) -> dict[RoleName, Taken | TaskpassError]:
    """``close_many`` of an issuer that has nothing faster."""
    found: dict[RoleName, Taken | TaskpassError] = {}
    for role in roles:
        try:
            found[role] = issuer.close(role, audit_head=audit_head)
        except TaskpassError as error:
            found[role] = error
    return found


@dataclass(frozen=True, slots=True)
class Progress:
    """One thing that happened while a file was run; for the agent, so never a secret and never the role.

    ``number`` counts statements from 1 (0: the whole file), ``line`` is where it begins. ``what`` is ``begun``,
    ``done``, ``notice`` or ``failed``; ``text`` is the target's own short word for it (``INSERT 0 5``), a notice, or
    an error. ``rows`` is None where the target does not count; ``took_ms`` in milliseconds.
    """

    what: str
    number: int = 0
    line: int = 0
    text: str = ""
    rows: int | None = None
    took_ms: int = 0


class Migrator(Issuer, Protocol):
    """An issuer whose target can be migrated. It resolves, creates, enables and closes leases of level migrate too.

    A migrate lease acts as ``manifest.migration.owner``, whose objects are the owner's and never the lease's. An owner
    that can log in, or may do more than own, is ``TargetUnfit``.
    """

    def read_script(self, text: str) -> Script:
        """What ``text`` is, without asking the target.

        Raises ``InvalidInput`` (``script_refused``) that names the line of what cannot be run.
        """
        ...

    def run_script(
        self, role: RoleName, secret: Secret, owner: str, text: str, tell: Callable[[Progress], None]
    ) -> Ran:
        """Log in as the lease and run ``text`` as ``owner``; blocks as long as it takes, or until the lease is closed.

        A statement that fails is told and ends the run; it is no error of this call. Raises ``TargetUnavailable`` if
        the lease could not log in; then nothing was run.
        """
        ...

    def session_settings(self, migration: Migration) -> Mapping[str, str]:
        """Settings with which each session of a hands-on lease must start, whatever its client asks for."""
        ...

    def snapshot(self) -> Snapshot:
        """What the catalogue holds that gives access, or runs code as somebody else."""
        ...
