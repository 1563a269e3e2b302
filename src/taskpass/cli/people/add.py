"""``taskpass people add``: a further person, with a reviewer secret of their own."""

from __future__ import annotations

from pathlib import Path

import click

from taskpass.cli.operator import directory_option
from taskpass.cli.say import talk
from taskpass.core.errors import Conflict


@click.command("add")
@click.argument("person")
@click.option(
    "--os-user", "os_users", multiple=True, metavar="NAME", help="An account of theirs here (may be repeated)."
)
@click.option("--group", "groups", multiple=True, metavar="NAME", help="A group that they belong to (may be repeated).")
@click.option("--secret-fd", type=click.IntRange(1, 1023), metavar="N", help="Write the reviewer secret there.")
@directory_option
def command(
    person: str, os_users: tuple[str, ...], groups: tuple[str, ...], secret_fd: int | None, directory: Path
) -> None:
    """Add PERSON to the configuration. The broker reads it at its next start."""
    # Keys and scrypt are loaded only by somebody who sets up.
    from taskpass.cli.init import show_secret
    from taskpass.cli.installation import new_reviewer
    from taskpass.config import write
    from taskpass.config.load import FILE, load, parsed
    from taskpass.config.places import read_trusted
    from taskpass.runtime.system import SystemEntropy

    if person in load(directory).people.humans:
        raise Conflict("there is a person of that name already")
    human, secret = new_reviewer(person, os_users, SystemEntropy())
    text = write.join_groups(write.insert_human(read_trusted(directory / FILE).decode(), human), person, groups)
    parsed(text, directory)
    write.write_new(directory / FILE, text.encode())
    show_secret(secret, secret_fd)
    talk("next: restart taskpass up; people are read at its start only")
