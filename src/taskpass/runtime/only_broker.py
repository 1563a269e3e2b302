"""One broker on a directory at a time, and the name that tells it from the others on a store that they share."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path

from taskpass.core import digest
from taskpass.core.errors import ConfigInvalid, Conflict
from taskpass.identity.namespaces import boot_id
from taskpass.server.sockets import private_directory

_NAME_LENGTH = 26


@contextlib.contextmanager
def only_broker(directory: Path) -> Generator[None]:
    """Held by a broker while it runs, and by whoever changes what only a stopped broker leaves alone.

    Two brokers on one directory would each think that it alone serves the endpoints. Raises ``Conflict``
    (broker_running), and ``ConfigInvalid`` if the directory cannot be used.
    """
    private_directory(directory / "run")
    lock = directory / "run" / "lock"
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigInvalid(f"cannot use {lock}: {error.strerror}", code="directory_unusable") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Conflict(
            "a broker runs on this directory", hint="stop it, or use another TASKPASS_DIR", code="broker_running"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def broker_name(directory: Path) -> str:
    """The broker on ``directory``: by the lock that only one process on this machine has at a time.

    The next process on this directory is the same broker, and knows that the one before is gone.
    """
    lock = (directory / "run" / "lock").stat()
    place = {"boot": boot_id(), "device": lock.st_dev, "inode": lock.st_ino}
    return "brk_" + digest.digest(digest.BROKER, place).removeprefix("sha256:")[:_NAME_LENGTH]
