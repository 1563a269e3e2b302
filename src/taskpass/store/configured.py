"""Opens the store that a configuration names, with the login that it refers to."""

from __future__ import annotations

from functools import partial

from taskpass.audit.witness import FILE_NAME
from taskpass.config.credentials import read_credential
from taskpass.config.model import Config
from taskpass.core.clock import Clock, Entropy
from taskpass.keys.base import Signer
from taskpass.store.open import Access, Create, open_reader, open_store
from taskpass.store.unit import SqlStore


def open_configured(
    config: Config, *, clock: Clock, entropy: Entropy, audit_key: Signer, create: Create | None = None
) -> SqlStore:
    """For reading and writing; see ``open_store``. A PostgreSQL store has its witness in the broker's directory."""
    access = access_of(config)
    return open_store(
        config.broker.store,
        clock=clock,
        entropy=entropy,
        audit_key=audit_key,
        create=create,
        access=access,
        witness=config.directory / FILE_NAME if access else None,
    )


def read_configured(config: Config) -> SqlStore:
    """For reading only; see ``open_reader``."""
    return open_reader(config.broker.store, access=access_of(config))


def access_of(config: Config) -> Access | None:
    """How the store is entered, or None for SQLite. The credential is read anew for each connection."""
    if not config.broker.store_login:
        return None
    credential = partial(read_credential, config.directory, config.broker.store_login)
    return Access(credential, config.broker.store_tls.get("ca", ""))
