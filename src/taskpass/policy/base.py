"""May they: the contract of every policy engine.

Contract
    * ``decide`` answers with ``core.decision.combine`` over two evaluations of the same policies
      (``context.approved`` false, then true), followed by ``core.decision.floor``. Anything that is not an exact
      *Allow* is not one: no answer, an exception, an unknown obligation or an unknown approver group is a deny with
      a stable code, never an exception.
    * The broker builds every field of ``Question``; what the caller sent stands under ``claimed`` only.
    * The engine is immutable after loading; a changed bundle is a new engine with a new ``snapshot`` digest.
    * Methods block and are safe to call from several threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from taskpass.core.clock import Instant
from taskpass.core.decision import Decision
from taskpass.core.manifest import Manifest
from taskpass.core.scope import Level
from taskpass.core.separation import Environment
from taskpass.core.task import Task

MAX_OBJECTS = 200
"""A request is decided as a whole over at most this many objects (feasibility.md, section 3, row Cedar)."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request as policy sees it. ``lifetime`` is what was asked, in seconds; ``claimed`` is the caller's words."""

    task: Task
    resource: str
    environment: Environment
    level: Level
    manifest: Manifest
    lifetime: int
    now: Instant
    claimed: Mapping[str, str]


class Policy(Protocol):
    @property
    def snapshot(self) -> str:
        """Digest over schema, policies, groups and everything else that can change an answer."""
        ...

    def decide(self, question: Question) -> Decision: ...
