"""Start an agent in its sandbox, be transparent for terminal, signals and exit code, and take it down with us.

The launcher must be the process that asked the broker for the run: first contact is accepted from below it only. A pipe
that only we can write to is the lifeline: signals go down it, and when we end in any way the run ends.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskpass.core.errors import Conflict, InvalidInput, SandboxUnavailable
from taskpass.sandbox import bubblewrap, unshare
from taskpass.sandbox.detect import Kind, detect
from taskpass.sandbox.plan import Account, Plan, Show, Surroundings
from taskpass.sandbox.terminal import terminal_filter

DEFAULT_AGENT_UID = 65533
"""For agents that root starts: an account that distributions leave unused. Not 65534, which the kernel also shows for
every account without a mapping and which the broker therefore refuses."""

_POINTS_TO_BROKER = ("TASKPASS_DIR", "TASKPASS_RUNTIME_DIR", "TASKPASS_TASK")
_PROFILES = (
    ".bashrc", ".bash_profile", ".bash_login", ".bash_logout", ".profile", ".zshrc", ".zshenv", ".zprofile", ".zlogin",
    ".config/fish/config.fish", ".xprofile", ".xsessionrc", ".pam_environment",
)  # fmt: skip
_RESOLVER = ("/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager")
_SHARED = ("/tmp", "/dev/shm")  # noqa: S108
_FORWARDED = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGWINCH, signal.SIGUSR1, signal.SIGUSR2}
)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of first contact. ``export``: variables for the agent, each with the key of the result it gets."""

    method: str
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    export: Mapping[str, str] = field(default_factory=dict[str, str])


HELLO = Call("hello")


def refuse_nested() -> None:
    """Raises ``Conflict`` (nested_run) inside a run: its broker is out of reach there, by design."""
    if os.environ.get("TASKPASS_SOCK"):
        raise Conflict(
            "this is already inside a run", code="nested_run", hint="start the program directly: it shares this run"
        )


def surroundings(broker_directory: Path, runtime_directory: Path, *, others: Sequence[Path] = ()) -> Surroundings:
    """What there is to hide and to keep here; ``others``: more directories of the broker, such as its store's."""
    home = Path.home().resolve()
    package = Path(__file__).resolve().parents[1]
    program = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), package}
    sessions = Path(os.environ.get("XDG_RUNTIME_DIR") or "/run").resolve()
    hidden = [Path("/run"), sessions, *_other_proc_mounts(), *(path.resolve() for path in others)]
    return Surroundings(
        broker_directory=broker_directory.resolve(),
        runtime_directory=runtime_directory.resolve(),
        home=home,
        shared=_present(_SHARED),
        others=_present(hidden),
        program=tuple(sorted(program)),
        profiles=_present(home / name for name in _PROFILES),
        resolver=_present(_RESOLVER),
    )


def agent_account(uid: int | None = None) -> Account:
    """The account for the agent: our own, or as root ``uid``, by default one that nobody uses."""
    if os.geteuid() != 0:
        if uid not in (None, os.getuid()):
            raise InvalidInput("only root can start an agent under another account")
        return Account(os.getuid(), os.getgid())
    chosen = DEFAULT_AGENT_UID if uid is None else uid
    if chosen <= 0:
        raise InvalidInput("an agent is not started as root", hint="give the uid of an ordinary account")
    try:
        return Account(chosen, pwd.getpwuid(chosen).pw_gid)
    except KeyError:
        return Account(chosen, chosen)


def launch(
    plan: Plan,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    calls: Sequence[Call] = (HELLO,),
    kind: Kind | None = None,
) -> int:
    """Run ``command`` in the sandbox of ``plan`` to its end; its exit code, 128 + n for signal n.

    Raises ``SandboxUnavailable`` and ``Conflict`` (nested_run). A refusal at first contact is printed by the first
    process inside, which ends with the documented code. Call it from the main thread, before other threads start.
    """
    refuse_nested()
    chosen = kind or detect()
    cleaned = {name: value for name, value in environment.items() if name not in _POINTS_TO_BROKER}
    cleaned["TASKPASS_SOCK"] = str(plan.socket)
    with ExitStack() as open_descriptors:
        listen, control = _pipe(open_descriptors)
        words, passed = _command_line(chosen, plan, command, calls, listen, open_descriptors)
        return _run(words, cleaned, control, [listen, *passed])


