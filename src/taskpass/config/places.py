"""Reading files that decide what agents may do: only from places that nobody else can change.

Every element of the path is opened relative to the one before it without following links, and its owner and mode are
checked on the open descriptor, so that nothing can be swapped between the check and the read (threats.md, item 3).
Not for: files of a worktree. Nothing with the broker's rights reads those.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from taskpass.core.errors import ConfigInvalid

MAX_BYTES = 1024 * 1024
MAX_FILES = 500


def read_trusted(path: Path, *, private: bool = False) -> bytes:
    """The content of ``path``, at most one MiB.

    ``private`` also demands that nobody else can read it. Raises ``ConfigInvalid`` naming the first path element that
    is absent, a link, owned by somebody else, or writable by others.
    """
    descriptor = _open(path, directory=False)
    try:
        if private and os.fstat(descriptor).st_mode & 0o077:
            raise ConfigInvalid(f"{path} can be read by others", hint=f"chmod 0600 {path}")
        return _read(descriptor, path)
    finally:
        os.close(descriptor)


def read_tree(directory: Path) -> dict[str, bytes]:
    """Every regular file below ``directory`` by relative path; links and special files are refused."""
    found: dict[str, bytes] = {}
    descriptor = _open(directory, directory=True)
    try:
        _collect(descriptor, directory, "", found)
    finally:
        os.close(descriptor)
    return found


def demand_private(directory: Path) -> None:
    """Raise ``ConfigInvalid`` unless ``directory`` is a real directory of ours that nobody else can enter."""
    descriptor = _open(directory, directory=True)
    try:
        if os.fstat(descriptor).st_mode & 0o077:
            raise ConfigInvalid(f"{directory} can be entered by others", hint=f"chmod 0700 {directory}")
    finally:
        os.close(descriptor)


def _open(path: Path, *, directory: bool) -> int:
    """Walk from the root; the caller closes the descriptor."""
    if not path.is_absolute() or ".." in path.parts:
        raise ConfigInvalid(f"{path} is not an absolute path without ..")
    current = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    walked = Path("/")
    try:
        _demand_trusted(current, walked)
        for part in path.parts[1:]:
            walked = walked / part
            last = walked == path
            following = _step(current, part, walked, directory=directory or not last)
            os.close(current)
            current = following
            _demand_trusted(current, walked)
    except BaseException:
        os.close(current)
        raise
    return current


def _step(parent: int, name: str, walked: Path, *, directory: bool) -> int:
    # Without O_NONBLOCK a fifo in the place of a file would stop the broker's start.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_DIRECTORY if directory else 0)
    try:
        return os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        raise ConfigInvalid(f"{walked} does not exist", hint="taskpass init makes it") from None
    except OSError as error:
        with suppress(OSError):
            if stat.S_ISLNK(os.lstat(name, dir_fd=parent).st_mode):
                raise ConfigInvalid(f"{walked} is a link", hint="use the real path; links are refused") from None
        raise ConfigInvalid(f"{walked} cannot be opened: {error.strerror}") from None


def _demand_trusted(descriptor: int, walked: Path) -> None:
    status = os.fstat(descriptor)
    if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        raise ConfigInvalid(f"{walked} is neither a file nor a directory")
    if status.st_uid not in (0, os.getuid()):
        raise ConfigInvalid(
            f"{walked} belongs to another account (uid {status.st_uid})",
            hint="every element of the path must belong to the broker's account or root",
        )
    sticky = status.st_mode & stat.S_ISVTX and stat.S_ISDIR(status.st_mode) and status.st_uid == 0
    if status.st_mode & 0o022 and not sticky:
        raise ConfigInvalid(f"{walked} can be written by others", hint=f"chmod go-w {walked}")


def _read(descriptor: int, path: Path) -> bytes:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise ConfigInvalid(f"{path} is not a file")
    data = bytearray()
    while chunk := os.read(descriptor, MAX_BYTES):
        data += chunk
        if len(data) > MAX_BYTES:
            raise ConfigInvalid(f"{path} is larger than {MAX_BYTES} bytes")
    return bytes(data)


def _collect(parent: int, directory: Path, prefix: str, found: dict[str, bytes]) -> None:
    for name in sorted(os.listdir(parent)):
        path = directory / prefix / name
        is_directory = stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode)
        descriptor = _step(parent, name, path, directory=is_directory)
        try:
            _demand_trusted(descriptor, path)
            if is_directory:
                _collect(descriptor, directory, f"{prefix}{name}/", found)
            elif len(found) >= MAX_FILES:
                raise ConfigInvalid(f"{directory} holds more than {MAX_FILES} files")
            else:
                found[f"{prefix}{name}"] = _read(descriptor, path)
        finally:
            os.close(descriptor)
