"""``taskpass wait``: wait until a person has decided. Standard library only."""

from __future__ import annotations

from taskpass.cli.agent import JSON, await_decision, connect
from taskpass.cli.request import answer
from taskpass.cli.times import seconds
from taskpass.cli.verb import Argument, Given, Option, Verb

DEFAULT_TIMEOUT = "10m"


def _run(given: Given) -> int:
    limit = seconds(given.text("timeout", DEFAULT_TIMEOUT), what="--timeout")
    with connect() as client:
        view = client.call("request_status", {"request": given.text("request")})
        return answer(await_decision(client, view, limit), as_json=given.flag("json"))


VERB = Verb(
    path="wait",
    summary="Wait until a person has decided about a request",
    about="Exit code 0: it may be used now; 91: nobody has decided yet; 90: denied; 92: it has lapsed.",
    run=_run,
    options=(Option("--timeout", f"How long to wait ({DEFAULT_TIMEOUT})", "DURATION"), JSON),
    arguments=(Argument("request", "The request, req_…"),),
)
