"""Addresses of databases: ``host:port/database`` or ``/directory:port/database``, and never a login in them.

A pooler's address is refused by its name: sessions behind a pooler belong to the pooler's login and outlive a revoked
role, so nothing could be proven there (feasibility.md, section 5). A pooler that does not show by its name is found by
the preflight.
"""

from __future__ import annotations

import re

from taskpass.core.errors import ConfigInvalid, InvalidInput
from taskpass.wire.postgres.address import Address
from taskpass.wire.postgres.address import parse_address as parse

_HOST = re.compile(r"/.+|[0-9A-Fa-f:.%]+|[A-Za-z0-9._-]+")
_SHAPE = 'write "host:port/database" or "/directory:port/database"'
_DATABASE_BYTES = 63


def parse_address(text: str, *, what: str = "the address") -> Address:
    """Read an address. Raises ``ConfigInvalid`` without repeating the text, which may hold a password."""
    if "://" in text or "@" in text:
        raise ConfigInvalid(f"{what} must not be a connection string: it holds no login and no options", hint=_SHAPE)
    try:
        address = parse(text)
    except InvalidInput:
        raise ConfigInvalid(f"{what} is not an address", hint=_SHAPE) from None
    if not _HOST.fullmatch(address.host) or len(address.database.encode()) > _DATABASE_BYTES:
        raise ConfigInvalid(f"{what} is not an address", hint=_SHAPE)
    _refuse_pooler(address, what)
    return address


def _refuse_pooler(address: Address, what: str) -> None:
    direct = _direct_of_pooler(address.host.lower(), address.port)
    if direct:
        raise ConfigInvalid(
            f"{what} is a connection pooler's: a revoked role could not be proven gone behind it",
            hint=f"use the direct address, {direct}",
            code="pooler_address",
        )


def _direct_of_pooler(host: str, port: int) -> str:
    """The direct address to use instead, or empty when the name does not look like a pooler's."""
    if host.endswith(".neon.tech") and "-pooler" in host:
        return f"{host.replace('-pooler', '', 1)}:5432"
    if host.endswith(".pooler.supabase.com"):
        return "db.<project>.supabase.co:5432"
    if host.endswith(".supabase.co") and port == 6543:
        return f"{host}:5432"
    if host.endswith(".postgres.database.azure.com") and port == 6432:
        return f"{host}:5432"
    if host.endswith(".db.ondigitalocean.com") and port == 25061:
        return f"{host}:25060"
    if re.search(r"\.proxy-[a-z0-9]+\.[a-z0-9-]+\.rds\.amazonaws\.com$", host):
        return "the cluster's or the instance's own endpoint"
    if not host.startswith("/") and re.search(
        r"(^|[.-])(pgbouncer|pooler|pgcat|pgpool|odyssey|supavisor)([.-]|\d|$)", host
    ):
        return "host and port of the PostgreSQL server itself"
    return ""
