"""The broker's login in a PostgreSQL store, as a person gives it: typed or piped in, never an argument.

Not for: trying it. It is refused when the store is opened, before anything depends on it.
"""

from __future__ import annotations

import getpass
import sys

from taskpass.config.store import POSTGRES, StoreWish, address_of
from taskpass.core.errors import InvalidInput
from taskpass.core.secret import Secret

_STDIN_BYTES = 4096


def demand_postgres(address: str, what: str) -> None:
    """Raise unless ``address`` is one of PostgreSQL, without a login in it. ``what`` is what it was given as."""
    if not address.startswith(POSTGRES):
        raise InvalidInput(f"{what} is for PostgreSQL", hint="postgresql://host:port/database")
    address_of(address)


def wished(address: str, authority: str | None, *, from_pipe: bool, what: str = "--store") -> StoreWish:
    """The store that is asked for, with the broker's login there. Raises ``InvalidInput`` and ``ConfigInvalid``."""
    demand_postgres(address, what)
    if not from_pipe and not sys.stdin.isatty():
        raise InvalidInput("there is no terminal to ask on", hint="pipe user:password in, with the option for stdin")
    given = from_stdin() if from_pipe else Secret(getpass.getpass("the broker's login in its store (user:password): "))
    user, colon, password = given.reveal().strip().partition(":")
    if not (user and colon and password):
        raise InvalidInput("the store's login must be user:password")
    return StoreWish(address, user, Secret(password), authority or "")


def from_stdin() -> Secret:
    """What is piped in. Raises ``InvalidInput`` on a terminal."""
    if sys.stdin.isatty():
        raise InvalidInput("stdin is a terminal", hint="pipe the login in, or leave the option out to be asked")
    return Secret(sys.stdin.read(_STDIN_BYTES).strip())
