"""``taskpass review``: a person looks at a request, narrows it, and signs what they leave.

The reviewer secret is read from the terminal or from a file descriptor, never from arguments or the environment; it
stays in this process, which signs the broker's challenge after checking that it covers exactly what was shown. The
broker's directory is not taken from the environment, which a repository may set (threats.md, item 24).
"""

from __future__ import annotations

import getpass
import os
import pwd
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

import click

from taskpass.cli import narrowing
from taskpass.cli.card import print_card
from taskpass.cli.operator import View, json_option
from taskpass.cli.say import show, show_json, table, talk
from taskpass.cli.script import demand_shown
from taskpass.cli.times import seconds, when, words
from taskpass.client.line import LineClient
from taskpass.config.paths import operator_socket
from taskpass.config.places import demand_private
from taskpass.core.approval import challenge
from taskpass.core.errors import Denied, InvalidInput
from taskpass.core.ids import HumanId
from taskpass.core.manifest import Keep, Manifest, accept, held_back, narrow
from taskpass.core.secret import Secret
from taskpass.core.text import visible

_SECRET_BYTES = 1024
_TIMEOUT = 30


@click.command("review")
@click.argument("request", required=False)
@click.option("--approve", is_flag=True, help="Say yes to what is left after narrowing.")
@click.option("--deny", is_flag=True, help="Say no.")
@click.option("--only", multiple=True, metavar="TABLE", help="Leave only this table (may be repeated).")
@click.option("--drop", multiple=True, metavar="TABLE", help="Take this table out (may be repeated).")
@click.option("--drop-column", multiple=True, metavar="TABLE.COLUMN", help="Take this column out (may be repeated).")
@click.option("--drop-verb", multiple=True, metavar="[TABLE:]VERB", help="Take this verb away (may be repeated).")
@click.option(
    "--accept", "accepted", multiple=True, metavar="NAME", help="Let NAME, which is held back, be changed (repeatable)."
)
@click.option("--lifetime", metavar="DURATION", help="Shorter than asked, like 5m.")
@click.option("--comment", default="", metavar="TEXT", help="Words for the record and for the agent.")
@click.option("--as", "person", metavar="PERSON", help="Who you are, if your account does not tell.")
@click.option("--secret-fd", type=click.IntRange(0, 1023), metavar="N", help="Read the secret from this descriptor.")
@click.option("--directory", type=click.Path(path_type=Path), help="The broker's directory (TASKPASS_DIR is not read).")
@json_option
def command(
    *,
    request: str | None,
    approve: bool,
    deny: bool,
    only: tuple[str, ...],
    drop: tuple[str, ...],
    drop_column: tuple[str, ...],
    drop_verb: tuple[str, ...],
    accepted: tuple[str, ...],
    lifetime: str | None,
    comment: str,
    person: str | None,
    secret_fd: int | None,
    directory: Path | None,
    as_json: bool,
) -> int:
    """List pending requests, show one, narrow it, and decide: a signature over exactly the rights that are left."""
    if approve and deny:
        raise InvalidInput("one of --approve and --deny", code="usage")
    with people_socket(directory) as client:
        if request is None:
            _list(client, as_json=as_json)
            return 0
        card = client.call("show_request", {"request": request}, timeout=_TIMEOUT)
        if as_json and not (approve or deny):
            show_json(card)
            return 0
        wishes = Wishes(list(only), list(drop), list(drop_column), list(drop_verb), list(accepted), lifetime, comment)
        verb = "approve" if approve else "deny" if deny else ""
        if not as_json:
            print_card(card)
        verb = verb or _ask(card, wishes)
        if not verb:
            return 0
        _decide(client, card, verb, wishes, person, secret_fd, as_json=as_json)
    return 0


