"""Identifiers: how they are made, and which of them a target may ever see.

An id is ``<kind>_<26 characters>``: a ULID (48 bits of milliseconds, 80 random bits) in lower-case Crockford base32.
Ids sort by time and need no quoting in SQL, in paths or in SPIFFE ids. Not for secrets: an id authorises nothing.
"""

from __future__ import annotations

import re
from typing import NewType

from taskpass.core.clock import Entropy, Instant
from taskpass.core.errors import InvalidInput

InstallationId = NewType("InstallationId", str)
RunId = NewType("RunId", str)
TaskId = NewType("TaskId", str)
RequestId = NewType("RequestId", str)
ApprovalId = NewType("ApprovalId", str)
GrantId = NewType("GrantId", str)
LeaseId = NewType("LeaseId", str)
DecisionId = NewType("DecisionId", str)
HumanId = NewType("HumanId", str)
RoleName = NewType("RoleName", str)

KINDS = {
    "run": RunId,
    "tsk": TaskId,
    "req": RequestId,
    "apr": ApprovalId,
    "grt": GrantId,
    "lse": LeaseId,
    "dec": DecisionId,
}

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_ULID = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}")
_INSTALLATION = re.compile(r"[0-9a-hjkmnp-tv-z]{8}")
_ROLE = re.compile(r"tp_([0-9a-hjkmnp-tv-z]{8})_([0-7][0-9a-hjkmnp-tv-z]{25})")


def _base32(number: int, length: int) -> str:
    return "".join(_ALPHABET[(number >> (5 * place)) & 31] for place in reversed(range(length)))


def new_id(kind: str, at: Instant, entropy: Entropy) -> str:
    """A fresh id of ``kind`` (a key of ``KINDS``)."""
    if kind not in KINDS:
        raise InvalidInput(f"unknown kind of id: {kind}")
    number = (at & (2**48 - 1)) << 80 | int.from_bytes(entropy.bytes(10))
    return f"{kind}_{_base32(number, 26)}"


def first_id(kind: str, at: Instant) -> str:
    """The smallest id of ``kind`` that can be made at ``at``: ids sort by time, so an id's index is one of time too."""
    return f"{kind}_{_base32((at & (2**48 - 1)) << 80, 26)}"


def new_installation_id(entropy: Entropy) -> InstallationId:
    """Forty random bits in eight characters: part of every role name, so that two installations never share one."""
    return InstallationId(_base32(int.from_bytes(entropy.bytes(5)), 8))


def parse_id(kind: str, text: object) -> str:
    """``text`` if it is a well-formed id of ``kind``; raises ``InvalidInput`` otherwise, without echoing it."""
    if isinstance(text, str) and text.startswith(f"{kind}_") and _ULID.fullmatch(text[4:]):
        return text
    raise InvalidInput(f"not a valid {kind} id", hint=f"an id looks like {kind}_ followed by 26 letters and digits")


def role_name(installation: InstallationId, lease: LeaseId) -> RoleName:
    """The login role of a lease: ``tp_<installation>_<lease>``, 38 bytes, the one attribution an agent cannot forge."""
    if not _INSTALLATION.fullmatch(installation):
        raise InvalidInput("not a valid installation id")
    return RoleName(f"tp_{installation}_{parse_id('lse', lease)[4:]}")


def lease_of_role(installation: InstallationId, role: str) -> LeaseId | None:
    """The lease behind a role of *this* installation, or None for any other name."""
    match = _ROLE.fullmatch(role)
    if match and match[1] == installation:
        return LeaseId(f"lse_{match[2]}")
    return None
