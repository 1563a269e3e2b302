"""``taskpass check``: all that can be said about a broker's directory without starting it or reaching a database."""

from __future__ import annotations

from pathlib import Path

from taskpass.config.credentials import credential_file
from taskpass.config.load import examine
from taskpass.config.model import Config
from taskpass.config.places import read_trusted
from taskpass.config.snapshot import take
from taskpass.config.store import POSTGRES
from taskpass.core.errors import ConfigInvalid, TaskpassError
from taskpass.core.text import visible
from taskpass.issuers.base import Finding, Severity


def check(directory: Path) -> list[Finding]:
    """One finding per thing looked at; the directory serves if none is fatal."""
    config, problems = examine(directory)
    if config is None:
        return [_fatal("configuration", problem) for problem in problems]
    findings = [Finding("configuration", Severity.OK, f"{len(config.resources)} resource(s), digest {config.digest}")]
    findings += _store(config)
    findings += _policy(config)
    findings += _resources(config)
    findings += _people(config)
    return findings


def _store(config: Config) -> list[Finding]:
    """Which store it is; the address holds no login. Whether it answers is the broker's to say."""
    kind = "PostgreSQL" if config.broker.store.startswith(POSTGRES) else "SQLite"
    findings = [Finding("store", Severity.OK, f"{kind}: {visible(config.broker.store, limit=300)}")]
    if "file" in config.broker.store_login:
        findings += _credential("store", credential_file(config.directory, config.broker.store_login["file"]))
    return findings


def _fatal(name: str, error: TaskpassError) -> Finding:
    return Finding(name, Severity.FATAL, f"{error.message} [{error.code}]", error.hint)


def _policy(config: Config) -> list[Finding]:
    # Imported here, because the engine is large and a broken configuration does not need it.
    from taskpass.policy import explain

    try:
        taken = take(config.directory)
    except ConfigInvalid as error:
        return [_fatal("policy", error)]
    severities = {"ok": Severity.OK, "warning": Severity.WARNING, "error": Severity.FATAL}
    findings = [
        Finding("policy", severities[item.mark.value], item.what, item.hint)
        for item in explain.check(config.policy_directory, config.people.groups)
    ]
    return [*findings, Finding("snapshot", Severity.OK, f"{len(taken.files)} files, {taken.digest}")]


def _resources(config: Config) -> list[Finding]:
    findings: list[Finding] = []
    for resource in config.resources.values():
        name = f"resource {resource.name}"
        if resource.shared_cluster:
            findings.append(
                Finding(
                    name, Severity.WARNING, "shares its cluster with another environment", "give it its own cluster"
                )
            )
        if "file" in resource.login:
            findings += _credential(name, credential_file(config.directory, resource.login["file"]))
    if not findings and not config.resources:
        findings.append(Finding("resources", Severity.NOTE, "there are none yet", "taskpass init --postgres"))
    return findings


def _credential(name: str, path: Path) -> list[Finding]:
    try:
        read_trusted(path, private=True)
    except ConfigInvalid as error:
        return [_fatal(name, error)]
    return [Finding(name, Severity.OK, "its login is readable by the broker alone")]


def _people(config: Config) -> list[Finding]:
    able = [human for human in config.people.humans.values() if human.reviewer_key]
    if not able:
        return [Finding("people", Severity.NOTE, "nobody can review yet", "taskpass init makes a reviewer secret")]
    return [Finding("people", Severity.OK, f"{len(able)} of {len(config.people.humans)} people can review")]
