"""What a broker runs on, named by its content: the digest over the configuration and every policy file.

The broker reads once, at start. A file that changes afterwards changes nothing until it is applied, and comparing two
snapshots tells which files differ (design: interfaces.md, *Configuration*).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taskpass.config.load import FILE
from taskpass.config.places import read_tree, read_trusted
from taskpass.core import digest


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``files`` maps relative paths to ``sha256:<hex>``; ``digest`` covers all of them."""

    digest: str
    files: Mapping[str, str] = field(hash=False)


def take(directory: Path) -> Snapshot:
    """The snapshot of what lies in ``directory`` now. Raises ``ConfigInvalid`` where a place cannot be trusted."""
    contents = {FILE: read_trusted(directory / FILE)}
    contents |= {f"policy/{name}": data for name, data in read_tree(directory / "policy").items()}
    files = {name: f"sha256:{hashlib.sha256(data).hexdigest()}" for name, data in sorted(contents.items())}
    return Snapshot(digest.digest(digest.SNAPSHOT, files), files)


def differences(old: Snapshot, new: Snapshot) -> list[str]:
    """Each file that differs, with what happened to it, for people."""
    names = sorted(old.files.keys() | new.files.keys())
    return [
        f"{name} {_change(old.files.get(name), new.files.get(name))}"
        for name in names
        if old.files.get(name) != new.files.get(name)
    ]


def _change(old: str | None, new: str | None) -> str:
    return "was added" if old is None else "was removed" if new is None else "was changed"
