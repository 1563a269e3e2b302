"""The reviewer secret: what a person types to sign a verdict. The broker keeps a public key and a salt, not the secret.

An Ed25519 key is derived from secret and salt by scrypt, so a copy of the broker's files does not help to approve; the
secret's 120 random bits, not scrypt, are what keeps it from being guessed. Not for: production (the dev tier, see
``core.approval.Method``).
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from taskpass.core.clock import Entropy
from taskpass.core.errors import InvalidInput
from taskpass.core.secret import Secret
from taskpass.keys import ed25519

SALT_BYTES = 16
_SECRET_BYTES = 15
_GROUPS = 6
_SCRYPT_N = 2**15
_SCRYPT_R = 8
_SCRYPT_MEMORY = 64 * 2**20
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_MISREAD = str.maketrans({"o": "0", "i": "1", "l": "1", "-": None, " ": None, "\t": None})


def new_reviewer_secret(entropy: Entropy) -> Secret:
    """120 random bits as six groups of four letters and digits, ``7k2m-…``; no letter that is read as another."""
    number = int.from_bytes(entropy.bytes(_SECRET_BYTES))
    digits = [_ALPHABET[(number >> (5 * place)) & 31] for place in range(_SECRET_BYTES * 8 // 5)]
    size = len(digits) // _GROUPS
    return Secret("-".join("".join(digits[at : at + size]) for at in range(0, len(digits), size)))


def new_salt(entropy: Entropy) -> str:
    """A salt for one person, base64."""
    return ed25519.encode(entropy.bytes(SALT_BYTES))


def derive(secret: Secret, salt: str) -> Ed25519PrivateKey:
    """The person's key. Case, spaces, dashes and the usual misreadings do not matter. Takes about 0.1 s and 32 MiB.

    Raises ``InvalidInput`` for what cannot be a reviewer secret or a salt, without echoing it.
    """
    typed = secret.reveal().strip().lower().translate(_MISREAD)
    if len(typed) != _SECRET_BYTES * 8 // 5 or not set(typed) <= set(_ALPHABET):
        raise InvalidInput("that is not a reviewer secret", hint="six groups of four letters and digits")
    raw_salt = ed25519.decode(salt, SALT_BYTES)
    if raw_salt is None:
        raise InvalidInput("that is not a reviewer's salt")
    seed = hashlib.scrypt(
        typed.encode(), salt=raw_salt, n=_SCRYPT_N, r=_SCRYPT_R, p=1, maxmem=_SCRYPT_MEMORY, dklen=ed25519.KEY_BYTES
    )
    return Ed25519PrivateKey.from_private_bytes(seed)


def verifier(secret: Secret, salt: str) -> tuple[str, str]:
    """What the broker keeps of a person: the public key and the salt, both base64."""
    return ed25519.public_of(derive(secret, salt)), salt


def sign(secret: Secret, salt: str, data: bytes) -> str:
    """Sign ``data`` (the bytes of ``core.approval.challenge``) on the person's side; base64."""
    return ed25519.encode(derive(secret, salt).sign(data))


def verify(public_key: str, data: bytes, signature: str) -> bool:
    """Whether the person with that public key signed. False, never an exception, for anything malformed."""
    return ed25519.verify(public_key, data, signature)
