"""Reading the policy directory so that nobody else can have written what is read.

Whoever can change a policy can grant: the directory, each directory above it and each file must belong to the broker's
user or to root and be writable by nobody else, and links are refused (threats.md, item 3).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from taskpass.core.errors import PolicyInvalid

MAX_BYTES = 1024 * 1024
"""Of one file. A policy file is a few kilobytes; more is a mistake."""

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def demand_trusted_directory(directory: Path) -> None:
    """Raise ``PolicyInvalid`` unless ``directory`` and all above it are ours or root's and nobody else's to write."""
    for place in (directory, *directory.absolute().parents):
        try:
            found = place.lstat()
        except OSError:
            raise PolicyInvalid(f"the policy directory cannot be read: {place.name}") from None
        if not stat.S_ISDIR(found.st_mode):
            raise PolicyInvalid(
                f"{place.name} is not a directory, or is a link", hint="policy is read from a plain directory only"
            )
        shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if (shared and (place == directory or not found.st_mode & stat.S_ISVTX)) or not _ours(found):
            raise PolicyInvalid(
                f"others can change the directory {place.name or '/'}",
                hint="make it belong to the broker's user, and run chmod go-w on it",
            )


def read_trusted(path: Path) -> bytes:
    """The bytes of ``path``, a plain file of ours or root's that nobody else can write."""
    try:
        handle = os.open(path, _OPEN)
        try:
            _demand_trusted_file(path.name, os.fstat(handle))
            with os.fdopen(handle, "rb", closefd=False) as file:
                data = file.read(MAX_BYTES + 1)
        finally:
            os.close(handle)
    except OSError:
        raise PolicyInvalid(f"{path.name} cannot be read, or is a link") from None
    if len(data) > MAX_BYTES:
        raise PolicyInvalid(f"{path.name} is larger than a policy file may be")
    return data


def _demand_trusted_file(name: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise PolicyInvalid(f"{name} is not a plain file")
    if not _ours(found) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PolicyInvalid(
            f"others can change {name}", hint="make it belong to the broker's user, and run chmod go-w on it"
        )


def read_text(path: Path) -> str:
    """As ``read_trusted``, as UTF-8."""
    try:
        return read_trusted(path).decode()
    except UnicodeDecodeError:
        raise PolicyInvalid(f"{path.name} is not UTF-8 text") from None


def entries(directory: Path) -> Iterator[Path]:
    """What lies in ``directory``, sorted by name."""
    try:
        yield from sorted(directory.iterdir())
    except OSError:
        raise PolicyInvalid(f"the directory {directory.name} cannot be read") from None


def _ours(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid())
