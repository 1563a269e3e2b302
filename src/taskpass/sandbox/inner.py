"""The first process inside a run: makes the mounts if nobody has, gives up every right, speaks to the broker, starts
the agent, and then is init: it reaps orphans, passes signals on, and when it ends, everything in the run ends with it.

Started as a plain file with ``python -I -S``, so it imports the standard library only and nothing of Taskpass. What it
does comes as JSON on an inherited descriptor (``launch.specification``). Nothing here is a secret.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

ANSWER_SECONDS = 20.0
_EXIT_CODES = {
    "denied": 90,
    "pending": 91,
    "expired": 92,
    "not_authenticated": 93,
    "broker_unreachable": 93,
    "obligation_unmet": 94,
}

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_KEPT_FLAGS = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | 1024 | 2048
"""What a remount must repeat, because a user namespace may not clear it; the last two are noatime and nodiratime."""

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP = 1, 4, 22
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL, _SECCOMP_MODE_FILTER = 4, 2
_CAPABILITY_VERSION_3 = 0x20080522


def main() -> None:
    spec = _specification(int(sys.argv[1]))
    call = _system_calls()
    if spec["separate"]:
        _separate(spec, call)
    # The agent has our uid: without this it could take our end of the control pipe, or trace us, and outlive its run.
    call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
    # Neither bubblewrap's nor unshare's own setting survives a change of account, so it is set again.
    call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    os.chdir(spec["directory"])
    environment = {**os.environ, **_contact(spec["socket"], spec["calls"])}
    os._exit(_be_init(spec, environment))


def _specification(descriptor: int) -> dict[str, Any]:
    with open(descriptor, "rb") as file:
        file.seek(0)
        return json.load(file)


def _system_calls() -> Callable[..., None]:
    """A function that makes the named call of the C library and raises ``OSError`` if it fails."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: Any) -> None:
        # Plain numbers would become C ints, but the kernel reads whole registers.
        whole = [ctypes.c_ulong(word) if isinstance(word, int) else word for word in arguments]
        if getattr(libc, name)(*whole) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{name}: {os.strerror(number)}")

    return call


# --- Mounts and rights: only where no bubblewrap has done it -------------------------------------------------------


def _separate(spec: dict[str, Any], call: Callable[..., None]) -> None:
    def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
        words = [None if word is None else os.fsencode(word) for word in (source, target, kind, data)]
        call("mount", words[0], words[1], words[2], flags, words[3])

    _mount_all(spec, mount)
    _drop_bounding_set(call)
    if spec["drop_to"] is not None:
        uid, gid = spec["drop_to"]
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    call("capset", (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)())
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _filter_calls(bytes.fromhex(spec["filter"]), call)


