"""Moves the broker's store to PostgreSQL: copy and seal, record, the login, and last the configuration that names it.

Each step can be done again, and until the last one the configuration names the old store, which is sealed and says
where it went: a move that was cut off is finished by the same command. Not while a broker runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from taskpass.audit.witness import FILE_NAME, Witness
from taskpass.broker.owners import DEAD_AFTER
from taskpass.config import write
from taskpass.config.credentials import Credential, write_credential
from taskpass.config.load import FILE, load, parsed
from taskpass.config.model import Config
from taskpass.config.places import read_trusted
from taskpass.config.store import STORE_LOGIN, StoreWish
from taskpass.core.clock import Clock, Entropy
from taskpass.core.errors import ConfigInvalid, Conflict
from taskpass.core.lease import UNENDED
from taskpass.keys import files as key_files
from taskpass.runtime.only_broker import broker_name, only_broker
from taskpass.runtime.system import os_user
from taskpass.store.configured import access_of, open_configured
from taskpass.store.database import Database, translated
from taskpass.store.move import Moved, move, record
from taskpass.store.open import WAIT_SECONDS, Access, bring_up, database_of
from taskpass.store.seal import sealed_for
from taskpass.store.sqlite import SqliteDatabase
from taskpass.store.unit import SqlStore

_OTHER_LOGIN = f"{STORE_LOGIN}-2"


@dataclass(frozen=True, slots=True)
class Relocated:
    """``came_from`` and ``place`` for people; ``open_leases`` are those that the new store knows as not closed.

    ``moved`` is None if the configuration named the new place before.
    """

    came_from: str
    place: str
    open_leases: int = 0
    moved: Moved | None = None

    def to_json(self) -> dict[str, object]:
        told: dict[str, object] = {"from": self.came_from, "to": self.place, "moved": self.moved is not None}
        if self.moved:
            told |= {"rows": dict(self.moved.rows), "seq": self.moved.seq, "head": self.moved.head}
        return told | {"open_leases": self.open_leases}


def relocate(
    directory: Path, address: str, ask: Callable[[], StoreWish], *, clock: Clock, entropy: Entropy
) -> Relocated:
    """Move the store of the broker in ``directory`` to ``address``; ``ask`` is called once the move is possible.

    Raises ``Conflict`` with code broker_running, brokers_alive, store_restored, store_moved or store_exists,
    ``ConfigInvalid`` and ``StoreUnavailable``; the old store stays in use then, unless it was sealed before.
    """
    directory = directory.resolve()
    load(directory)  # before anything is made in it: a wrong place stays as it was
    with only_broker(directory), _old(directory) as (config, old):
        if config.broker.store == address:
            return Relocated(old.place, old.place)
        wish, login = ask(), _login(config)
        _renamed(config, wish, login)
        _demand_movable(config, old)
        credential = Credential(wish.user, wish.password)
        with closing(database_of(address, Access(lambda: credential, wish.authority), timeout=WAIT_SECONDS)) as new:
            moved = move(old, new)
        write_credential(directory, login, credential)
        left = _record(config, wish, login, moved, old.place, clock, entropy)
        _, text = _renamed(config, wish, login)
        write.write_new(directory / FILE, text.encode())
    with suppress(OSError):
        (directory / "reserve").unlink()  # It keeps disk space for a store in a file.
    return Relocated(old.place, moved.place, left, moved)


@contextmanager
def _old(directory: Path) -> Generator[tuple[Config, Database]]:
    config = load(directory)
    with closing(database_of(config.broker.store, access_of(config), timeout=WAIT_SECONDS)) as database:
        yield config, database


def _login(config: Config) -> str:
    """A file that the old store is not entered with: until the end the configuration as it was must work."""
    return _OTHER_LOGIN if config.broker.store_login.get("file") == STORE_LOGIN else STORE_LOGIN


def _renamed(config: Config, wish: StoreWish, login: str) -> tuple[Config, str]:
    """The configuration as it is on disk now, with the new store; raises unless nothing else changes by that."""
    lines = write.render_store(wish.address, {"file": login}, wish.tls)
    before = read_trusted(config.directory / FILE).decode()
    text = write.replace_store(before, lines)
    now, after = parsed(before, config.directory), parsed(text, config.directory)
    stored = {"store": wish.address, "store_login": {"file": login}, "store_tls": wish.tls}
    same = replace(now, broker=replace(now.broker, **stored), digest=after.digest)
    if now.broker != config.broker or after != same:
        raise ConfigInvalid(
            "the lines that name the store cannot be found", hint="write store, store_login and store_tls on their own"
        )
    return after, text


def _demand_movable(config: Config, old: Database) -> None:
    """The newest schema, no other broker that writes there, and the store that was here before."""
    with old.opening(create=False):
        bring_up(old, sealed_too=True)
    with translated(old), old.begin(writes=False) as connection:
        if sealed_for(connection):
            return  # All of this was so when it was sealed.
    store = SqlStore(old, signer=None, witness=None, timeout=WAIT_SECONDS)
    with store.read() as unit:
        if unit.owners.alive(DEAD_AFTER) - {broker_name(config.directory)}:
            raise Conflict(
                "another broker lives on this store",
                hint=f"stop it; one that was killed counts as gone after {DEAD_AFTER} seconds",
                code="brokers_alive",
            )
    place = old.path.parent if isinstance(old, SqliteDatabase) else config.directory
    if not Witness(place / FILE_NAME).compare(store.hash_at):
        raise Conflict(
            "this is not the store that was here before",
            hint="start the broker and look: taskpass store adopt; move it afterwards",
            code="store_restored",
        )


def _record(
    config: Config, wish: StoreWish, login: str, moved: Moved, came_from: str, clock: Clock, entropy: Entropy
) -> int:
    """Open the new store as the broker will; how many leases it knows as open."""
    named, _ = _renamed(config, wish, login)
    key = key_files.load(config.directory / "keys", key_files.AUDIT)
    with closing(open_configured(named, clock=clock, entropy=entropy, audit_key=key)) as store:
        record(store, moved, came_from, _actor(config), clock)
        with store.read() as unit:
            return len(unit.leases.list(states=UNENDED))


def _actor(config: Config) -> str:
    """The person behind this process's account; an account of nobody is recorded as the account it is."""
    user = os_user(os.getuid())
    found = [human.id for human in config.people.humans.values() if user in human.os_users]
    return f"human:{found[0]}" if found else f"uid:{os.getuid()}"
