"""``taskpass init``: make the broker's directory, and enrol a database.

An administrator's login is asked for on the terminal or read from stdin, used once, and not kept. What fails leaves
nothing behind, here or in the database; the configuration is written last.
"""

from __future__ import annotations

import getpass
import os
import pwd
import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from taskpass.cli.operator import directory_option
from taskpass.cli.say import show, style, talk
from taskpass.cli.store_login import from_stdin, wished
from taskpass.config.paths import broker_directory
from taskpass.core.errors import InvalidInput
from taskpass.core.scope import WRITE_VERBS, Level, Verb
from taskpass.core.secret import Secret
from taskpass.core.separation import Environment
from taskpass.core.text import visible

if TYPE_CHECKING:
    from taskpass.cli.enrolment import Enrolling, Wanted

_ENVIRONMENTS = [environment.value for environment in Environment]
_LEVELS = [Level.READ.value, Level.WRITE.value]
_VERBS = sorted(verb.value for verb in WRITE_VERBS)


@click.command("init")
@click.option("--postgres", is_flag=True, help="Also enrol a PostgreSQL database.")
@click.option("--name", metavar="NAME", help="What the resource is called; the database's name, if left out.")
@click.option("--environment", type=click.Choice(_ENVIRONMENTS), default="dev", show_default=True, help="Where it is.")
@click.option(
    "--access", "levels", multiple=True, type=click.Choice(_LEVELS), help="What it offers (read; repeatable)."
)
@click.option("--verb", "verbs", multiple=True, type=click.Choice(_VERBS), help="Of --access write (all; repeatable).")
@click.option("--table", "tables", multiple=True, metavar="PATTERN", help="What may be asked for at most (public.*).")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="What may never be read, nor through anything else.")
@click.option(
    "--migrate-owner", default="", metavar="ROLE", help="Let migrations run as this role, which cannot log in."
)
@click.option("--node", "nodes", multiple=True, metavar="ADDRESS", help="A replica that an agent could reach.")
@click.option("--admin-dsn-stdin", is_flag=True, help="Read the administrator's login from stdin.")
@click.option("--print-sql", is_flag=True, help="Print the script for a DBA instead of running it.")
@click.option("--upgrade", is_flag=True, help="With --print-sql: the step from any older kit to this version's.")
@click.option("--uninstall", is_flag=True, help="With --print-sql: what takes the kit out of a database again.")
@click.option("--login-stdin", is_flag=True, help="After --print-sql: read the broker's own login from stdin.")
@click.option("--close-other-databases", is_flag=True, help="End what every login may do in the cluster's other ones.")
@click.option("--person", metavar="PERSON", help="Who you are; your account's name, if left out.")
@click.option("--trust-domain", default="taskpass.local", show_default=True, metavar="NAME", help="For new identities.")
@click.option("--secret-fd", type=click.IntRange(1, 1023), metavar="N", help="Write the reviewer secret there.")
@click.option("--store", metavar="ADDRESS", help="Keep the records there (postgresql://host:port/db), not in a file.")
@click.option("--store-login-stdin", is_flag=True, help="Read the broker's login there from stdin: user:password.")
@click.option("--store-ca", metavar="CA", help="Who vouches for that server: system, or an authority's file.")
@click.option("--join", type=click.Path(path_type=Path), metavar="DIR", help="For a further broker: the first one's.")
@click.option("--as", "broker", metavar="NAME", help="With --join: what this broker is called (b).")
@click.option("--own-login", is_flag=True, help="Make this broker's own login in the enrolled database --name.")
@click.option("--demo", is_flag=True, hidden=True, help="For taskpass demo: an installation that is a demo for ever.")
@directory_option
def command(
    *,
    postgres: bool,
    name: str | None,
    environment: str,
    levels: tuple[str, ...],
    verbs: tuple[str, ...],
    tables: tuple[str, ...],
    exclude: tuple[str, ...],
    migrate_owner: str,
    nodes: tuple[str, ...],
    admin_dsn_stdin: bool,
    print_sql: bool,
    upgrade: bool,
    uninstall: bool,
    login_stdin: bool,
    close_other_databases: bool,
    person: str | None,
    trust_domain: str,
    secret_fd: int | None,
    store: str | None,
    store_login_stdin: bool,
    store_ca: str | None,
    join: Path | None,
    broker: str | None,
    own_login: bool,
    demo: bool,
    directory: Path,
) -> int:
    """Make the broker's directory (once), and with --postgres enrol a database.

    The administrator's login is asked for here or read from stdin, never from the command line. It is used once.
    """
    # The engine, the store and the driver are loaded only by somebody who sets up.
    from taskpass.cli import enrolment

    _demand_one_source(admin_dsn_stdin=admin_dsn_stdin, print_sql=print_sql, own=login_stdin, store=store_login_stdin)
    if join or broker or own_login:
        if postgres or store or login_stdin or upgrade or uninstall:
            raise InvalidInput("--join and --own-login are steps of their own", code="usage")
        return _further(directory, join, broker, name, admin=admin_dsn_stdin, print_sql=print_sql)
    if upgrade or uninstall:
        return _script_of_the_kit(print_sql=print_sql, upgrade=upgrade, uninstall=uninstall)
    wanted = enrolment.Wanted(
        name or "",
        Environment(environment),
        tables or ("public.*",),
        exclude,
        nodes,
        close_other_databases,
        tuple(dict.fromkeys(Level(level) for level in levels or (Level.READ,))),
        _verbs(levels, verbs),
        migrate_owner,
    )
    new = NewDirectory(person, trust_domain, secret_fd, store, store_ca, store_login_stdin, demo)
    _set_up(directory, new, wanted if postgres else None, sql=print_sql, admin=admin_dsn_stdin, own=login_stdin)
    return 0


