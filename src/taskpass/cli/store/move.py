"""``taskpass store move``: the broker's records go to a PostgreSQL server, with every lease, while no broker runs."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import directory_option, json_option
from taskpass.cli.say import show, show_json, style, talk
from taskpass.core.text import visible


@click.command("move")
@click.argument("address", metavar="ADDRESS")
@click.option("--login-stdin", is_flag=True, help="Read the broker's login there from stdin: user:password.")
@click.option("--ca", metavar="CA", help="Who vouches for that server: system, or an authority's file.")
@directory_option
@json_option
def command(address: str, login_stdin: bool, ca: str | None, directory: Path, as_json: bool) -> int:
    """Move the store to ADDRESS (postgresql://host:port/database), an empty database; the broker must be stopped.

    Copies every record, compares, seals the old store, and names the new one in taskpass.toml. If it is cut off, the
    same command finishes it. Leases that are open are known to the next broker, which closes them with proof.
    """
    # The store and the driver are loaded only by somebody who needs them.
    from taskpass.cli.store_login import demand_postgres, wished
    from taskpass.moving import relocate
    from taskpass.runtime.system import SystemClock, SystemEntropy

    demand_postgres(address, "ADDRESS")
    done = relocate(
        directory,
        address,
        lambda: wished(address, ca, from_pipe=login_stdin, what="ADDRESS"),
        clock=SystemClock(),
        entropy=SystemEntropy(),
    )
    if as_json:
        show_json(done.to_json())
        return 0
    if done.moved is None:
        show(f"the store is at {visible(done.place)} already: nothing was done")
        return 0
    rows = done.moved.rows
    counted = f"{rows['audit']} audit records, {rows['leases']} leases ({done.open_leases} open)"
    show(style(f"moved to {visible(done.place)}: {counted}", "green"))
    show(f"{visible(done.came_from)} is sealed: no broker opens it any more, and an auditor can still read it")
    talk("next: taskpass up; it closes what was open, with proof. Then: taskpass store check")
    return 0
