"""Where the broker's store is, and how a PostgreSQL store is entered: the keys ``store…`` of ``[broker]``.

Not for: opening it. The login is a reference as for a resource; a password in the address is refused without being
repeated, because whoever reads the file would have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from taskpass.config.address import parse_address
from taskpass.config.resources import read_login, read_tls
from taskpass.config.table import Table
from taskpass.core.errors import ConfigInvalid
from taskpass.core.secret import Secret
from taskpass.wire.postgres.address import Address

POSTGRES = "postgresql://"
STORE_LOGIN = "store"
"""Where in ``credentials/`` the broker's login in its store is, unless the configuration says otherwise."""


@dataclass(frozen=True, slots=True)
class StoreWish:
    """A store on PostgreSQL, and the broker's own login there."""

    address: str
    user: str
    password: Secret
    authority: str = ""

    @property
    def tls(self) -> dict[str, str]:
        """``store_tls`` of the configuration."""
        return {"ca": self.authority} if self.authority else {}


_SHAPE = 'write "postgresql://host:port/database"'


def read_store(table: Table, directory: Path) -> tuple[str, dict[str, str], dict[str, str]]:
    """Address, login reference and TLS of the store; the last two are empty for SQLite."""
    address = table.text("store") if table.has("store") else f"sqlite:///{directory / 'taskpass.db'}"
    if address.startswith(POSTGRES):
        where = address_of(address)
        return address, read_login(table, where, "store_login"), read_tls(table, where, "store_tls")
    for key in ("store_login", "store_tls"):
        if table.has(key):
            raise ConfigInvalid(f"{table.name(key)} is for a PostgreSQL store only", hint="leave it out")
    if address.startswith("sqlite:////") and "?" not in address:
        return address, {}, {}
    if address.startswith("sqlite:"):
        raise ConfigInvalid(
            "broker.store must be an absolute path", hint='four slashes: "sqlite:////var/lib/…/taskpass.db"'
        )
    raise ConfigInvalid(
        "broker.store is of a kind that this version does not serve", hint='use "sqlite:////…" or "postgresql://…"'
    )


def address_of(store: str) -> Address:
    """Where ``postgresql://host:port/database`` leads. Raises ``ConfigInvalid`` without repeating the text."""
    rest = store.removeprefix(POSTGRES)
    if "@" in rest or "password" in rest.lower():
        raise ConfigInvalid(
            "broker.store must not hold a login: whoever reads this file would have the password",
            hint=f'{_SHAPE} and store_login = {{ file = "…" }}',
        )
    if "?" in rest:
        raise ConfigInvalid("broker.store takes no options", hint=f"{_SHAPE}; TLS is store_tls")
    return parse_address(rest, what="broker.store")
