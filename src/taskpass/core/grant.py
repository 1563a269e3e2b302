"""A grant: what a decision or an approval creates. No secret in it; leases are made from it."""

from __future__ import annotations

from dataclasses import dataclass

from taskpass.core.clock import Instant
from taskpass.core.ids import ApprovalId, GrantId, RequestId, TaskId
from taskpass.core.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Grant:
    """One task, one principal, one manifest, an end of its own and a number of leases.

    ``asked`` is the digest of the manifest before narrowing: issuing recomputes the scope and demands that it is still
    the same. ``digest`` is what was decided and signed. ``leases`` counts issues; a renewal counts (default 1, and
    unlimited renewals only for a grant that policy alone permits). ``ends_at`` starts at the approval, not at the use.
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
