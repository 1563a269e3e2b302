"""Space set aside on the store's disk, so that taking access back can be recorded when the disk is full.

Not for: anything but that. It is released for revocations and restored when there is space again.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from taskpass.core.errors import StoreUnavailable

RESERVE_BYTES = 8 * 2**20


class Reserve:
    """A file of ``bytes`` that really occupies them. Not safe to use from several threads at once."""

    def __init__(self, path: Path, bytes: int = RESERVE_BYTES) -> None:  # noqa: A002
        self._path = path
        self._bytes = bytes

    @property
    def held(self) -> bool:
        """Whether the space is set aside in full now."""
        try:
            found = os.lstat(self._path)
        except OSError:
            return False
        return found.st_size == self._bytes and found.st_blocks * 512 >= self._bytes

    def restore(self) -> bool:
        """Set the space aside; False if the disk has no room for it. Raises ``StoreUnavailable`` for anything else."""
        if self.held:
            return True
        try:
            self._allocate()
        except OSError as error:
            self.release()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return False
            raise StoreUnavailable(f"the reserve cannot be made: {error.strerror}") from None
        return self.held

    def _allocate(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(self._path, flags, 0o600)
        try:
            os.posix_fallocate(file, 0, self._bytes)
            os.fsync(file)
        finally:
            os.close(file)

    def release(self) -> bool:
        """Give the space back; True if there was any. Never raises: this runs while access is being taken back."""
        try:
            os.unlink(self._path)
        except OSError:
            return False
        return True
