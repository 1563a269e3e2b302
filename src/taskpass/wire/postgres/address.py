"""Addresses of PostgreSQL databases as the configuration writes them. Not for resolving names."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from taskpass.core.errors import InvalidInput

_TCP = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.%]+)\]|(?P<host>[^\[\]/:]+)):(?P<port>[0-9]{1,5})/(?P<database>[^\0]+)")
_UNIX = re.compile(r"(?P<directory>/[^\0:]*):(?P<port>[0-9]{1,5})/(?P<database>[^\0]+)")


@dataclass(frozen=True, slots=True)
class Address:
    """``host`` is a name, an IP address without brackets, or the absolute directory of a Unix socket."""

    host: str
    port: int
    database: str

    @property
    def socket_path(self) -> str | None:
        """Path of the Unix socket, or None for TCP."""
        return f"{self.host}/.s.PGSQL.{self.port}" if self.host.startswith("/") else None

    @property
    def is_local(self) -> bool:
        """A Unix socket, ``localhost`` or a loopback address: the only ones that may go without TLS."""
        if self.socket_path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(address: str) -> Address:
    """``host:port/database``, ``[v6]:port/database`` or ``/directory:port/database``; else ``InvalidInput``."""
    match = _TCP.fullmatch(address) or _UNIX.fullmatch(address)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise InvalidInput("not an address of a database", hint="write host:port/database or /directory:port/database")
    parts = match.groupdict()
    host = parts.get("v6") or parts.get("host") or parts["directory"]
    if parts.get("v6"):
        _require_ipv6(host)
    return Address(host, int(match["port"]), match["database"])


def _require_ipv6(host: str) -> None:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        raise InvalidInput("brackets in an address are for IPv6 only") from None
