"""``taskpass doctor``: what holds here and what does not, from what was looked at now.

Exit code 0: as it should be; 3: something is weaker; 4: something could not be looked at, which counts as no.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import click

from taskpass.cli.operator import View, call, directory_option, json_option
from taskpass.cli.say import show, show_json, style
from taskpass.core.errors import TaskpassError
from taskpass.core.text import visible


class State(StrEnum):
    OK = "ok"
    NOTE = "note"
    WEAKER = "weaker"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Row:
    check: str
    state: State
    message: str
    fix: str = ""


_STYLES = {State.OK: ("green",), State.NOTE: (), State.WEAKER: ("yellow",), State.UNKNOWN: ("red",)}
_SEVERITIES = {"ok": State.OK, "note": State.NOTE, "warning": State.WEAKER, "fatal": State.WEAKER}


@click.command("doctor")
@directory_option
@json_option
def command(directory: Path, as_json: bool) -> int:
    """Say what holds on this machine: broker, separation, store, audit, disk reserve, resources, debt."""
    rows = list(look(directory))
    if as_json:
        show_json([asdict(row) for row in rows])
    else:
        print_rows(rows)
    return verdict(rows)


def verdict(rows: list[Row]) -> int:
    states = {row.state for row in rows}
    return 4 if State.UNKNOWN in states else 3 if State.WEAKER in states else 0


def look(directory: Path) -> Iterator[Row]:
    """Every row, from the broker where it answers."""
    yield from _files(directory)
    try:
        health = call(directory, "health")
    except TaskpassError as error:
        yield Row("broker", State.UNKNOWN, f"{error.message} [{error.code}]", error.hint)
        return
    installation = health.get("installation", "unknown while its store is away")
    yield Row("broker", State.OK, f"version {health['version']}, installation {installation}, up")
    yield _separation()
    yield from rows_of_health(health)


def _files(directory: Path) -> Iterator[Row]:
    from taskpass.config.check import check

    for finding in check(directory):
        yield Row(finding.check, _SEVERITIES[finding.severity.value], finding.message, finding.fix)


def _separation() -> Row:
    """What stands between the broker and a process like this one, as the broker itself finds it."""
    from taskpass.cli.agent import connect

    try:
        with connect() as client:
            found = str(client.call("status")["separation"])
    except TaskpassError as error:
        return Row("separation", State.NOTE, f"none from here: {error.message} [{error.code}]", error.hint)
    if found == "none":
        return Row("separation", State.NOTE, "none from here: dev and preview only", "start agents with: taskpass run")
    return Row("separation", State.OK, f"{found} from here")


def rows_of_health(health: View) -> Iterator[Row]:
    """What the broker says of itself."""
    store: View = health.get("store", {})
    where = f"{store['kind']}, {visible(str(store['place']))}" if store else "a file"
    error: View | None = health.get("store_error")
    if error:
        message = f"{where}: {error['message']}; nothing is issued, taking back goes on [{error['code']}]"
        yield Row("store", State.WEAKER, message, error["hint"])
    else:
        yield from _stored(health, where)
    if health["late_records"]:
        yield Row("audit", State.WEAKER, f"{health['late_records']} record(s) wait to be written", "mend the store")
    if health.get("disk_low"):
        yield Row(
            "disk", State.WEAKER, "nearly full: agents get nothing new, approving and revoking go on", "free space"
        )
    held = health.get("reserve_held", True)
    if held is None:
        yield Row("reserve", State.NOTE, "none here: the records are on a database server, with its own disk")
    elif held:
        yield Row("reserve", State.OK, "disk space for revoking is held back")
    else:
        yield Row("reserve", State.WEAKER, "the disk space for revoking is used up", "free disk space")
    if not error:
        yield _debt(health)
        for sponsor, budgets in sorted(health.get("budgets", {}).items()):
            yield _budgets(sponsor, budgets)
    for name, resource in sorted(health.get("resources", {}).items()):
        yield from _resource(name, resource)
    yield from _drills(health)
    for name, login in sorted(health.get("logins", {}).items()):
        yield _login(name, login)
    for role in health.get("foreign_roles", []):
        yield Row("foreign role", State.NOTE, f"{role} is another installation's, and left alone")
    for name, why in sorted(health.get("unreachable", {}).items()):
        yield Row(f"resource {name}", State.UNKNOWN, f"not reached by the reconciler: {why}")


def _stored(health: View, where: str) -> Iterator[Row]:
    """What the store itself says."""
    if health.get("store_is_copy"):
        yield Row("store", State.WEAKER, "not the store that was here before: nothing is issued", "find the right one")
    else:
        yield Row("store", State.OK, f"{where}; epoch {health['epoch']}, latest time seen {health['latest_seen']}")
    if health.get("brokers"):
        yield _brokers(health["brokers"])
    yield Row("audit", State.OK, f"{health['audit_head']['seq']} records, head {health['audit_head']['hash']}")


def _brokers(living: list[View]) -> Row:
    """Who shares the store, as it was seen there in the last seconds."""
    named = [f"{x['broker']} on {x['machine']}{' (this one)' if x['this'] else ''}" for x in living]
    message = f"{len(living)} on this store: {', '.join(named)}"
    if not any(x["this"] for x in living):
        return Row("brokers", State.WEAKER, f"{message}; this one was not seen", "what it serves may be taken over")
    return Row("brokers", State.OK, message)


def _debt(health: View) -> Row:
    debt = health["debt"]
    if not debt:
        return Row("debt", State.OK, "every closing is proven")
    return Row("debt", State.WEAKER, f"{len(debt)} closing(s) not proven yet, retried", "taskpass lease ls --debt")


def _budgets(sponsor: str, budgets: View) -> Row:
    """What one person's agents have used; what is used up is refused to them, and to nobody else."""
    check = f"budgets of {sponsor}"
    words = {name: f"{name} {of['used']} of {of['most']}" for name, of in budgets.items() if of["used"]}
    full = [words[name] for name, of in budgets.items() if name in words and of["used"] >= of["most"]]
    if full:
        return Row(check, State.NOTE, f"used up: {', '.join(full)}", "wait, release or revoke; [budgets] sets them")
    return Row(check, State.OK, ", ".join(words.values()) or "nothing used")


