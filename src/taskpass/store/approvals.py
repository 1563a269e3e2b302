"""Approvals, their single use, and challenges. See ``store.base.Approvals`` and ``Challenges`` for the contracts."""

from __future__ import annotations

import builtins
from collections.abc import Iterable

from sqlalchemy import delete, insert, select

from taskpass.core.approval import Approval
from taskpass.core.clock import SECOND, Instant
from taskpass.core.errors import Expired, NotFound
from taskpass.core.ids import ApprovalId, GrantId, HumanId, RequestId
from taskpass.store import codec, rows
from taskpass.store.session import Session
from taskpass.store.tables import approval_uses, approvals, challenges

_FORGOTTEN = 3600 * SECOND
"""A challenge that nobody answered is removed this long after its end, when the next one is made."""


class SqlApprovals:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, approval: Approval) -> None:
        rows.add(self._session, approvals, codec.approval_row(approval))

    def of_request(self, request_id: RequestId) -> builtins.list[Approval]:
        """Oldest first."""
        wanted = select(approvals).where(approvals.c.request == request_id)
        found = self._session.rows(wanted.order_by(approvals.c.created_at, approvals.c.id))
        return [codec.approval_of(row) for row in found]

    def consume(self, approval_ids: Iterable[ApprovalId], grant: GrantId) -> None:
        for approval in approval_ids:
            if self._session.first(select(approvals.c.id).where(approvals.c.id == approval)) is None:
                raise NotFound("no such approval")
            self._session.change(insert(approval_uses), {"approval": approval, "grant": grant})

    def consumed(self, approval_id: ApprovalId) -> GrantId | None:
        row = self._session.first(select(approval_uses.c.grant).where(approval_uses.c.approval == approval_id))
        return GrantId(row["grant"]) if row else None


class SqlChallenges:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, nonce: str, *, verb: str, subject: str, human: HumanId, expires_at: Instant) -> None:
        self._session.change(delete(challenges).where(challenges.c.expires_at < expires_at - _FORGOTTEN))
        row = {"nonce": nonce, "verb": verb, "subject": subject, "human": human, "expires_at": expires_at}
        rows.add(self._session, challenges, row)

    def take(self, nonce: str, *, verb: str, subject: str, human: HumanId, now: Instant) -> None:
        fitting = delete(challenges).where(
            challenges.c.nonce == nonce,
            challenges.c.verb == verb,
            challenges.c.subject == subject,
            challenges.c.human == human,
            challenges.c.expires_at > now,
        )
        if self._session.change(fitting) != 1:
            raise Expired(
                "that confirmation is not open, or not any more", hint="ask for a new one and sign it at once"
            )
