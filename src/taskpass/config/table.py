"""A TOML table that is read key by key, so that whatever nobody asked for is an error with the nearest known name.

Messages name tables and keys, never values: a value may be a password that somebody wrote in the wrong place.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, cast

from taskpass.core.errors import ConfigInvalid, InvalidInput
from taskpass.core.text import accept, visible

MISPLACED = {
    "dsn": "an address has no login in it, and the login is a reference: login = { file = … }",
    "url": "an address has no login in it, and the login is a reference: login = { file = … }",
    "password": "a password never stands in this file: login = { file = … }",
    "env": "an environment variable can be read by every process of the same account, the agent's too: use file",
    "ttl": "lifetimes are decided by policy: @max_ttl",
    "max_ttl": "lifetimes are decided by policy: @max_ttl",
    "lifetime": "lifetimes are decided by policy: @max_ttl",
    "policy": "policies are read from policy/ in the broker's directory and nowhere else",
    "policies": "policies are read from policy/ in the broker's directory and nowhere else",
    "sslmode": 'TLS to a target is always verified in full: tls = { ca = "system" }',
    "verify": 'TLS to a target is always verified in full: tls = { ca = "system" }',
}
"""Keys that people try, with the reason why they do not exist."""


class Table:
    """One table. Every getter marks its key as known; ``done`` refuses the keys that no getter asked for."""

    def __init__(self, path: str, data: Mapping[str, Any]) -> None:
        self.path = path
        self._data = data
        self._known: set[str] = set()

    def name(self, key: str) -> str:
        """How a person finds ``key``: with its table."""
        return f"{self.path}.{visible(key, limit=80)}" if self.path else visible(key, limit=80)

    def has(self, key: str) -> bool:
        self._known.add(key)
        return key in self._data

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        try:
            return accept(value, what=self.name(key), empty=default == "")
        except InvalidInput as error:
            raise ConfigInvalid(error.message) from None

    def flag(self, key: str) -> bool:
        value = self._get(key, default=False)
        if not isinstance(value, bool):
            raise ConfigInvalid(f"{self.name(key)} must be true or false")
        return value

    def number(self, key: str) -> int:
        value = self._get(key, None)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigInvalid(f"{self.name(key)} must be a whole number above 0")
        return value

    def texts(self, key: str, *, empty: bool = True) -> tuple[str, ...]:
        value = self._get(key, [] if empty else None)
        if not isinstance(value, list):
            raise ConfigInvalid(f"{self.name(key)} must be a list of texts", hint='write ["one", "two"]')
        items = cast("list[object]", value)
        if not items and not empty:
            raise ConfigInvalid(f"{self.name(key)} must not be empty")
        try:
            found = tuple(accept(item, what=f"an entry of {self.name(key)}") for item in items)
        except InvalidInput as error:
            raise ConfigInvalid(error.message) from None
        if len(set(found)) != len(found):
            raise ConfigInvalid(f"{self.name(key)} names something twice")
        return found

    def table(self, key: str, *, needed: bool = True) -> Table:
        value = self._get(key, None if needed else {})
        if not isinstance(value, dict):
            raise ConfigInvalid(f"{self.name(key)} must be a table", hint=MISPLACED.get(key, ""))
        return Table(self.name(key), cast("dict[str, Any]", value))

    @property
    def empty(self) -> bool:
        return not self._data

    def names(self) -> list[str]:
        """All keys there are, where the keys are names that a person chose."""
        self._known.update(self._data)
        return list(self._data)

    def done(self) -> None:
        """Raise ``ConfigInvalid`` for the first key that nothing asked for, naming the nearest known one."""
        for key in self._data:
            if key not in self._known:
                near = difflib.get_close_matches(key, sorted(self._known), n=1, cutoff=0.6)
                place = f"in [{self.path}]" if self.path else "at the top"
                hint = MISPLACED.get(key) or (f'did you mean "{near[0]}"?' if near else self._offer())
                raise ConfigInvalid(f'unknown key "{visible(key, limit=80)}" {place}', hint=hint)

    def _offer(self) -> str:
        return "known here: " + ", ".join(sorted(self._known))

    def _get(self, key: str, default: object) -> object:
        self._known.add(key)
        if key not in self._data:
            if default is None:
                # A misspelt key explains an absent one better than the absence does.
                self._suspect(key)
                raise ConfigInvalid(f"{self.name(key)} is missing")
            return default
        return self._data[key]

    def _suspect(self, missing: str) -> None:
        for key in difflib.get_close_matches(missing, self._data, n=1, cutoff=0.75):
            if key not in self._known:
                raise ConfigInvalid(
                    f'unknown key "{visible(key, limit=80)}" in [{self.path}]', hint=f'did you mean "{missing}"?'
                )
