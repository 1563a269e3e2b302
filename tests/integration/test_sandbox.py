"""The sandbox with real namespaces: what an agent sees, and that nothing of it outlives the run.

As root every kind is tried: root's own, and those of ordinary users under another account, with a copy of the package
that this account can read. As an ordinary user those that work for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from functools import cache
from pathlib import Path

import pytest

from taskpass.core.separation import Separation
from taskpass.identity.namespaces import find_init
from taskpass.identity.probe import probe
from taskpass.identity.process import Process
from tests.missing import missing

SOURCE = Path(__file__).parents[2] / "src/taskpass"
USER = 4321
ROOT = os.getuid() == 0
PROGRAMS = {"root": "unshare", "unshare": "unshare", "bubblewrap": "bwrap"}
KINDS = ["root", "unshare", "bubblewrap"] if ROOT else ["unshare", "bubblewrap"]


def python():
    """An interpreter that every account can start."""
    return "/usr/bin/python3" if ROOT and os.path.exists("/usr/bin/python3") else sys.executable


def as_user(kind):
    if ROOT and kind != "root":
        return ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    return []


@cache
def works(kind):
    program = shutil.which(PROGRAMS[kind])
    if program is None:
        return False
    flags = {
        "root": ["--mount", "--pid", "--fork", "--mount-proc", "true"],
        "unshare": ["--user", "--map-current-user", "--mount", "--pid", "--fork", "--mount-proc", "true"],
        "bubblewrap": ["--unshare-user", "--unshare-pid", "--dev-bind", "/", "/", "--proc", "/proc", "true"],
    }[kind]
    return subprocess.run([*as_user(kind), program, *flags], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def package():
    """A directory with the package and the launcher in it, readable by everybody."""
    place = Path(tempfile.mkdtemp(prefix="tp", dir="/var/tmp"))
    shutil.copytree(SOURCE, place / "taskpass", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("sandbox_launcher.py"), place / "launcher.py")
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


class Place:
    """One run to be started: its directories and how."""

    def __init__(self, kind, package):
        self.kind = kind
        self.package = package
        self.base = Path(tempfile.mkdtemp(prefix="tp", dir="/var/tmp"))
        self.work = self.base / "work"
        self.home = self.base / "home"
        for directory in (self.work, self.home):
            directory.mkdir()
        (self.home / ".bashrc").write_text("precious")
        self.base.chmod(0o711)
        self.account = os.getuid()
        if ROOT:
            agent = 65533 if kind == "root" else USER
            self.account = agent
            for path in (self.work, *(() if kind == "root" else (self.base, self.home, self.home / ".bashrc"))):
                os.chown(path, agent, agent)

    def command(self, *command, **wish):
        wish = {
            "base": str(self.base),
            "work": str(self.work),
            "kind": self.kind,
            "program": shutil.which(PROGRAMS[self.kind]),
            "command": command,
            **wish,
        }
        return [*as_user(self.kind), python(), str(self.package / "launcher.py"), json.dumps(wish)]

    @property
    def environment(self):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TASKPASS")}
        home = kept.get("HOME", "/root") if self.kind == "root" else str(self.home)
        return {**kept, "HOME": home, "PYTHONPATH": str(self.package)}

    def run(self, *command, **wish):
        return subprocess.run(
            self.command(*command, **wish),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    @contextlib.contextmanager
    def start(self, *command):
        """The started run; whatever is left of it at the end is killed, so that a failing test does not hang."""
        process = subprocess.Popen(self.command(*command), env=self.environment, stdout=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            process.kill()
            for pid in members(self.inode()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait(30)
            process.stdout.close()

    def python(self, code, **wish):
        return self.run("/usr/bin/env", "python3" if not ROOT else python(), "-c", code, **wish)

    def log(self):
        return [json.loads(line) for line in (self.base / "broker/log").read_text().splitlines()]

    def namespace(self):
        return next(entry["namespace"] for entry in self.log() if "namespace" in entry)

    def inode(self):
        return int(self.namespace().rpartition("/")[2])

    def close(self):
        shutil.rmtree(self.base, ignore_errors=True)


@pytest.fixture(params=KINDS)
def place(request, package):
    if not works(request.param):
        missing(f"{request.param} does not work here")
    made = Place(request.param, package)
    yield made
    made.close()


@pytest.fixture
def one_place(package):
    """The first kind that works here, for what does not depend on the kind."""
    kind = next((kind for kind in KINDS if works(kind)), None)
    if kind is None:
        missing("no kind of sandbox works here")
    made = Place(kind, package)
    yield made
    made.close()


def members(inode):
    """Processes of the pid namespace ``inode``."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                if os.stat(f"/proc/{name}/ns/pid").st_ino == inode:
                    found.append(int(name))
            except OSError:
                continue
    return found


