"""Errors that came over the wire, as the classes of ``core.errors``, so that a command handles both alike.

Standard library only. Texts are kept as they came; whoever prints them makes them visible (``core.text``).
"""

from __future__ import annotations

from taskpass.core import errors
from taskpass.core.errors import TaskpassError

_LONGEST = 2000


def from_wire(found: object) -> TaskpassError:
    """The error in an answer's ``error`` object: its class by ``family``, else by ``code``, else ``Internal``."""
    if not isinstance(found, dict):
        return errors.Internal("the broker's answer is not understood", code="bad_answer")
    answer: dict[object, object] = found  # pyright: ignore[reportUnknownVariableType]
    code, family = _text(answer, "code"), _text(answer, "family")
    kinds = {kind.default_code: kind for kind in _kinds(TaskpassError)}
    kind = kinds.get(family) or kinds.get(code) or errors.Internal
    error = kind(_text(answer, "message") or "the broker refused", hint=_text(answer, "hint"), code=code or None)
    wait = answer.get("retry_after")
    if isinstance(error, errors.OverBudget) and type(wait) is int and wait > 0:
        error.retry_after = wait  # The hint says it already.
    return error


def _kinds(kind: type[TaskpassError]) -> list[type[TaskpassError]]:
    below = [lower for child in kind.__subclasses__() for lower in _kinds(child)]
    return [*below, kind]


def _text(found: dict[object, object], key: str) -> str:
    value = found.get(key, "")
    return value[:_LONGEST] if isinstance(value, str) else ""
