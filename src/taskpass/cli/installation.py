"""Makes a broker's directory: keys, store, policies with their tests, the first person. Whole, or not at all.

Everything is made in a sibling directory, which is renamed into place at the end. Not for databases: enrolling one is
``taskpass init --postgres``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from taskpass.config import write
from taskpass.config.credentials import Credential, write_credential
from taskpass.config.load import FILE, parsed
from taskpass.config.model import Config, Human
from taskpass.config.places import demand_private
from taskpass.config.store import STORE_LOGIN, StoreWish
from taskpass.core.clock import Clock, Entropy
from taskpass.core.errors import Conflict
from taskpass.core.ids import HumanId
from taskpass.core.secret import Secret
from taskpass.keys import files as key_files
from taskpass.keys import reviewer
from taskpass.policy import bundle
from taskpass.policy.starter import write_shipped
from taskpass.store.configured import open_configured, read_configured
from taskpass.store.open import Create


@dataclass(frozen=True, slots=True)
class Founder:
    """The first person: their id, and their account on this machine."""

    person: str
    os_user: str


def exists(directory: Path) -> bool:
    return (directory / FILE).exists()


@contextmanager
def founding(
    directory: Path,
    founder: Founder,
    trust_domain: str,
    *,
    demo: bool,
    clock: Clock,
    entropy: Entropy,
    store: StoreWish | None = None,
) -> Generator[tuple[Path, Secret]]:
    """A new directory under a temporary name, and the founder's reviewer secret; put into place at the block's end.

    If the block raises, nothing is left. Raises ``Conflict`` if ``directory`` holds anything already.
    """
    with arising(directory) as place:
        secret = _fill(place, founder, write.render_new(trust_domain) + _stored(place, store), demo, clock, entropy)
        yield place, secret


@contextmanager
def arising(directory: Path) -> Generator[Path]:
    """An empty directory under a temporary name, put into place at the block's end; nothing is left if it raises.

    Raises ``Conflict`` if ``directory`` holds anything already.
    """
    if directory.exists() and any(directory.iterdir()):
        raise Conflict(f"{directory} is not empty and is no broker's directory", hint="name another with --directory")
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_abandoned(directory)
    place = directory.with_name(f".{directory.name}.{os.getpid()}.new")
    place.mkdir(mode=0o700)
    try:
        yield place
        place.rename(directory)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _remove_abandoned(directory: Path) -> None:
    """What an earlier ``init`` left behind when it was killed; its process id is in the name."""
    for found in directory.parent.glob(f".{directory.name}.*.new"):
        number = found.name.rsplit(".", 2)[1]
        if number.isdigit() and not Path(f"/proc/{number}").exists():
            shutil.rmtree(found, ignore_errors=True)


def _stored(place: Path, store: StoreWish | None) -> str:
    """The lines of the configuration that name the store; its login is written where they point."""
    if store is None:
        return ""
    write_credential(place, STORE_LOGIN, Credential(store.user, store.password))
    return write.render_store(store.address, {"file": STORE_LOGIN}, store.tls)


def _fill(place: Path, founder: Founder, beginning: str, demo: bool, clock: Clock, entropy: Entropy) -> Secret:
    demand_private(place)
    human, secret = new_reviewer(founder.person, (founder.os_user,), entropy)
    write_shipped(place / "policy")
    groups = {group: frozenset({str(human.id)}) for group in _wanted_groups(place / "policy")}
    text = beginning + write.render_human(human) + write.render_groups(groups)
    config = parsed(text, place)
    key = key_files.create(place / "keys", key_files.AUDIT, entropy=entropy, at=clock.now())
    create = Create(demo=demo, unused=True)
    open_configured(config, clock=clock, entropy=entropy, audit_key=key, create=create).close()
    write.write_new(place / FILE, text.encode())
    return secret


def _wanted_groups(policies: Path) -> list[str]:
    rules = bundle.load(policies).rules.values()
    return sorted({group for rule in rules for group in rule.terms.duties.approvers})


def new_reviewer(person: str, os_users: tuple[str, ...], entropy: Entropy) -> tuple[Human, Secret]:
    """A person's record with the verifier of a fresh reviewer secret, and the secret, to be shown once."""
    secret = reviewer.new_reviewer_secret(entropy)
    key, salt = reviewer.verifier(secret, reviewer.new_salt(entropy))
    return Human(HumanId(person), os_users, key, salt), secret


def installation_id(config: Config) -> str:
    """The id of this installation, as its store has it."""
    store = read_configured(config)
    try:
        with store.read() as unit:
            return unit.installation.id
    finally:
        store.close()
