"""Digests that people sign and records chain on: SHA-256 over a domain label and RFC 8785 bytes.

Only strings, booleans, null, arrays, objects and safe integers may be digested; times are RFC 3339 strings. A float
would have to survive a round trip that JSON does not promise, so it is refused.
"""

from __future__ import annotations

import hashlib
import json
from typing import cast

import rfc8785

from taskpass.core.errors import InvalidInput

SAFE_INTEGER = 2**53 - 1

REQUEST = "taskpass/request/v1"
MANIFEST = "taskpass/manifest/v1"
CHALLENGE = "taskpass/challenge/v1"
AUDIT = "taskpass/audit/v1"
ADOPTION = "taskpass/adoption/v1"
BROKER = "taskpass/broker/v1"
HEAD = "taskpass/audit-head/v1"
SNAPSHOT = "taskpass/snapshot/v1"
DECISION = "taskpass/decision/v1"
WIDENING = "taskpass/widening/v1"


def canonical(value: object) -> bytes:
    """RFC 8785 bytes of ``value``; raises ``InvalidInput`` for anything outside the digestible domain.

    In this domain the standard library writes what RFC 8785 wants as long as every key is ASCII, and many times as
    fast. RFC 8785 sorts keys by UTF-16 units, so other keys go through the reference implementation. A property test
    holds the two together.
    """
    plain = _check(value)
    try:
        if plain:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
        return rfc8785.dumps(cast("dict[str, object]", value))  # pyright: ignore[reportArgumentType]
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as error:
        raise InvalidInput("a value cannot be written canonically") from error


def digest(label: str, value: object) -> str:
    """``sha256:<hex>`` over ``label``, a NUL and the canonical bytes. The label keeps kinds of digest apart."""
    return digest_bytes(label, canonical(value))


def digest_bytes(label: str, data: bytes) -> str:
    """As ``digest``, for bytes that are canonical already."""
    return "sha256:" + hashlib.sha256(label.encode() + b"\0" + data).hexdigest()


def _check(value: object) -> bool:
    """Raise for what may not be digested; whether every key in ``value`` is ASCII."""
    if value is None or isinstance(value, str | bool):
        return True
    if isinstance(value, int):
        if abs(value) > SAFE_INTEGER:
            raise InvalidInput("an integer is too large to be written exactly in JSON")
        return True
    if isinstance(value, dict):
        return _check_object(cast("dict[object, object]", value))
    if isinstance(value, list | tuple):
        plain = True
        for item in cast("list[object]", value):
            plain = _check(item) and plain
        return plain
    raise InvalidInput(f"a {type(value).__name__} cannot be digested")


def _check_object(value: dict[object, object]) -> bool:
    plain = True
    for key, item in value.items():
        if not isinstance(key, str):
            raise InvalidInput("an object key must be text")
        plain = _check(item) and key.isascii() and plain
    return plain
