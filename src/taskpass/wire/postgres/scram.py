"""The client's side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677, RFC 5929).

The primitives (PBKDF2, HMAC, SHA-256, constant-time comparison) are the standard library's; this module only puts the
messages together. The ``scramp`` library cannot be used for it: from 1.5 it refuses fewer than 4096 iterations, and an
endpoint's verifier has one (its secret is 256 random bits that only the broker knows). The tests check this module
against ``scramp``'s server and against real servers. Not for passwords that people choose: the secret must be ASCII,
for which SASLprep is the identity.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from taskpass.core.errors import InvalidInput
from taskpass.core.secret import Secret
from taskpass.wire.postgres.messages import Malformed

PLAIN = "SCRAM-SHA-256"
PLUS = "SCRAM-SHA-256-PLUS"

MAX_ITERATIONS = 10_000
"""What a server may make us compute (about 5 ms). Our verifiers have 1 or 4096."""


class ServerNotProven(Malformed):
    """The server did not show that it holds the verifier of this secret."""


class ScramClient:
    """One exchange: ``first``, then ``final`` with the server's first message, then ``verify`` with its last one.

    ``nonce`` is fresh printable ASCII without a comma. ``binding`` is the ``tls-server-end-point`` hash of the server's
    certificate; with it the mechanism is SCRAM-SHA-256-PLUS.
    """

    def __init__(self, secret: Secret, nonce: str, binding: bytes | None = None) -> None:
        if not secret.reveal().isascii():
            raise InvalidInput("a SCRAM secret must be ASCII")
        self.mechanism = PLUS if binding is not None else PLAIN
        self._secret = secret
        self._nonce = nonce
        self._gs2 = "p=tls-server-end-point,," if binding is not None else "n,,"
        self._binding = base64.b64encode(self._gs2.encode() + (binding or b"")).decode()
        self._bare = f"n=*,r={nonce}"  # PostgreSQL takes the user from the StartupMessage and ignores this name.
        self._server_signature: bytes | None = None

    def first(self) -> bytes:
        return (self._gs2 + self._bare).encode()

    def final(self, server_first: bytes) -> bytes:
        """The proof. Raises ``Malformed``; ``ServerNotProven`` if the nonce is not an answer to ours."""
        server_text, nonce, salt, iterations = _server_first(server_first)
        if not nonce.startswith(self._nonce) or nonce == self._nonce:
            raise ServerNotProven("the server's nonce does not answer ours")
        salted = hashlib.pbkdf2_hmac("sha256", self._secret.reveal().encode("ascii"), salt, iterations)
        without_proof = f"c={self._binding},r={nonce}"
        signed = f"{self._bare},{server_text},{without_proof}".encode()
        client_key = _hmac(salted, b"Client Key")
        signature = _hmac(hashlib.sha256(client_key).digest(), signed)
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        self._server_signature = _hmac(_hmac(salted, b"Server Key"), signed)
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def verify(self, server_final: bytes) -> None:
        """Raises ``ServerNotProven`` unless the server signed this very exchange."""
        expected = self._server_signature
        if expected is None or not server_final.startswith(b"v="):
            raise ServerNotProven("the server did not sign the exchange")
        value = server_final[2:].split(b",", 1)[0]
        if not hmac.compare_digest(_base64(value), expected):
            raise ServerNotProven("the server's signature is wrong")


def _server_first(raw: bytes) -> tuple[str, str, bytes, int]:
    try:
        server_text = raw.decode("ascii")
    except UnicodeDecodeError:
        raise Malformed("SCRAM message is not ASCII") from None
    parts = server_text.split(",")
    if len(parts) < 3 or [part[:2] for part in parts[:3]] != ["r=", "s=", "i="]:
        raise Malformed("SCRAM message without nonce, salt and iterations")
    digits = parts[2][2:]
    if not (digits.isdigit() and len(digits) <= 7 and 1 <= int(digits) <= MAX_ITERATIONS):
        raise Malformed("SCRAM iterations are out of range")
    return server_text, parts[0][2:], _base64(parts[1][2:].encode()), int(digits)


def _base64(value: bytes) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise Malformed("SCRAM value is not base64") from None


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")
