"""Reading and writing what a login reference refers to: the broker's own login in a target.

A credential is one line of JSON, ``{"user": …, "password": …}``. While the broker replaces its password, a file also
holds ``next``, and either may be the right one; afterwards it holds ``rotated_at``. A ``file`` reference lies in the
broker's ``credentials/`` (0600); ``systemd-credential`` in the directory that systemd made for this service;
``command`` prints it. ``peer`` is a user name and needs no password; ``cert`` is the path of a certificate without its
``.crt``, beside a ``.key``, named like the user. Not for: leases' passwords, which are never written anywhere.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from taskpass.config.places import demand_private, read_trusted
from taskpass.config.write import write_new
from taskpass.core.clock import Instant
from taskpass.core.errors import ConfigInvalid
from taskpass.core.secret import Secret

COMMAND_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Credential:
    """``password`` is None where the server asks for none; ``certificate`` is a path without its ending, or empty."""

    user: str
    password: Secret | None = field(default=None, repr=False)
    certificate: str = ""
    next: Secret | None = field(default=None, repr=False)
    """The password that is to replace ``password``: the server may know it already or not yet."""
    rotated_at: Instant | None = None
    """When the broker last replaced the password; None if it never did."""

    @property
    def passwords(self) -> tuple[Secret, ...]:
        """Every password that may be the right one, the newest first."""
        return tuple(secret for secret in (self.next, self.password) if secret is not None)


def read_credential(directory: Path, login: Mapping[str, str]) -> Credential:
    """The credential behind ``login``, a reference as in ``config.model.Resource``. Raises ``ConfigInvalid``."""
    ((kind, value),) = login.items()
    if kind == "peer":
        return Credential(value)
    if kind == "cert":
        return Credential(Path(value).name, certificate=value)
    if kind == "file":
        return _parse(read_trusted(credential_file(directory, value), private=True), kind)
    if kind == "systemd-credential":
        return _parse(_from_systemd(value), kind)
    if kind == "command":
        return _parse(_from_command(value), kind)
    raise ConfigInvalid("a login is of an unknown kind")


def credential_file(directory: Path, name: str) -> Path:
    """Where a ``file`` reference points: an absolute path, or a name in ``credentials/``."""
    return directory / "credentials" / name


def write_credential(directory: Path, name: str, credential: Credential) -> None:
    """Store a broker's login as ``credentials/<name>``, 0600; an earlier one is replaced in one step, durably."""
    folder = directory / "credentials"
    folder.mkdir(mode=0o700, exist_ok=True)
    demand_private(folder)
    parts: dict[str, object] = {"user": credential.user}
    parts |= {"password": credential.password.reveal()} if credential.password else {}
    parts |= {"next": credential.next.reveal()} if credential.next else {}
    parts |= {"rotated_at": credential.rotated_at} if credential.rotated_at is not None else {}
    write_new(folder / name, json.dumps(parts).encode() + b"\n")


@contextmanager
def only_writer(directory: Path) -> Generator[None]:
    """Holds the right to change credentials: the broker's rotation and ``taskpass init`` take turns."""
    folder = directory / "credentials"
    folder.mkdir(mode=0o700, exist_ok=True)
    demand_private(folder)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _parse(data: bytes, kind: str) -> Credential:
    """Nothing of ``data`` may show in an error."""
    try:
        parsed: Any = json.loads(data)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict):
        found = cast("dict[str, object]", parsed)
        user, password, next_, at = (found.get(key) for key in ("user", "password", "next", "rotated_at"))
        if isinstance(user, str) and user and isinstance(password, str) and password:
            return Credential(
                user,
                Secret(password),
                next=Secret(next_) if isinstance(next_, str) and next_ else None,
                rotated_at=Instant(at) if isinstance(at, int) else None,
            )
    raise ConfigInvalid(f"a {kind} login does not hold a user and a password", hint='{"user": "…", "password": "…"}')


def _from_systemd(name: str) -> bytes:
    place = os.environ.get("CREDENTIALS_DIRECTORY")
    if not place:
        raise ConfigInvalid(f"no systemd credential {name}: this is not a service of systemd", hint="LoadCredential=")
    try:
        return (Path(place) / name).read_bytes()
    except OSError as error:
        raise ConfigInvalid(f"the systemd credential {name} cannot be read: {error.strerror}") from None


def _from_command(command: str) -> bytes:
    """Run without a shell, with an environment of its own, and not for long."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    try:
        done = subprocess.run(
            shlex.split(command), capture_output=True, timeout=COMMAND_SECONDS, env=environment, check=True, cwd="/"
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        raise ConfigInvalid(
            "the command of a login failed", hint="run it by hand as the broker's account; it must print JSON"
        ) from None
    return done.stdout
