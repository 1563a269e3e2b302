"""The policy directory as bytes, read so that nobody else can have written them.

Whoever can change a policy can grant, so the directory is read as the configuration is (``config.places``): every path
element belongs to the broker's account or root, nobody else can write it, and links are refused (threats.md, item 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from taskpass.config.places import read_tree
from taskpass.core.errors import ConfigInvalid, PolicyInvalid
from taskpass.policy.words import one_line

Files = Mapping[str, bytes]
"""Content by path inside the policy directory."""


def read_directory(directory: Path) -> Files:
    """Everything in ``directory`` at one moment; raises ``PolicyInvalid`` unless all of it can be trusted."""
    try:
        return read_tree(directory.absolute())
    except ConfigInvalid as error:
        raise PolicyInvalid(one_line(error.message), hint=one_line(error.hint)) from None


def text_of(files: Files, name: str) -> str:
    """The file ``name`` as UTF-8."""
    try:
        return files[name].decode()
    except UnicodeDecodeError:
        raise PolicyInvalid(f"{one_line(name, 80)} is not UTF-8 text") from None
