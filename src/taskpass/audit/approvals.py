"""Checks a person's signature from its audit record alone, without the broker.

Two events carry everything that was signed: ``approval.recorded``, a verdict (``broker.review_request`` writes it), and
``migration.accepted``, a yes to what a migration left wider (``broker.aftermath``). Of the second one the signed digest
is computed again from what the record says was accepted. Not for whether that person was allowed to decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskpass.core import approval as rules
from taskpass.core.approval import Method, Verdict
from taskpass.core.ids import HumanId
from taskpass.core.widening import Widening, widening_digest
from taskpass.keys import ed25519

EVENT = "approval.recorded"
ACCEPTED = "migration.accepted"

_SIGNED = ("digest", "nonce", "approver", "signature", "public_key", "verb", "comment", "method")


def is_signed(data: Mapping[str, Any]) -> bool:
    """Whether the record claims a person's signature. A self-confirmation may have none: it is the broker's word."""
    return not (data.get("method") == Method.SELF_CONFIRMATION.value and not data.get("signature"))


def fault(data: Mapping[str, Any], reviewers: Mapping[str, str] | None) -> str:
    """What is wrong with the signature in ``data``, or an empty text.

    ``reviewers`` maps people to their public keys as the auditor knows them; a person not in it is judged by the key in
    the record, which shows who signed only as far as the audit key is trusted.
    """
    if not all(isinstance(data.get(name), str) for name in _SIGNED) or data["verb"] not in set(Verdict):
        return "its approval does not carry what was signed"
    return _unsigned(data, reviewers, what="approval")


def acceptance_fault(body: Mapping[str, Any], reviewers: Mapping[str, str] | None) -> str:
    """As ``fault``, for the whole content of a ``migration.accepted`` record."""
    data: Mapping[str, Any] = body["data"]
    try:
        lease = body["subject"]["lease"]
        accepted = widening_digest(lease, [Widening.from_json(each) for each in data["widening"]])
    except (KeyError, TypeError, ValueError):
        return "its acceptance does not carry what was signed"
    signed = {**data, "verb": rules.ACCEPT_WIDENING, "approver": str(body["actor"]).removeprefix("human:")}
    if not all(isinstance(signed.get(name), str) for name in _SIGNED):
        return "its acceptance does not carry what was signed"
    if accepted != data["digest"]:
        return "its acceptance is of something else than the record says was left"
    return _unsigned(signed, reviewers, what="acceptance")


def _unsigned(data: Mapping[str, Any], reviewers: Mapping[str, str] | None, *, what: str) -> str:
    known = (reviewers or {}).get(data["approver"])
    if known is not None and known != data["public_key"]:
        return f"its {what} is signed with a key that is not the approver's"
    signed = rules.challenge(
        verb=data["verb"],
        digest_=data["digest"],
        approver=HumanId(data["approver"]),
        nonce=data["nonce"],
        comment=data["comment"],
    )
    if not ed25519.verify(data["public_key"], signed, data["signature"]):
        return f"its {what}'s signature is not by the approver"
    return ""
