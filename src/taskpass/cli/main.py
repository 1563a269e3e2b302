"""The command tree with click: every command in a module of its own, imported when it is asked for.

Not for agents' verbs in daily use: ``cli.entry`` runs those without click. They are in this tree for completions and
for the reference page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module

import click

from taskpass.cli.entry import FAST
from taskpass.cli.verb import Verb, help_text
from taskpass.core.errors import InvalidInput

_PASSWORD = re.compile(r"://[^/\s@]*:[^/\s@]+@|\bpassword\s*=", re.IGNORECASE)

Tree = Mapping[str, "str | Tree"]

COMMANDS: Tree = {
    "demo": "taskpass.cli.demo",
    "init": "taskpass.cli.init",
    "up": "taskpass.cli.up",
    "doctor": "taskpass.cli.doctor",
    "check": "taskpass.cli.check",
    "run": "taskpass.cli.run",
    "exec": "taskpass.cli.exec",
    "migrate": "taskpass.cli.migrate",
    "request": "taskpass.cli.request",
    "wait": "taskpass.cli.wait",
    "status": "taskpass.cli.status",
    "release": "taskpass.cli.release",
    "review": "taskpass.cli.review",
    "revoke": "taskpass.cli.revoke",
    "drill": "taskpass.cli.drill",
    "task": {
        "open": "taskpass.cli.task.open",
        "ls": "taskpass.cli.task.ls",
        "show": "taskpass.cli.task.show",
        "complete": "taskpass.cli.task.complete",
    },
    "lease": {
        "ls": "taskpass.cli.lease.ls",
        "show": "taskpass.cli.lease.show",
        "revoke": "taskpass.cli.lease.revoke",
        "write-off": "taskpass.cli.lease.write_off",
    },
    "widening": {
        "ls": "taskpass.cli.widening.ls",
        "show": "taskpass.cli.widening.show",
        "check": "taskpass.cli.widening.check",
        "accept": "taskpass.cli.widening.accept",
    },
    "policy": {
        "check": "taskpass.cli.policy.check",
        "test": "taskpass.cli.policy.test",
        "explain": "taskpass.cli.policy.explain",
    },
    "audit": {
        "verify": "taskpass.cli.audit.verify",
        "show": "taskpass.cli.audit.show",
        "export": "taskpass.cli.audit.export",
    },
    "store": {
        "check": "taskpass.cli.store.check",
        "adopt": "taskpass.cli.store.adopt",
        "move": "taskpass.cli.store.move",
    },
    "keys": {"ls": "taskpass.cli.keys.ls"},
    "people": {"ls": "taskpass.cli.people.ls", "add": "taskpass.cli.people.add"},
    "config": {"show": "taskpass.cli.config.show"},
    "completions": "taskpass.cli.completions",
    "version": "taskpass.cli.version",
}
"""Each command's module, which holds a click command named ``command`` or a ``VERB``."""

NOUNS = {
    "task": "Tasks: one piece of work of one agent.",
    "lease": "Leases: the life of one access.",
    "widening": "What migrations left in their databases, and accepting it.",
    "policy": "The policies in the broker's directory.",
    "audit": "The audit record.",
    "store": "What the broker remembers: is it whole, what after a restore, moving it.",
    "keys": "The broker's keys.",
    "people": "The people who sponsor and review.",
    "config": "The configuration in the broker's directory.",
}


class Group(click.Group):
    """A group whose commands are imported when they are asked for."""

    def __init__(self, name: str, tree: Tree, help_: str) -> None:
        super().__init__(name, help=help_, context_settings={"help_option_names": ["-h", "--help"]})
        self._tree = tree

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._tree)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = self._tree.get(cmd_name)
        if found is None:
            return None
        return _load(cmd_name, found) if isinstance(found, str) else Group(cmd_name, found, NOUNS[cmd_name])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None:
            near = get_close_matches(args[0], self._tree, n=1)
            said = f"did you mean {ctx.command_path} {near[0]}?" if near else f"see: {ctx.command_path} --help"
            raise InvalidInput("there is no such command", hint=said, code="usage")
        return super().resolve_command(ctx, args)


def root() -> click.Group:
    """The whole tree."""
    return Group(
        "taskpass",
        COMMANDS,
        "Gives an AI coding tool access to a database for one task, and takes it back with proof.",
    )


def _load(name: str, module: str) -> click.Command:
    loaded = import_module(module)
    verb: Verb | None = getattr(loaded, "VERB", None)
    return _adapt(name, verb) if verb else loaded.command


def _adapt(name: str, verb: Verb) -> click.Command:
    """An agents' verb as click sees it: for completions and help. ``cli.entry`` is what runs it."""
    assert verb.path in FAST
    parameters: list[click.Parameter] = [
        click.Option([option.name], is_flag=not option.metavar, help=option.help, metavar=option.metavar or None)
        for option in verb.options
    ]
    command = click.Command(name, params=parameters, short_help=verb.summary, help=verb.about)
    command.get_help = lambda ctx: help_text(verb).rstrip()
    return command


def run(words: Sequence[str]) -> int:
    """Run the command that ``words`` name; its exit code. Raises ``TaskpassError``."""
    refuse_passwords(words)
    try:
        code: object = root().main(list(words), prog_name="taskpass", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return 2
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "taskpass"
        raise InvalidInput(_one_line(error), hint=f"see: {where} --help", code="usage") from None
    except click.ClickException as error:
        raise InvalidInput(_one_line(error), code="usage") from None
    except click.Abort:
        return 130
    return code if isinstance(code, int) else 0


def refuse_passwords(words: Sequence[str]) -> None:
    """Raise if an argument of ours holds a password: every process of this machine can read it, so it is burnt now."""
    ours = words[: words.index("--")] if "--" in words else words
    if any(_PASSWORD.search(word) for word in ours):
        raise InvalidInput(
            "a password stands in the command line, where every process of this machine can read it",
            hint="change that password; then give the login on the terminal, or on stdin with --admin-dsn-stdin",
            code="password_in_argv",
        )


def _one_line(error: click.ClickException) -> str:
    return " ".join(error.format_message().split())