class Wishes:
    """What the person wants to leave of the request."""

    def __init__(
        self,
        only: list[str],
        drop: list[str],
        drop_columns: list[str],
        drop_verbs: list[str],
        accepted: list[str],
        lifetime: str | None,
        comment: str,
    ) -> None:
        self.only, self.drop, self.drop_columns, self.drop_verbs = only, drop, drop_columns, drop_verbs
        self.accepted = accepted
        self.lifetime = lifetime
        self.comment = comment

    def asked(self, manifest: Manifest) -> Manifest:
        """``manifest`` with what is accepted; raises ``InvalidInput`` for a name that nothing is held back for."""
        if not held_back(manifest) >= set(self.accepted):
            raise InvalidInput("nothing is held back for that name", hint="exactly as shown under: held back")
        return accept(manifest, self.accepted)

    def keeps(self, manifest: Manifest) -> list[Keep]:
        return narrowing.keeps(
            manifest, only=self.only, drop=self.drop, drop_columns=self.drop_columns, drop_verbs=self.drop_verbs
        )


def people_socket(named: Path | None) -> LineClient:
    """The socket in a directory that is ours alone, served by us or by root."""
    if "TASKPASS_SOCK" in os.environ:
        raise Denied(
            "people decide outside of a run", hint="your person answers with taskpass review", code="inside_run"
        )
    usual = _usual_directory()
    if named is None and os.environ.get("TASKPASS_DIR", str(usual)) != str(usual):
        raise InvalidInput(
            "review does not follow TASKPASS_DIR, which a repository can set",
            hint="name the broker's directory yourself: taskpass review --directory DIRECTORY",
            code="directory_not_named",
        )
    directory = named.absolute() if named else usual
    demand_private(directory)
    return LineClient(operator_socket(directory), owners=frozenset({0, os.getuid()}))


def _usual_directory() -> Path:
    """As ``config.paths`` has it, by the account and not by the environment."""
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        home = "/"
    return Path(home) / ".local/share/taskpass"


def _list(client: LineClient, *, as_json: bool) -> None:
    view = client.call("requests", {"state": "pending"}, timeout=_TIMEOUT)
    if as_json:
        show_json(view)
        return
    if not view["requests"]:
        show("nothing is waiting for a decision")
    table(
        ("REQUEST", "RESOURCE", "ENVIRONMENT", "ACCESS", "FOR", "LAPSES"),
        [
            (r["request"], r["resource"], r["environment"], r["access"], words(r["lifetime"]), when(r["lapses_at"]))
            for r in view["requests"]
        ],
    )


def _ask(card: View, wishes: Wishes) -> str:
    """The interactive part; empty if the person leaves the request as it is."""
    if card["state"] != "pending" or not sys.stdin.isatty():
        return ""
    while True:
        answer = click.prompt("approve, narrow, deny, or leave it", default="leave", type=str, err=True)
        for verb in ("approve", "deny"):
            if answer and verb.startswith(answer.lower()):
                if verb == "approve":
                    _accept(card, wishes)
                wishes.comment = wishes.comment or click.prompt("comment", default="", show_default=False, err=True)
                return verb
        if not answer or not "narrow".startswith(answer.lower()):
            return ""
        _narrow(card, wishes)


def _accept(card: View, wishes: Wishes) -> None:
    """Ask for each name that is held back; only the name itself, typed in full, is a yes to it."""
    manifest = Manifest.from_json(card["manifest"])
    kept = narrow(manifest, wishes.keeps(manifest))
    for name in sorted(held_back(kept) - set(wishes.accepted)):
        talk(f"held back: {visible(name)} is excluded and could be changed; type its name to accept that")
        if click.prompt("accept", default="", show_default=False, err=True).strip() == name:
            wishes.accepted.append(name)


def _narrow(card: View, wishes: Wishes) -> None:
    manifest = Manifest.from_json(card["manifest"])
    talk("name a table, or a table.column, to take out; an empty line ends")
    while name := click.prompt("take out", default="", show_default=False, err=True).strip():
        tables = {f"{item.schema}.{item.name}" for item in manifest.objects}
        (wishes.drop if name in tables else wishes.drop_columns).append(name)
        try:
            left = wishes.keeps(manifest)
        except InvalidInput as error:
            (wishes.drop if name in tables else wishes.drop_columns).remove(name)
            talk(f"{error.message}: {error.hint}")
            continue
        talk(f"{len(left)} of {len(manifest.objects)} object(s) left")
    wishes.lifetime = click.prompt(
        "lifetime", default=words(card["facts"]["lifetime"]).replace(" min", "m").replace(" ", ""), err=True
    )


