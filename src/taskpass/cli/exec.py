"""``taskpass exec``: run one command with access to one resource, and take the access back when it ends.

Standard library only. The command gets the place of a socket, no secret; so there is nothing in its environment, its
arguments or its output that would have to be masked.
"""

from __future__ import annotations

import os

from taskpass.cli.agent import JOB, SCOPE, View, ask, await_decision, connect, demand_approved
from taskpass.cli.say import talk
from taskpass.cli.times import seconds
from taskpass.cli.verb import Given, Option, Verb
from taskpass.client.line import LineClient
from taskpass.client.run_child import run_child
from taskpass.core.errors import InvalidInput, TaskpassError

DEFAULT_WAIT = "10m"

FOREIGN = (
    "PGHOSTADDR",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGPASSWORD",
    "PGPASSFILE",
    "PGREQUIREAUTH",
    "PGCHANNELBINDING",
    "PGGSSENCMODE",
    "PGSSLMODE",
    "PGREQUIRESSL",
)
"""What would lead libpq elsewhere, or was meant for another server: taken out of the command's environment."""


def _run(given: Given) -> int:
    wait = seconds(given.text("wait", DEFAULT_WAIT), what="--wait")
    if given.flag("request") == given.flag("resource"):
        raise InvalidInput("one of --resource and --request is needed", hint="taskpass status lists resources")
    with connect() as client:
        view = _requested(client, given)
        lease = view.get("lease") or _issued(client, view, wait)
        try:
            return run_child(given.rest, environment(dict(os.environ), lease))
        finally:
            _release(client, str(lease["lease"]))


def _issued(client: LineClient, view: View, wait: int) -> View:
    """The lease of a request that was not permitted at once."""
    view = await_decision(client, view, wait)
    demand_approved(view)
    return client.call("issue", {"request": view["request"], "holder": "process"}, timeout=60)


def _requested(client: LineClient, given: Given) -> View:
    if given.flag("request"):
        return client.call("request_status", {"request": given.text("request")})
    return ask(client, given, connect=True)


def environment(around: dict[str, str], lease: View) -> dict[str, str]:
    """The command's environment: where the endpoint is, and nothing that leads to another server."""
    endpoint = lease["endpoint"]
    kept = {name: value for name, value in around.items() if name not in FOREIGN}
    return kept | {
        "PGHOST": str(endpoint["host"]),
        "PGPORT": str(endpoint["port"]),
        "PGUSER": str(endpoint["user"]),
        "PGDATABASE": str(endpoint["database"]),
        "DATABASE_URL": str(endpoint["dsn"]),
        "TASKPASS_TASK": str(lease["task"]),
    }


def _release(client: LineClient, lease: str) -> None:
    """The command's exit code counts more than how the release went: the broker takes back what is left anyway."""
    try:
        client.call("release", {"lease": lease}, timeout=30)
    except TaskpassError as error:
        talk(f"taskpass: {lease} is taken back by the broker: {error.message} [{error.code}]")


VERB = Verb(
    path="exec",
    summary="Run a command with access to a resource",
    about=(
        "Asks for access, waits for a person where one is needed, runs COMMAND with an endpoint in PGHOST, PGPORT,\n"
        "PGUSER, PGDATABASE and DATABASE_URL, and gives the access back when COMMAND ends. No secret is handed out.\n"
        "The exit code is COMMAND's; own codes: 90 denied, 91 not decided in time, 92 expired, 93 not authenticated,\n"
        "94 obligation unmet."
    ),
    run=_run,
    options=(
        Option("--resource", "Which resource", "NAME"),
        Option("--request", "Use this approved request instead of asking anew", "REQUEST"),
        *SCOPE,
        *JOB,
        Option("--wait", f"How long to wait for a person ({DEFAULT_WAIT})", "DURATION"),
    ),
    rest="COMMAND…",
)
