"""The people in the configuration: one record per human, and the groups that policies may ask for."""

from __future__ import annotations

import base64
import binascii
import re

from taskpass.config.model import Human, People
from taskpass.config.table import Table
from taskpass.core.errors import ConfigInvalid
from taskpass.core.ids import HumanId
from taskpass.core.text import visible

KEY_BYTES = 32
SALT_BYTES = 16

_HUMAN = re.compile(r"[a-z0-9][a-z0-9._+-]*(@[a-z0-9][a-z0-9.-]*)?")
_GROUP = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def read_people(table: Table) -> People:
    """``[people.human.<id>]`` and ``[people.groups]``. Two records with one account or key are refused."""
    found = table.table("human", needed=False)
    humans = {HumanId(name): _human(name, found.table(name)) for name in found.names()}
    _demand_distinct(humans)
    groups = table.table("groups", needed=False)
    members = {name: _group(name, groups, humans) for name in groups.names()}
    table.done()
    return People(humans, members)


def _human(name: str, table: Table) -> Human:
    if not _HUMAN.fullmatch(name) or len(name) > 255:
        raise ConfigInvalid(
            f"{visible(table.path, limit=120)} is not a name for a person",
            hint='lower-case, like "ana" or "ana@acme.example" (quoted in the table name)',
        )
    human = Human(
        id=HumanId(name),
        os_users=table.texts("os_users"),
        reviewer_key=_bytes_of(table, "reviewer_key", KEY_BYTES, KEY_BYTES),
        reviewer_salt=_bytes_of(table, "reviewer_salt", SALT_BYTES, 64),
    )
    table.done()
    if bool(human.reviewer_key) != bool(human.reviewer_salt):
        raise ConfigInvalid(f"{table.path} has one of reviewer_key and reviewer_salt, and they belong together")
    return human


def _bytes_of(table: Table, key: str, least: int, most: int) -> str:
    text = table.text(key, "")
    try:
        size = len(base64.b64decode(text, validate=True))
    except binascii.Error:
        raise ConfigInvalid(f"{table.name(key)} is not base64") from None
    if text and not least <= size <= most:
        raise ConfigInvalid(f"{table.name(key)} has a wrong length")
    return text


def _demand_distinct(humans: dict[HumanId, Human]) -> None:
    accounts: dict[str, HumanId] = {}
    keys: dict[str, HumanId] = {}
    for human in humans.values():
        for account in human.os_users:
            if accounts.setdefault(account, human.id) != human.id:
                raise ConfigInvalid(f"{human.id} and {accounts[account]} share an account of this machine")
        if human.reviewer_key and keys.setdefault(human.reviewer_key, human.id) != human.id:
            raise ConfigInvalid(
                f"{human.id} and {keys[human.reviewer_key]} share a reviewer key: one human, one record"
            )


def _group(name: str, groups: Table, humans: dict[HumanId, Human]) -> frozenset[HumanId]:
    if not _GROUP.fullmatch(name):
        raise ConfigInvalid(f"{visible(groups.name(name), limit=120)} is not a name for a group", hint='like "dba"')
    members = groups.texts(name, empty=False)
    for member in members:
        if HumanId(member) not in humans:
            raise ConfigInvalid(
                f"{groups.name(name)} names {visible(member, limit=80)}, who is not in [people.human]",
                hint=f'add [people.human."{member}"]' if _HUMAN.fullmatch(member) else "",
            )
    return frozenset(HumanId(member) for member in members)
