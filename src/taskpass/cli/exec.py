"""``taskpass exec``: run one command with access to one resource, and take the access back when it ends.

Standard library only. The command gets the place of a socket and no secret, so there is nothing in its environment, its
arguments or its output that would have to be masked. With ``--deliver secret`` it gets a password in a sealed memory
file: the environment holds the file's place only.
"""

from __future__ import annotations

import os

from taskpass.cli.agent import JOB, SCOPE, View, ask, await_decision, connect, demand_approved, give_back
from taskpass.cli.times import seconds
from taskpass.cli.verb import Given, Option, Verb
from taskpass.client.line import LineClient
from taskpass.client.run_child import run_child
from taskpass.core.errors import InvalidInput

DEFAULT_WAIT = "10m"

FOREIGN = (
    "PGHOSTADDR",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGPASSWORD",
    "PGPASSFILE",
    "PGREQUIREAUTH",
    "PGCHANNELBINDING",
    "PGGSSENCMODE",
    "PGSSLMODE",
    "PGREQUIRESSL",
    "PGSSLROOTCERT",
    "PGSSLCERT",
    "PGSSLKEY",
)
"""What would lead libpq elsewhere, or was meant for another server: taken out of the command's environment."""


SYSTEM_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
"""Where distributions keep the authorities that the machine trusts."""


def _run(given: Given) -> int:
    wait = seconds(given.text("wait", DEFAULT_WAIT), what="--wait")
    if given.flag("request") == given.flag("resource"):
        raise InvalidInput("one of --resource and --request is needed", hint="taskpass status lists resources")
    with connect() as client:
        view = _requested(client, given)
        lease = view.get("lease") or _issued(client, view, wait)
        try:
            return _run_with(given.rest, lease)
        finally:
            give_back(client, str(lease["lease"]))


def _issued(client: LineClient, view: View, wait: int) -> View:
    """The lease of a request that was not permitted at once."""
    view = await_decision(client, view, wait)
    demand_approved(view)
    return client.call("issue", {"request": view["request"], "holder": "process"}, timeout=60)


def _requested(client: LineClient, given: Given) -> View:
    if given.flag("request"):
        return client.call("request_status", {"request": given.text("request")})
    return ask(client, given, connect=True)


def _run_with(command: list[str], lease: View) -> int:
    bearer = lease.get("bearer")
    if bearer is None:
        return run_child(command, environment(dict(os.environ), lease))
    from taskpass.client import password_file

    file = password_file.password_file(bearer)
    around = environment(dict(os.environ), lease) | {"PGPASSFILE": password_file.path_of(file)}
    return run_child(command, around, hand_over=file)


def environment(around: dict[str, str], lease: View) -> dict[str, str]:
    """The command's environment: where to connect, and nothing that leads to another server."""
    place: View = lease.get("endpoint") or _direct(lease["bearer"])
    kept = {name: value for name, value in around.items() if name not in FOREIGN}
    return (
        kept
        | {
            "PGHOST": str(place["host"]),
            "PGPORT": str(place["port"]),
            "PGUSER": str(place["user"]),
            "PGDATABASE": str(place["database"]),
            "DATABASE_URL": str(place["dsn"]),
            "TASKPASS_TASK": str(lease["task"]),
        }
        | (_server_proof(lease["bearer"]) if "bearer" in lease else {})
    )


def _direct(bearer: View) -> View:
    """The target itself, in the shape of an endpoint; the password is not in the address."""
    from urllib.parse import quote

    host, port, user, database = (quote(str(bearer[name]), safe="") for name in ("host", "port", "user", "database"))
    return bearer | {"dsn": f"postgresql:///{database}?host={host}&port={port}&user={user}"}


def _server_proof(bearer: View) -> dict[str, str]:
    """What makes libpq show the password's proof to the enrolled server only, and never the password itself."""
    proof = {"PGREQUIREAUTH": "scram-sha-256"}
    if not bearer["ca"]:
        return proof
    return proof | {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": _authorities(str(bearer["ca"]))}


def _authorities(ca: str) -> str:
    """``system`` is a word that libpq knows from 16 on, so the file that it means is named where there is one."""
    if ca != "system":
        return ca
    return next((path for path in SYSTEM_BUNDLES if os.path.exists(path)), ca)


VERB = Verb(
    path="exec",
    summary="Run a command with access to a resource",
    about=(
        "Asks for access, waits for a person where one is needed, runs COMMAND with an endpoint in PGHOST, PGPORT,\n"
        "PGUSER, PGDATABASE and DATABASE_URL, and gives the access back when COMMAND ends. No secret is handed out,\n"
        "unless --deliver secret asks for one and policy permits it: then PGPASSFILE names a password file in memory.\n"
        "The exit code is COMMAND's; own codes: 90 denied, 91 not decided in time, 92 expired, 93 not authenticated,\n"
        "94 obligation unmet."
    ),
    run=_run,
    options=(
        Option("--resource", "Which resource", "NAME"),
        Option("--request", "Use this approved request instead of asking anew", "REQUEST"),
        *SCOPE,
        *JOB,
        Option("--wait", f"How long to wait for a person ({DEFAULT_WAIT})", "DURATION"),
    ),
    rest="COMMAND…",
)
