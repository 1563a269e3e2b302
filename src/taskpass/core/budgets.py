"""Budgets: how much one sponsor on one machine may have open, ask for and write (threats.md, item 22; rule 13).

A budget belongs to a *party*: a sponsor on a machine. The repository is only claimed on a laptop, so naming another one
must not bring a fresh budget, nor leave a debt or a "no" behind; it tells parties apart only where it is verified. An
instance, a tool and a branch are names that an agent chooses and tell nothing apart.

Pure: what is used is counted by the store, what is refused is raised here. Not for the ceiling in the target, which its
owner sets and which holds whatever stands here.
"""

from __future__ import annotations

from dataclasses import dataclass

from taskpass.core.clock import SECOND, Instant, after, seconds_between
from taskpass.core.errors import OverBudget
from taskpass.core.manifest import Manifest, is_within
from taskpass.core.provenance import Provenance
from taskpass.core.task import Task

WINDOW = 600
"""Seconds over which what comes and goes is counted."""

COOL_DOWN = 600
"""Seconds after a person's "no" during which the same party is not heard again about the same rights."""

RECORDS_OF_REQUEST = 6 * 1024
"""Audit bytes that a request causes beside its own texts: decided, intended, activated, closing, closed, cleaned."""


@dataclass(frozen=True, slots=True)
class Budgets:
    """What one party may use; ``[budgets]`` in taskpass.toml sets each of them for the installation.

    ``pending`` questions that wait for a person; ``leases`` and ``leases_of_task`` that may be usable, those not proven
    closed included; ``connections`` to databases at a time, where a secret that is handed out counts as all those that
    its account may open; ``objects`` whose rights one lease has.

    Within ``WINDOW``: ``requests`` recorded, ``prompts`` among them that ask a person, ``tasks`` opened, ``text_bytes``
    written by agents into them, ``record_bytes`` of audit that all of it causes; different ``rights``, because
    each set of rights is an entry in the grants of its objects for so long, and thousands make an object ungrantable.
    """

    pending: int = 5
    prompts: int = 20
    requests: int = 120
    tasks: int = 100
    rights: int = 30
    leases_of_task: int = 3
    leases: int = 10
    connections: int = 40
    objects: int = 500
    text_bytes: int = 64 * 1024
    record_bytes: int = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Used:
    """What a party recorded within ``WINDOW``. ``oldest`` is when the first of it was asked: then room comes back."""

    requests: int = 0
    prompts: int = 0
    text_bytes: int = 0
    record_bytes: int = 0
    oldest: Instant | None = None


def same_party(one: Task, other: Task) -> bool:
    """Whether limits, debts and cool-downs of the one hold for the other.

    Two repositories are two parties only if somebody other than the requesting side vouches for both of them.
    """
    if (one.principal.sponsor, one.principal.machine) != (other.principal.sponsor, other.principal.machine):
        return False
    vouched = one.repository.provenance is other.repository.provenance is Provenance.VERIFIED
    return not vouched or one.repository.value == other.repository.value


def window_start(now: Instant) -> Instant:
    return Instant(max(0, now - WINDOW * SECOND))


def demand_room(budgets: Budgets, used: Used, now: Instant, *, prompt: bool) -> None:
    """Raise ``OverBudget`` if one more request (with ``prompt``: one that asks a person) is too many now."""
    wait = wait_for_room(used.oldest, now)
    if used.requests >= budgets.requests:
        raise OverBudget("your tasks asked too often lately", code="too_many_requests", retry_after=wait)
    if used.record_bytes >= budgets.record_bytes:
        raise OverBudget("your tasks filled the record too fast", code="too_much_record", retry_after=wait)
    if used.text_bytes >= budgets.text_bytes:
        raise OverBudget(
            "your tasks wrote too much text lately", hint="give shorter reasons", code="too_much_text", retry_after=wait
        )
    if prompt and used.prompts >= budgets.prompts:
        raise OverBudget("your tasks asked people too often lately", code="too_many_prompts", retry_after=wait)


def wait_for_room(oldest: Instant | None, now: Instant) -> int:
    """Seconds until the oldest of what counts leaves the window."""
    return 1 + (seconds_between(now, after(oldest, WINDOW)) if oldest is not None else 0)


def is_cooling(denied: Manifest, asked: Manifest) -> bool:
    """Whether ``asked`` is the question that was answered with ``denied`` as a whole, or holds something of it again.

    Asking for strictly less is what a "no" invites; asking for something else altogether is a new question.
    """
    if (denied.cluster, denied.database, denied.level) != (asked.cluster, asked.database, asked.level):
        return False
    if not {item.oid for item in denied.objects} & {item.oid for item in asked.objects}:
        return False
    return not is_within(asked, denied) or is_within(denied, asked)
