"""Trying a login on the wire: the only proof that an account is refused, and the control that shows it can succeed.

PostgreSQL checks the password first, then VALID UNTIL, then whether the role may log in. So only a *right* password
that is refused *after* AuthenticationOk with 28000 says that login is forbidden; a wrong password, an expired role and
an absent one give the same 28P01 (threats.md, item 5). Texts are never looked at: they are localised.

Not for getting a session: every connection made here is closed at once.
"""

from __future__ import annotations

import base64
import ssl
from dataclasses import dataclass

from taskpass.core.clock import Entropy
from taskpass.core.errors import NotProven, TargetUnavailable, TargetUnfit
from taskpass.core.ids import RoleName
from taskpass.core.secret import Secret
from taskpass.wire.postgres.address import parse_address
from taskpass.wire.postgres.dial import dial
from taskpass.wire.postgres.login import Login, Outcome, Ready, Refused

PROOF = "AuthenticationOk,28000"
_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where to try. ``ca`` is ``system``, a path, or empty for no TLS."""

    address: str
    ca: str = ""


def attempt(place: Place, role: RoleName, secret: Secret, entropy: Entropy) -> Outcome:
    """One login. Raises ``TargetUnavailable`` if there is no server, or no trusted one, at the place."""
    try:
        return converse(place, role, secret, entropy)
    except (OSError, ssl.SSLError):
        raise TargetUnavailable("the server to prove it on does not answer") from None


def converse(place: Place, role: str, secret: Secret, entropy: Entropy) -> Outcome:
    """One login of any role. Raises ``OSError`` if nobody answers, ``NoTls`` or ``ssl.SSLError`` for no trusted TLS."""
    address = parse_address(place.address)
    login = Login(
        user=role,
        database=address.database,
        secret=secret,
        nonce=base64.b64encode(entropy.bytes(18)).decode(),
        parameters={"application_name": "taskpass"},
    )
    return dial(address, place.ca, login, seconds=_SECONDS)


def prove_refused(place: Place, role: RoleName, secret: Secret, entropy: Entropy) -> str:
    """``PROOF`` if the role is refused although the password is right; raises ``NotProven`` for every other answer.

    ``NotProven.code`` is ``rekeyed`` where the password was not accepted: somebody may have replaced it.
    """
    outcome = attempt(place, role, secret, entropy)
    if is_proof(outcome):
        return PROOF
    raise unproven(outcome)


def is_proof(outcome: Outcome) -> bool:
    """The right password was accepted, and the role refused because it may not log in."""
    return (
        isinstance(outcome, Refused)
        and outcome.sasl
        and outcome.after_authentication_ok
        and outcome.sqlstate == "28000"
    )


def control(place: Place, live: RoleName, secret: Secret, wrong: Secret, entropy: Entropy) -> None:
    """Shows that the proof can fail: a live role gets in with its password and not with another one.

    Raises ``TargetUnfit`` if the server lets it in without asking, or with any password (``trust`` in pg_hba.conf).
    """
    right = attempt(place, live, secret, entropy)
    if not isinstance(right, Ready):
        raise TargetUnfit(
            f"a fresh account cannot log in ({_words(right)}), so refusing it would prove nothing",
            hint='pg_hba.conf needs a line for the broker\'s host with "scram-sha-256" that covers roles tp_*',
            code="probe_control",
        )
    refused = attempt(place, live, wrong, entropy)
    if not right.sasl or not (isinstance(refused, Refused) and refused.sqlstate == "28P01"):
        raise TargetUnfit(
            "the server lets an account in without checking its password, so nothing could be proven there",
            hint='replace "trust", "peer" or "password" by "scram-sha-256" in the line of pg_hba.conf that applies',
            code="probe_control",
        )


def unproven(outcome: Outcome) -> NotProven:
    """Why ``outcome`` is no proof; see ``prove_refused`` for its code."""
    code = "rekeyed" if isinstance(outcome, Refused) and outcome.sqlstate == "28P01" else None
    return NotProven(f"the target's answer to a login is no proof: {_words(outcome)}", code=code)


def _words(outcome: Outcome) -> str:
    if isinstance(outcome, Ready):
        return "it was let in" if outcome.sasl else "it was let in without a password"
    if isinstance(outcome, Refused):
        return f"{outcome.sqlstate} {'after' if outcome.after_authentication_ok else 'before'} AuthenticationOk"
    return outcome.reason
