"""Makes and removes the directory and the socket of one endpoint.

The parent directory belongs to the agent, so between any two steps it may put a symbolic link where we just made
something. Therefore everything happens through directory descriptors, while our directory is still ours: the agent gets
it last. Not for temporary files of any other kind.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import PurePath

from taskpass.core.errors import Conflict, Internal, InvalidInput

PORT = 5432
SOCKET_NAME = f".s.PGSQL.{PORT}"
MAX_SOCKET_PATH = 107
"""Bytes of ``sun_path`` without the final NUL on Linux; libpq refuses longer ones."""
_BACKLOG = 64


@dataclass(frozen=True, slots=True)
class Place:
    """A listening socket and the descriptors of its directory and of that directory's parent."""

    listener: socket.socket
    name: str
    directory_fd: int
    parent_fd: int

    def remove(self) -> None:
        """Nobody can connect from here on. Whatever the agent made of the directory meanwhile is left alone."""
        self.listener.close()
        with contextlib.suppress(OSError):
            os.unlink(SOCKET_NAME, dir_fd=self.directory_fd)
        with contextlib.suppress(OSError):
            os.rmdir(self.name, dir_fd=self.parent_fd)
        os.close(self.directory_fd)
        os.close(self.parent_fd)


def make_place(directory: str, uid: int) -> Place:
    """Creates ``directory`` (0700) with the socket (0600) in it, both owned by ``uid``, listening.

    Raises ``InvalidInput`` if the path is relative or too long for a client, ``Conflict`` if it exists.
    """
    path = PurePath(directory)
    if not path.is_absolute() or ".." in path.parts or not path.name:
        raise InvalidInput("the directory of an endpoint must be an absolute path")
    if len(os.fsencode(directory)) + 1 + len(SOCKET_NAME) > MAX_SOCKET_PATH:
        raise InvalidInput("the path of the endpoint's socket is too long", hint="use a shorter runtime directory")
    with contextlib.ExitStack() as undo:
        try:
            return _make(path, uid, undo)
        except FileExistsError:
            raise Conflict("the directory of the endpoint exists already") from None
        except OSError as error:
            raise Internal(f"the endpoint's socket cannot be made: {error.strerror}") from None


def _make(path: PurePath, uid: int, undo: contextlib.ExitStack) -> Place:
    parent_fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    undo.callback(os.close, parent_fd)
    os.mkdir(path.name, 0o700, dir_fd=parent_fd)
    undo.callback(_rmdir, path.name, parent_fd)
    directory_fd = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    undo.callback(os.close, directory_fd)
    found = os.fstat(directory_fd)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise Conflict("the directory of the endpoint was changed while it was made")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    undo.callback(listener.close)
    listener.bind(f"/proc/self/fd/{directory_fd}/{SOCKET_NAME}")
    undo.callback(_unlink, directory_fd)
    os.chmod(SOCKET_NAME, 0o600, dir_fd=directory_fd)
    if uid != os.geteuid():
        os.chown(SOCKET_NAME, uid, -1, dir_fd=directory_fd, follow_symlinks=False)
    listener.listen(_BACKLOG)
    if uid != os.geteuid():
        os.fchown(directory_fd, uid, -1)
    undo.pop_all()
    return Place(listener, path.name, directory_fd, parent_fd)


def _rmdir(name: str, parent_fd: int) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=parent_fd)


def _unlink(directory_fd: int) -> None:
    with contextlib.suppress(OSError):
        os.unlink(SOCKET_NAME, dir_fd=directory_fd)
