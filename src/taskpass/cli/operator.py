"""What the commands of operators share: the broker's directory, the people's socket, ``--json``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from taskpass.client.line import LineClient
from taskpass.config.paths import broker_directory, operator_socket

F = TypeVar("F", bound=Callable[..., Any])
View = dict[str, Any]


def _directory(_context: click.Context, _parameter: click.Parameter, value: Path | None) -> Path:
    return value.absolute() if value else broker_directory()


directory_option = click.option(
    "--directory",
    type=click.Path(path_type=Path),
    callback=_directory,
    help="The broker's directory (TASKPASS_DIR, else ~/.local/share/taskpass).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def call(directory: Path, method: str, params: View | None = None, *, timeout: float = 30) -> View:
    """One call on the people's socket. Raises ``TaskpassError``."""
    with LineClient(operator_socket(directory)) as client:
        return client.call(method, params or {}, timeout=timeout)
