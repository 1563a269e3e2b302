"""SCRAM-SHA-256 verifiers (RFC 5803, RFC 7677), made here so that no password is ever sent or logged.

Not for logging in: the messages are in ``taskpass.wire.postgres``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from taskpass.core.clock import Entropy
from taskpass.core.decision import Delivery
from taskpass.core.secret import Secret

ENDPOINT_ITERATIONS = 1
"""Only we log in and the secret has 256 random bits: stretching would add cost and no safety."""

BEARER_ITERATIONS = 4096
"""What RFC 7677 asks for and some clients demand."""

ITERATIONS = {Delivery.ENDPOINT: ENDPOINT_ITERATIONS, Delivery.BEARER: BEARER_ITERATIONS}


def new_secret(entropy: Entropy) -> Secret:
    """256 random bits as text of characters that SASLprep leaves alone."""
    return Secret(base64.urlsafe_b64encode(entropy.bytes(32)).decode().rstrip("="))


def verifier(secret: Secret, entropy: Entropy, *, iterations: int = ENDPOINT_ITERATIONS) -> str:
    """What the server stores for ``secret``: ``SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>``."""
    salt = entropy.bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", secret.reveal().encode(), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    stored_key = hashlib.sha256(client_key).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${iterations}:{_text(salt)}${_text(stored_key)}:{_text(server_key)}"


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
