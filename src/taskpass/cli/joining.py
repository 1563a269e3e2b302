"""Makes the directory of a further broker on a store: what brokers share is copied, what is its own is made anew.

Shared are the configuration, the policies, the keys and the login in the store; each has its own login in each target
(ADR 0013). Not for: making those logins there, which is ``taskpass init --own-login``.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from taskpass.cli.installation import arising, installation_id
from taskpass.config import write
from taskpass.config.credentials import Credential, credential_file, read_credential, write_credential
from taskpass.config.load import FILE, broker_name, load, parsed
from taskpass.config.model import Config
from taskpass.config.places import demand_private, read_trusted
from taskpass.config.store import POSTGRES
from taskpass.core.clock import Entropy
from taskpass.core.errors import ConfigInvalid, Conflict
from taskpass.core.ids import InstallationId
from taskpass.issuers.postgres import kit, scram


@dataclass(frozen=True, slots=True)
class Joined:
    """``waiting`` are resources whose login is to be made in the target now; ``by_hand`` those with another keeper."""

    installation: str
    user: str
    waiting: tuple[str, ...]
    by_hand: tuple[str, ...]


def join(directory: Path, first: Path, name: str, *, entropy: Entropy) -> Joined:
    """A directory at ``directory`` for the broker ``name``, beside the one whose directory (or a copy) is ``first``.

    Whole, or not at all. Raises ``Conflict`` (store_not_shared) for a store in a file, ``ConfigInvalid``, and
    ``StoreUnavailable``: the store has to answer.
    """
    broker_name(name)
    shared = load(first)
    if not shared.broker.store.startswith(POSTGRES):
        raise Conflict(
            "a store in a file serves one broker", hint="first: taskpass store move ADDRESS", code="store_not_shared"
        )
    if name == shared.broker.name:
        raise ConfigInvalid("the broker there has that name already", hint="choose another with --as")
    with arising(directory) as place:
        demand_private(place)
        config = _copied(shared, place, name)
        installation = InstallationId(installation_id(config))
        user = kit.broker_login(installation, name)
        files = _own_files(config)
        for file in files:
            write_credential(place, file, Credential(user, scram.new_secret(entropy)))
    waiting = tuple(each for each, resource in config.resources.items() if resource.login.get("file") in files)
    return Joined(installation, user, waiting, tuple(each for each in config.resources if each not in waiting))


def _copied(shared: Config, place: Path, name: str) -> Config:
    """The files that brokers share, in ``place``, and the configuration with this one's name."""
    text = write.name_broker(read_trusted(shared.directory / FILE).decode(), name)
    config = parsed(text, place)
    if config.resources != shared.resources or config.broker != replace(shared.broker, name=name):
        raise ConfigInvalid("the line that names the broker cannot be found", hint=f'write it by hand: name = "{name}"')
    for folder in ("policy", "keys"):
        shutil.copytree(shared.directory / folder, place / folder)
    file = shared.broker.store_login.get("file", "")
    if file and not Path(file).is_absolute():
        write_credential(place, file, read_credential(shared.directory, shared.broker.store_login))
    write.write_new(place / FILE, text.encode())
    return config


def _own_files(config: Config) -> set[str]:
    """Files of logins in targets that lie in the broker's own directory."""
    named = {resource.login.get("file", "") for resource in config.resources.values()} - {""}
    return {name for name in named if credential_file(Path(), name).parent == credential_file(Path(), "x").parent}
