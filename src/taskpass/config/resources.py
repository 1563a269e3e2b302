"""The resources in the configuration: where a database is, how the broker logs in, what may be asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import combinations

from taskpass.config.address import parse_address
from taskpass.config.model import Access, Resource
from taskpass.config.table import Table
from taskpass.core.errors import ConfigInvalid, InvalidInput
from taskpass.core.limits import BOUNDS, Limits
from taskpass.core.scope import WRITE_VERBS, Level, Scope, Verb
from taskpass.core.separation import Environment
from taskpass.core.text import visible
from taskpass.wire.postgres.address import Address

ISSUERS = ("postgres",)
LOGIN_KINDS = ("file", "peer", "cert", "command", "systemd-credential")

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_CREDENTIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def read_resource(name: str, table: Table) -> Resource:
    """One ``[resources.<name>]`` with its sub-tables."""
    if not NAME.fullmatch(name):
        raise ConfigInvalid(
            f"{visible(table.path, limit=120)} is not a name for a resource",
            hint='lower-case letters, digits, ".", "-" and "_", at most 63',
        )
    address = parse_address(table.text("address"), what=table.name("address"))
    pin = table.table("pin", needed=False)
    if not table.has("pin"):
        raise ConfigInvalid(f"{table.path} is not enrolled: [{pin.path}] is missing", hint="taskpass init writes it")
    resource = Resource(
        name=name,
        issuer=_one_of(table, "issuer", ISSUERS),
        environment=Environment(_one_of(table, "environment", tuple(Environment))),
        address=table.text("address"),
        nodes=_nodes(table),
        tls=read_tls(table, address),
        login=read_login(table, address),
        cluster=_cluster(pin),
        database=pin.number("database"),
        shared_cluster=table.flag("shared_cluster"),
        access=_accesses(name, table.table("access")),
        unreachable_replicas=table.number("unreachable_replicas") if table.has("unreachable_replicas") else 0,
    )
    pin.done()
    table.done()
    return resource


def demand_separate(resources: Mapping[str, Resource]) -> None:
    """Refuse two environments with one cluster or login, unless both say ``shared_cluster = true``.

    Roles belong to a cluster, not to a database, so one environment's lease would reach the other (threats.md, 13).
    """
    for first, second in combinations(resources.values(), 2):
        if first.environment is second.environment or (first.shared_cluster and second.shared_cluster):
            continue
        if first.cluster == second.cluster:
            shared = "cluster"
        elif first.login == second.login and "peer" not in first.login:
            shared = "login"
        else:
            continue
        raise ConfigInvalid(
            f"{first.name} ({first.environment}) and {second.name} ({second.environment}) share one {shared}",
            hint="give each environment its own, or say shared_cluster = true in both, which doctor will show",
            code="shared_cluster",
        )


def _one_of(table: Table, key: str, known: tuple[str, ...]) -> str:
    value = table.text(key)
    if value not in known:
        raise ConfigInvalid(f"{table.name(key)} is unknown", hint="one of " + ", ".join(known))
    return value


def _nodes(table: Table) -> tuple[str, ...]:
    nodes = table.texts("nodes")
    for node in nodes:
        parse_address(node, what=f"an entry of {table.name('nodes')}")
    if table.text("address") in nodes:
        raise ConfigInvalid(f"{table.name('nodes')} repeats the address; it lists the other nodes")
    return nodes


def read_tls(table: Table, address: Address, key: str = "tls") -> dict[str, str]:
    """Empty, or ``{"ca": …}``. Only what stays on this machine may go without."""
    tls = table.table(key, needed=False)
    if tls.empty:
        if not address.is_local:
            raise ConfigInvalid(
                f"{tls.path} is missing: the address is on a network", hint=f'{key} = {{ ca = "system" }}'
            )
        return {}
    authority = tls.text("ca")
    tls.done()
    if address.socket_path:
        raise ConfigInvalid(f"{tls.path} is set, but a Unix socket has no TLS", hint="leave it out")
    if authority != "system" and not authority.startswith("/"):
        raise ConfigInvalid(f'{tls.name("ca")} must be "system" or the absolute path of a certificate file')
    return {"ca": authority}


def read_login(table: Table, address: Address, key: str = "login") -> dict[str, str]:
    """Exactly one reference. Whoever reads this file would read a secret in it, so there is no way to write one."""
    if not table.has(key):
        hint = f'{key} = {{ file = "…" }}; taskpass init writes it'
        raise ConfigInvalid(f"{table.name(key)} is missing", hint=hint)
    login = table.table(key)
    given = [kind for kind in LOGIN_KINDS if login.has(kind)]
    login.done()
    if len(given) != 1:
        raise ConfigInvalid(f"{login.path} must have exactly one of {', '.join(LOGIN_KINDS)}")
    kind = given[0]
    value = login.text(kind)
    _demand_reference(login.name(kind), kind, value, address)
    return {kind: value}


def _demand_reference(name: str, kind: str, value: str, address: Address) -> None:
    if "://" in value:
        raise ConfigInvalid(f"{name} must be a reference, and a secret must never stand in this file")
    if kind in ("cert", "command") and not value.startswith("/"):
        raise ConfigInvalid(f"{name} must begin with an absolute path")
    if kind == "systemd-credential" and not _CREDENTIAL.fullmatch(value):
        raise ConfigInvalid(f"{name} must be the name of a credential")
    if kind == "file" and not (_CREDENTIAL.fullmatch(value) or value.startswith("/")):
        raise ConfigInvalid(f"{name} must be the name of a file in credentials/, or an absolute path")
    if kind == "peer" and not address.socket_path:
        raise ConfigInvalid(
            f"{name} works on a Unix socket only", hint='the address must be "/directory:port/database"'
        )


def _cluster(pin: Table) -> str:
    cluster = pin.text("cluster")
    if not cluster.isascii() or not cluster.isdigit():
        raise ConfigInvalid(f"{pin.name('cluster')} must be the cluster's system identifier, as text")
    return cluster


def _accesses(resource: str, table: Table) -> dict[str, Access]:
    found = {name: _access(resource, name, table.table(name)) for name in table.names()}
    if not found:
        raise ConfigInvalid(
            f"[{table.path}] offers nothing", hint=f'add [{table.path}.read] with tables = ["public.*"]'
        )
    return found


def _access(resource: str, name: str, table: Table) -> Access:
    if name not in tuple(Level):
        known = ", ".join(Level)
        raise ConfigInvalid(
            f"[{visible(table.path, limit=120)}] is not an access of this version", hint=f"one of {known}"
        )
    limits = _limits(table.table("limits", needed=False))
    level = Level(name)
    verbs = _verbs(table) if level is Level.WRITE else frozenset[Verb]()
    if level is Level.MIGRATE:
        access = Access(name, level, owner=table.text("owner"), limits=limits)
    else:
        tables, exclude = table.texts("tables", empty=False), table.texts("exclude")
        tenant, rows = _rows(table.table("rows", needed=False))
        access = Access(name, level, tables, exclude, limits, verbs=verbs, tenant=tenant, limited_rows=rows)
    table.done()
    try:
        Scope(
            resource,
            name,
            access.level,
            access.tables,
            access.exclude,
            owner=access.owner,
            verbs=access.verbs,
            tenant=access.tenant,
            limited_rows=access.limited_rows,
        )
    except InvalidInput as error:
        raise ConfigInvalid(f"{table.path}: {error.message}", hint=error.hint) from None
    return access


def _rows(table: Table) -> tuple[str, tuple[str, ...]]:
    """(tenant, tables): both or neither."""
    if table.empty:
        return "", ()
    tenant, tables = table.text("tenant"), table.texts("tables", empty=False)
    table.done()
    return tenant, tables


def _limits(table: Table) -> Limits:
    """What is not set stays at its default."""
    given = {name: table.number(name) for name in BOUNDS if table.has(name)}
    table.done()
    try:
        return Limits(**given)
    except InvalidInput as error:
        raise ConfigInvalid(f"{table.path}: {error.message}") from None


def _verbs(table: Table) -> frozenset[Verb]:
    """``verbs`` of a writing access, with the SELECT that always comes along; left out, all of them."""
    words = table.texts("verbs", empty=False) if table.has("verbs") else tuple(sorted(WRITE_VERBS))
    if not set(words) <= set(WRITE_VERBS):
        known = ", ".join(sorted(WRITE_VERBS))
        raise ConfigInvalid(
            f"{table.name('verbs')} has an unknown verb", hint=f"some of {known}; SELECT always comes along"
        )
    return frozenset({Verb.SELECT, *map(Verb, words)})
