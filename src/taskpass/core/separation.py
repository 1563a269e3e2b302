"""What stands between the broker and a caller on this machine, and which environments that serves."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class Separation(IntEnum):
    """Found by probe for each caller, never taken from a mode or a setting."""

    NONE = 0
    """Same uid and no namespace: broker, agent and person are one security subject."""
    SANDBOX = 1
    """Started by ``taskpass run`` in user (or another uid), pid and mount namespaces, broker's directory hidden."""
    UID = 2
    """The kernel keeps the caller's uid apart from the broker's."""
    HOST = 3
    """Another machine."""

    @property
    def word(self) -> str:
        return self.name.lower()


class Environment(StrEnum):
    """The enrolled environment of a resource; never taken from a request."""

    PREVIEW = "preview"
    DEV = "dev"
    STAGING = "staging"
    PRODUCTION = "production"

    @property
    def disposable(self) -> bool:
        """True where losing everything is an annoyance and not an incident."""
        return self in (Environment.PREVIEW, Environment.DEV)


def serves(separation: Separation, environment: Environment) -> bool:
    """Without separation only disposable targets are served (threats.md, item 2)."""
    return environment.disposable or separation > Separation.NONE
