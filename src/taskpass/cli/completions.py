"""``taskpass completions``: the script for a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from taskpass.cli.say import show

VARIABLE = "_TASKPASS_COMPLETE"


@click.command("completions")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of SHELL, for example: eval "$(taskpass completions bash)"."""
    from taskpass.cli.main import root

    found = get_completion_class(shell)
    assert found is not None
    show(found(root(), {}, "taskpass", VARIABLE).source())