def _login(name: str, login: View) -> Row:
    """The age of the broker's own password."""
    check, error, age = f"resource {name}: broker's password", login["error"], login["age_seconds"]
    words = "never replaced by the broker" if age is None else f"replaced {age // 3600} h {age % 3600 // 60} min ago"
    if error is None:
        return Row(check, State.OK, words)
    return Row(check, State.WEAKER, f"{words}; not since: {error['message']} [{error['code']}]", error.get("hint", ""))


def _resource(name: str, resource: View) -> Iterator[Row]:
    check = f"resource {name}"
    if resource["fit"] is None:
        yield Row(check, State.UNKNOWN, "not looked at yet", "try again in a moment")
    elif not resource["fit"]:
        error: View = resource["error"] or {}
        state = State.UNKNOWN if error.get("retryable") else State.WEAKER
        yield Row(check, state, f"{error.get('message', 'refused')} [{error.get('code', '')}]", error.get("hint", ""))
    else:
        yield Row(check, State.OK, f"serves {resource['environment']}")
    for finding in resource.get("findings", []):
        yield Row(f"{check}: {finding['check']}", _SEVERITIES[finding["severity"]], finding["message"], finding["fix"])


def _drills(health: View) -> Iterator[Row]:
    for name, last in sorted(health.get("drills", {}).items()):
        check, again = f"drill {name}", f"taskpass drill {name}"
        if last is None:
            yield Row(check, State.NOTE, "never played", again)
        elif not last["passed"]:
            yield Row(check, State.WEAKER, f"failed at {last['at']}: {last['message']} [{last['code']}]", again)
        elif last["overdue"]:
            yield Row(check, State.WEAKER, f"the last one passed at {last['at']}, longer ago than scheduled", again)
        else:
            yield Row(check, State.OK, f"passed at {last['at']}, proven after {last['revoke_ms']} ms")


def print_rows(rows: list[Row]) -> None:
    for row in rows:
        show(f"{style(f'{row.state:<8}', *_STYLES[row.state])}{visible(row.check)}: {visible(row.message)}")
        for line in row.fix.splitlines():
            show(f"        {visible(line)}")
