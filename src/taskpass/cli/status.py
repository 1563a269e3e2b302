"""``taskpass status``: what this process may ask for, and what it has. Standard library only."""

from __future__ import annotations

from taskpass.cli.agent import JSON, View, connect
from taskpass.cli.say import show, show_json, table
from taskpass.cli.times import when
from taskpass.cli.verb import Given, Option, Verb
from taskpass.cli.widening.rows import print_migrations


def _run(given: Given) -> int:
    params = {"task": given.text("task")} if given.flag("task") else {}
    with connect() as client:
        view = client.call("status", params)
    if given.flag("json"):
        show_json(view)
        return 0
    _print(view)
    return 0


def _print(view: View) -> None:
    if view.get("task"):
        show(f"task {view['task']} is {view['state']}, separation {view['separation']}")
    else:
        show(f"no task is open, separation {view['separation']}")
    requests: list[View] = view.get("requests") or []
    leases: list[View] = view.get("leases") or []
    table(
        ("REQUEST", "STATE", "RESOURCE", "LAPSES"),
        [(r["request"], r["state"], r["resource"], _open(r)) for r in requests],
    )
    table(
        ("LEASE", "STATE", "RESOURCE", "ENDS"),
        [(x["lease"], x["state"], x["resource"], when(x["expires_at"])) for x in leases],
    )
    _print_budgets(view.get("budgets") or {})
    print_migrations(view.get("migrations") or [])
    table(
        ("RESOURCE", "ENVIRONMENT", "ACCESS", "SERVED HERE"),
        [
            (r["resource"], r["environment"], ", ".join(r["access"]), "yes" if r["served"] else "not without a sandbox")
            for r in view["resources"]
        ],
    )


def _print_budgets(budgets: View) -> None:
    """Those of which something is used: of all tasks of the person whom this agent works for."""
    used = [f"{name} {of['used']} of {of['most']}" for name, of in budgets.items() if of["used"]]
    if used:
        show(f"used: {', '.join(used)}")


def _open(request: View) -> str:
    return when(request["lapses_at"]) if request["state"] in ("pending", "approved") else ""


VERB = Verb(
    path="status",
    summary="What this process may ask for, and what it has",
    about="Shows the task, its requests and leases, and the resources there are.",
    run=_run,
    options=(Option("--task", "Another task of the same caller", "TASK"), JSON),
)
