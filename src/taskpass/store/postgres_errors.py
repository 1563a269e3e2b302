"""What PostgreSQL's errors mean to us, by SQLSTATE, so that the server's language does not matter.

Not for: words of the server. They may quote values and are never passed on, but for those of our own rules.
"""

from __future__ import annotations

import secrets
from typing import Any

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from taskpass.config.credentials import Credential
from taskpass.core.errors import Conflict, IllegalTransition, Internal, InvalidInput, StoreUnavailable, TaskpassError
from taskpass.core.secret import Secret
from taskpass.store import rules
from taskpass.store.seal import moved
from taskpass.wire.postgres.address import Address
from taskpass.wire.postgres.dial import dial
from taskpass.wire.postgres.login import Login, Ready, Refused

_MEANING: dict[str, tuple[str, str]] = {
    "store_down": (
        "the store's server does not answer",
        "is PostgreSQL up, and the broker's login right? what is open is taken back meanwhile",
    ),
    "store_login": (
        "the store's server refuses the broker's login",
        "check the user and the password behind broker.store_login, and what the role may do",
    ),
    "store_missing": ("there is no such database on the store's server", "create it, then run taskpass init"),
    "store_locked": ("the store is busy", "another broker or command is writing for long; try again"),
    "store_connections": (
        "the store's server has no connection left",
        "raise max_connections, or end what holds them (pg_stat_activity)",
    ),
    "store_full": ("the disk that holds the store is full", "free space on the store's server"),
    "store_readonly": (
        "the store cannot be written",
        "is it a standby, or read-only by default_transaction_read_only?",
    ),
    "store_corrupt": ("the store is damaged", "stop the broker and restore a backup; it takes back and issues nothing"),
    "store_unavailable": ("the store cannot be used", "look into the log of the store's server"),
}

_STATES: dict[str, str] = {
    "25006": "store_readonly",
    "25P03": "store_locked",
    "3D000": "store_missing",
    "40001": "store_locked",
    "40P01": "store_locked",
    "42501": "store_login",
    "42P01": "store_corrupt",
    "42703": "store_corrupt",
    "3F000": "store_corrupt",
    "53100": "store_full",
    "53300": "store_connections",
    "55P03": "store_locked",
    "57014": "store_locked",
    "58P01": "store_corrupt",
}
_CLASSES: dict[str, str] = {"08": "store_down", "28": "store_login", "57": "store_down", "XX": "store_unavailable"}
_DAMAGED = ("XX001", "XX002")
_DIAL_SECONDS = 5.0


def unavailable(code: str) -> StoreUnavailable:
    message, hint = _MEANING[code]
    return StoreUnavailable(message, hint=hint, code=code)


def meaning(error: Exception) -> TaskpassError:
    if isinstance(error, PoolTimeout):
        return unavailable("store_locked")
    cause: Any = error.orig if isinstance(error, DBAPIError) else error
    state = getattr(cause, "sqlstate", None)
    if not isinstance(state, str):
        # The driver itself: a value that it cannot send, or a server that it cannot reach.
        if isinstance(cause, psycopg.DataError):
            return InvalidInput("a value cannot be stored")
        return unavailable("store_down" if isinstance(cause, psycopg.OperationalError) else "store_unavailable")
    if state.startswith("22"):
        return InvalidInput("a value cannot be stored")
    if state.startswith("23"):
        return _constraint(state, cause)
    return unavailable(code_of_state(state))


def code_of_state(state: str) -> str:
    """Our code for a SQLSTATE that is neither a value's nor a constraint's fault."""
    if state in _DAMAGED:
        return "store_corrupt"
    return _STATES.get(state) or _CLASSES.get(state[:2], "store_unavailable")


def refused_login(address: Address, authority: str, login: Credential) -> str:
    """Our code for why connecting failed. libpq then passes on the server's words and not its code, and the
    words are in the server's language; so the server is asked once more, on the wire.
    """
    secret = login.password or Secret("")
    asked = Login(user=login.user, database=address.database, secret=secret, nonce=secrets.token_urlsafe(18))
    try:
        answer = dial(address, authority, asked, seconds=_DIAL_SECONDS)
    except (OSError, ValueError):
        return "store_down"
    if isinstance(answer, Refused):
        return code_of_state(answer.sqlstate)
    # Whoever is let in now, without a password or otherwise than by SCRAM, is not connected by us.
    return "store_down" if isinstance(answer, Ready) and answer.sasl else "store_login"


def _constraint(state: str, cause: psycopg.Error) -> TaskpassError:
    message = cause.diag.message_primary or ""
    if message == rules.ILLEGAL:
        return IllegalTransition("the record is not in a state that allows this")
    if message == rules.SEALED:
        return moved()
    if message.startswith(rules.MARK):
        return Conflict(message.removeprefix(rules.MARK))
    if state == "23505":
        return Conflict("there is such a record already")
    if state == "23503":
        return Conflict("a record that this one refers to does not exist")
    return Internal("a record is not complete")
