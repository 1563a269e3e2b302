"""What the agents' verbs share: reaching the broker, naming the job, waiting for a person. Standard library only."""

from __future__ import annotations

import os
import time
from pathlib import Path

from taskpass.cli.say import talk
from taskpass.cli.times import seconds, words
from taskpass.cli.verb import Given, Option
from taskpass.client.git import claimed_git
from taskpass.client.line import LineClient
from taskpass.config.paths import agent_socket
from taskpass.core.errors import Denied, Expired, InvalidInput, Pending, TaskpassError

TYPE_CHECKING = False  # What typing.TYPE_CHECKING is, without importing typing: start-up is a feature.
if TYPE_CHECKING:
    from typing import Any

    View = dict[str, Any]
else:
    View = dict

POLL_SECONDS = 20
"""How long the broker may hold one question open; the broker allows 45."""

TOLD_EVERY = 60

JOB = (
    Option("--repository", "Repository of the task; taken from the checkout around, if left out", "TEXT"),
    Option("--branch", "Branch of the task; taken from the checkout around, if left out", "TEXT"),
    Option("--ticket", "Ticket of the task", "TEXT"),
)
SCOPE = (
    Option("--access", "How far, as the resource offers it: read (the default), write, migrate", "LEVEL"),
    Option("--table", "Only this table or pattern, like public.orders", "SCHEMA.TABLE", many=True),
    Option("--ttl", "How long, like 15m; policy decides the most", "DURATION"),
    Option("--reason", "Why, in your own words; a person may read it", "TEXT"),
    Option("--deliver", "endpoint (the default), or secret where policy permits one", "HOW"),
)
DELIVERIES = {"endpoint": "endpoint", "secret": "bearer"}
JSON = Option("--json", "Print JSON")


def connect() -> LineClient:
    return LineClient(agent_socket())


def task_of(client: LineClient, given: Given) -> str:
    """The task to work in: the one that ``TASKPASS_TASK`` selects, else the caller's own, opened if there is none."""
    selected = os.environ.get("TASKPASS_TASK")
    if selected and not any(given.text(key) for key in ("repository", "branch", "ticket")):
        return selected
    return str(open_task(client, given)["task"])


def open_task(client: LineClient, given: Given) -> View:
    claimed = claimed_git(Path.cwd())
    child = {"child": given.text("child")} if given.flag("child") else {}
    return client.call(
        "open_task",
        child
        | {
            "repository": given.text("repository", claimed.get("repository", "")),
            "branch": given.text("branch", claimed.get("branch", "")),
            "ticket": given.text("ticket"),
        },
    )


def ask(client: LineClient, given: Given, *, connect: bool = False) -> View:
    """One access request from the options of ``SCOPE``; the answer comes at once.

    With ``connect`` it holds a ``lease`` already if policy permits.
    """
    params: View = {
        "resource": given.text("resource"),
        "access": given.text("access", "read"),
        "tables": given.many("table"),
        "reason": given.text("reason"),
        "task": task_of(client, given),
        "delivery": delivery(given),
        "connect": connect,
    }
    if given.flag("ttl"):
        params["ttl"] = seconds(given.text("ttl"), what="--ttl")
    return client.call("request_access", params)


def delivery(given: Given) -> str:
    """What the broker calls the delivery that ``--deliver`` names."""
    found = DELIVERIES.get(given.text("deliver", "endpoint"))
    if found is None:
        raise InvalidInput("--deliver is endpoint or secret")
    return found


def await_decision(client: LineClient, view: View, limit: int) -> View:
    """Wait up to ``limit`` seconds for a person; progress is told on stderr. Returns the view as it stands then."""
    started = told = time.monotonic()
    if view["state"] == "pending":
        talk(f"taskpass: a person must approve: request {view['request']}; waiting up to {words(limit)}")
    while view["state"] == "pending":
        left = limit - (time.monotonic() - started)
        if left <= 0:
            break
        wait = max(1, min(POLL_SECONDS, int(left)))
        view = client.call("request_status", {"request": view["request"], "wait": wait}, timeout=wait + 15)
        if view["state"] == "pending" and time.monotonic() - told >= TOLD_EVERY:
            told = time.monotonic()
            talk(f"taskpass: still waiting after {words(told - started)}")
    return view


def demand_approved(view: View) -> None:
    """Return if the request may be used now; else raise the error that tells the caller what to do."""
    state, request, said = view["state"], view["request"], _said(view)
    if state == "approved":
        return
    if state == "pending":
        raise Pending(f"a person must approve: request {request}", hint=f"run: taskpass wait {request}")
    if state == "denied":
        code = str(view.get("code") or "denied")
        raise Denied(f"request {request} is denied{said}", hint=str(view.get("next") or ""), code=code)
    raise Expired(f"request {request} is {state}{said}", hint=str(view.get("next") or ""), code="request_ended")


def _said(view: View) -> str:
    return f': "{view["comment"]}"' if view.get("comment") else ""


def give_back(client: LineClient, lease: str) -> None:
    """How the verb went counts more than how this goes: what is left is taken back by the broker anyway."""
    try:
        client.call("release", {"lease": lease}, timeout=30)
    except TaskpassError as error:
        talk(f"taskpass: {lease} is taken back by the broker: {error.message} [{error.code}]")
