"""``taskpass demo``: two databases, a broker, and one story with real processes."""

from __future__ import annotations

import click


@click.command("demo")
@click.option("--keep", is_flag=True, help="Leave everything running and print what to try.")
def command(keep: bool) -> int:
    """Play the whole story on two throw-away databases."""
    from taskpass import demo

    return demo.run(keep=keep)
