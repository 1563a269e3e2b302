"""``taskpass migrate``: have one SQL file run by the broker, as the owner of the database's objects.

Standard library only. Nothing here touches the database: the file's text goes to the broker, a person may read it, and
what comes back are statements, times, notices and errors. The access is never in this process's hands.
"""

from __future__ import annotations

from pathlib import Path

from taskpass.cli.agent import JOB, JSON, View, await_decision, connect, demand_approved, give_back, task_of
from taskpass.cli.exec import DEFAULT_WAIT
from taskpass.cli.say import show, show_json, talk
from taskpass.cli.times import seconds
from taskpass.cli.verb import Argument, Given, Option, Verb
from taskpass.client.line import LineClient
from taskpass.core.errors import InvalidInput
from taskpass.core.text import visible

FOLLOW_SECONDS = 20
MOST_BYTES = 128 * 1024
"""The broker's own limit, so that a file that is too large is refused without being sent."""

_ENDS = {
    "committed": "committed",
    "rolled_back": "rolled back: nothing of the file is in the database",
    "partly": "stopped half-way: what came before the failed statement stays",
    "unknown": "unknown: the connection was lost while the database was asked to commit; look before trying again",
}


def _run(given: Given) -> int:
    wait = seconds(given.text("wait", DEFAULT_WAIT), what="--wait")
    asked_anew = given.flag("resource") and given.flag("file")
    if given.flag("request") == asked_anew:
        raise InvalidInput("RESOURCE and FILE are needed, or --request", hint="taskpass migrate orders up.sql")
    with connect() as client:
        view = _requested(client, given)
        lease = str((view.get("lease") or _issued(client, view, wait))["lease"])
        try:
            end = _follow(client, lease, quiet=given.flag("json"))
        except BaseException:
            give_back(client, lease)
            raise
    if given.flag("json"):
        show_json(end)
    else:
        _tell_end(end)
    return 0 if end["ran"] == "committed" and not end["blocks"] else 1


def _requested(client: LineClient, given: Given) -> View:
    if given.flag("request"):
        return client.call("request_status", {"request": given.text("request")})
    params: View = {
        "resource": given.text("resource"),
        "access": "migrate",
        "file": _read(Path(given.text("file"))),
        "reason": given.text("reason"),
        "task": task_of(client, given),
        "connect": True,
    }
    if given.flag("ttl"):
        params["ttl"] = seconds(given.text("ttl"), what="--ttl")
    return client.call("request_access", params)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"the file cannot be read: {error.strerror}", code="script_refused") from None
    if len(data) > MOST_BYTES:
        raise InvalidInput(f"the file has more than {MOST_BYTES} bytes", hint="split it", code="script_refused")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidInput("the file is not text in UTF-8", code="script_refused") from None


def _issued(client: LineClient, view: View, wait: int) -> View:
    view = await_decision(client, view, wait)
    demand_approved(view)
    return client.call("issue", {"request": view["request"], "holder": "process"}, timeout=60)


def _follow(client: LineClient, lease: str, *, quiet: bool) -> View:
    """Print what the broker tells until everything is over; the last answer, with all steps."""
    steps: list[View] = []
    while True:
        view = client.call(
            "migration", {"lease": lease, "after": len(steps), "wait": FOLLOW_SECONDS}, timeout=FOLLOW_SECONDS + 15
        )
        steps += view["steps"]
        if not quiet:
            for step in view["steps"]:
                _tell(step)
        if view["over"]:
            return {**view, "steps": steps}


def _tell(step: View) -> None:
    words = visible(str(step["text"]))
    if step["what"] == "done":
        rows = "" if step["rows"] is None else f", {step['rows']} row(s)"
        show(f"{step['number']:>4}  line {step['line']:<5} {words}{rows}, {step['took_ms']} ms")
    elif step["what"] == "notice":
        talk(f"line {step['line']}: {words}")
    elif step["what"] == "failed":
        talk(f"line {step['line']}: {words}" if step["line"] else words)


def _tell_end(end: View) -> None:
    show(_ENDS.get(str(end["ran"]), "the broker was restarted meanwhile; see taskpass status"))
    for item in end["widening"]:
        talk(f"left wider: {visible(item['kind'])} {visible(item['name'])} ({item['change']})")
    if end["blocks"]:
        talk(f"next: undo it, or a person decides with: taskpass widening show {end['lease']}; until then nothing new")


VERB = Verb(
    path="migrate",
    summary="Have one SQL file run as the owner of a database",
    about=(
        "Sends FILE to the broker, waits for a person where one is needed, and follows the run. The broker runs the\n"
        "very bytes that were approved, in one transaction, as the owner, and takes the access back. Whoever needs a\n"
        "statement outside a transaction begins the file with:  -- taskpass: no-transaction\n"
        "Afterwards the catalogue is compared with what it was. Exit code: 0 committed and nothing left wider,\n"
        "else 1; own codes as of taskpass exec."
    ),
    run=_run,
    options=(
        Option("--request", "Run the file of this approved request instead of asking anew", "REQUEST"),
        Option("--ttl", "How long it may take, like 15m; policy decides the most", "DURATION"),
        Option("--reason", "Why, in your own words; a person may read it", "TEXT"),
        *JOB,
        Option("--wait", f"How long to wait for a person ({DEFAULT_WAIT})", "DURATION"),
        JSON,
    ),
    arguments=(
        Argument("resource", "Which resource", needed=False),
        Argument("file", "The SQL file", needed=False),
    ),
)
