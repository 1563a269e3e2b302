"""Writes the reference pages that are made from the code: ``make docs``. A test compares them with the files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import click

from taskpass.cli.main import NOUNS, root
from taskpass.core import errors
from taskpass.core.errors import TaskpassError

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"

_CLI = """\
# Commands

Made from the commands themselves by `make docs`. stdout is data, stderr is talk. Every read command has `--json`.
Colour needs a terminal and no `NO_COLOR`. An error is one line, `taskpass: <message> [code]`, and a line that says what
to do next. The codes are in [errors.md](errors.md).

| Exit code | Meaning |
| --- | --- |
| 0 | done |
| 1 | failed: the target, the store, or a check |
| 2 | wrong use, wrong configuration or wrong policy |
| 3, 4 | `doctor`: something is weaker; something could not be looked at |
| 1, 4 | `store check`: the store is not whole; something could not be looked at |
| 3 | `store adopt`: adopted, and something is not proven closed yet |
| 90 | denied |
| 91 | pending: nobody has decided yet |
| 92 | what is referred to has ended |
| 93 | not authenticated, or no broker |
| 94 | a permit came with a duty that cannot be met |
| 126, 127 | `exec` and `run`: the command cannot be executed; is not found |
| any other | `exec` and `run`: the command's own; 128 + n after signal n |

`exec` hands out the place of a socket and no secret, so nothing in the command's environment, arguments or output needs
masking, and nothing is masked; with `--deliver secret` it hands out a password in a file in memory
([when and how](../how-to/hand-out-a-secret.md)). It takes `PGPASSWORD`, `PGSERVICE` and their like out of the command's
environment, because they would lead elsewhere. `--json` prints JSON on stdout, with the same exit code as without it;
its fields are in [json.md](json.md).
"""

_ERRORS = """\
# Errors

Made from the code by `make docs`. Every error has a stable code, a message on one line without a secret, a hint that
says what to do next, and says whether trying again can help. Codes are kept; messages may change.

## Families

| Code | Exit | Again | Meaning |
| --- | --- | --- | --- |
"""

_PRECISE = """
## More precise codes

An error of a family may carry one of these instead of the family's own.

| Code | Family | Message |
| --- | --- | --- |
"""


def cli_page() -> str:
    return _CLI + "".join(_pages(root(), ()))


def _pages(group: click.Group, path: tuple[str, ...]) -> Iterator[str]:
    context = click.Context(group, info_name="taskpass" if not path else path[-1])
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield f"\n## {name}\n\n{NOUNS[name]}\n"
            yield from _pages(command, (*path, name))
        else:
            words = (*path, name)
            yield f"\n{'###' if path else '##'} {' '.join(words)}\n\n```\n{_help(command, words)}\n```\n"


def _help(command: click.Command, path: tuple[str, ...]) -> str:
    context = click.Context(command, info_name=" ".join(("taskpass", *path)), terminal_width=100, max_content_width=100)
    return "\n".join(line.rstrip() for line in command.get_help(context).splitlines()).strip()


def errors_page() -> str:
    families = [
        f"| `{kind.default_code}` | {kind.exit_code} | {'yes' if kind.retryable else 'no'} | {meaning} |\n"
        for kind, meaning in _families()
    ]
    precise = [f"| `{code}` | `{family}` | {message} |\n" for code, family, message in sorted(set(_precise_codes()))]
    return _ERRORS + "".join(families) + _PRECISE + "".join(precise)


def _families() -> Iterator[tuple[type[TaskpassError], str]]:
    """The classes in their order, each with its line of the module's docstring or its own docstring."""
    told: dict[str, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        name, mark, meaning = line.strip().partition("`` ")
        if mark and name.startswith("``"):
            told[name.strip("`")] = meaning.strip()
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, TaskpassError) and kind is not TaskpassError:
            own = " ".join((kind.__doc__ or "").split()) if kind.__doc__ != TaskpassError.__doc__ else ""
            yield kind, told.get(kind.__name__) or own or "the broker cannot be reached"


def _precise_codes() -> Iterator[tuple[str, str, str]]:
    known = {kind.__name__: kind.default_code for kind, _ in _families()}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known:
                for keyword in node.keywords:
                    if keyword.arg == "code" and isinstance(keyword.value, ast.Constant) and keyword.value.value:
                        message = _text(node.args[0]) if node.args else ""
                        yield str(keyword.value.value), known[node.func.id], message


def _text(node: ast.expr) -> str:
    """A message with … where something is filled in; the pipe would end a cell of the table."""
    if isinstance(node, ast.Constant):
        return str(node.value).replace("|", "\\|")
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return "…"


def pages() -> dict[Path, str]:
    return {REFERENCE / "cli.md": cli_page(), REFERENCE / "errors.md": errors_page()}


if __name__ == "__main__":
    for place, text in pages().items():
        place.write_text(text, encoding="utf-8")
