"""The clients of a drill on a target in memory: they hold sessions and try again, as real ones do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from taskpass.core.errors import TargetUnfit
from taskpass.issuers.base import Met

KINDS = ("idle", "transaction", "cursor", "statement", "listening", "reconnecting")

S = TypeVar("S")


class FakeDrill(Generic[S]):
    """``enter(password is right)`` gives a session or raises ``refusal``; ``alive(session)`` whether it still works."""

    def __init__(
        self,
        enter: Callable[[bool], S],
        alive: Callable[[S], bool],
        refusal: type[Exception] | tuple[type[Exception], ...],
    ) -> None:
        self._enter = enter
        self._alive = alive
        self._refusal = refusal
        self._held: dict[str, S] = {}

    def control(self) -> None:
        if not self._gets_in(right=True) or self._gets_in(right=False):
            raise TargetUnfit("a fresh account cannot log in, or with any password", code="probe_control")

    def open(self) -> tuple[str, ...]:
        for kind in KINDS:
            self._held[kind] = self._enter(True)
        return tuple(self._held)

    def ordered(self) -> None:
        """Nothing is measured here."""

    def met(self) -> tuple[Met, ...]:
        sessions = tuple(Met(kind, "" if self._alive(held) else "57P01", 0) for kind, held in self._held.items())
        return (*sessions, Met("password", "" if self._gets_in(right=True) else "28P01"))

    def close(self) -> None:
        self._held.clear()

    def _gets_in(self, *, right: bool) -> bool:
        try:
            self._enter(right)
        except self._refusal:
            return False
        return True
