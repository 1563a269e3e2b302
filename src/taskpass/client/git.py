"""What the files of a git checkout say about repository, branch and commit: the client's claims, nothing more.

Read with the caller's own rights, bounded, without starting git (which would run programs that the checkout names;
threats.md, item 7) and without following ``include`` in its configuration. Standard library only.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_FILE_BYTES = 256 * 1024
_PACKED_BYTES = 4 * 1024 * 1024
_HIGHEST = 64
_SECTION = re.compile(r"\s*\[\s*([A-Za-z0-9.-]+)(?:\s+\"((?:[^\"\\]|\\.)*)\")?\s*\]")
_URL = re.compile(r"\s*url\s*=\s*(.*)")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_ADDRESS = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://(?:[^/@]*@)*([^?#]*)")
_SHORT_ADDRESS = re.compile(r"(?:([^@/:]+)(?::[^@/]*)?@)?([^@/:]+):([^?#]*)")


def claimed_git(start: Path) -> dict[str, str]:
    """``repository``, ``branch`` and ``commit`` of the checkout around ``start``; what cannot be told is left out.

    The repository is the address of remote ``origin`` (else of the only remote) without any credentials, query or
    fragment; where there is no remote it is left out.
    """
    found = _git_directory(start)
    if found is None:
        return {}
    private, common = found
    head = _read(private / "HEAD").strip()
    branch = head.removeprefix("ref: refs/heads/") if head.startswith("ref: refs/heads/") else ""
    commit = _commit(private, common, head)
    facts = {"repository": _remote(_read(common / "config")), "branch": branch, "commit": commit}
    return {name: value for name, value in facts.items() if value}


def without_credentials(address: str) -> str:
    """``address`` with user info, query and fragment removed; an scp-like one keeps its user name (``git@``)."""
    if match := _ADDRESS.match(address):
        return f"{match[1]}://{match[2]}"
    if match := _SHORT_ADDRESS.match(address):
        user = f"{match[1]}@" if match[1] else ""
        return f"{user}{match[2]}:{match[3]}"
    return re.split(r"[?#]", address)[0] if "@" not in address else ""


def _git_directory(start: Path) -> tuple[Path, Path] | None:
    """The checkout's own git directory and the one it shares with other worktrees."""
    for folder in (start, *start.parents)[:_HIGHEST]:
        git = folder / ".git"
        if git.is_dir():
            return git, git
        if git.is_file():
            private = folder / _read(git).removeprefix("gitdir:").strip()
            common = _read(private / "commondir").strip()
            return private, private / common if common else private
    return None


def _commit(private: Path, common: Path, head: str) -> str:
    if _COMMIT.fullmatch(head):
        return head
    name = head.removeprefix("ref: ")
    if not name.startswith("refs/") or ".." in name.split("/"):
        return ""
    for place in (private, common):
        value = _read(place / name).strip()
        if _COMMIT.fullmatch(value):
            return value
    for line in _read(common / "packed-refs", _PACKED_BYTES).splitlines():
        value, _, packed = line.partition(" ")
        if packed == name and _COMMIT.fullmatch(value):
            return value
    return ""


def _remote(config: str) -> str:
    addresses: dict[str, str] = {}
    remote = ""
    for line in config.splitlines():
        if section := _SECTION.match(line):
            remote = section[2] or "" if section[1].lower() == "remote" else ""
        elif remote and (url := _URL.match(line)):
            addresses.setdefault(remote, url[1].strip().strip('"'))
    chosen = addresses.get("origin") or (next(iter(addresses.values())) if len(addresses) == 1 else "")
    return without_credentials(chosen)


def _read(path: Path, limit: int = _FILE_BYTES) -> str:
    """At most ``limit`` bytes of a regular file; empty if it cannot be read or is something else."""
    try:
        # A checkout may hold a FIFO in place of a file: opening it must not wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            return file.read(limit).decode()
    except (OSError, ValueError):
        return ""
