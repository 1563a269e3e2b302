"""``taskpass widening accept``: a person signs that what a migration left may stay.

The secret is read as by ``taskpass review``, and the challenge is checked to cover exactly what is shown.
"""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path

import click

from taskpass.cli.operator import View, json_option
from taskpass.cli.review import people_socket, person_of, read_secret
from taskpass.cli.say import show, show_json, talk
from taskpass.cli.widening.print import print_widening
from taskpass.core.approval import challenge
from taskpass.core.errors import Denied
from taskpass.core.ids import HumanId
from taskpass.core.text import visible
from taskpass.core.widening import Widening, widening_digest

VERB_SIGNED = "accept_widening"
_TIMEOUT = 30


@click.command("accept")
@click.argument("migration")
@click.option("--reason", required=True, metavar="TEXT", help="Why it may stay, for the record.")
@click.option("--as", "person", metavar="PERSON", help="Who you are, if your account does not tell.")
@click.option("--secret-fd", type=click.IntRange(0, 1023), metavar="N", help="Read the secret from this descriptor.")
@click.option("--directory", type=click.Path(path_type=Path), help="The broker's directory (TASKPASS_DIR is not read).")
@json_option
def command(
    *, migration: str, reason: str, person: str | None, secret_fd: int | None, directory: Path | None, as_json: bool
) -> None:
    """Accept what a migration left, so that new leases on its database are possible again."""
    with people_socket(directory) as client:
        human = person or person_of(client)
        wish: View = {"lease": migration, "human": human, "comment": reason}
        offered = client.call("widening_challenge", wish, timeout=_TIMEOUT)
        if not as_json:
            print_widening(offered)
        data = _checked(offered, wish)
        talk(f"you sign as {visible(human)}: this may stay; digest {offered['digest']}")
        secret = read_secret(human, secret_fd)

        # scrypt and cryptography are loaded only by somebody who decides.
        from taskpass.keys.reviewer import sign

        signature = sign(secret, offered["salt"], data)
        view = client.call(
            "accept_widening", {**wish, "nonce": offered["nonce"], "signature": signature}, timeout=_TIMEOUT
        )
    if as_json:
        show_json(view)
    else:
        show(f"migration {view['lease']} is {view['state']}")


def _checked(offered: View, wish: View) -> bytes:
    """The bytes to sign, if they are over exactly what was shown; ``Denied`` otherwise."""
    if offered["more"]:
        raise Denied("more was left than can be shown and signed", hint="undo it", code="too_wide")
    data = b64decode(offered["data"])
    found = [Widening.from_json(item) for item in offered["widening"]]
    expected = challenge(
        verb=VERB_SIGNED,
        digest_=offered["digest"],
        approver=HumanId(wish["human"]),
        nonce=offered["nonce"],
        comment=wish["comment"],
    )
    if data != expected or offered["digest"] != widening_digest(wish["lease"], found):
        raise Denied(
            "the broker asks for a signature over something else than what was shown",
            hint="sign nothing; tell whoever runs this machine",
            code="challenge_mismatch",
        )
    return data