def _decide(
    client: LineClient,
    card: View,
    verb: str,
    wishes: Wishes,
    person: str | None,
    secret_fd: int | None,
    *,
    as_json: bool,
) -> None:
    shown = Manifest.from_json(card["manifest"])
    asked = wishes.asked(shown) if verb == "approve" else shown
    if verb == "approve":
        demand_shown(asked.migration, card.get("file"))
    keeps = wishes.keeps(asked) if verb == "approve" else None
    ballot: dict[str, Any] = {
        "request": card["request"],
        "human": person or person_of(client),
        "verb": verb,
        "comment": wishes.comment,
    }
    if keeps is not None:
        ballot["keeps"] = [keep.to_json() for keep in keeps]
        if asked.accepted:
            ballot["accept"] = list(asked.accepted)
    if wishes.lifetime:
        ballot["lifetime"] = seconds(wishes.lifetime, what="the lifetime")
    offered = client.call("challenge", ballot, timeout=_TIMEOUT)
    data = _checked(offered, ballot, narrow(asked, keeps) if keeps is not None else asked)
    _tell(offered, ballot)
    secret = read_secret(ballot["human"], secret_fd)

    # scrypt and cryptography are loaded only by somebody who decides.
    from taskpass.keys.reviewer import sign

    signature = sign(secret, offered["salt"], data)
    result = client.call("vote", {**ballot, "nonce": offered["nonce"], "signature": signature}, timeout=_TIMEOUT)
    if as_json:
        show_json(result)
        return
    show(f"request {result['request']} is {result['state']}")
    if result["state"] == "pending":
        show(f"still missing: {visible(result['missing'])}")


def _checked(offered: View, ballot: View, left: Manifest) -> bytes:
    """The bytes to sign, if they are the challenge for exactly what this person left; ``Denied`` otherwise."""
    data = b64decode(offered["data"])
    expected = challenge(
        verb=ballot["verb"],
        digest_=offered["digest"],
        approver=HumanId(ballot["human"]),
        nonce=offered["nonce"],
        comment=ballot["comment"],
    )
    same = offered["manifest"] == left.to_json() and offered["lifetime"] == ballot.get("lifetime", offered["lifetime"])
    if data != expected or not same:
        raise Denied(
            "the broker asks for a signature over something else than what was shown",
            hint="sign nothing; tell whoever runs this machine",
            code="challenge_mismatch",
        )
    return data


def _tell(offered: View, ballot: View) -> None:
    """What is about to be signed, in words; on stderr, because stdout is data."""
    objects = len(offered["manifest"]["objects"])
    talk(f"you sign: {ballot['verb']} {ballot['request']} as {visible(ballot['human'])} ({offered['method']})")
    if accepted := offered["manifest"].get("accepted"):
        talk(f"          you accept that these are changed: {visible(', '.join(accepted))}")
    talk(f"          {objects} object(s) for {words(offered['lifetime'])}, digest {offered['digest']}")


def person_of(client: LineClient) -> str:
    """Who this account is in the configuration."""
    you = client.call("people", {}, timeout=_TIMEOUT)["you"]
    if str(you).startswith("uid:"):
        raise InvalidInput("this account is nobody in the configuration", hint="say who you are: --as PERSON")
    return str(you)


def read_secret(person: str, descriptor: int | None) -> Secret:
    """The reviewer secret, from a descriptor or typed; never from arguments or the environment."""
    if descriptor is not None:
        try:
            data = os.read(descriptor, _SECRET_BYTES)
        except OSError as error:
            raise InvalidInput(f"the secret cannot be read from descriptor {descriptor}: {error.strerror}") from None
        return Secret(data.decode(errors="replace").strip())
    if not sys.stdin.isatty():
        raise InvalidInput("there is no terminal to type the secret on", hint="give it with --secret-fd N")
    return Secret(getpass.getpass(f"reviewer secret of {visible(person)}: ").strip())
