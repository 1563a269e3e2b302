"""A secret in the hands of its holder: it does not show itself in logs, tracebacks or representations."""

from __future__ import annotations


class Secret:
    """Wraps a secret text. ``reveal`` is the only way to it; not for storing, hashing or comparing."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a secret is not pickled")
