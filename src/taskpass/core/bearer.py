"""A login that its holder uses directly at the target: what ``--deliver secret`` hands over, once.

Whoever has it can use it from wherever the target can be reached, until the lease ends; so it is the exception (design:
interfaces.md, *What reaches the coding tool*). Not for storing, recording or logging: it goes from the memory of the
broker over the caller's own connection, and nothing of ours keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from taskpass.core.ids import RoleName
from taskpass.core.secret import Secret


@dataclass(frozen=True, slots=True)
class Bearer:
    """``host`` is a name, an address without brackets, or the directory of a Unix socket; ``ca`` is ``system``, a path,
    or empty for a target on this machine without TLS.
    """

    host: str
    port: int
    database: str
    user: RoleName
    ca: str
    password: Secret = field(repr=False)

    def reveal(self) -> dict[str, object]:
        """For the one answer that hands it over, and nothing else."""
        return {
            "host": self.host,
            "port": self.port,
            "database": self.database,
            "user": self.user,
            "ca": self.ca,
            "password": self.password.reveal(),
        }
