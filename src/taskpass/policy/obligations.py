"""Annotations of a policy, parsed strictly into what they oblige to.

Cedar ignores annotations, so a typing error in one would silently drop a duty: every name and value is checked while
loading, and a bad one refuses the bundle. Not for combining duties: see ``core.decision``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import TypeVar

from taskpass.core.decision import ABSOLUTE_MAX_TTL, Delivery, Obligations
from taskpass.core.errors import PolicyInvalid
from taskpass.policy.words import nearest

ANNOTATIONS: Mapping[str, str] = {
    "id": "unique name of the policy: letters, digits and hyphens; recorded in every decision",
    "title": "one line for people",
    "owner": "who answers for the policy",
    "max_ttl": f"longest life in seconds, 1 to {ABSOLUTE_MAX_TTL}; the smallest of all determining policies applies",
    "quorum": "number of distinct people who must approve, 1 to 9; the largest applies",
    "approvers": "groups, separated by commas, each of which must be among the approvers; all of them apply",
    "read_only": "without a value: sessions are read-only; one policy that says so suffices",
    "delivery": 'how the access may reach the tool: "endpoint", or "bearer" too if every determining policy says so',
    "reason_code": "of a forbid: the code that the agent is told instead of policy_denied",
    "review_by": "date (YYYY-MM-DD) after which `taskpass policy check` warns",
}

CORE_CODES = frozenset(
    {
        "permitted",
        "needs_approval",
        "policy_denied",
        "policy_error",
        "no_approvers",
        "too_few_approvers",
        "nothing_asked",
        "too_many_objects",
        "endpoint_only",
        "hands_on_refused",
        "read_only",
    }
)
"""Codes that the engine itself answers with; a policy must not pretend to be one of them."""

T = TypeVar("T")
D = TypeVar("D")

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_CODE = re.compile(r"[a-z][a-z0-9_]{2,39}")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Terms:
    """What the annotations of one policy say. ``review_by`` None: no date was set."""

    id: str
    title: str = ""
    owner: str = ""
    duties: Obligations = field(default_factory=Obligations)
    reason_code: str = ""
    review_by: date | None = None


def parse(annotations: Mapping[str, str | None], *, forbids: bool) -> Terms:
    """The terms of one policy; raises ``PolicyInvalid`` with a message that does not yet name the file."""
    for name in annotations:
        if name not in ANNOTATIONS:
            raise PolicyInvalid(f"there is no annotation @{name}{nearest(name, ANNOTATIONS)}")
    if "reason_code" in annotations and not forbids:
        raise PolicyInvalid("@reason_code belongs on a forbid: a permit has nothing to explain")
    said = {name: value or "" for name, value in annotations.items()}
    return Terms(
        id=_id(said.get("id", "")),
        title=said.get("title", ""),
        owner=said.get("owner", ""),
        duties=_duties(said),
        reason_code=_parsed(said, "reason_code", _reason_code, ""),
        review_by=_parsed(said, "review_by", date.fromisoformat, None),
    )


def _id(text: str) -> str:
    if not text:
        raise PolicyInvalid("a policy has no @id", hint='give each policy a name of its own: @id("orders-read")')
    if not _ID.fullmatch(text):
        raise PolicyInvalid("an @id may hold small letters, digits and hyphens only, at most 64")
    return text


def _duties(said: Mapping[str, str]) -> Obligations:
    return Obligations(
        max_ttl=_parsed(said, "max_ttl", _whole_number(ABSOLUTE_MAX_TTL), ABSOLUTE_MAX_TTL),
        quorum=_parsed(said, "quorum", _whole_number(9), 0),
        approvers=_parsed(said, "approvers", _groups, frozenset[str]()),
        read_only=_parsed(said, "read_only", _flag, False),
        delivery=_parsed(said, "delivery", _delivery, Delivery.ENDPOINT),
    )


def _parsed(said: Mapping[str, str], name: str, read: Callable[[str], T], absent: D) -> T | D:
    if name not in said:
        return absent
    try:
        return read(said[name])
    except ValueError:
        raise PolicyInvalid(f"@{name} has a value that is not valid", hint=f"@{name}: {ANNOTATIONS[name]}") from None


def _whole_number(largest: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[1-9][0-9]{0,5}", text) or int(text) > largest:
            raise ValueError
        return int(text)

    return read


def _groups(text: str) -> frozenset[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(_GROUP.fullmatch(name) for name in names):
        raise ValueError
    return frozenset(names)


def _flag(text: str) -> bool:
    """A flag is set by naming it. "false" would read as a duty that was lifted, which no annotation can do."""
    if text not in ("", "true"):
        raise ValueError
    return True


def _delivery(text: str) -> Delivery:
    return Delivery(text)


def _reason_code(text: str) -> str:
    if not _CODE.fullmatch(text) or text in CORE_CODES:
        raise ValueError
    return text
