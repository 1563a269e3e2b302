"""Ed25519 signing and verifying on printable values. One spelling of a signature is accepted, so none can be altered.

Not for: where keys live (``files``) or whose they are (``reviewer``, ``files``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from taskpass.core.errors import InvalidInput

AUDIT_PREFIX = "taskpass-audit-ed25519:"

KEY_BYTES = 32
SIGNATURE_BYTES = 64

_LOW_ORDER = frozenset(
    bytes.fromhex(point)
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
"""Public keys, sign bit cleared, under which one signature fits many messages. The library accepts them (the list is
libsodium's); nobody derives one honestly."""


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def decode(text: str, size: int) -> bytes | None:
    """The ``size`` bytes that ``text`` spells in canonical base64, or None. Padding bits must be zero."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if len(data) == size and encode(data) == text else None


def verify(public: str, data: bytes, signature: str) -> bool:
    """Whether the key ``public`` (base64 of 32 bytes) made ``signature`` (base64 of 64) over ``data``. Never raises."""
    key, raw = decode(public, KEY_BYTES), decode(signature, SIGNATURE_BYTES)
    if key is None or raw is None or _low_order(key):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(raw, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _low_order(key: bytes) -> bool:
    return key[:-1] + bytes([key[-1] & 0x7F]) in _LOW_ORDER


def public_of(private: Ed25519PrivateKey) -> str:
    """Base64 of the public half."""
    return encode(private.public_key().public_bytes_raw())


def key_id(public: str) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a public key (base64)."""
    raw = decode(public, KEY_BYTES)
    if raw is None:
        raise InvalidInput("not a valid public key")
    return hashlib.sha256(b"taskpass/key/v1\0" + raw).hexdigest()[:16]


class PublicKeys:
    """A ``Verifier`` for audit keys given as printable lines."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Raises ``InvalidInput`` for a line that is no audit key, and for no line at all: nothing would verify."""
        self._keys = {key_id(public): public for public in map(_public_part, lines)}
        if not self._keys:
            raise InvalidInput("no audit key was given")

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(sorted(self._keys))

    def verify(self, key_id: str, data: bytes, signature: str) -> bool:
        public = self._keys.get(key_id)
        return public is not None and verify(public, data, signature)


def _public_part(line: str) -> str:
    text = line.strip()
    public = text.removeprefix(AUDIT_PREFIX)
    raw = decode(public, KEY_BYTES)
    if not text.startswith(AUDIT_PREFIX) or raw is None or _low_order(raw):
        raise InvalidInput("not an audit key", hint=f"it looks like {AUDIT_PREFIX}… and taskpass keys ls prints it")
    return public
