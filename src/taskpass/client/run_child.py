"""Run one command in place of ourselves: terminal, signals and exit code pass through. Standard library only.

The child stays in our process group, so the terminal reaches both of us: what the kernel sends (Ctrl-C, Ctrl-Z, a new
window size, hang-up) the child has already got, and only what another *process* sends to us is passed on. Not for
output that must be masked: that needs a pipe and is somebody else's work.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping, Sequence

NOT_FOUND = 127
NOT_EXECUTABLE = 126

FORWARDED = frozenset(
    {
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGWINCH,
        signal.SIGUSR1,
        signal.SIGUSR2,
    }
)


_LOOK_SECONDS = 0.5
"""In a process with other threads one of them may swallow the signal of the child's end, so we look by ourselves."""


def run_child(command: Sequence[str], environment: Mapping[str, str], *, hand_over: int | None = None) -> int:
    """Run ``command`` to its end and return its exit code, 128 + n for signal n; 127 not found, 126 not executable.

    ``hand_over`` is a descriptor that the child inherits under the same number; it is closed here in any case.

    To be called from the main thread, before other threads start: they inherit the signals that are held back here.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    # A parent that ignores SIGCHLD hands that down, and then no child could be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        return wait_for(_spawn(command, environment, before, hand_over))
    except OSError:
        return NOT_EXECUTABLE if _is_there(command[0]) else NOT_FOUND
    finally:
        release(before)


def _spawn(command: Sequence[str], environment: Mapping[str, str], mask: Iterable[int], hand_over: int | None) -> int:
    try:
        if hand_over is not None:
            os.set_inheritable(hand_over, True)
        # Python ignores SIGPIPE and SIGXFSZ for itself; the child gets the usual behaviour back.
        return os.posix_spawnp(
            command[0],
            list(command),
            dict(environment),
            setsigmask=mask,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    finally:
        if hand_over is not None:
            os.close(hand_over)


def release(before: Iterable[int]) -> None:
    """Set the old mask again. What is still pending was meant for the child: it must not end us in its place."""
    while signal.sigtimedwait(FORWARDED, 0) is not None:
        pass
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_for(child: int) -> int:
    """Wait until ``child`` ends, passing signals on; the signals must be blocked already. The exit code."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        received = signal.sigtimedwait({*FORWARDED, signal.SIGCHLD}, _LOOK_SECONDS)
        if received and received.si_signo != signal.SIGCHLD and received.si_code <= 0:
            os.kill(child, received.si_signo)


def _is_there(name: str) -> bool:
    """Whether there is a file to start; a folder in PATH that we may not enter looks like one to the kernel."""
    folders = [""] if "/" in name else os.get_exec_path()
    return any(os.path.exists(os.path.join(folder, name)) for folder in folders)
