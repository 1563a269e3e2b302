"""Migrations on both planes: how a file's run goes, for its agent; what was left, and accepting it, for people.

An agent is told statements, times, rows, notices and errors, never the role. Accepting needs a person's signature.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable

from taskpass.broker.aftermath import accept_widening, acceptance_digest, prepare_acceptance, settle
from taskpass.broker.context import Broker
from taskpass.broker.open_task import own_task
from taskpass.core.aftermath import BLOCKING, Aftermath
from taskpass.core.errors import Conflict, InvalidInput, NotFound
from taskpass.core.ids import HumanId, LeaseId, parse_id
from taskpass.identity.base import Caller, Peer
from taskpass.issuers.base import Progress
from taskpass.server.params import Params
from taskpass.server.views import MAX_WIDENING_SHOWN, aftermath_view

MAX_WAIT = 45
MAX_STEPS = 500
"""Steps in one answer, which has to fit in one line; the caller asks again for the next ones."""

MAX_LISTED = 500

Method = Callable[[Params, Peer], dict[str, object]]


def follow_migration(broker: Broker, params: Params, caller: Caller) -> dict[str, object]:
    """Steps of a run from number ``after`` on; ``ran`` is set once everything is over, the closing included."""
    lease_id = LeaseId(parse_id("lse", params.text("lease")))
    after, wait = params.integer("after", 0), params.integer("wait", 0)
    params.done()
    if not 0 <= wait <= MAX_WAIT or after < 0:
        raise InvalidInput(f"wait is 0 to {MAX_WAIT} seconds, after is not negative")
    found = _own(broker, caller, lease_id)
    steps, ran = broker.progress.read(lease_id, after, 0 if found.ran and not wait else wait)
    found = _own(broker, caller, lease_id)
    shown = steps[:MAX_STEPS]
    return {
        **aftermath_view(found),
        # After a restart of the broker nothing is left of a run but how it ended.
        "over": len(shown) == len(steps) and (ran is not None or not broker.progress.knows(lease_id)),
        "steps": [_step(step) for step in shown],
        "next": after + len(shown),
    }


def _own(broker: Broker, caller: Caller, lease_id: LeaseId) -> Aftermath:
    with broker.store.read() as unit:
        try:
            found = unit.aftermaths.get(lease_id)
            own_task(broker, unit, caller, found.task)
        except NotFound:
            raise NotFound("no such migration of yours", hint="taskpass status lists your own") from None
    return found


def _step(step: Progress) -> dict[str, object]:
    return {
        "what": step.what,
        "number": step.number,
        "line": step.line,
        "text": step.text,
        "rows": step.rows,
        "took_ms": step.took_ms,
    }


class WideningMethods:
    """What people may call about migrations."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def methods(self) -> dict[str, Method]:
        return {
            "widenings": self._list,
            "show_widening": self._show,
            "check_widening": self._check,
            "widening_challenge": self._challenge,
            "accept_widening": self._accept,
        }

    def _list(self, params: Params, peer: Peer) -> dict[str, object]:
        every = params.flag("all")
        params.done()
        with self._broker.store.read() as unit:
            found = unit.aftermaths.list(states=None if every else BLOCKING, limit=MAX_LISTED + 1)
        return {
            "migrations": [aftermath_view(item, people=True) for item in found[:MAX_LISTED]],
            "more": len(found) > MAX_LISTED,
        }

    def _show(self, params: Params, peer: Peer) -> dict[str, object]:
        lease_id = _lease(params)
        params.done()
        with self._broker.store.read() as unit:
            found = unit.aftermaths.get(lease_id)
        return aftermath_view(found, people=True, limit=MAX_WIDENING_SHOWN)

    def _check(self, params: Params, peer: Peer) -> dict[str, object]:
        lease_id = _lease(params)
        params.done()
        found = settle(self._broker, lease_id)
        if found is None:
            raise Conflict("this migration is not over", hint="taskpass lease show tells what it waits for")
        return aftermath_view(found, people=True, limit=MAX_WIDENING_SHOWN)

    def _challenge(self, params: Params, peer: Peer) -> dict[str, object]:
        lease_id, human, comment = _lease(params), HumanId(params.text("human")), params.text("comment")
        params.done()
        nonce, data, found = prepare_acceptance(self._broker, human, lease_id, comment)
        return {
            **aftermath_view(found, people=True, limit=MAX_WIDENING_SHOWN),
            "nonce": nonce,
            "digest": acceptance_digest(found),
            "data": b64encode(data).decode(),
            "salt": self._broker.human(human).reviewer_salt,
        }

    def _accept(self, params: Params, peer: Peer) -> dict[str, object]:
        lease_id, human, comment = _lease(params), HumanId(params.text("human")), params.text("comment")
        nonce, signature = params.text("nonce"), params.text("signature")
        params.done()
        found = accept_widening(self._broker, human, lease_id, comment, nonce=nonce, signature=signature)
        return aftermath_view(found, people=True, limit=MAX_WIDENING_SHOWN)


def _lease(params: Params) -> LeaseId:
    return LeaseId(parse_id("lse", params.text("lease")))
