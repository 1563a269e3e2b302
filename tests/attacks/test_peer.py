"""Tricks with the identity of a peer (threats.md, item 18), each with its effect, against the real server."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from taskpass.core.errors import NotAuthenticated
from taskpass.core.separation import Separation
from taskpass.identity.local import LocalAttestor, RunBinding
from taskpass.identity.process import Process
from taskpass.server.line import Line, LineServers
from taskpass.server.sockets import private_directory

ROOT = os.getuid() == 0
SOURCE = Path(__file__).parents[2] / "src"


class Broker:
    """A real line server whose handler tells the caller who it is."""

    def __init__(self, place):
        self.place = place
        self.directory = private_directory(place / "b")
        self.path = private_directory(place / "r") / "line.sock"
        self.attestor = LocalAttestor(self.directory, allow_root=True)
        self.callers = []
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.executor = ThreadPoolExecutor(4)
        self.servers = LineServers(self.loop, self.executor)
        self.servers.add(Line(self.path, self.handle, self.attestor.outside))

    def handle(self, _method, _params, peer):
        self.callers.append(peer.caller)
        return {"pid": peer.caller.pid, "separation": peer.caller.separation.word}

    def close(self):
        asyncio.run_coroutine_threadsafe(self.servers.close(), self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)
        self.executor.shutdown()
        self.loop.close()


@pytest.fixture
def broker(tmp_path):
    made = Broker(tmp_path)
    yield made
    made.close()


def ask(connection):
    connection.settimeout(10)
    try:
        connection.sendall(b'{"id":1,"method":"status"}\n')
        answer = connection.recv(65536)
    except ConnectionError:
        return {"error": {"code": "closed"}}
    return json.loads(answer) if answer else {"error": {"code": "closed"}}


def victim(broker, *, first="", last=""):
    """A process that connects and hands its connection to us; it ends when its input does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    code = f"""
        import array, socket, sys
        s = socket.socket(socket.AF_UNIX); s.connect({str(broker.path)!r})
        {first}
        c = socket.socket(fileno={theirs.fileno()})
        c.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [s.fileno()]))])
        sys.stdin.readline()
        {last}
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, pass_fds=[theirs.fileno()]
    )
    theirs.close()
    with ours:
        ours.settimeout(10)
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
    stolen = array.array("i", ancillary[0][2])[0]
    return process, socket.socket(fileno=stolen)


def test_a_connection_that_was_handed_on_dies_with_the_process_that_made_it(broker):
    process, stolen = victim(broker)
    with stolen:
        assert ask(stolen)["result"]["pid"] == process.pid
        process.communicate(b"\n", timeout=10)
        assert ask(stolen)["error"]["code"] == "peer_gone"
        assert ask(stolen)["error"]["code"] == "closed"
    assert len(broker.callers) == 1


def test_a_connection_that_is_first_used_after_its_maker_died_is_refused(broker):
    gate = threading.Event()
    real = broker.attestor.outside
    slow = broker.place / "r/slow.sock"
    broker.servers.add(Line(slow, broker.handle, lambda one: (gate.wait(30), real(one))[1]))
    broker.path = slow
    process, stolen = victim(broker)
    with stolen:
        process.communicate(b"\n", timeout=10)
        gate.set()
        stolen.settimeout(10)
        assert json.loads(stolen.recv(65536))["error"]["code"] == "peer_gone"
    assert broker.callers == []


def test_a_process_that_execs_stays_the_same_peer_and_its_end_still_counts(broker):
    process, stolen = victim(broker, last="import os; os.execv('/bin/sleep', ['sleep', '1000'])")
    with stolen:
        process.stdin.write(b"\n")
        process.stdin.close()
        deadline = threading.Event()
        while os.readlink(f"/proc/{process.pid}/exe").endswith("sleep") is False:
            assert not deadline.wait(0.005)
        assert ask(stolen)["result"]["pid"] == process.pid
        process.kill()
        process.wait(30)
        assert ask(stolen)["error"]["code"] == "peer_gone"


@pytest.mark.skipif(not ROOT, reason="needs root to choose the next pid")
def test_a_reused_pid_is_not_the_process_that_was_held(tmp_path):
    code = f"""
        import os, subprocess, sys
        sys.path.insert(0, {str(SOURCE)!r})
        from taskpass.identity.process import Process
        def start(pid):
            open("/proc/sys/kernel/ns_last_pid", "w").write(str(pid - 1))
            return subprocess.Popen(["sleep", "1000"])
        first = start(4000)
        held = Process.hold(first.pid)
        started = held.started()
        first.kill(); first.wait()
        second = start(4000)
        os.kill(held.pid, 0)   # What asks by number is fooled.
        print(first.pid == second.pid == 4000, held.alive())
        try: held.status()
        except OSError: print("reads nothing")
        second.kill(); second.wait()
    """
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout == "True False\nreads nothing\n", done


def test_a_process_in_a_perfect_sandbox_of_its_own_making_is_not_separated(broker, tmp_path):
    flags = ["--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    flags = flags if ROOT else ["--user", "--map-root-user", *flags]
    if subprocess.run(["unshare", *flags, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("namespaces are forbidden here")
    code = f"""
        import os, socket, subprocess, sys
        s = socket.socket(socket.AF_UNIX); s.connect({str(broker.path)!r})
        subprocess.run(["mount", "-t", "tmpfs", "x", {str(broker.directory)!r}], check=True)
        s.sendall(b'{{"id":1,"method":"status"}}\\n'); print(s.recv(9999).decode())
    """
    done = subprocess.run(
        ["unshare", *flags, sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert json.loads(done.stdout)["result"]["separation"] == "none", done
    assert broker.callers[0].separation is Separation.NONE


def test_a_sibling_that_is_quicker_than_the_sandbox_does_not_get_its_run(broker):
    """The sibling waits for the socket of a run and connects before the sandbox does."""
    launcher = subprocess.Popen(["sleep", "1000"])
    binding = RunBinding("run_01j00000000000000000000000", os.getuid(), Process.hold(launcher.pid), None, "")
    path = broker.place / "r/run.sock"
    broker.servers.add(Line(path, broker.handle, lambda one: broker.attestor.of_run(one, binding)))
    try:
        with socket.socket(socket.AF_UNIX) as sibling:
            sibling.settimeout(10)
            sibling.connect(str(path))
            assert json.loads(sibling.recv(65536))["error"]["code"] == "peer_elsewhere"
        assert binding.namespace == ""
        assert broker.callers == []
    finally:
        binding.close()
        launcher.kill()
        launcher.wait(30)


def test_after_the_launcher_died_nobody_can_bind_its_run(broker):
    launcher = subprocess.Popen(["sleep", "1000"])
    binding = RunBinding("run_01j00000000000000000000000", os.getuid(), Process.hold(launcher.pid), None, "")
    launcher.kill()
    launcher.wait(30)
    assert binding.ended()
    process, stolen = victim(broker)
    with stolen:
        held = Process.hold(process.pid)
        with pytest.raises(NotAuthenticated):
            binding.admit(held, os.getuid())
        held.close()
        process.communicate(b"\n", timeout=10)
    binding.close()


@pytest.mark.skipif(not ROOT, reason="needs root for a second account")
def test_another_account_cannot_even_reach_the_socket(broker):
    code = f"import socket; socket.socket(socket.AF_UNIX).connect({str(broker.path)!r})"
    done = subprocess.run(
        ["setpriv", "--reuid=4321", "--regid=4321", "--clear-groups", "/usr/bin/python3", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "PermissionError" in done.stderr
    assert broker.callers == []
