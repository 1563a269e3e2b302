"""A grant: what a decision or an approval creates. No secret in it; leases are made from it."""

from __future__ import annotations

from dataclasses import dataclass

from taskpass.core.clock import Instant
from taskpass.core.ids import ApprovalId, GrantId, RequestId, TaskId
from taskpass.core.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Grant:
    """One task, one principal, one manifest, an end of its own, one lease.

    ``asked`` is the digest of the manifest before narrowing: issuing recomputes the scope and demands that it is still
    the same. ``digest`` is what was decided and signed. The store allows one grant for each request, and a
    request is used up by its lease. ``renewable``: policy alone permitted it, inside a run, so that its lease may be
    renewed until ``ends_at``. ``ends_at`` starts at the approval, not at the use.
    """

    id: GrantId
    request: RequestId
    task: TaskId
    resource: str
    asked: str
    manifest: Manifest
    digest: str
    approvals: tuple[ApprovalId, ...]
    renewable: bool
    created_at: Instant
    ends_at: Instant
