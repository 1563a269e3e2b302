"""``taskpass task complete``: end a task and take back all of its access. Standard library only.

Inside a run it ends the caller's own task. Outside, a person who names a task ends that one, on the people's socket.
"""

from __future__ import annotations

import os

from taskpass.cli.agent import JSON, connect
from taskpass.cli.release import taken_back
from taskpass.cli.say import show, show_json
from taskpass.cli.verb import Argument, Given, Verb
from taskpass.client.line import LineClient
from taskpass.config.paths import operator_socket


def _run(given: Given) -> int:
    named = given.flag("task")
    params = {"task": given.text("task")} if named else {}
    with _client(named=named) as client:
        view = client.call("complete_task", params, timeout=120)
    if given.flag("json"):
        show_json(view)
        return 0
    show(f"task {view['task']} is {view['state']}")
    for lease in view["leases"]:
        show(taken_back(lease))
    return 0


def _client(*, named: bool) -> LineClient:
    inside = "TASKPASS_SOCK" in os.environ
    return LineClient(operator_socket()) if named and not inside and operator_socket().exists() else connect()


VERB = Verb(
    path="task complete",
    summary="End a task and take its access back",
    about="Closes every lease of the task and says of each whether the target proved it.",
    run=_run,
    options=(JSON,),
    arguments=(Argument("task", "The task, tsk_…; the caller's own, if left out", needed=False),),
)
