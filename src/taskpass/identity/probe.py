"""What separates the broker from one caller, found by looking and never taken from a mode.

Every answer that is not proven is ``NONE``, and so is every error while looking. Nothing here follows a symbolic link:
the caller owns what lies under its root. Not for: what a sandbox should hide (``sandbox.plan``), and not for hosts
(a caller over a network is attested elsewhere).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from taskpass.core.separation import Separation
from taskpass.identity.namespaces import own_namespace
from taskpass.identity.process import Process

_MOUNTINFO_BYTES = 4 * 1024 * 1024
_PLAIN_DIRECTORY = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


def probe(
    process: Process,
    uid: int,
    *,
    broker_directory: Path,
    broker_uid: int,
    run_bound: bool,
    others: tuple[Path, ...] = (),
) -> Separation:
    """The separation of the held ``process``, whose peer uid is ``uid``, from the broker.

    ``run_bound``: the process is inside the pid namespace of a run which this broker prepared and whose first contact
    came from below the launcher that asked for it. ``broker_directory`` must be resolved; ``others`` are further
    directories that a sandbox must hide, such as the store's where it lies elsewhere.

    UID needs another, unprivileged uid and a broker's directory that is closed to it. SANDBOX needs a bound run, other
    pid and mount namespaces, a user namespace of its own if the uid is the same, the broker's directory reachable by no
    mount, and no ``/proc`` that shows the broker.
    """
    try:
        if _kept_apart_by_uid(process, uid, broker_directory, broker_uid):
            return Separation.UID
        if run_bound and _in_sandbox(process, uid, (broker_directory, *others), broker_uid):
            return Separation.SANDBOX
    except (OSError, ValueError, LookupError, StopIteration):
        pass
    return Separation.NONE


def _kept_apart_by_uid(process: Process, uid: int, broker_directory: Path, broker_uid: int) -> bool:
    if uid in (0, broker_uid) or _holds_capabilities(process):
        return False
    found = os.stat(broker_directory, follow_symlinks=False)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == broker_uid and not found.st_mode & 0o077


def _holds_capabilities(process: Process) -> bool:
    """Whether the process holds or could keep a capability that counts in our own user namespace."""
    status = process.status()
    uids = {int(word) for word in status["Uid"].split()}
    if 0 in uids:
        return True
    held = any(int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"))
    if not held:
        return False
    try:
        return process.namespace("user") == own_namespace("user")
    except OSError:
        return True


def _in_sandbox(process: Process, uid: int, hidden: tuple[Path, ...], broker_uid: int) -> bool:
    if process.namespace("pid") == own_namespace("pid") or process.namespace("mnt") == own_namespace("mnt"):
        return False
    if uid in (0, broker_uid) and process.namespace("user") == own_namespace("user"):
        return False
    root = process.open("root", os.O_PATH | os.O_DIRECTORY)
    try:
        mounts = list(_mounts(process.read("mountinfo", _MOUNTINFO_BYTES)))
        seen = any(_sees_directory(root, mounts, directory) for directory in hidden)
        return not seen and not _sees_broker_in_proc(root, mounts)
    finally:
        os.close(root)


@dataclass(frozen=True, slots=True)
class _Mount:
    number: str
    device: str
    """``major:minor``"""
    root: PurePosixPath
    """What of the file system is mounted."""
    point: PurePosixPath
    kind: str


def _mounts(text: bytes) -> Iterator[_Mount]:
    """The mounts in a ``mountinfo`` file (proc_pid_mountinfo(5)); raises ``ValueError`` when it was cut off."""
    if len(text) >= _MOUNTINFO_BYTES:
        raise ValueError("too many mounts to look at")
    for line in os.fsdecode(text).splitlines():
        fields = line.split(" ")
        kind = fields[fields.index("-") + 1]
        yield _Mount(fields[0], fields[2], _path(fields[3]), _path(fields[4]), kind)


def _path(field: str) -> PurePosixPath:
    for octal, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(octal, character)
    return PurePosixPath(field)


def _sees_directory(root: int, mounts: list[_Mount], directory: Path) -> bool:
    """Whether the broker's directory lies under ``root``: at its own path, or at any path that a mount gives it."""
    wanted = os.stat(directory, follow_symlinks=False)
    places = {PurePosixPath(directory)}
    device, on_device = _place_on_device(directory)
    for mount in mounts:
        if mount.device == device and on_device.is_relative_to(mount.root):
            places.add(mount.point / on_device.relative_to(mount.root))
    return any(_same(root, place, wanted) for place in places)


def _place_on_device(directory: Path) -> tuple[str, PurePosixPath]:
    """Device and path of ``directory`` within its file system, from our own mounts.

    The mount is found by its id: file systems with subvolumes give ``stat`` another device than the mount has. Raises
    ``ValueError`` if it is not found.
    """
    descriptor = os.open(directory, _PLAIN_DIRECTORY)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
            number = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
    finally:
        os.close(descriptor)
    with open("/proc/self/mountinfo", "rb") as file:
        for mount in _mounts(file.read(_MOUNTINFO_BYTES)):
            if mount.number == number:
                return mount.device, mount.root / PurePosixPath(directory).relative_to(mount.point)
    raise ValueError("the broker's directory is on no known mount")


def _same(root: int, place: PurePosixPath, wanted: os.stat_result) -> bool:
    found = _walk(root, place)
    if found is None:
        return False
    try:
        seen = os.fstat(found)
        return (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino)
    finally:
        os.close(found)


def _sees_broker_in_proc(root: int, mounts: list[_Mount]) -> bool:
    points = {PurePosixPath("/proc")} | {mount.point for mount in mounts if mount.kind == "proc"}
    return any(_shows_us(root, point) for point in points)


def _shows_us(root: int, point: PurePosixPath) -> bool:
    """Whether the ``/proc`` at ``point`` has us in it: its ``self`` names the reader, or nothing for an outsider."""
    directory = _walk(root, point)
    if directory is None:
        return False
    try:
        os.readlink("self", dir_fd=directory)
    except FileNotFoundError:
        return False
    finally:
        os.close(directory)
    return True


def _walk(root: int, place: PurePosixPath) -> int | None:
    """A descriptor of the directory at ``place`` under ``root`` without following a link; None if there is none."""
    current = os.dup(root)
    try:
        for part in place.parts[1:]:
            following = os.open(part, _PLAIN_DIRECTORY, dir_fd=current)
            os.close(current)
            current = following
    except (FileNotFoundError, NotADirectoryError):
        os.close(current)
        return None
    except OSError:
        os.close(current)
        raise
    return current
