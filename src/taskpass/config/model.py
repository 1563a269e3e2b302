"""The configuration as one frozen tree. Loading, checking and digesting it are in the modules beside this one.

Not for: secrets. A login is a reference (``file``, ``peer``, ``cert``, ``command``, ``systemd-credential``); never
``env`` and never inline, because an agent of the same uid reads environments and files of the checkout (threats.md,
item 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from taskpass.core.budgets import Budgets
from taskpass.core.errors import InvalidInput
from taskpass.core.ids import HumanId
from taskpass.core.lease import Target
from taskpass.core.limits import Limits
from taskpass.core.scope import Level, Scope, Verb
from taskpass.core.script import Script
from taskpass.core.separation import Environment


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """``store`` is ``sqlite:////path`` or ``postgresql://host:port/database``; never with a login.

    ``store_login`` and ``store_tls`` are as ``login`` and ``tls`` of a resource, and empty for SQLite.
    ``allow_root_agents`` serves callers with uid 0. ``drill_every``: seconds between two drills of a resource; 0: none
    by itself. ``name`` tells brokers on one store apart: the end of this one's logins in the targets.
    """

    trust_domain: str
    store: str
    allow_root_agents: bool = False
    drill_every: int = 0
    store_login: Mapping[str, str] = field(hash=False, default_factory=dict[str, str])
    store_tls: Mapping[str, str] = field(hash=False, default_factory=dict[str, str])
    name: str = ""


@dataclass(frozen=True, slots=True)
class Access:
    """A named access of a resource: what may be asked for at most.

    ``verbs`` empty: all of the level. ``owner`` stands for tables at level migrate. Of the tables in ``limited_rows`` a
    lease sees what row security lets ``tenant`` see.
    """

    name: str
    level: Level
    tables: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    owner: str = ""
    verbs: frozenset[Verb] = frozenset()
    tenant: str = ""
    limited_rows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resource:
    """A database. ``cluster`` and ``database`` pin it to what was enrolled (system identifier as text, database oid).

    ``tls`` is ``{"ca": "system" | <absolute path>}`` or empty, which only a Unix socket or loopback address may have.
    ``login`` has exactly one key of the reference kinds.
    """

    name: str
    issuer: str
    environment: Environment
    address: str
    nodes: tuple[str, ...]
    tls: Mapping[str, str] = field(hash=False)
    login: Mapping[str, str] = field(hash=False)
    cluster: str
    database: int
    shared_cluster: bool
    access: Mapping[str, Access] = field(hash=False)
    unreachable_replicas: int = 0

    def scope(self, access: str, only: tuple[str, ...] = (), script: Script | None = None) -> Scope:
        """The scope that ``access`` means; raises ``InvalidInput`` if the resource has no such access."""
        if access not in self.access:
            raise InvalidInput(
                f"{self.name} offers no access of that name", hint="taskpass status lists what may be asked"
            )
        found = self.access[access]
        return Scope(
            self.name,
            access,
            found.level,
            found.tables,
            found.exclude,
            only,
            found.owner,
            script,
            found.verbs,
            found.tenant,
            found.limited_rows,
        )

    def target(self) -> Target:
        return Target(
            resource=self.name,
            issuer=self.issuer,
            environment=self.environment,
            address=self.address,
            nodes=self.nodes,
            tls=dict(self.tls),
            login=dict(self.login),
            cluster=self.cluster,
            database=self.database,
            unreachable_replicas=self.unreachable_replicas,
        )


@dataclass(frozen=True, slots=True)
class Human:
    """One record per human; every login method hangs on it.

    ``os_users`` are the accounts on this machine that are this person. ``reviewer_key`` (Ed25519, base64) and
    ``reviewer_salt`` (base64) verify what the person signs with the reviewer secret; the secret is not kept.
    """

    id: HumanId
    os_users: tuple[str, ...] = ()
    reviewer_key: str = ""
    reviewer_salt: str = ""


@dataclass(frozen=True, slots=True)
class People:
    humans: Mapping[HumanId, Human] = field(hash=False)
    groups: Mapping[str, frozenset[HumanId]] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that one start of the broker runs on. ``digest`` covers the file; see ``config.snapshot``."""

    directory: Path
    broker: BrokerSettings
    resources: Mapping[str, Resource] = field(hash=False)
    people: People = field(hash=False)
    digest: str = ""
    budgets: Budgets = field(default_factory=Budgets)

    @property
    def policy_directory(self) -> Path:
        return self.directory / "policy"

    @property
    def other_directories(self) -> tuple[Path, ...]:
        """Where else something of the broker's lies that no agent may see: a store outside ``directory``."""
        _, slashes, path = self.broker.store.partition("sqlite:///")
        place = Path(path).parent if slashes else self.directory
        return () if place.is_relative_to(self.directory) else (place,)
