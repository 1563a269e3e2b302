"""Attesting real processes over real sockets: what the kernel says, and when it is refused."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from taskpass.core.errors import NotAuthenticated
from taskpass.core.ids import RunId
from taskpass.core.separation import Separation
from taskpass.identity import namespaces, peer
from taskpass.identity.local import LocalAttestor, RunBinding
from taskpass.identity.probe import probe
from taskpass.identity.process import Process, ancestors

RUN = RunId("run_01j00000000000000000000000")
ME = os.getuid()


@pytest.fixture
def directory(tmp_path):
    made = tmp_path / "broker"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def attestor(directory):
    return LocalAttestor(directory, allow_root=True)


class Child:
    """A real process at the other end of a real socket; it says ``ready`` and then waits for a line."""

    def __init__(self, tmp_path, *prefix, uid=None):
        self.path = tmp_path / f"s{len(list(tmp_path.iterdir()))}"
        tmp_path.chmod(0o711)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.path))
            self.path.chmod(0o666)
            listener.listen()
            listener.settimeout(10)
            code = f"""
                import os, socket, sys
                s = socket.socket(socket.AF_UNIX)
                if {uid}: os.setgroups([]); os.setresgid({uid},{uid},{uid}); os.setresuid({uid},{uid},{uid})
                s.connect({self.path.name!r})
                sys.stdin.readline()
            """
            self.process = subprocess.Popen(
                [
                    *prefix,
                    "/usr/bin/python3" if "setpriv" in prefix else sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    textwrap.dedent(code),
                ],
                stdin=subprocess.PIPE,
                cwd=tmp_path,
            )
            try:
                self.connection, _ = listener.accept()
            except OSError:
                self.process.kill()
                self.process.communicate()
                raise

    def end(self):
        self.process.communicate(b"\n", timeout=10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()
        self.process.kill()
        self.process.wait(30)
        self.process.stdin.close()


def refused(call, *arguments, **named):
    with pytest.raises(NotAuthenticated) as caught:
        call(*arguments, **named)
    return caught.value.code


def test_the_peer_is_named_by_the_kernel_and_held_until_it_ends(tmp_path, attestor):
    with Child(tmp_path) as child:
        found = attestor.outside(child.connection)
        assert (found.caller.pid, found.caller.uid, found.caller.run) == (child.process.pid, ME, None)
        assert found.caller.namespace == namespaces.name_of(namespaces.own_namespace())
        assert found.caller.facts["started_ticks"].isdecimal()
        assert found.caller.facts["executable"].startswith("/")
        assert found.alive()
        child.end()
        assert not found.alive()
        found.close()
        assert not found.alive()


def test_facts_hold_nothing_of_the_callers_command_line_or_environment(tmp_path, attestor):
    with Child(tmp_path) as child:
        found = attestor.outside(child.connection)
        assert set(found.caller.facts) == {"executable", "started_ticks"}
        found.close()


def test_a_peer_that_ended_before_it_was_attested_is_refused(tmp_path, attestor):
    with Child(tmp_path) as child:
        child.end()
        assert refused(attestor.outside, child.connection) == "peer_gone"


def test_a_zombie_is_not_alive(tmp_path, attestor):
    with Child(tmp_path) as child:
        found = attestor.outside(child.connection)
        child.process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{child.process.pid}").exists()
        assert not found.alive()
        found.close()


@pytest.mark.skipif(ME != 0, reason="needs root to be root")
def test_uid_0_is_refused_unless_the_operator_allows_it(tmp_path, directory):
    with Child(tmp_path) as child:
        assert refused(LocalAttestor(directory).outside, child.connection) == "peer_root"


@pytest.mark.parametrize(("pid", "uid"), [(0, 1000), (-1, 1000), (4242, peer.overflow_uid())])
def test_a_peer_that_the_kernel_cannot_name_here_is_refused(monkeypatch, attestor, pid, uid):
    monkeypatch.setattr(peer, "credentials", lambda _: (pid, uid))
    assert refused(attestor.outside, None) == "peer_unknown"


@pytest.mark.skipif(ME != 0, reason="needs root to make namespaces")
def test_a_caller_from_outside_the_brokers_pid_namespace_shows_pid_0_and_is_refused(tmp_path):
    code = f"""
        import socket, sys
        sys.path[:0] = {[p for p in sys.path if p]!r}
        from pathlib import Path
        from taskpass.identity.local import LocalAttestor
        from taskpass.core.errors import NotAuthenticated
        l = socket.socket(socket.AF_UNIX); l.bind("s"); l.listen(); print("ready", flush=True)
        c, _ = l.accept()
        try: LocalAttestor(Path("/"), allow_root=True).outside(c)
        except NotAuthenticated as error: print(error.code)
    """
    broker = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert broker.stdout.readline() == "ready\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        assert broker.communicate(timeout=10)[0] == "peer_unknown\n"


def test_without_a_pidfd_from_the_socket_the_process_is_held_by_pid(tmp_path, attestor):
    with Child(tmp_path) as child:
        real = child.connection

        class OldKernel:
            """A socket of a kernel before 6.5, which does not know the option."""

            def getsockopt(self, level, option, size):
                if option == 77:
                    raise OSError(92, "Protocol not available")
                return real.getsockopt(level, option, size)

        found = attestor.outside(OldKernel())
        assert found.alive()
        child.end()
        assert not found.alive()
        found.close()
        assert refused(attestor.outside, OldKernel()) == "peer_gone"


def test_without_a_pidfd_a_pid_that_now_shows_another_uid_is_refused(monkeypatch, attestor):
    monkeypatch.setattr(peer, "credentials", lambda _: (os.getpid(), ME + 1))

    class OldKernel:
        def getsockopt(self, *_):
            raise OSError(92, "Protocol not available")

    assert refused(attestor.outside, OldKernel()) == "peer_gone"


@pytest.mark.skipif(ME != 0, reason="needs root for a second account")
class TestAnotherAccount:
    def test_is_separated_by_its_uid(self, tmp_path, directory, attestor):
        with Child(tmp_path, uid=4321) as child:
            found = attestor.outside(child.connection)
            assert (found.caller.uid, found.caller.separation) == (4321, Separation.UID)
            found.close()

    @pytest.mark.parametrize("mode", [0o750, 0o705, 0o701])
    def test_is_not_separated_when_the_brokers_directory_is_open(self, tmp_path, directory, attestor, mode):
        directory.chmod(mode)
        with Child(tmp_path, uid=4321) as child:
            found = attestor.outside(child.connection)
            assert found.caller.separation is Separation.NONE
            found.close()

    def test_is_not_separated_when_it_keeps_a_capability(self, tmp_path, attestor):
        prefix = ["setpriv", "--inh-caps=+dac_override", "--ambient-caps=+dac_override", "--reuid=4321"]
        with Child(tmp_path, *prefix) as child:
            found = attestor.outside(child.connection)
            assert (found.caller.uid, found.caller.separation) == (4321, Separation.NONE)
            found.close()

    def test_is_no_operator(self, tmp_path, attestor):
        with Child(tmp_path, uid=4321) as child:
            assert refused(attestor.operator, child.connection) == "peer_not_operator"

    def test_is_not_served_on_a_run_of_a_third_one(self, tmp_path, attestor):
        with Child(tmp_path) as launcher, Child(tmp_path, uid=4321) as child:
            binding = RunBinding.prepared(RUN, 4322, attestor.operator(launcher.connection))
            assert refused(attestor.of_run, child.connection, binding) == "peer_elsewhere"
            binding.close()


def test_the_same_uid_without_a_namespace_is_not_separated(tmp_path, attestor):
    with Child(tmp_path) as child:
        found = attestor.outside(child.connection)
        assert found.caller.separation is Separation.NONE
        found.close()


def test_an_error_while_probing_counts_as_no_separation(tmp_path, attestor):
    with Child(tmp_path) as child:
        held = Process.hold(child.process.pid)
        arguments = {"broker_uid": ME + 1, "run_bound": True}
        assert probe(held, ME + 2, broker_directory=tmp_path / "missing", **arguments) is Separation.NONE
        held.close()


def test_the_operators_socket_serves_our_own_account(tmp_path, attestor):
    with Child(tmp_path) as child:
        assert attestor.operator(child.connection).caller.pid == child.process.pid


UNSHARE = ["unshare", "--pid", "--fork", "--kill-child"] if ME == 0 else ["unshare", "-Ucp", "--fork", "--kill-child"]


def can_unshare():
    return subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode == 0


needs_namespaces = pytest.mark.skipif(not can_unshare(), reason="pid namespaces are forbidden here")


@needs_namespaces
class TestPidNamespaces:
    def test_the_operators_socket_serves_nobody_in_another_pid_namespace(self, tmp_path, attestor):
        with Child(tmp_path, *UNSHARE) as child:
            assert refused(attestor.operator, child.connection) == "peer_not_operator"

    def test_the_first_contact_from_below_the_launcher_binds_the_run_to_its_namespace(self, tmp_path, attestor):
        with Child(tmp_path, *UNSHARE) as child:
            launcher = Process.hold(os.getpid())
            binding = RunBinding(RUN, ME, launcher, None, "")
            found = attestor.of_run(child.connection, binding)
            assert binding.namespace == found.caller.namespace != namespaces.name_of(namespaces.own_namespace())
            assert found.init_pid == binding.init_pid == found.caller.pid
            assert found.caller.run == RUN
            assert not binding.ended()
            restored = RunBinding.restored(RUN, ME, binding.namespace)
            assert restored.init_pid == binding.init_pid
            child.end()
            assert binding.ended()
            assert restored.ended()
            assert RunBinding.restored(RUN, ME, binding.namespace) is None
            for held in (found, binding, restored):
                held.close()

    def test_a_first_contact_from_elsewhere_does_not_take_the_run(self, tmp_path, attestor):
        with Child(tmp_path) as launcher, Child(tmp_path, *UNSHARE) as sibling:
            binding = RunBinding.prepared(RUN, ME, attestor.operator(launcher.connection))
            assert refused(attestor.of_run, sibling.connection, binding) == "peer_elsewhere"
            assert binding.namespace == ""
            binding.close()

    def test_a_first_contact_outside_any_namespace_does_not_take_the_run(self, tmp_path, attestor):
        with Child(tmp_path) as child:
            binding = RunBinding(RUN, ME, Process.hold(os.getpid()), None, "")
            assert refused(attestor.of_run, child.connection, binding) == "peer_elsewhere"
            binding.close()

    def test_a_bound_run_serves_no_other_namespace(self, tmp_path, attestor):
        with Child(tmp_path, *UNSHARE) as first, Child(tmp_path, *UNSHARE) as other, Child(tmp_path) as plain:
            binding = RunBinding(RUN, ME, Process.hold(os.getpid()), None, "")
            attestor.of_run(first.connection, binding).close()
            assert refused(attestor.of_run, other.connection, binding) == "peer_elsewhere"
            assert refused(attestor.of_run, plain.connection, binding) == "peer_elsewhere"
            binding.close()

    def test_a_namespace_made_inside_the_run_is_inside_it(self, tmp_path, attestor):
        with Child(tmp_path, *UNSHARE, *UNSHARE) as nested:
            held = Process.hold(nested.process.pid)
            outer_init = next(
                process
                for pid in descendants(nested.process.pid)
                if (process := Process.hold(pid)).namespace("pid") not in (namespaces.own_namespace(),)
            )
            outer = namespaces.namespace_of(outer_init)
            inner = attestor.outside(nested.connection)
            assert inner.caller.namespace != outer
            assert namespaces.inside(inner.process, outer, None)
            assert not namespaces.inside(outer_init, inner.caller.namespace, None)
            assert not namespaces.inside(held, outer, None)
            for process in (held, outer_init, inner):
                process.close()

    def test_where_links_are_not_readable_the_public_pids_decide_the_same(self, tmp_path, attestor, monkeypatch):
        with Child(tmp_path, *UNSHARE) as child, Child(tmp_path) as plain:
            inner = attestor.outside(child.connection)
            outer = attestor.outside(plain.connection)

            def unreadable(self, kind):
                raise PermissionError

            monkeypatch.setattr(Process, "namespace", unreadable)
            named = namespaces.namespace_of(inner.process)
            assert named.startswith(f"{namespaces.boot_id()}/init-{inner.caller.pid}-")
            assert namespaces.namespace_of(outer.process) == namespaces.name_of(namespaces.own_namespace())
            init = namespaces.init_of(inner.process)
            assert namespaces.inside(inner.process, named, init)
            assert not namespaces.inside(outer.process, named, init)
            for process in (inner, outer, init):
                process.close()

    def test_a_namespace_that_one_made_for_oneself_is_not_a_sandbox(self, tmp_path, directory, attestor):
        alone = [*UNSHARE, "--mount", "--mount-proc"]
        with Child(tmp_path, *alone) as child:
            held = Process.hold(os.getpid())
            found = attestor.outside(child.connection)
            assert found.caller.separation is Separation.NONE
            # Bound or not, it still sees the broker's directory.
            arguments = {"broker_directory": directory, "broker_uid": ME, "run_bound": True}
            assert probe(found.process, ME, **arguments) is Separation.NONE
            held.close()
            found.close()


@needs_namespaces
@pytest.mark.parametrize("mounts", [(), ("tmpfs",), ("proc",), ("tmpfs", "proc")])
def test_a_sandbox_needs_a_hidden_directory_and_a_proc_of_its_own(mounts):
    uid = 4321 if ME == 0 else ME
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        place, directory = Path(name), Path(name, "broker")
        directory.mkdir(mode=0o700)
        os.chown(directory, uid, uid)
        script = {"tmpfs": f"mount -t tmpfs x {directory}", "proc": "mount -t proc proc /proc"}
        steps = [*(script[mount] for mount in mounts), 'exec "$@"']
        prefix = [
            *(["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if ME == 0 else []),
            *["unshare", "-r", "--pid", "--mount", "--fork", "--kill-child", "sh", "-c", " && ".join(steps), "sh"],
        ]
        with Child(place, *prefix) as child:
            held = Process.hold(peer.credentials(child.connection)[0])
            found = probe(held, uid, broker_directory=directory, broker_uid=uid, run_bound=True)
            held.close()
        assert found is (Separation.SANDBOX if len(mounts) == 2 else Separation.NONE)


def descendants(pid):
    for name in os.listdir("/proc"):
        if name.isdecimal() and any(parent == pid for parent, _ in ancestors(int(name))):
            yield int(name)


def test_start_time_of_a_program_with_a_hostile_name_is_read(tmp_path):
    program = tmp_path / "a) R 1 2 (b"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "60"])
    held = Process.hold(process.pid)
    try:
        now = float(Path("/proc/uptime").read_text().split()[0]) * os.sysconf("SC_CLK_TCK")
        assert 0 <= now - held.started() < 60 * os.sysconf("SC_CLK_TCK")
    finally:
        held.close()
        process.kill()
        process.wait()


def test_credentials_come_as_three_whole_numbers():
    left, right = socket.socketpair(socket.AF_UNIX)
    with left, right:
        answer = left.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        assert peer.credentials(left) == struct.unpack("3i", answer)[:2] == (os.getpid(), ME)
