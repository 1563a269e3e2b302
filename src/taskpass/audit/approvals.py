"""Checks a person's signature on a verdict from its audit record alone, without the broker.

The data of an ``approval.recorded`` event carry everything that was signed; ``broker.review_request`` writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskpass.core import approval as rules
from taskpass.core.approval import Method
from taskpass.core.ids import HumanId
from taskpass.keys import ed25519

EVENT = "approval.recorded"

_SIGNED = ("digest", "nonce", "approver", "signature", "public_key", "verb", "comment", "method")


def is_signed(data: Mapping[str, Any]) -> bool:
    """Whether the record claims a person's signature. A self-confirmation may have none: it is the broker's word."""
    return not (data.get("method") == Method.SELF_CONFIRMATION.value and not data.get("signature"))


def fault(data: Mapping[str, Any], reviewers: Mapping[str, str] | None) -> str:
    """What is wrong with the signature in ``data``, or an empty text.

    ``reviewers`` maps people to their public keys as the auditor knows them; a person not in it is judged by the key in
    the record, which shows who signed only as far as the audit key is trusted.
    """
    if not all(isinstance(data.get(name), str) for name in _SIGNED):
        return "its approval does not carry what was signed"
    known = (reviewers or {}).get(data["approver"])
    if known is not None and known != data["public_key"]:
        return "its approval is signed with a key that is not the approver's"
    signed = rules.challenge(
        verb=data["verb"],
        digest_=data["digest"],
        approver=HumanId(data["approver"]),
        nonce=data["nonce"],
        comment=data["comment"],
    )
    if not ed25519.verify(data["public_key"], signed, data["signature"]):
        return "its approval's signature is not by the approver"
    return ""
