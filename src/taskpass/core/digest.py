"""Digests that people sign and records chain on: SHA-256 over a domain label and RFC 8785 bytes.

Only strings, booleans, null, arrays, objects and safe integers may be digested; times are RFC 3339 strings. A float
would have to survive a round trip that JSON does not promise, so it is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
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
    """Raise for what may not be digested; whether every key in ``value`` is ASCII.

    A loop over exact types first: a request is some thousand values, digested several times.
    """
    plain = True
    todo: list[object] = [value]
    while todo:
        item = todo.pop()
        kind = type(item)
        if kind is str or item is None or kind is bool:
            continue
        if issubclass(kind, dict):
            fields = cast("dict[object, object]", item)
            plain = _are_plain(fields) and plain
            todo.extend(fields.values())
        elif issubclass(kind, list | tuple):
            todo.extend(cast("list[object]", item))
        else:
            _check_other(item)
    return plain


def _are_plain(keys: Iterable[object]) -> bool:
    plain = True
    for key in keys:
        if not isinstance(key, str):
            raise InvalidInput("an object key must be text")
        plain = plain and key.isascii()
    return plain


def _check_other(item: object) -> None:
    """``item`` is none of the frequent types."""
    if isinstance(item, int) and abs(item) > SAFE_INTEGER:
        raise InvalidInput("an integer is too large to be written exactly in JSON")
    if not isinstance(item, int | str):
        raise InvalidInput(f"a {type(item).__name__} cannot be digested")