@dataclass(frozen=True, slots=True)
class NewDirectory:
    """What a directory that is made needs to know; nothing of it matters for one that is there."""

    person: str | None
    trust_domain: str
    secret_fd: int | None
    store: str | None
    store_ca: str | None
    store_login_stdin: bool
    demo: bool


def _set_up(directory: Path, new: NewDirectory, wanted: Wanted | None, *, sql: bool, admin: bool, own: bool) -> None:
    """Make the directory if it is not there, enrol ``wanted`` in it, hand the reviewer secret out, say what is next."""
    from taskpass.cli import enrolment, installation
    from taskpass.runtime.system import SystemClock, SystemEntropy

    clock, entropy = SystemClock(), SystemEntropy()
    fresh = not installation.exists(directory)
    if not (fresh or wanted):
        raise InvalidInput(f"{directory} is a broker's directory already", hint="add a database with: --postgres")
    if new.store and not fresh:
        raise InvalidInput(f"{directory} has a store already", hint="taskpass store move ADDRESS")
    with ExitStack() as stack:
        place, secret = directory, None
        if fresh:
            founder = installation.Founder(new.person or _person(), _account())
            wish = wished(new.store, new.store_ca, from_pipe=new.store_login_stdin) if new.store else None
            place, secret = stack.enter_context(
                installation.founding(
                    directory, founder, new.trust_domain, demo=new.demo, clock=clock, entropy=entropy, store=wish
                )
            )
        setup = enrolment.Enrolling(place, clock, entropy)
        if wanted and sql:
            show(setup.sql_for_dba(wanted))
        elif wanted:
            _enrol(setup, wanted, admin=admin, own=own)
    if secret:
        _founded(directory, secret, new.secret_fd)
    if wanted and sql:
        _how_to_continue(wanted)
    elif wanted:
        talk(f"next: taskpass up; and then: taskpass exec --resource NAME --access {wanted.levels[0]} -- psql")


def _demand_one_source(*, admin_dsn_stdin: bool, print_sql: bool, own: bool, store: bool) -> None:
    if sum((admin_dsn_stdin, print_sql, own)) > 1:
        raise InvalidInput("one of --admin-dsn-stdin, --print-sql and --login-stdin", code="usage")
    if store and (admin_dsn_stdin or own):
        raise InvalidInput("stdin holds one login", hint="make the directory first, then enrol", code="usage")


def _verbs(levels: tuple[str, ...], verbs: tuple[str, ...]) -> frozenset[Verb]:
    if verbs and Level.WRITE not in levels:
        raise InvalidInput("--verb belongs to --access write", code="usage")
    return frozenset(Verb(verb) for verb in verbs)


def _further(
    directory: Path, first: Path | None, broker: str | None, resource: str | None, *, admin: bool, print_sql: bool
) -> int:
    """A further broker on a store: its directory, or after that its own login in one database."""
    if first and broker:
        return _join(directory, first, broker)
    if first or broker:
        raise InvalidInput("--join and --as belong together", code="usage")
    return _own_login(directory, resource or "", admin=admin, print_sql=print_sql)


