"""Writing the configuration: what ``taskpass init`` makes, with the words that explain it, and never half of it.

Text is added and not rewritten, so that an operator's own comments and order stay; only the lines that name the store
are replaced, when it moves.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from taskpass.config.model import Access, Human, Resource
from taskpass.core.errors import ConfigInvalid
from taskpass.core.scope import WRITE_VERBS, Level, Verb

_HEADER = """\
# Taskpass: what this broker serves, and for whom. `taskpass check` says what is wrong without starting anything.
# Unknown keys are errors. No secret stands in this file: a login is a reference. Lifetimes are decided in policy/.

[broker]
trust_domain = {trust_domain}
"""


def render_new(trust_domain: str) -> str:
    """The beginning of a configuration, without resources or people."""
    return _HEADER.format(trust_domain=quote(trust_domain))


def render_store(address: str, login: Mapping[str, str], tls: Mapping[str, str]) -> str:
    """The lines of ``[broker]`` for a store on PostgreSQL; they go behind ``render_new``."""
    lines = [f"store = {quote(address)}", f"store_login = {_inline(login)}"]
    if tls:
        lines.append(f"store_tls = {_inline(tls)}   # verified in full")
    return "\n".join(lines) + "\n"


def replace_store(text: str, lines: str) -> str:
    """``text`` with ``lines`` (see ``render_store``) in place of what named the store, first in ``[broker]``.

    Only keys that stand on a line of their own are found: the caller compares what the result says. Raises
    ``ConfigInvalid`` if there is no line ``[broker]``.
    """
    return _replace(text, "store(_login|_tls)?", lines)


def name_broker(text: str, name: str) -> str:
    """``text`` with ``name`` as the broker's, first in ``[broker]``; as ``replace_store``."""
    return _replace(text, "name", f"name = {quote(name)}   # its logins in the targets end with it\n")


def _replace(text: str, keys: str, lines: str) -> str:
    mark = re.search(r"^[ \t]*\[[ \t]*broker[ \t]*\][^\n]*\n", text, re.MULTILINE)
    if not mark:
        raise ConfigInvalid("the line [broker] cannot be found", hint=f"write by hand: {lines.strip()}")
    rest = text[mark.end() :]
    end = re.search(r"^[ \t]*\[", rest, re.MULTILINE)
    section, after = (rest[: end.start()], rest[end.start() :]) if end else (rest, "")
    kept = re.sub(rf"^[ \t]*{keys}[ \t]*=[^\n]*\n?", "", section, flags=re.MULTILINE)
    return text[: mark.end()] + lines + kept + after


def render_resource(resource: Resource) -> str:
    """The tables of one resource."""
    name = _key(resource.name)
    lines = [
        "",
        f"[resources.{name}]",
        f"issuer = {quote(resource.issuer)}",
        f"environment = {quote(resource.environment.value)}",
        f"address = {quote(resource.address)}",
        f"nodes = {_list(resource.nodes)}                 # every replica that an agent could reach",
    ]
    if resource.tls:
        lines.append(f"tls = {_inline(resource.tls)}   # verified in full")
    lines.append(f"login = {_inline(resource.login)}")
    if resource.shared_cluster:
        lines.append("shared_cluster = true")
    lines += [
        f"[resources.{name}.pin]                 # what was enrolled; anything else at this address is refused",
        f"cluster = {quote(resource.cluster)}",
        f"database = {resource.database}",
    ]
    return "\n".join(lines) + "\n" + "".join(render_access(resource.name, each) for each in resource.access.values())


def render_access(resource: str, access: Access) -> str:
    """The table of one access of ``resource``; it may stand anywhere behind the resource's own."""
    lines = [f"[resources.{_key(resource)}.access.{_key(access.name)}]"]
    if access.level is Level.MIGRATE:
        lines.append(f"owner = {quote(access.owner)}                 # who migrations run as; it cannot log in")
        return "\n".join(lines) + "\n"
    lines += [
        f"tables = {_list(access.tables)}",
        f"exclude = {_list(access.exclude)}                 # and whatever these are reachable through",
    ]
    if access.level is Level.WRITE:
        granted = tuple(sorted(verb.value for verb in (access.verbs or WRITE_VERBS) - {Verb.SELECT}))
        lines.append(f"verbs = {_list(granted)}                 # SELECT always comes along")
    return "\n".join(lines) + "\n"


def render_human(human: Human) -> str:
    """The record of one person."""
    lines = ["", f"[people.human.{_key(human.id)}]", f"os_users = {_list(human.os_users)}"]
    if human.reviewer_key:
        lines += [
            f"reviewer_key = {quote(human.reviewer_key)}   # verifies signatures; the secret is not kept",
            f"reviewer_salt = {quote(human.reviewer_salt)}",
        ]
    return "\n".join(lines) + "\n"


def render_groups(groups: Mapping[str, frozenset[str]]) -> str:
    """The groups that policies may ask approvals of."""
    return (
        "\n".join(["", "[people.groups]", *(f"{_key(n)} = {_list(tuple(sorted(m)))}" for n, m in groups.items())])
        + "\n"
    )


def join_groups(text: str, human: str, groups: Iterable[str]) -> str:
    """``text`` with ``human`` in each of ``groups``, whose lines stand as ``render_groups`` writes them.

    Raises ``ConfigInvalid`` for a group whose line is not of that shape: a person then edits it.
    """
    for group in groups:
        head, mark, rest = text.partition("[people.groups]\n")
        line = re.search(rf"^{re.escape(_key(group))} = \[(.*)\]", rest, re.MULTILINE)
        if not mark or not line:
            raise ConfigInvalid(f"the group {group} cannot be found in [people.groups]", hint="add it there by hand")
        members = f"{line[1]}, {quote(human)}" if line[1].strip() else quote(human)
        text = head + mark + rest[: line.start(1)] + members + rest[line.end(1) :]
    return text


def insert_human(text: str, human: Human) -> str:
    """``text`` with the record of ``human`` before the groups."""
    head, mark, rest = text.partition("\n[people.groups]\n")
    return head + render_human(human) + mark + rest


def quote(text: str) -> str:
    """``text`` as a TOML basic string."""
    # TOML takes JSON's escapes, but wants DEL escaped too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else quote(name)


def _list(items: tuple[str, ...]) -> str:
    return "[" + ", ".join(quote(item) for item in items) + "]"


def _inline(table: Mapping[str, str]) -> str:
    return "{ " + ", ".join(f"{_key(key)} = {quote(value)}" for key, value in table.items()) + " }"


def write_new(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write ``data`` as ``path`` in one step, durable on return: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    with suppress(FileNotFoundError):
        temporary.unlink()  # Of a process that was killed half-way and had the same number, as in a container.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