def specification(plan: Plan, command: Sequence[str], calls: Sequence[Call], control: int, kind: Kind) -> bytes:
    """What ``sandbox.inner`` does, as JSON. ``mask``: the signals that the agent has blocked, as we had them."""
    separate = kind.name != "bubblewrap"
    found = {
        "separate": separate,
        "mounts": [
            {"path": str(mount.path), "show": mount.show.value, "mode": mount.mode, "owned": mount.owned}
            for mount in plan.mounts
        ],
        "drop_to": [plan.account.uid, plan.account.gid] if kind.name == "root" else None,
        "account": _passwd_line(plan.account) if kind.name == "root" else "",
        "filter": terminal_filter().hex() if separate else "",
        "directory": str(plan.directory),
        "socket": str(plan.socket),
        "calls": [{"method": one.method, "params": dict(one.params), "export": dict(one.export)} for one in calls],
        "command": list(command),
        "control": control,
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    }
    return json.dumps(found).encode()


def _passwd_line(account: Account) -> str:
    """A line of passwd(5) for an account that has none, so that tools find a name and a home; else empty."""
    try:
        pwd.getpwuid(account.uid)
    except KeyError:
        return f"taskpass-agent:x:{account.uid}:{account.gid}:agent of taskpass:{Path.home()}:/bin/sh"
    return ""


def _command_line(
    kind: Kind, plan: Plan, command: Sequence[str], calls: Sequence[Call], control: int, stack: ExitStack
) -> tuple[list[str], list[int]]:
    """The command line, and the descriptors that it needs."""
    spec = _memory_file(specification(plan, command, calls, control, kind), stack)
    base = getattr(sys, "_base_executable", sys.executable)
    inside = [base, "-I", "-S", str(Path(__file__).resolve().with_name("inner.py")), str(spec)]
    if kind.name == "bubblewrap":
        program = terminal_filter()
        filtered = [_memory_file(program, stack)] if program else []
        words = bubblewrap.arguments(
            kind.program, plan, filter_descriptor=filtered[0] if filtered else None, inside=inside
        )
        return words, [spec, *filtered]
    return unshare.arguments(kind.program, as_root=kind.name == "root", inside=inside), [spec]


def _run(words: list[str], environment: dict[str, str], control: int, passed: list[int]) -> int:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_FORWARDED, signal.SIGCHLD})
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        for descriptor in passed:
            os.set_inheritable(descriptor, True)
        # The program between us and the first process inside must not end by a key that is meant for the agent.
        child = os.posix_spawn(words[0], words, environment, setsigmask={*before, *_FORWARDED})
        for descriptor in passed:
            os.set_inheritable(descriptor, False)
        return _wait(child, control)
    except OSError as error:
        raise SandboxUnavailable(f"the sandbox cannot be started: {error.strerror}") from None
    finally:
        # What is still pending was meant for the agent: it must not end us in its place.
        while signal.sigtimedwait(_FORWARDED, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait(child: int, control: int) -> int:
    """Until ``child`` ends. What the kernel sends to the whole terminal group the agent has already got."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        received = signal.sigwaitinfo({*_FORWARDED, signal.SIGCHLD})
        if received.si_signo != signal.SIGCHLD and received.si_code <= 0:
            with suppress(BrokenPipeError):
                os.write(control, bytes([received.si_signo]))


def _pipe(stack: ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        stack.callback(os.close, end)
    return ends


def _memory_file(content: bytes, stack: ExitStack) -> int:
    descriptor = os.memfd_create("taskpass")
    stack.callback(os.close, descriptor)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _present(paths: Any) -> tuple[Path, ...]:
    """The paths that exist and are what they seem: a link would be hidden at another place than it is used."""
    return tuple(path for path in map(Path, paths) if path.exists() and path.resolve() == path)


def _other_proc_mounts() -> list[Path]:
    """Places besides ``/proc`` where this machine shows processes."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        fields = [line.split(" ") for line in file]
    found = [line[4] for line in fields if line[line.index("-") + 1] == "proc" and line[4] != "/proc"]
    return [Path(point) for point in found if not Path(point).is_relative_to("/proc")]


def shown(plan: Plan) -> list[str]:
    """The plan in words, one line a path, for ``doctor`` and ``run --dry-run``."""
    words = {Show.HIDDEN: "hidden", Show.READ: "read-only", Show.OPEN: "as it is"}
    return [f"{words[mount.show]:10} {mount.path}" for mount in plan.mounts]
