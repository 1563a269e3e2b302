"""Watched processes are real ones here."""

from __future__ import annotations

import os
import queue
import subprocess
import sys

import pytest

from taskpass.core.errors import NotAuthenticated
from taskpass.core.ids import LeaseId, RunId
from taskpass.core.separation import Separation
from taskpass.identity.base import Caller
from taskpass.identity.process import Process
from taskpass.runtime.holders import LeaseHolders
from taskpass.runtime.run_sockets import RunSocketServer
from taskpass.runtime.watcher import ProcessWatcher
from taskpass.testing.broker_parts import FakePeer

LEASE = LeaseId("lse_" + "0" * 26)
RUN = RunId("run_" + "0" * 26)


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()
    process.stdin.close()


@pytest.fixture
def watcher():
    made = ProcessWatcher()
    made.start()
    yield made
    made.stop()


def caller(pid, ticks=None):
    held = Process.hold(pid)
    started = str(held.started())
    held.close()
    return Caller(pid, os.getuid(), "boot/1", Separation.NONE, None, {"started_ticks": ticks or started})


def end(process):
    process.kill()
    process.wait()


def test_the_end_of_a_process_is_told_once(watcher, child):
    told = queue.Queue()
    watcher.watch("key", os.pidfd_open(child.pid), lambda: told.put("ended"))
    with pytest.raises(queue.Empty):
        told.get(timeout=0.1)
    end(child)
    assert told.get(timeout=30) == "ended"
    with pytest.raises(queue.Empty):
        told.get(timeout=0.1)


def test_what_was_forgotten_is_not_told(watcher, child):
    told = queue.Queue()
    watcher.watch("key", os.pidfd_open(child.pid), lambda: told.put("ended"))
    watcher.forget("key")
    watcher.forget("key")
    end(child)
    with pytest.raises(queue.Empty):
        told.get(timeout=0.2)


def test_a_callback_that_fails_ends_no_other_watch(watcher, child):
    told = queue.Queue()

    def fail():
        raise RuntimeError

    watcher.watch("first", os.pidfd_open(child.pid), fail)
    watcher.watch("second", os.pidfd_open(child.pid), lambda: told.put("ended"))
    end(child)
    assert told.get(timeout=30) == "ended"


def test_a_descriptor_number_that_means_another_process_by_now_is_not_taken_for_its_end(child):
    """The poll reported a number; before it was looked up the watch was forgotten and the number given out again."""
    told = []
    watcher = ProcessWatcher()
    pidfd = os.pidfd_open(child.pid)
    watcher.watch("other", pidfd, lambda: told.append("ended"))
    watcher._ended(pidfd)
    assert told == []
    end(child)
    watcher._ended(pidfd)
    assert told == ["ended"]


def test_a_lease_ends_with_its_process(watcher, child):
    told = queue.Queue()
    holders = LeaseHolders(watcher, told.put)
    holders.watch_lease(LEASE, caller(child.pid))
    end(child)
    assert told.get(timeout=30) == LEASE


def test_a_lease_of_a_process_that_is_gone_or_another_one_ends_at_once(watcher, child):
    told = queue.Queue()
    holders = LeaseHolders(watcher, told.put)
    holders.watch_lease(LEASE, caller(child.pid, ticks="1"))
    assert told.get(timeout=30) == LEASE
    was = caller(child.pid)
    end(child)
    holders.watch_lease(LEASE, was)
    assert told.get(timeout=30) == LEASE


def test_watching_leaves_no_descriptor_behind(watcher, child):
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        watcher.watch(f"k{number % 3}", os.pidfd_open(child.pid), lambda: None)
    for number in range(3):
        watcher.forget(f"k{number}")
    assert len(os.listdir("/proc/self/fd")) == before


class Servers:
    def __init__(self):
        self.lines = {}

    def add(self, line):
        self.lines[line.path] = line

    def remove(self, path):
        self.lines.pop(path, None)


@pytest.fixture
def sockets(tmp_path, watcher):
    tmp_path.chmod(0o700)
    told = queue.Queue()
    servers = Servers()
    made = RunSocketServer(servers, tmp_path, None, watcher, told.put)
    made.handler = lambda method, params, peer: {}
    made.told, made.servers = told, servers
    return made


def test_a_launcher_that_ends_before_first_contact_ends_the_run(sockets, child):
    sockets.open(RUN, os.getuid(), FakePeer(caller(child.pid)))
    assert len(sockets.servers.lines) == 1
    end(child)
    assert sockets.told.get(timeout=30) == RUN
    sockets.close(RUN)
    assert sockets.servers.lines == {}


def test_a_launcher_that_ends_while_its_run_is_prepared_leaves_no_socket(sockets, child, monkeypatch):
    monkeypatch.setattr("taskpass.runtime.run_sockets.os.pidfd_open", gone)
    with pytest.raises(NotAuthenticated):
        sockets.open(RUN, os.getuid(), FakePeer(caller(child.pid)))
    assert sockets.servers.lines == {}
    with pytest.raises(NotAuthenticated):
        sockets.binding(RUN)


def test_a_sandbox_that_ended_by_first_contact_ends_its_run(sockets, child, monkeypatch):
    sockets.open(RUN, os.getuid(), FakePeer(caller(child.pid)))
    monkeypatch.setattr(type(sockets.binding(RUN)), "init_pid", 1)
    monkeypatch.setattr("taskpass.runtime.run_sockets.os.pidfd_open", gone)
    sockets.bound(RUN)
    assert sockets.told.get(timeout=30) == RUN


def gone(pid):
    raise ProcessLookupError(3, "No such process")
