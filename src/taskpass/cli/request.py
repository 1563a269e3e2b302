"""``taskpass request``: ask for access without using it yet. Answers at once. Standard library only."""

from __future__ import annotations

from taskpass.cli.agent import JOB, JSON, SCOPE, View, ask, connect, demand_approved
from taskpass.cli.say import fields, show, show_json
from taskpass.cli.times import when, words
from taskpass.cli.verb import Given, Option, Verb
from taskpass.core.errors import TaskpassError


def _run(given: Given) -> int:
    with connect() as client:
        return answer(ask(client, given), as_json=given.flag("json"))


def answer(view: View, *, as_json: bool) -> int:
    """Print where a request stands; the exit code says it too."""
    if as_json:
        show_json(view)
        try:
            demand_approved(view)
        except TaskpassError as error:
            return error.exit_code
        return 0
    print_request(view)
    demand_approved(view)
    show(f"next: taskpass exec --request {view['request']} -- COMMAND")
    return 0


def print_request(view: View) -> None:
    fields(
        {
            "request": view["request"],
            "state": view["state"],
            "resource": f"{view['resource']} ({view['environment']}), {view['access']}",
            "lifetime": words(view["lifetime"]),
            "lapses": when(view.get("lapses_at")) if view["state"] in ("pending", "approved") else "",
            "tables": ", ".join(view.get("granted") or []),
            "left out": ", ".join(view.get("dropped") or []),
            **({"held back": ", ".join(view["held_back"])} if view.get("held_back") else {}),
        }
    )


VERB = Verb(
    path="request",
    summary="Ask for access, without using it yet",
    about="Answers at once. Exit code 0: it may be used now; 91: a person must approve; 90: denied.",
    run=_run,
    options=(Option("--resource", "Which resource", "NAME", needed=True), *SCOPE, *JOB, JSON),
)