def until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)


# --- What the agent sees --------------------------------------------------------------------------------------------


def test_the_brokers_directory_and_other_processes_are_not_there(place):
    (place.base / "broker").mkdir(mode=0o700)
    (place.base / "broker/key").write_text("secret")
    if ROOT and place.kind != "root":
        shutil.chown(place.base / "broker", USER, USER)
        shutil.chown(place.base / "broker/key", USER, USER)
    done = place.python(f"""
import os
print([name for name in os.listdir('/proc') if name.isdecimal()])
base = {str(place.base)!r}
for path in (f'{{base}}/broker', f'{{base}}/runtime', f'{{base}}/runtime/runs', '/tmp'):
    try: print(sorted(os.listdir(path)))
    except OSError: print('refused')
try: print(open({str(place.base / "broker/key")!r}).read())
except OSError: print('no key')
""")
    assert done.stdout.splitlines() == ["['1', '2']", "[]", "['runs']", "['r']", "[]", "no key"], done
    assert (place.base / "broker/key").read_text() == "secret"


def test_sessions_of_the_person_are_hidden(place):
    done = place.python("import os; print(set(os.listdir('/run')) - {'systemd', 'resolvconf', 'NetworkManager'})")
    assert done.stdout == "set()\n"


def test_the_worktree_is_writable_and_the_agent_starts_in_it(place):
    done = place.run("sh", "-c", "pwd; echo made > file")
    assert done.stdout == f"{place.work}\n"
    assert (place.work / "file").read_text() == "made\n"
    assert (place.work / "file").stat().st_uid == place.account


def test_a_worktree_under_tmp_stays_visible_while_tmp_is_private(place):
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="tpw") as work:
        os.chown(work, place.account, place.account)
        done = place.run("sh", "-c", "ls /tmp; echo x > file; echo y > /tmp/other; ls", work=work)
        assert done.stdout.split() == [Path(work).name, "file"]
        assert Path(work, "file").exists()
        assert not Path("/tmp/other").exists()


def test_our_program_cannot_be_changed(place):
    target = place.package / "taskpass/__init__.py"
    if ROOT and place.kind != "root":
        os.chown(target, USER, USER)
        os.chown(target.parent, USER, USER)
    before = target.read_text()
    done = place.run(
        "sh", "-c", f"echo 'evil()' >> {target}; mv {target} {target}.old; rm -f {target}; echo > {target}"
    )
    assert done.returncode != 0
    assert target.read_text() == before


def test_shell_profiles_cannot_be_changed(place):
    if place.kind == "root":
        pytest.skip("root's home is hidden as a whole")
    profile = place.home / ".bashrc"
    done = place.run("sh", "-c", f"echo evil >> {profile}; rm -f {profile}; mv {profile} {profile}.old")
    assert done.returncode != 0
    assert profile.read_text() == "precious"


def test_what_is_hidden_cannot_be_uncovered(place):
    broker = place.base / "broker"
    script = f"umount -l {broker} /tmp /run /proc; ls {broker}; ls /proc/1/cwd/.. ; cat {broker}/log"
    done = place.run(
        "sh",
        "-c",
        f"{script}; unshare -Urm sh -c '{script}; mkdir /tmp/x && mount --bind / /tmp/x && cat /tmp/x{broker}/log'",
    )
    assert "namespace" not in done.stdout
    assert "ready" not in done.stdout


