"""Binding Unix sockets so that they are never wider than they are meant to be, and never on somebody else's file.

A directory is private (0700) before anything is put into it. A run's directory under another uid stays the broker's
and is only passable (0711), so that the agent can reach its socket but replace nothing in it. Not for listening: the
servers take the bound socket.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

from taskpass.config.paths import SOCKET_PATH_BYTES
from taskpass.core.errors import ConfigInvalid, Conflict

_BACKLOG = 128
_PRIVATE = 0o700
_PASSABLE = 0o711


def private_directory(path: Path, *, reader_uid: int | None = None) -> Path:
    """Make ``path`` (and missing parents, 0700), owned by us; passable if ``reader_uid`` is another account.

    Raises ``ConfigInvalid`` when it exists as something else: a link, a file, another owner, or writable by others.
    """
    mode = _PRIVATE if reader_uid in (None, os.geteuid()) else _PASSABLE
    try:
        path.parent.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=_PRIVATE)
        _demand_ours(path, wider_than=0o022)
        path.chmod(mode)
    except OSError as error:
        raise _unusable(path, error) from None
    return path


def _unusable(path: Path, error: OSError) -> ConfigInvalid:
    return ConfigInvalid(
        f"cannot use {path}: {error.strerror}",
        code="directory_unusable",
        hint="check the owner and mode of what lies above it, and that the disk is writable and has room",
    )


def bind_unix(path: Path, *, mode: int = 0o600, uid: int | None = None) -> socket.socket:
    """A listening socket at ``path`` with ``mode``, owned by ``uid`` (default: ours), in a directory that is ours.

    Raises ``ConfigInvalid`` for a path over 107 bytes or a directory that is not ours alone, and ``Conflict``
    (broker_running) when somebody already listens there. A stale socket is removed; any other file is left alone.
    """
    demand_short(path)
    _demand_ours(path.parent, wider_than=0o022)
    _remove_stale(path, {os.geteuid(), os.geteuid() if uid is None else uid})
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # On Linux the path gets the mode of the unbound socket: no window, no change of the process-wide umask, and no
        # chmod by name, which would follow a link that an agent of the same account puts there.
        os.fchmod(listener.fileno(), mode)
        listener.bind(os.fsencode(path))
        if uid is not None and uid != os.geteuid():
            os.chown(path, uid, -1, follow_symlinks=False)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigInvalid(f"cannot listen on {path}: {error.strerror}") from None
    return listener


def demand_short(path: Path) -> None:
    """Raises ``ConfigInvalid`` when ``path`` does not fit into a socket address."""
    size = len(os.fsencode(path))
    if size > SOCKET_PATH_BYTES:
        raise ConfigInvalid(
            f"the socket path is too long: {size} bytes, at most {SOCKET_PATH_BYTES}: {path}",
            code="socket_path_too_long",
            hint="set TASKPASS_RUNTIME_DIR to a shorter directory",
        )


def _demand_ours(path: Path, *, wider_than: int) -> None:
    try:
        found = path.lstat()
    except OSError as error:
        raise _unusable(path, error) from None
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigInvalid(f"not a directory: {path}", hint="remove it, or set TASKPASS_RUNTIME_DIR")
    if found.st_uid != os.geteuid() or found.st_mode & wider_than:
        raise ConfigInvalid(
            f"{path} must belong to the broker's account and be closed to others",
            code="directory_not_private",
            hint=f"chmod 700 {path}, or set TASKPASS_RUNTIME_DIR",
        )


def _remove_stale(path: Path, owners: set[int]) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid not in owners:
        raise ConfigInvalid(f"{path} exists and is not a socket of ours", hint="remove it by hand")
    if _somebody_listens(path):
        raise Conflict(
            f"another broker listens on {path}", code="broker_running", hint="stop it, or use another TASKPASS_DIR"
        )
    path.unlink(missing_ok=True)


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as trial:
        trial.setblocking(False)
        try:
            trial.connect(os.fsencode(path))
        except BlockingIOError:
            return True  # A full backlog has a listener behind it.
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError as error:
            raise ConfigInvalid(f"cannot tell whether {path} is in use: {error.strerror}") from None
    return True
