"""``taskpass run``: start an agent in its sandbox. Its access ends with it.

The broker's directory, everybody's sockets and other programs' processes are out of its sight; it reaches the broker
over the run's own socket, named by ``TASKPASS_SOCK``. The exit code is the agent's.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from taskpass.cli.operator import directory_option
from taskpass.cli.say import show, talk
from taskpass.client.git import claimed_git
from taskpass.client.line import LineClient
from taskpass.config.paths import operator_socket, runtime_directory
from taskpass.core.errors import InvalidInput, TaskpassError
from taskpass.core.text import visible


@click.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--tool", metavar="NAME", help="Name of the tool, for policy and record; the program's name, if left out."
)
@click.option("--repository", metavar="TEXT", help="Taken from the checkout around, if left out.")
@click.option("--branch", metavar="TEXT", help="Taken from the checkout around, if left out.")
@click.option("--ticket", default="", metavar="TEXT", help="Ticket of the task.")
@click.option("--uid", type=click.IntRange(1), help="As root: the account of the agent.")
@click.option("--dry-run", is_flag=True, help="Only show what the agent would see and not see.")
@directory_option
@click.argument("agent", nargs=-1, required=True, metavar="-- AGENT…")
def command(
    *,
    tool: str | None,
    repository: str | None,
    branch: str | None,
    ticket: str,
    uid: int | None,
    dry_run: bool,
    directory: Path,
    agent: tuple[str, ...],
) -> int:
    """Start AGENT in a sandbox with a task of its own. Everything that it was given ends when it ends."""
    from taskpass.sandbox import launch
    from taskpass.sandbox.plan import make_plan

    launch.refuse_nested()
    here = Path.cwd().resolve()
    worktree = next((place for place in (here, *here.parents) if (place / ".git").exists()), here)
    claimed = claimed_git(here)
    account = launch.agent_account(uid)
    around = launch.surroundings(directory, runtime_directory())
    if dry_run:
        run_directory = runtime_directory().resolve() / "runs" / "run"
        plan = make_plan(around, run_directory=run_directory, worktree=worktree, directory=here, account=account)
        for line in launch.shown(plan):
            show(visible(line))
        return 0
    opening = {
        "repository": claimed.get("repository", "") if repository is None else repository,
        "branch": claimed.get("branch", "") if branch is None else branch,
        "ticket": ticket,
    }
    with LineClient(operator_socket(directory), owners=frozenset({0, os.getuid()})) as client:
        prepared = client.call("prepare_run", {"tool": tool or _tool_of(agent[0]), "uid": account.uid})
        try:
            # The run's private directory is made by the broker; only now is it known and can be shown to the agent.
            place = Path(str(prepared["directory"]))
            around = launch.surroundings(directory, runtime_directory(), others=[Path(p) for p in prepared["hide"]])
            plan = make_plan(around, run_directory=place, worktree=worktree, directory=here, account=account)
            calls = (launch.HELLO, launch.Call("open_task", opening, {"TASKPASS_TASK": "task"}))
            return launch.launch(plan, agent, dict(os.environ), calls=calls)
        finally:
            _end(client, str(prepared["run"]))


def _tool_of(program: str) -> str:
    name = Path(program).name
    if not name:
        raise InvalidInput("the agent's program is missing", hint="taskpass run -- AGENT")
    return name


def _end(client: LineClient, run: str) -> None:
    """The broker notices the end by itself; telling it is quicker."""
    try:
        client.call("end_run", {"run": run}, timeout=60)
    except TaskpassError as error:
        talk(f"taskpass: the broker ends {run} by itself: {visible(error.message)} [{error.code}]")
