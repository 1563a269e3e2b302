"""Parameters of a call, taken strictly: an unknown field is an error,
so nothing a caller sends is silently believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from taskpass.core.errors import InvalidInput

MAX_ITEMS = 1000


class Params:
    """One call's parameters; each ``take`` checks the type. ``done`` refuses what nobody took."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._left = dict(values)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._left.pop(name, default)
        if not isinstance(value, str):
            raise InvalidInput(f"{name} must be text" if value is not None else f"{name} is missing")
        return value

    def optional_text(self, name: str) -> str | None:
        value = self._left.pop(name, None)
        if value is not None and not isinstance(value, str):
            raise InvalidInput(f"{name} must be text")
        return value

    def optional_integer(self, name: str) -> int | None:
        value = self._left.pop(name, None)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise InvalidInput(f"{name} must be a whole number")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.optional_integer(name)
        if value is None and default is None:
            raise InvalidInput(f"{name} is missing")
        return default if value is None else value  # pyright: ignore[reportReturnType]

    def flag(self, name: str) -> bool:
        value = self._left.pop(name, False)
        if not isinstance(value, bool):
            raise InvalidInput(f"{name} must be true or false")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; empty if the field is absent."""
        items = self._list(name)
        if not all(isinstance(item, str) for item in items):
            raise InvalidInput(f"each of {name} must be text")
        return tuple(str(item) for item in items)

    def objects(self, name: str) -> tuple[dict[str, object], ...] | None:
        """A list of objects, or None if the field is absent or null."""
        if self._left.get(name) is None:
            self._left.pop(name, None)
            return None
        items = self._list(name)
        if not all(isinstance(item, dict) for item in items):
            raise InvalidInput(f"each of {name} must be an object")
        return tuple(cast("dict[str, object]", item) for item in items)

    def _list(self, name: str) -> list[object]:
        value = self._left.pop(name, [])
        if not isinstance(value, list) or len(cast("list[object]", value)) > MAX_ITEMS:
            raise InvalidInput(f"{name} must be a list of at most {MAX_ITEMS}")
        return cast("list[object]", value)

    def done(self) -> None:
        """Raise for fields that this call does not have."""
        if self._left:
            raise InvalidInput(f"unknown field: {sorted(self._left)[0][:40]!r}", code="unknown_field")
