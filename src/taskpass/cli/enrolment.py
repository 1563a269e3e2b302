"""Enrols one database into a broker's directory: survey, kit, the broker's own login, rehearsal, and then the config.

The steps that touch the target are in ``issuers.postgres.enrol``. Here is their order: nothing half-made stays.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from taskpass.cli.installation import installation_id
from taskpass.config import resources, write
from taskpass.config.credentials import Credential, credential_file, only_writer, read_credential, write_credential
from taskpass.config.load import FILE, load, parsed
from taskpass.config.model import Access, Config, Resource
from taskpass.config.places import read_trusted
from taskpass.core.clock import Clock, Entropy
from taskpass.core.errors import ConfigInvalid, Conflict, InvalidInput, TargetUnfit
from taskpass.core.ids import InstallationId
from taskpass.core.scope import WRITE_VERBS, Level, Verb
from taskpass.core.secret import Secret
from taskpass.core.separation import Environment
from taskpass.issuers.base import Finding, Severity
from taskpass.issuers.postgres import enrol, kit, scram


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the operator asks for. An empty ``name`` becomes the database's."""

    name: str
    environment: Environment
    tables: tuple[str, ...]
    exclude: tuple[str, ...]
    nodes: tuple[str, ...]
    close_other_databases: bool
    levels: tuple[Level, ...] = (Level.READ,)
    verbs: frozenset[Verb] = frozenset()
    """Of a writing access; empty: all."""
    owner: str = ""
    """As whom migrations may run; empty: there are none."""

    def access(self) -> dict[str, Access]:
        """What the resource offers: the same tables at each level, and migrations as the owner."""
        found = {level.value: self._access(level) for level in self.levels}
        return found | ({"migrate": Access("migrate", Level.MIGRATE, owner=self.owner)} if self.owner else {})

    def _access(self, level: Level) -> Access:
        tables, exclude = self.tables, self.exclude
        if level is Level.READ:
            return Access(level.value, level, tables, exclude)
        return Access(level.value, level, tables, exclude, verbs=frozenset({Verb.SELECT, *(self.verbs or WRITE_VERBS)}))


@dataclass(frozen=True, slots=True)
class Enrolled:
    name: str
    address: str
    major: int
    findings: list[Finding]
    again: bool


class Unfit(TargetUnfit):
    """The target lacks what an enrolment needs. ``findings`` say what a DBA has to do."""

    def __init__(self, findings: list[Finding]) -> None:
        fatal = [finding for finding in findings if finding.severity is Severity.FATAL]
        super().__init__(
            f"the database cannot be enrolled as it is: {len(fatal)} thing(s) to mend",
            hint="do what the lines marked FATAL say, then run the same command again",
            code="target_unfit",
        )
        self.findings = findings


