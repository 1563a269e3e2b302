"""Keys that sign for the broker: the contract of every place where one can live.

Contract
    * One key per purpose. A signer never shows its private part.
    * ``Signer.sign`` returns the raw signature; it raises ``KeyUnavailable``'s family (``StoreUnavailable`` with code
      ``key_unavailable``) if the key cannot be used now, and nothing else.
    * ``Verifier.verify`` answers False, and never raises, for a key, a signature or bytes that it does not know.
"""

from __future__ import annotations

from typing import Protocol


class Signer(Protocol):
    @property
    def key_id(self) -> str:
        """A short digest of the public key."""
        ...

    @property
    def public(self) -> str:
        """The public key as one printable line, ``taskpass-audit-ed25519:<base64>``."""
        ...

    def sign(self, data: bytes) -> bytes: ...


class Verifier(Protocol):
    def verify(self, key_id: str, data: bytes, signature: str) -> bool:
        """Whether the key of that id made ``signature`` (base64) over ``data``."""
        ...