def _drop_bounding_set(call: Callable[..., None]) -> None:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    for capability in range(last + 1):
        call("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)


class _Program(ctypes.Structure):
    """``struct sock_fprog`` of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _filter_calls(program: bytes, call: Callable[..., None]) -> None:
    if program:
        buffer = ctypes.create_string_buffer(program, len(program))
        filled = _Program(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
        call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(filled), 0, 0)


def _mount_all(spec: dict[str, Any], mount: Callable[..., None]) -> None:
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    # What comes back into view is opened before anything is hidden.
    sources = {
        one["path"]: os.open(one["path"], os.O_PATH | os.O_CLOEXEC) for one in spec["mounts"] if one["show"] != "hidden"
    }
    for one in spec["mounts"]:
        path = one["path"]
        if one["show"] == "hidden":
            owner = spec["drop_to"] if one["owned"] and spec["drop_to"] else (os.getuid(), os.getgid())
            options = f"mode={one['mode']:o},uid={owner[0]},gid={owner[1]}"
            mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
            continue
        source = f"/proc/self/fd/{sources[path]}"
        _make_place(path, directory=os.path.isdir(source))
        mount(source, path, None, _MS_BIND | _MS_REC)
        if one["show"] == "read":
            kept = os.statvfs(path).f_flag & _KEPT_FLAGS
            mount("none", path, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | kept)
    for descriptor in sources.values():
        os.close(descriptor)
    if spec["account"]:
        _name_account(spec["account"], spec["mounts"], mount)
    mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def _name_account(line: str, mounts: list[dict[str, Any]], mount: Callable[..., None]) -> None:
    """Show an ``/etc/passwd`` that also has ``line``: many tools do not start under an account without a name."""
    with open("/etc/passwd", "rb") as file:
        known = file.read()
    place = next(one["path"] for one in mounts if one["show"] == "hidden") + "/.passwd"
    with open(place, "wb") as file:
        file.write(known.rstrip(b"\n") + b"\n" + line.encode() + b"\n")
    os.chmod(place, 0o644)
    mount(place, "/etc/passwd", None, _MS_BIND)
    os.unlink(place)


def _make_place(path: str, *, directory: bool) -> None:
    """Make ``path`` exist, so that something can be mounted on it."""
    if os.path.lexists(path):
        return
    os.makedirs(path if directory else os.path.dirname(path), mode=0o755, exist_ok=True)
    if not directory:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


# --- First contact, before the agent's code runs -------------------------------------------------------------------


def _contact(path: str, calls: list[dict[str, Any]]) -> dict[str, str]:
    """Make ``calls`` on the run's socket, in order; the variables that their results give to the agent."""
    exported: dict[str, str] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.connect(path)
            with connection.makefile("rwb") as stream:
                for number, call in enumerate(calls, 1):
                    request = {"id": number, "method": call["method"], "params": call["params"]}
                    stream.write(json.dumps(request).encode() + b"\n")
                    stream.flush()
                    result = _result(stream.readline(1 << 20))
                    exported.update({name: str(result[key]) for name, key in call["export"].items()})
        except (OSError, ValueError, KeyError):
            _refuse("the broker does not answer on this run's socket", "is taskpass up?", 93)
    return exported


def _result(line: bytes) -> dict[str, Any]:
    answer = json.loads(line)
    error = answer.get("error")
    if error is not None:
        _refuse(str(error["message"]), str(error["hint"]), _EXIT_CODES.get(str(error.get("family")), 1))
    return answer["result"]


def _refuse(message: str, hint: str, code: int) -> None:
    for text in filter(None, (f"taskpass: {message}", hint)):
        _say(text)
    os._exit(code)


# --- Init ----------------------------------------------------------------------------------------------------------


def _be_init(spec: dict[str, Any], environment: dict[str, str]) -> int:
    """Start the agent and return its exit code. A byte on the control pipe is a signal to pass on; its end ends all.

    The launcher has blocked the signals of a terminal for us and for the program between; the agent gets its mask back.
    """
    control: int = spec["control"]
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, _nothing)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    agent = _start(spec["command"], environment, spec["mask"])
    poll = select.poll()
    for descriptor in (woken, control):
        poll.register(descriptor, select.POLLIN)
    while True:
        code = _reap(agent)
        if code is not None:
            return code
        ready = {descriptor for descriptor, _ in poll.poll()}
        if woken in ready:
            os.read(woken, 4096)
        if control in ready:
            numbers = os.read(control, 64)
            if not numbers:
                return 128 + signal.SIGKILL  # The launcher is gone.
            for number in numbers:
                os.kill(agent, number)


def _nothing(_number: int, _frame: object) -> None:
    """A handler, so that the signal wakes ``poll``."""


def _reap(agent: int) -> int | None:
    """Collect every ended child; the exit code of the agent if it is among them."""
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 1
        if child == 0:
            return None
        if child == agent:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _start(command: list[str], environment: dict[str, str], mask: list[int]) -> int:
    child = os.fork()
    if child:
        return child
    code = 126
    try:
        # Whatever the launcher's parent left open could lead out of the sandbox.
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvpe(command[0], command, environment)  # noqa: S606 - no shell is the point.
    except OSError:
        code = 126 if _is_there(command[0], environment) else 127
    finally:
        _say(f"taskpass: cannot start {command[0]}")
        os._exit(code)


def _is_there(name: str, environment: dict[str, str]) -> bool:
    """Whether there is a file to start; a folder in PATH that we may not enter looks like one to the kernel."""
    folders = [""] if "/" in name else os.get_exec_path(environment)
    return any(os.path.exists(os.path.join(folder, name)) for folder in folders)


def _say(text: str) -> None:
    shown = "".join(character if character.isprintable() else "?" for character in text)
    os.write(2, shown.encode(errors="replace") + b"\n")


if __name__ == "__main__":
    try:
        main()
    except OSError as failure:
        _refuse(f"the sandbox cannot be set up: {failure}", "see taskpass doctor", 1)
