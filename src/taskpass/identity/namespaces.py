"""Pid namespaces: their names, which lies inside which, and the init process that each one ends with.

A task belongs to a run's pid namespace, because a process can leave its tree by a double fork but not its namespace
(threats.md, item 19). Not for deciding how well a namespace separates; that is ``identity.probe``.
"""

from __future__ import annotations

import fcntl
import os
from functools import cache

from taskpass.core.errors import NotAuthenticated
from taskpass.identity.process import Process, ancestors, inner_pids

_NS_GET_PARENT = 0xB702
"""``_IO(0xb7, 2)`` of linux/nsfs.h: a descriptor of the parent of a pid namespace."""


@cache
def boot_id() -> str:
    """Changes with every boot, so that a stored namespace never matches one of a later boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def own_namespace(kind: str = "pid") -> int:
    return os.stat(f"/proc/self/ns/{kind}").st_ino


def name_of(inode: int) -> str:
    """``<boot id>/<inode>``: how a pid namespace is written in records."""
    return f"{boot_id()}/{inode}"


def namespace_of(process: Process) -> str:
    """The pid namespace of ``process``; raises ``NotAuthenticated`` (peer_unknown) if it cannot be told.

    Where the link is not readable (a broker with a uid of its own, without privilege) the public ``NSpid`` decides:
    one level means our own namespace; else the namespace is named after its init process, which lives as long.
    """
    try:
        return name_of(process.namespace("pid"))
    except OSError:
        pass
    try:
        if len(inner_pids(process.status())) == 1:
            return name_of(own_namespace())
        init = _init_among_ancestors(process)
    except (OSError, ValueError):
        init = None
    if init is None:
        raise NotAuthenticated("the namespace of the calling process cannot be told", code="peer_unknown")
    try:
        return f"{boot_id()}/init-{init.pid}-{init.started()}"
    finally:
        init.close()


def init_of(process: Process) -> Process | None:
    """The init process (pid 1 inside) of the namespace of ``process``, held; None if it cannot be found."""
    found = _init_among_ancestors(process)
    if found is not None:
        return found
    try:
        return find_init(process.namespace("pid"))
    except OSError:
        return None


def find_init(inode: int) -> Process | None:
    """The init process of pid namespace ``inode`` among all processes, held; None if there is none."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and _is(int(name), inode):
            found = _hold_init(int(name))
            if found is not None and _is(found.pid, inode) and found.alive():
                return found
            if found is not None:
                found.close()
    return None


def inside(process: Process, namespace: str, init: Process | None) -> bool:
    """Whether the pid namespace of ``process`` is ``namespace`` or was made inside it. Doubt is False."""
    try:
        inode = int(namespace.rpartition("/")[2])
        return _inside_inode(process, inode)
    except (OSError, ValueError):
        return init is not None and init.alive() and _descends_from_init(process, init)


def descends(process: Process, ancestor: Process) -> bool:
    """Whether ``ancestor``, still alive, is among the parents of ``process``. An orphan has left the tree: False."""
    found = any(pid == ancestor.pid for pid, _ in ancestors(process.pid))
    return found and ancestor.alive() and process.alive()


def _inside_inode(process: Process, inode: int) -> bool:
    descriptor = process.open("ns/pid")
    try:
        while True:
            if os.fstat(descriptor).st_ino == inode:
                return True
            try:
                parent = fcntl.ioctl(descriptor, _NS_GET_PARENT)
            except PermissionError:
                return False  # The parent would lie outside our own namespace: the top that we may see.
            os.close(descriptor)
            descriptor = parent
    finally:
        os.close(descriptor)


def _descends_from_init(process: Process, init: Process) -> bool:
    # Orphans inside a namespace become children of its init, so parentage by processes is membership here.
    return process.pid == init.pid or descends(process, init)


def _init_among_ancestors(process: Process) -> Process | None:
    try:
        status = process.status()
    except OSError:
        return None
    depth = len(inner_pids(status))
    for pid, candidate in [(process.pid, status), *ancestors(process.pid)]:
        pids = inner_pids(candidate)
        if len(pids) == depth and pids[-1:] == [1]:
            return _hold_init(pid)
        if len(pids) < depth:
            return None
    return None


def _hold_init(pid: int) -> Process | None:
    try:
        held = Process.hold(pid)
    except NotAuthenticated:
        return None
    try:
        if inner_pids(held.status())[-1:] == [1]:
            return held
    except (OSError, ValueError):
        pass
    held.close()
    return None


def _is(pid: int, inode: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino == inode
    except OSError:
        return False