def test_no_descriptor_of_the_outside_comes_along(place):
    done = place.python("""
import os
found = []
for number in range(3, 256):
    try: os.fstat(number); found.append(number)
    except OSError: pass
print(found)
""")
    assert done.stdout == "[]\n", done


def test_the_agent_has_no_rights_and_gains_none(place):
    status = place.run("cat", "/proc/self/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(place.account)] * 4
    assert {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert fields["NoNewPrivs"] == "1"
    if place.kind == "root":
        assert fields["Groups"].strip() == ""


def test_the_account_of_roots_agents_has_a_name_and_a_home_of_its_own(place):
    if place.kind != "root":
        pytest.skip("other agents keep the person's account")
    done = place.run("sh", "-c", "id -un; ls -A ~ | grep -v -e pyenv -e bashrc -e profile; touch ~/made && echo made")
    assert done.stdout == "taskpass-agent\nmade\n", done
    assert not Path("/root/made").exists()
    assert "taskpass-agent" not in Path("/etc/passwd").read_text()


def test_the_environment_points_to_the_run_and_not_to_the_broker(one_place):
    done = one_place.run("env")
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert {name: value for name, value in found.items() if name.startswith("TASKPASS")} == {
        "TASKPASS_SOCK": f"{one_place.base}/runtime/runs/r/line.sock",
        "TASKPASS_TASK": "tsk_1",
    }


# --- How the broker sees it -----------------------------------------------------------------------------------------


def speak(path="os.environ['TASKPASS_SOCK']"):
    return f"""
import os, socket
s = socket.socket(socket.AF_UNIX); s.connect({path})
s.sendall(b'{{"id":1,"method":"status"}}\\n'); print(s.recv(9999)[:9])
"""


def test_the_agent_is_attested_with_its_outer_pid_and_its_separation(place):
    done = place.python(speak())
    assert done.stdout == 'b\'{"id":1,"\'\n', done
    first, second, agent = [entry for entry in place.log() if "method" in entry]
    assert [one["method"] for one in (first, second, agent)] == ["hello", "open_task", "status"]
    assert first["pid"] == first["init_pid"] == agent["init_pid"] != agent["pid"]
    assert agent["pid"] > 2
    assert agent["uid"] == place.account
    assert {one["separation"] for one in (first, second, agent)} == {"uid" if place.kind == "root" else "sandbox"}
    assert len({one["namespace"] for one in (first, second, agent)}) == 1


def test_without_a_run_of_the_brokers_the_same_sandbox_is_none(place):
    with place.start("sh", "-c", "echo ready; exec sleep 1000") as process:
        assert process.stdout.readline() == "ready\n"
        agent = Process.hold(max(members(place.inode())))
        known = {"broker_directory": place.base / "broker", "broker_uid": place.account}
        # The same uid in the same user namespace is one security subject, whatever else is apart.
        bound = Separation.NONE if place.kind == "root" else Separation.SANDBOX
        assert probe(agent, place.account, run_bound=True, **known) is bound
        assert probe(agent, place.account, run_bound=False, **known) is Separation.NONE
        assert probe(agent, place.account, run_bound=True, others=(place.home,), **known) is Separation.NONE
        agent.close()


def test_a_process_that_left_its_parents_is_still_of_the_run(place):
    spoken = "\n".join(f"        {line}" for line in speak().splitlines())
    done = place.python(f"""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while os.getppid() != 1: time.sleep(0.001)
{spoken}
        open('spoken', 'w').close()
    os._exit(0)
os.wait()
while not os.path.exists('spoken'): time.sleep(0.001)
""")
    found = [entry["run"] for entry in place.log() if entry.get("method") == "status"]
    assert found == ["run_01j00000000000000000000000"], done


def test_a_sandbox_that_shows_the_brokers_directory_separates_nothing(place):
    if place.kind == "root":
        pytest.skip("there the uid separates")
    broker = str(place.base / "broker")
    assert place.python(speak(), unhidden=[broker]).returncode == 0
    assert {entry["separation"] for entry in place.log() if "separation" in entry} == {"none"}


@pytest.mark.skipif(not ROOT, reason="needs root to mount")
def test_the_brokers_directory_at_another_path_separates_nothing(place):
    if place.kind == "root":
        pytest.skip("there the uid separates")
    broker, second = place.base / "broker", place.work / "innocent"
    broker.mkdir(mode=0o700)
    second.mkdir()
    os.chown(broker, USER, USER)
    script = f'mount --bind {broker} {second} && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *place.command("ls", "innocent")]
    done = subprocess.run(command, env=place.environment, capture_output=True, text=True, timeout=30, check=False)
    assert "log" in done.stdout, done
    assert {entry["separation"] for entry in place.log() if "separation" in entry} == {"none"}


def test_a_refusal_at_first_contact_is_shown_safely_and_the_agent_never_starts(one_place):
    done = one_place.run("touch", "started", refusing="hello")
    assert done.returncode == 93
    assert done.stderr == "taskpass: not you?[2J\nstart anew\n"
    assert not (one_place.work / "started").exists()


# --- Transparency ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_the_exit_code_passes_through(one_place, command, code):
    assert one_place.run(*command).returncode == code


def test_the_exit_code_passes_through_every_kind(place):
    assert place.run("sh", "-c", "kill -USR1 $$").returncode == 128 + signal.SIGUSR1


def test_a_signal_to_the_launcher_reaches_the_agent(place):
    names = ["INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "WINCH"]
    traps = "".join(f"trap 'echo {name}' {name};" for name in names)
    with place.start("sh", "-c", f"{traps} trap 'exit 3' CONT; echo ready; while :; do sleep 0.01; done") as process:
        assert process.stdout.readline() == "ready\n"
        launcher = int((place.base / "launcher").read_text())
        for name in names:
            os.kill(launcher, getattr(signal, f"SIG{name}"))
            assert process.stdout.readline() == f"{name}\n"
        agent = max(members(place.inode()), key=lambda pid: "trap" in Path(f"/proc/{pid}/cmdline").read_text())
        os.kill(agent, signal.SIGCONT)
        assert process.wait(30) == 3


def in_terminal(place, *command):
    pid, terminal = pty.fork()
    if pid == 0:
        words = place.command(*command)
        os.execvpe(words[0], words, place.environment)
    return pid, terminal


def read_until(terminal, seen, wanted):
    while wanted not in seen:
        assert select.select([terminal], [], [], 20)[0], seen
        seen += os.read(terminal, 4096)
    return seen


def finish(pid, terminal):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    return code


def test_the_terminal_is_the_agents_own_and_its_keys_reach_it_once(place):
    code = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print('terminal', os.isatty(0), os.isatty(1), flush=True)
while signal.sigtimedwait([signal.SIGINT], 10): print('got', flush=True); break
while signal.sigtimedwait([signal.SIGINT], 0.3): print('got', flush=True)
print('end', input(), flush=True); sys.exit(4)
"""
    pid, terminal = in_terminal(place, python(), "-c", code)
    seen = read_until(terminal, b"", b"terminal True True")
    os.write(terminal, b"\x03")
    seen = read_until(terminal, seen, b"got")
    os.write(terminal, b"x\n")
    seen = read_until(terminal, seen, b"end x")
    assert seen.count(b"got") == 1
    assert finish(pid, terminal) == 4


def test_a_run_can_be_stopped_and_continued_from_a_shell(place):
    words = shlex.join(place.command("bash", "-c", "echo ready; read x; echo end $x; exit 6"))
    pid, terminal = pty.fork()
    if pid == 0:
        shell = f"{words}; echo code $?; fg >/dev/null; echo code $?"
        os.execvpe("bash", ["bash", "--norc", "-mc", shell], place.environment)
    seen = read_until(terminal, b"", b"ready")
    os.write(terminal, b"\x1a")
    seen = read_until(terminal, seen, b"code 148")
    os.write(terminal, b"x\n")
    seen = read_until(terminal, seen, b"code 6")
    assert b"end x" in seen
    assert finish(pid, terminal) == 0


def test_the_agent_cannot_type_into_the_persons_terminal(place):
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for request in (0x5412, 0x541C, 0xFFFFFFFF00005412):
    print('answer', libc.ioctl(0, ctypes.c_ulong(request), b'x'), ctypes.get_errno())
print('done')
"""
    assert termios.TIOCSTI == 0x5412
    pid, terminal = in_terminal(place, python(), "-c", code)
    seen = read_until(terminal, b"", b"done")
    assert seen.count(b"answer -1 1\r\n") == 3, seen
    assert finish(pid, terminal) == 0


# --- The end of everything ------------------------------------------------------------------------------------------

DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print('daemon', flush=True); time.sleep(1000)
    os._exit(0)
os.wait()
"""


def test_an_orphan_ends_with_the_agent(place):
    done = place.python(DAEMON + "time.sleep(0.1); os._exit(5)")
    assert (done.returncode, done.stdout) == (5, "daemon\n")
    until(lambda: not members(place.inode()))


@pytest.mark.parametrize("victim", ["launcher", "between"])
def test_everything_ends_when_the_launcher_is_killed(place, victim):
    with place.start(python(), "-c", DAEMON + "time.sleep(1000)") as process:
        assert process.stdout.readline() == "daemon\n"
        inode = place.inode()
        until(lambda: len(members(inode)) == 3)
        init = find_init(inode)
        launcher = int((place.base / "launcher").read_text())
        between = int(Path(f"/proc/{init.pid}/status").read_text().split("PPid:")[1].split()[0])
        assert between != launcher
        os.kill(launcher if victim == "launcher" else between, signal.SIGKILL)
        # The end of init is the end of all: the kernel reaps a pid namespace before its init is gone.
        until(lambda: not init.alive())
        assert set(members(inode)) <= {init.pid}
        init.close()
        process.wait(30)


def test_the_agent_cannot_outlive_its_run_by_holding_what_init_holds(place):
    code = """
import os, time, ctypes
held = []
for name in range(3, 64):
    try: held.append(os.open(f'/proc/1/fd/{name}', os.O_RDWR | os.O_NONBLOCK))
    except OSError: pass
    try: held.append(os.open(f'/proc/1/fd/{name}', os.O_WRONLY | os.O_NONBLOCK))
    except OSError: pass
libc = ctypes.CDLL(None)
traced = libc.ptrace(16, 1, None, None)
try: os.kill(1, 9)
except OSError: pass
print(held, traced, flush=True); time.sleep(1000)
"""
    with place.start(python(), "-c", code) as process:
        assert process.stdout.readline() == "[] -1\n"
        inode = place.inode()
        os.kill(int((place.base / "launcher").read_text()), signal.SIGKILL)
        until(lambda: not members(inode))
        process.wait(30)


def test_zombies_of_orphans_are_collected(one_place):
    done = one_place.python("""
import os, time
for _ in range(50):
    if os.fork() == 0:
        if os.fork() == 0: os._exit(0)
        os._exit(0)
    os.wait()
deadline = time.monotonic() + 30
while len([n for n in os.listdir('/proc') if n.isdecimal()]) > 2 and time.monotonic() < deadline: time.sleep(0.01)
print(len([n for n in os.listdir('/proc') if n.isdecimal()]))
""")
    assert done.stdout == "2\n"


def test_a_run_inside_a_run_is_refused_with_clear_words(one_place):
    done = one_place.run(
        python(),
        "-c",
        f"""
import sys; sys.path.insert(0, {str(one_place.package)!r})
from taskpass.core.errors import Conflict
from taskpass.sandbox.launch import launch
try: launch(None, ['true'], {{}})
except Conflict as error: print(error.code, '|', error.message)
""",
    )
    assert done.stdout == "nested_run | this is already inside a run\n"
