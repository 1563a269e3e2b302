"""Which sandbox works on this machine, found by really starting one, and what to do where none does."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from taskpass.core.errors import SandboxUnavailable
from taskpass.sandbox import bubblewrap, unshare

# The person's PATH is not asked: a checkout's environment file may have changed it.
_PLACES = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:/run/current-system/sw/bin"
_TRIAL_SECONDS = 10

_SWITCHES = (
    ("/proc/sys/user/max_user_namespaces", "0", "sudo sysctl user.max_user_namespaces=15000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sudo sysctl kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "install bubblewrap with its AppArmor profile, or sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """``name``: ``bubblewrap``, ``unshare`` or ``root``; ``program``: the path that makes the namespaces."""

    name: str
    program: str


def detect() -> Kind:
    """The first kind of sandbox that works here; raises ``SandboxUnavailable`` with what to do."""
    found = list(_candidates())
    for kind, trial in found:
        if _works(trial):
            return kind
    if not found:
        raise SandboxUnavailable(
            "neither bubblewrap nor unshare is installed", code="sandbox_missing", hint="install bubblewrap"
        )
    raise SandboxUnavailable("this machine forbids the namespaces that a run needs", hint=_advice())


def _candidates() -> Iterator[tuple[Kind, list[str]]]:
    as_root = os.geteuid() == 0
    wrap = shutil.which("bwrap", path=_PLACES)
    if wrap and not as_root:
        yield Kind("bubblewrap", wrap), bubblewrap.trial(wrap)
    plain = shutil.which("unshare", path=_PLACES)
    if plain:
        yield Kind("root" if as_root else "unshare", plain), unshare.trial(plain, as_root=as_root)


def _works(command: list[str]) -> bool:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TRIAL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _advice() -> str:
    for path, bad, advice in _SWITCHES:
        try:
            with open(path, encoding="ascii") as file:
                if file.read().strip() == bad:
                    return advice
        except OSError:
            continue
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        return "this is a container: start the agent in a container of its own, with the run's socket mounted into it"
    return "ask the administrator to allow user namespaces, or use a broker under another account"
