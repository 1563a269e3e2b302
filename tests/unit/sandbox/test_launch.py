"""Which signals go on to the agent: those that a process sent, and not those that its terminal gave it already."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import pytest

from taskpass.client import run_child
from taskpass.sandbox import launch

FROM_KERNEL, FROM_PROCESS, FROM_THREAD = 0x80, 0, -6


@pytest.fixture
def child():
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    return pid


@pytest.fixture
def received(monkeypatch, child):
    """Signals that come in, in order, and then the child's end."""
    coming = []

    def next_signal(_):
        if coming:
            number, code = coming.pop(0)
            return SimpleNamespace(si_signo=number, si_code=code)
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        return SimpleNamespace(si_signo=signal.SIGCHLD, si_code=1)

    monkeypatch.setattr(signal, "sigwaitinfo", next_signal)
    monkeypatch.setattr(signal, "sigtimedwait", lambda wanted, _seconds: next_signal(wanted))
    return coming


MIXED = [
    (signal.SIGINT, FROM_KERNEL),
    (signal.SIGTERM, FROM_PROCESS),
    (signal.SIGWINCH, FROM_KERNEL),
    (signal.SIGUSR1, FROM_THREAD),
    (signal.SIGCHLD, FROM_PROCESS),
]


def test_a_run_gets_what_a_process_sent_and_nothing_twice(child, received):
    received += MIXED
    reader, writer = os.pipe()
    assert launch._wait(child, writer) == 128 + signal.SIGKILL
    os.close(writer)
    with open(reader, "rb") as sent:
        assert list(sent.read()) == [signal.SIGTERM, signal.SIGUSR1]


def test_a_run_that_is_just_ending_does_not_break_the_launcher(child, received):
    received.append((signal.SIGTERM, FROM_PROCESS))
    reader, writer = os.pipe()
    os.close(reader)
    assert launch._wait(child, writer) == 128 + signal.SIGKILL
    os.close(writer)


def test_a_plain_child_gets_what_a_process_sent_and_nothing_twice(child, received, monkeypatch):
    received += MIXED
    sent = []
    real = os.kill
    monkeypatch.setattr(
        os, "kill", lambda pid, number: real(pid, number) if number == signal.SIGKILL else sent.append((pid, number))
    )
    assert run_child.wait_for(child) == 128 + signal.SIGKILL
    assert sent == [(child, signal.SIGTERM), (child, signal.SIGUSR1)]