class Enrolling:
    """Adds databases to the broker's directory at ``directory``, which is whole already."""

    def __init__(self, directory: Path, clock: Clock, entropy: Entropy) -> None:
        self._directory = directory
        self._clock = clock
        self._entropy = entropy
        self._config = load(directory)
        self._installation = InstallationId(installation_id(self._config))
        self._user = kit.broker_login(self._installation, self._config.broker.name)

    def with_admin(self, wanted: Wanted, admin: Secret) -> Enrolled:
        """Install with an administrator's login, rehearse with the broker's own, write the configuration.

        Raises ``TargetUnfit`` with what a DBA has to do, and then leaves target and directory as they were.
        """
        with only_writer(self._directory):
            return self._with_admin(wanted, admin)

    def _with_admin(self, wanted: Wanted, admin: Secret) -> Enrolled:
        login = enrol.read_login(admin.reveal())
        with enrol.connected(login, self._entropy) as connection:
            found = enrol.survey(connection)
            resource = self._resource(wanted, login, found)
            password, known = self._password(resource)
            _demand_fit(enrol.judge_owner(connection, wanted.owner))
            keep = known and enrol.accepts(resource.target(), self._user, password, self._entropy)
            text = enrol.script(self._wish(wanted, password, keep=keep), found.server_version, self._entropy)
            try:
                findings = enrol.install(connection, text)
            except TargetUnfit as error:
                if not found.managed:
                    raise
                raise Unfit([Finding("enrolment", Severity.FATAL, error.message, error.hint), *found.managed]) from None
            try:
                if wanted.close_other_databases:
                    findings += enrol.close_other_databases(connection, found)
                return self._keep(resource, password, found, findings)
            except BaseException:
                if not known:
                    enrol.undo(connection, found, self._user)
                raise

    def with_own_login(self, wanted: Wanted, own: Secret) -> Enrolled:
        """Continue after a DBA has run the script: ``own`` is an address, with or without the broker's password."""
        with only_writer(self._directory):
            return self._with_own_login(wanted, own)

    def _with_own_login(self, wanted: Wanted, own: Secret) -> Enrolled:
        login = enrol.read_login(_with_user(own.reveal(), self._user))
        password = login.password or self._pending(wanted, login)
        with enrol.connected(replace(login, password=password), self._entropy) as connection:
            found = enrol.survey(connection)
        return self._keep(self._resource(wanted, login, found), password, found, [])

    def sql_for_dba(self, wanted: Wanted) -> str:
        """The script, with the verifier of a password that is kept here for ``with_own_login``."""
        if not wanted.name:
            raise InvalidInput("--print-sql needs --name", code="usage")
        self._demand_name(wanted.name)
        if wanted.name in self._config.resources:
            password = self._password(self._config.resources[wanted.name])[0]
        else:
            password = scram.new_secret(self._entropy)
            self._store(f"{wanted.name}.cred", password)
        return enrol.script(self._wish(wanted, password, keep=True), kit.OLDEST, self._entropy)

    def own_login(self, name: str, admin: Secret) -> Enrolled:
        """Give this broker the login of its own in ``name``, which the installation has enrolled: nothing else changes.

        Raises ``Conflict`` (login_taken) if the login is there and does not take the password that is kept here.
        """
        resource = self._enrolled(name)
        login = enrol.read_login(admin.reveal())
        with only_writer(self._directory), enrol.connected(login, self._entropy) as connection:
            found = enrol.survey(connection)
            if (resource.cluster, resource.database) != (found.cluster, found.database):
                raise Conflict(f"{name} is another database than the one at this address", hint="give its own address")
            password = self._own_password(resource)
            target = resource.target()
            if enrol.exists(connection, self._user) and not enrol.accepts(target, self._user, password, self._entropy):
                raise Conflict(
                    f"the login {self._user} is there and has another password",
                    hint="another broker may have this name; if not, use what --print-sql says at its end",
                    code="login_taken",
                )
            text = enrol.login_script(self._installation, self._config.broker.name, password, self._entropy)
            return self._keep(resource, password, found, enrol.install(connection, text))

    def own_login_sql(self, name: str) -> str:
        """The script for a DBA that does what ``own_login`` does."""
        password = self._own_password(self._enrolled(name))
        return enrol.login_script(self._installation, self._config.broker.name, password, self._entropy)

    def _enrolled(self, name: str) -> Resource:
        if name not in self._config.resources:
            raise InvalidInput("--own-login needs --name: a resource of this broker's taskpass.toml", code="usage")
        return self._config.resources[name]

    def _own_password(self, resource: Resource) -> Secret:
        """Raises ``ConfigInvalid`` if it is not kept in a file of this broker's, for this broker's login."""
        credential = read_credential(self._directory, resource.login)
        if credential.password is None or credential.user != self._user:
            raise ConfigInvalid(f"{resource.name} is not entered as {self._user} with a password", hint="see its login")
        return credential.password

    def _wish(self, wanted: Wanted, password: Secret, *, keep: bool) -> enrol.Wish:
        """What is asked for now, and what the configuration offers of the same database already."""
        present = self._config.resources.get(wanted.name)
        offered = [*wanted.access().values(), *(present.access.values() if present else ())]
        reads = [access for access in offered if access.level is Level.READ]
        writes = {
            kit.Writing(access.tables, access.exclude, access.verbs): None
            for access in offered
            if access.level is Level.WRITE
        }
        return enrol.Wish(
            self._installation,
            tuple(dict.fromkeys(text for access in reads for text in access.tables)),
            reads[0].exclude if reads else (),
            password,
            keep,
            tuple(writes),
            wanted.owner,
            self._config.broker.name,
        )

    def _pending(self, wanted: Wanted, login: enrol.Login) -> Secret:
        name = wanted.name or _name_of(login.address)
        credential = read_credential(self._directory, {"file": f"{name}.cred"})
        if credential.password is None:
            raise ConfigInvalid("the credential holds no password")
        return credential.password

    def _resource(self, wanted: Wanted, login: enrol.Login, found: enrol.Survey) -> Resource:
        """The resource as it will stand in the configuration, checked against the others first."""
        name = wanted.name or _name_of(login.address)
        self._demand_name(name)
        resource = Resource(
            name=name,
            issuer="postgres",
            environment=wanted.environment,
            address=login.address,
            nodes=wanted.nodes,
            tls={"ca": login.ca} if login.ca else {},
            login={"file": f"{name}.cred"},
            cluster=found.cluster,
            database=found.database,
            shared_cluster=False,
            access=wanted.access(),
        )
        resource = self._sharing_login(resource)
        present = self._config.resources.get(name)
        if present and (present.cluster, present.database) != (resource.cluster, resource.database):
            raise Conflict(f"{name} is the name of another database already", hint="choose another with --name")
        _demand_same_owner(present, wanted.owner)
        others = {key: value for key, value in self._config.resources.items() if key != name}
        resources.demand_separate({**others, name: resource})
        parsed(self._text() + write.render_resource(resource) if not present else self._text(), self._directory)
        return resource

    def _demand_name(self, name: str) -> None:
        if not resources.NAME.fullmatch(name):
            raise InvalidInput(
                "that is not a name for a resource", hint="choose one with --name: lower-case, like orders"
            )

    def _sharing_login(self, resource: Resource) -> Resource:
        """The broker has one login per cluster: a second database there shares its credential."""
        for other in self._config.resources.values():
            if other.cluster == resource.cluster:
                return replace(resource, login=dict(other.login))
        return resource

    def _password(self, resource: Resource) -> tuple[Secret, bool]:
        """The broker's password there, and whether it is in use: changing that would lock the broker out."""
        if any(other.login == resource.login for other in self._config.resources.values()):
            credential = read_credential(self._directory, resource.login)
            if credential.password:
                return credential.password, True
        return scram.new_secret(self._entropy), False

    def _keep(self, resource: Resource, password: Secret, found: enrol.Survey, findings: list[Finding]) -> Enrolled:
        """Rehearse, then write credential and configuration, in this order; nothing stays if one of them fails."""
        target = resource.target()
        findings = findings + enrol.rehearse(
            target, self._installation, self._user, password, clock=self._clock, entropy=self._entropy
        )
        _demand_fit(findings)
        again = resource.name in self._config.resources
        if again:
            self._add(resource)
        else:
            self._write(resource, password)
        shown = [finding for finding in findings if finding.severity is not Severity.OK]
        return Enrolled(resource.name, resource.address, found.major, shown, again)

    def _add(self, resource: Resource) -> None:
        """Write what an enrolled database is to offer from now on. What stands there is the operator's, and stays."""
        added = "".join(write.render_access(resource.name, access) for access in self._new(resource))
        if added:
            text = f"{self._text().rstrip()}\n\n{added}"
            parsed(text, self._directory)
            write.write_new(self._directory / FILE, text.encode())

    def _new(self, resource: Resource) -> list[Access]:
        """Accesses that were asked for by an option of their own, of a level that the configuration does not have yet.

        Reading is what ``init`` offers when nothing is said, so it is never added behind an operator's back.
        """
        levels = {access.level for access in self._config.resources[resource.name].access.values()}
        wanted = [access for access in resource.access.values() if access.level is not Level.READ]
        return [access for access in wanted if access.level not in levels]

    def _write(self, resource: Resource, password: Secret) -> None:
        path = credential_file(self._directory, resource.login["file"])
        fresh = not path.exists()
        if fresh or password.reveal() not in {known.reveal() for known in self._known(resource)}:
            self._store(path.name, password)
        try:
            text = self._text() + write.render_resource(resource)
            parsed(text, self._directory)
            write.write_new(self._directory / FILE, text.encode())
        except BaseException:
            if fresh:
                with suppress(OSError):
                    path.unlink()
            raise
        self._config: Config = load(self._directory)

    def _store(self, name: str, password: Secret) -> None:
        write_credential(self._directory, name, Credential(self._user, password))

    def _known(self, resource: Resource) -> tuple[Secret, ...]:
        return read_credential(self._directory, resource.login).passwords

    def _text(self) -> str:
        return read_trusted(self._directory / FILE).decode()


def _demand_same_owner(present: Resource | None, owner: str) -> None:
    """A resource migrates as one owner, and the one in the configuration is the operator's word."""
    known = [access.owner for access in present.access.values() if access.level is Level.MIGRATE] if present else []
    if owner and known and owner not in known:
        raise Conflict(
            f"migrations run as {known[0]} there already",
            hint="change owner in taskpass.toml first, then run this again",
            code="another_owner",
        )


def _demand_fit(findings: list[Finding]) -> None:
    if any(finding.severity is Severity.FATAL for finding in findings):
        raise Unfit([finding for finding in findings if finding.severity is not Severity.OK])


def _name_of(address: str) -> str:
    return re.sub(r"[^a-z0-9._-]", "-", address.rsplit("/", 1)[1].lower())[:63].lstrip("._-")


def _with_user(text: str, user: str) -> str:
    """An address as a connection string of the broker's login; what already names a user is left alone."""
    if "://" in text and "@" not in text:
        scheme, rest = text.split("://", 1)
        return f"{scheme}://{user}@{rest}"
    return text
