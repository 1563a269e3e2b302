"""From ``taskpass.toml`` to the frozen tree: every rule of the configuration, each with a message that says what to do.

Not for: reaching a database. Whether an address answers, and with which cluster, is the preflight's business.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from taskpass.config import resources
from taskpass.config.model import BrokerSettings, Config, Resource
from taskpass.config.people import read_people
from taskpass.config.places import demand_private, read_trusted
from taskpass.config.store import read_store
from taskpass.config.table import Table
from taskpass.core import digest
from taskpass.core.budgets import Budgets
from taskpass.core.errors import ConfigInvalid

T = TypeVar("T")

FILE = "taskpass.toml"
SHORTEST_DRILLS, LONGEST_DRILLS = 60, 30 * 86400
"""Seconds between two drills of a resource."""
_BROKER_NAME = re.compile(r"[a-z0-9]{1,16}")
_TRUST_DOMAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-_")


def load(directory: Path) -> Config:
    """The configuration in ``directory``, which must belong to the broker alone.

    Raises ``ConfigInvalid`` for the first thing that is wrong, and says how many more there are.
    """
    config, problems = examine(directory)
    if config is None:
        first = problems[0]
        more = f" (and {len(problems) - 1} more: taskpass check lists them)" if len(problems) > 1 else ""
        raise ConfigInvalid(first.message + more, hint=first.hint, code=first.code)
    return config


def examine(directory: Path) -> tuple[Config | None, list[ConfigInvalid]]:
    """The configuration, or everything that is wrong with it. Exactly one of the two is empty."""
    try:
        demand_private(directory)
        text = read_trusted(directory / FILE)
        config, problems = parse(text, directory)
    except ConfigInvalid as error:
        return None, [error]
    return config, problems


def parse(text: bytes, directory: Path) -> tuple[Config | None, list[ConfigInvalid]]:
    """Read ``text`` as the configuration of a broker in ``directory``; ``examine`` without the file."""
    try:
        data: dict[str, Any] = tomllib.loads(text.decode())
    except UnicodeDecodeError:
        return None, [ConfigInvalid(f"{FILE} is not UTF-8 text")]
    except tomllib.TOMLDecodeError as error:
        return None, [ConfigInvalid(f"{FILE} is not valid TOML: {_place(str(error))}")]
    except RecursionError:
        return None, [ConfigInvalid(f"{FILE} is nested too deeply")]
    problems: list[ConfigInvalid] = []
    root = Table("", data)
    broker = _try(problems, lambda: _broker(root.table("broker"), directory))
    found = _resources(root, problems)
    people = _try(problems, lambda: read_people(root.table("people", needed=False)))
    budgets = _try(problems, lambda: _budgets(root.table("budgets", needed=False)))
    _try(problems, root.done)
    _try(problems, lambda: resources.demand_separate(found))
    if broker is None or people is None or budgets is None or problems:
        return None, problems
    return Config(directory, broker, found, people, digest.digest_bytes(digest.SNAPSHOT, text), budgets), []


def parsed(text: str, directory: Path) -> Config:
    """``text`` as a configuration; raises the first problem. Nothing is written that would not be read again."""
    config, problems = parse(text.encode(), directory)
    if config is None:
        raise ConfigInvalid(problems[0].message, hint=problems[0].hint, code=problems[0].code)
    return config


def _try(problems: list[ConfigInvalid], step: Callable[[], T]) -> T | None:
    try:
        return step()
    except ConfigInvalid as error:
        problems.append(error)
        return None


def _place(message: str) -> str:
    """tomllib's message, cut to its place: what it quotes may be part of a password."""
    if "(at " in message:
        return "line " + message.rsplit("(at ", 1)[1].removesuffix(")").removeprefix("line ")
    return "at the end of the file"


def _broker(table: Table, directory: Path) -> BrokerSettings:
    store, login, tls = read_store(table, directory)
    settings = BrokerSettings(
        trust_domain=_trust_domain(table.text("trust_domain")),
        store=store,
        store_login=login,
        store_tls=tls,
        allow_root_agents=table.flag("allow_root_agents"),
        drill_every=_drill_every(table),
        name=broker_name(table.text("name")) if table.has("name") else "",
    )
    table.done()
    return settings


def broker_name(name: str) -> str:
    """Short, because it ends the names of logins."""
    if not _BROKER_NAME.fullmatch(name):
        raise ConfigInvalid("broker.name must be 1 to 16 lower-case letters and digits", hint='name = "b"')
    return name


def _drill_every(table: Table) -> int:
    if not table.has("drill_every"):
        return 0
    seconds = table.number("drill_every")
    if not SHORTEST_DRILLS <= seconds <= LONGEST_DRILLS:
        raise ConfigInvalid(
            f"broker.drill_every must be {SHORTEST_DRILLS} to {LONGEST_DRILLS} seconds", hint="a day is 86400"
        )
    return seconds


def _budgets(table: Table) -> Budgets:
    """Every limit may be set; one that is left out keeps its default."""
    names = [item.name for item in fields(Budgets)]
    budgets = Budgets(**{name: table.number(name) for name in names if table.has(name)})
    table.done()
    return budgets


def _trust_domain(name: str) -> str:
    """By the SPIFFE standard: lower-case letters, digits, dots, dashes and underscores, at most 255 bytes."""
    if not set(name) <= _TRUST_DOMAIN:
        raise ConfigInvalid(
            "broker.trust_domain holds characters that a SPIFFE trust domain has not",
            hint='lower-case letters, digits, ".", "-" and "_"; no scheme, port or path, for example "acme.example"',
        )
    return name


def _resources(root: Table, problems: list[ConfigInvalid]) -> dict[str, Resource]:
    found: dict[str, Resource] = {}
    tables = _try(problems, lambda: root.table("resources", needed=False))
    if tables is None:
        return found
    for name in tables.names():
        resource = _try(problems, lambda name=name: resources.read_resource(name, tables.table(name)))
        if resource:
            found[name] = resource
    return found
