"""Rotation: the broker replaces the password of its own login in a target.

    settle what a crash left -> record -> write the new password beside the old one -> change it in the target
    -> log in with it -> write it alone -> record

Wherever this breaks off, the file holds the password that the server takes, as ``password`` or as ``next``, and the
next rotation finds out which. Not for logins that somebody else keeps (a command, systemd, peer, cert), nor for one
that another broker uses too: it would be locked out (docs/adr/0013).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from taskpass.broker.context import Broker
from taskpass.config.credentials import Credential, only_writer, read_credential, write_credential
from taskpass.core.audit import Event
from taskpass.core.clock import Instant
from taskpass.core.errors import Conflict, TargetUnavailable
from taskpass.core.secret import Secret


class OwnLogin(Protocol):
    """What a target can do with the login that the broker has there. Raises ``TargetUnavailable`` without an answer."""

    @property
    def cluster(self) -> str: ...
    def propose(self) -> Secret: ...
    def others(self) -> int: ...
    def replace(self, secret: Secret) -> None: ...
    def accepts(self, secret: Secret) -> bool: ...


@dataclass(frozen=True, slots=True)
class Kept:
    """A login whose password lies in ``credentials/<file>`` of ``directory``, for ``resources`` of one cluster."""

    directory: Path
    file: str
    resources: tuple[str, ...]
    login: OwnLogin

    def read(self) -> Credential:
        return read_credential(self.directory, {"file": self.file})

    def write(self, credential: Credential) -> None:
        write_credential(self.directory, self.file, credential)


def rotate_login(broker: Broker, kept: Kept) -> Instant:
    """Give the login a new password; when that was. Raises ``TargetUnavailable``, or ``Conflict`` if it is shared."""
    with only_writer(kept.directory):
        credential = _settle(broker, kept, kept.read())
        if kept.login.others():
            raise Conflict(
                "other sessions use the broker's login: another broker with the same credential, or somebody"
                " who has its password",
                hint="SELECT * FROM pg_stat_activity WHERE usename LIKE 'taskpass_broker_%'",
                code="login_shared",
            )
        _record(broker, kept, "login.rotation_started")
        credential = replace(credential, next=kept.login.propose())
        kept.write(credential)
        assert credential.next is not None
        kept.login.replace(credential.next)
        if not kept.login.accepts(credential.next):
            raise TargetUnavailable("the new password of the broker's login was not taken", hint="it is tried again")
        return _confirm(broker, kept, credential)


def _settle(broker: Broker, kept: Kept, credential: Credential) -> Credential:
    """After a rotation that broke off: the one password that the server takes, alone in the file."""
    if credential.next is None:
        return credential
    if kept.login.accepts(credential.next):
        _confirm(broker, kept, credential)
        return kept.read()
    if credential.password is None or not kept.login.accepts(credential.password):
        raise TargetUnavailable(
            "the target takes neither password of the broker's login",
            hint="a DBA gives it one; then: taskpass init --postgres --login-stdin",
            code="login_lost",
        )
    settled = replace(credential, next=None)
    kept.write(settled)
    return settled


def _confirm(broker: Broker, kept: Kept, credential: Credential) -> Instant:
    at = broker.clock.now()
    kept.write(Credential(credential.user, credential.next, rotated_at=at))
    _record(broker, kept, "login.rotated")
    return at


def _record(broker: Broker, kept: Kept, name: str) -> None:
    with broker.store.write() as unit:
        data = {"cluster": kept.login.cluster, "resources": list(kept.resources)}
        unit.audit.append(Event(name, "broker", {}, data), broker.now(unit))
