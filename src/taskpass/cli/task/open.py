"""``taskpass task open``: open the caller's task, or find the one that is open. Standard library only."""

from __future__ import annotations

from taskpass.cli.agent import JOB, JSON, connect, open_task
from taskpass.cli.say import show, show_json, talk
from taskpass.cli.verb import Given, Option, Verb


def _run(given: Given) -> int:
    with connect() as client:
        view = open_task(client, given)
    if given.flag("json"):
        show_json(view)
    else:
        show(view["task"])
        talk("next: taskpass request --resource NAME; taskpass status lists resources")
    return 0


VERB = Verb(
    path="task open",
    summary="Open a task, or find the open one",
    about=(
        "Prints the task's id. What is said about repository, branch and ticket counts as claimed. A sub-agent\n"
        "that is a process of its own opens a task under the run's with --child, and works in it by TASKPASS_TASK."
    ),
    run=_run,
    options=(
        *JOB,
        Option("--child", "A new task for the sub-agent of this name, with an identity of its own", "NAME"),
        JSON,
    ),
)
