"""The policies that come with Taskpass, and how they get into the broker's directory. Not for overwriting anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from taskpass.core.errors import Conflict


def shipped() -> dict[str, bytes]:
    """The shipped files by their path inside the policy directory."""
    return dict(_walk(files("taskpass.policy") / "shipped", ""))


def write_shipped(directory: Path) -> list[Path]:
    """Write the shipped files into ``directory``, readable by its owner only.

    The directory is made if it is missing. Raises ``Conflict`` if it holds anything: an operator's policy is never
    replaced.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise Conflict("the policy directory is not empty, so nothing was written", code="policy_exists")
    return [_write(directory / name, content) for name, content in shipped().items()]


def _walk(place: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    for item in sorted(place.iterdir(), key=lambda entry: entry.name):
        if item.is_dir():
            if item.name != "__pycache__":
                yield from _walk(item, f"{prefix}{item.name}/")
        elif item.name.endswith((".cedar", ".cedarschema", ".yaml")):
            yield f"{prefix}{item.name}", item.read_bytes()


def _write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return path
