"""A command run in our place: exit codes, signals, terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "src"


def wrapper(*command):
    code = (
        f"import sys, os; sys.path.insert(0, {str(SOURCE)!r});"
        " from taskpass.client.run_child import run_child; sys.exit(run_child(sys.argv[1:], os.environ))"
    )
    return [sys.executable, "-S", "-c", code, *command]


def run(*command, **named):
    return subprocess.run(wrapper(*command), capture_output=True, timeout=20, check=False, **named)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["no-such-command-anywhere"], 127),
        (["/etc/passwd/x"], 127),
        (["/etc/passwd"], 126),
        (["/etc"], 126),
    ],
)
def test_the_exit_code_passes_through(command, code):
    assert run(*command).returncode == code


def test_streams_and_environment_pass_through():
    done = run("sh", "-c", "cat; echo $MARK >&2", input=b"in", env={**os.environ, "MARK": "m"})
    assert (done.stdout, done.stderr) == (b"in", b"m\n")


def test_the_child_has_the_usual_signals_and_not_ours():
    status = run("cat", "/proc/self/status").stdout.decode()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    blocked, ignored = int(fields["SigBlk"], 16), int(fields["SigIgn"], 16)
    assert not blocked & (1 << signal.SIGINT - 1 | 1 << signal.SIGCHLD - 1)
    assert not ignored & 1 << signal.SIGPIPE - 1


@pytest.mark.parametrize("name", ["INT", "TERM", "HUP", "QUIT", "WINCH", "USR1", "USR2"])
def test_a_signal_sent_to_us_reaches_the_child(name):
    script = f"trap 'echo got; exit 3' {name}; echo ready; while :; do sleep 0.01; done"
    process = subprocess.Popen(wrapper("sh", "-c", script), stdout=subprocess.PIPE)
    with process.stdout:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(getattr(signal, f"SIG{name}"))
        assert process.stdout.readline() == b"got\n"
    assert process.wait(30) == 3


def test_a_key_on_the_terminal_reaches_the_child_once_and_the_terminal_is_its_own():
    script = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print('terminal', os.isatty(0), os.isatty(1), flush=True)
if signal.sigtimedwait([signal.SIGINT], 10): print('got', flush=True)
while signal.sigtimedwait([signal.SIGINT], 0.3): print('got', flush=True)
print('end', input(), flush=True)
"""
    pid, terminal = pty.fork()
    if pid == 0:
        command = wrapper(sys.executable, "-c", script)
        os.execv(command[0], command)
    seen = read_until(terminal, b"", b"terminal True True")
    os.write(terminal, b"\x03")
    seen = read_until(terminal, seen, b"got")
    os.write(terminal, b"x\n")
    seen = read_until(terminal, seen, b"end x")
    assert seen.count(b"got") == 1
    # Closing the terminal earlier would hang up on whoever has not ended yet.
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    assert code == 0


def read_until(terminal, seen, wanted):
    while wanted not in seen:
        assert select.select([terminal], [], [], 10)[0], seen
        seen += os.read(terminal, 4096)
    return seen


def test_a_signal_that_comes_as_the_child_ends_does_not_end_us_in_its_place():
    """The child sends to us, blocked as we are, and ends: both are pending when we look."""
    script = "kill -INT $PPID; kill -TERM $PPID; exit 6"
    code = f"""
import os, sys
sys.path.insert(0, {str(SOURCE)!r})
from taskpass.client import run_child
wait = run_child.wait_for
def late(child):
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    return wait(child)
run_child.wait_for = late
sys.exit(run_child.run_child(sys.argv[1:], os.environ))
"""
    command = [sys.executable, "-S", "-c", code, "sh", "-c", script]
    assert subprocess.run(command, timeout=20, check=False).returncode == 6


def test_a_parent_that_ignores_its_children_does_not_break_waiting():
    process = subprocess.run(
        wrapper("sh", "-c", "exit 5"),
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        timeout=20,
        check=False,
    )
    assert process.returncode == 5