def _join(directory: Path, first: Path, name: str) -> int:
    from taskpass.cli.joining import join
    from taskpass.runtime.system import SystemEntropy

    joined = join(directory, first, name, entropy=SystemEntropy())
    there = "" if directory == broker_directory() else f" --directory {directory}"
    talk(f"taskpass: made {directory}, for broker {name} of installation {joined.installation}")
    for resource in joined.by_hand:
        talk(f"by hand: the login of {visible(resource)} in taskpass.toml; brokers must not share one")
    for resource in joined.waiting:
        talk(f"next: taskpass init --own-login --name {visible(resource)}{there}   (makes {joined.user} there)")
    talk(f"then: taskpass up{there}")
    return 0


def _own_login(directory: Path, name: str, *, admin: bool, print_sql: bool) -> int:
    from taskpass.cli.enrolment import Enrolling
    from taskpass.cli.findings import print_findings
    from taskpass.runtime.system import SystemClock, SystemEntropy

    setup = Enrolling(directory, SystemClock(), SystemEntropy())
    if print_sql:
        show(setup.own_login_sql(name))
        talk("taskpass: a DBA runs this in the database (psql -X -v ON_ERROR_STOP=1 -f FILE); no password is in it")
        return 0
    made = setup.own_login(name, from_stdin() if admin else _typed())
    show(style(f"{made.name} has a login of this broker's own: {visible(made.address)}", "bold"))
    print_findings(made.findings)
    return 0


def _script_of_the_kit(*, print_sql: bool, upgrade: bool, uninstall: bool) -> int:
    """The same for every database and every installation, so it needs neither."""
    from taskpass.issuers.postgres import kit

    if not print_sql or (upgrade and uninstall):
        raise InvalidInput("--upgrade and --uninstall go with --print-sql, one at a time", code="usage")
    show(kit.upgrade_sql() if upgrade else kit.uninstall_sql())
    talk("taskpass: a DBA runs this in each enrolled database (psql -X -v ON_ERROR_STOP=1 -f FILE); no secret is in it")
    return 0


def _enrol(setup: Enrolling, wanted: Wanted, *, admin: bool, own: bool) -> None:
    from taskpass.cli.enrolment import Unfit
    from taskpass.cli.findings import print_findings

    try:
        if own:
            enrolled = setup.with_own_login(wanted, from_stdin())
        else:
            enrolled = setup.with_admin(wanted, from_stdin() if admin else _typed())
    except Unfit as error:
        print_findings(error.findings)
        raise
    again = " again" if enrolled.again else ""
    show(style(f"{enrolled.name} is enrolled{again}: {visible(enrolled.address)}, PostgreSQL {enrolled.major}", "bold"))
    print_findings(enrolled.findings)


def _typed() -> Secret:
    if not sys.stdin.isatty():
        raise InvalidInput("there is no terminal to ask on", hint="pipe the login in, with --admin-dsn-stdin")
    talk("The administrator's login for the database, like postgresql://user:password@host:5432/database")
    talk("(used once to install the kit; not kept; nothing is shown while you type)")
    return Secret(getpass.getpass("login: ").strip())


def _account() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise InvalidInput("this process runs under an account without a name") from None


def _person() -> str:
    return re.sub(r"[^a-z0-9._+-]", "-", _account().lower()).lstrip("._+-") or "me"


def _founded(directory: Path, secret: Secret, descriptor: int | None) -> None:
    talk(f"taskpass: made {directory}")
    show_secret(secret, descriptor)


def show_secret(secret: Secret, descriptor: int | None) -> None:
    """Hand a reviewer secret to the person, once: to a descriptor, else to the terminal."""
    if descriptor is not None:
        os.write(descriptor, f"{secret.reveal()}\n".encode())
        return
    talk("The reviewer secret, shown this once: it signs decisions in taskpass review. Keep it where no agent reads.")
    talk(f"    {secret.reveal()}")


def _how_to_continue(wanted: Wanted) -> None:
    name = f" --name {wanted.name}" if wanted.name else ""
    talk("taskpass: a DBA runs this script in the database (psql -X -v ON_ERROR_STOP=1 -f FILE); no secret is in it")
    talk(f"next: echo postgresql://HOST:PORT/DATABASE | taskpass init --postgres{name} --login-stdin")
