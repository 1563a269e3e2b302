"""A password file for one command that is nowhere on a disk: a sealed memory file which only descendants can open.

libpq reads it through ``PGPASSFILE=/proc/self/fd/N``; the password is in no argument, environment variable or file
system. Standard library only. Not for hiding the password from the command itself: it can read what it is to use.
"""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False  # What typing.TYPE_CHECKING is, without importing typing: start-up is a feature.
if TYPE_CHECKING:
    from typing import Any

LOWEST = 64
"""A shell script that opens descriptors of its own takes low numbers and would close ours."""

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def password_file(bearer: dict[str, Any]) -> int:
    """A descriptor of a sealed memory file for the login in ``bearer``, which loses its password; closed on exec."""
    low = os.memfd_create("taskpass", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.fchmod(low, 0o400)  # libpq passes over a password file that others could read.
        os.write(low, _lines(bearer, str(bearer.pop("password"))).encode())
        fcntl.fcntl(low, fcntl.F_ADD_SEALS, _SEALS)
        return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, LOWEST)
    finally:
        os.close(low)


def path_of(descriptor: int) -> str:
    """The name under which whoever inherits ``descriptor`` opens the file."""
    return f"/proc/self/fd/{descriptor}"


def _lines(bearer: dict[str, Any], password: str) -> str:
    """One entry; for a Unix socket two, because libpq looks its default directory up as ``localhost``."""
    host = str(bearer["host"])
    hosts = (host, "localhost") if host.startswith("/") else (host,)
    rest = (str(bearer["port"]), str(bearer["database"]), str(bearer["user"]), password)
    return "".join(":".join(map(_escaped, (each, *rest))) + "\n" for each in hosts)


def _escaped(field: str) -> str:
    """What libpq's format cannot hold matches anything: a line break in the name of a database."""
    if "\n" in field:
        return "*"
    return field.replace("\\", "\\\\").replace(":", "\\:")
