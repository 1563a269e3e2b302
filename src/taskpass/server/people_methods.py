"""What people may call: look, decide, take back. Served on a socket of its own in the broker's directory.

Reaching that socket needs the broker's own account, from outside every sandbox; deciding also needs a signature by the
deciding person's key over the exact rights. Taking back needs no signature: it must work at three in the morning.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from taskpass import __version__
from taskpass.broker.adopt import adopt, survey
from taskpass.broker.budget_use import budget_use_of_all
from taskpass.broker.capabilities import stated
from taskpass.broker.complete_task import complete_task
from taskpass.broker.context import Broker
from taskpass.broker.debt import unproven
from taskpass.broker.disk import is_disk_low
from taskpass.broker.drill import drill
from taskpass.broker.drill_schedule import drill_states
from taskpass.broker.review_request import Ballot, prepare_vote, vote
from taskpass.broker.revoke import Selector, revoke, select
from taskpass.broker.runs import end_run, prepare_run
from taskpass.broker.take_back import write_off
from taskpass.core.aftermath import BLOCKING
from taskpass.core.approval import Verdict
from taskpass.core.clock import rfc3339
from taskpass.core.errors import InvalidInput, StoreUnavailable, TaskpassError
from taskpass.core.ids import HumanId, LeaseId, RequestId, RunId, TaskId, parse_id
from taskpass.core.lease import UNENDED, LeaseState
from taskpass.core.manifest import Keep
from taskpass.core.request import AccessRequest, RequestState
from taskpass.core.task import TaskState
from taskpass.core.text import REASON_BYTES, accept
from taskpass.identity.base import Caller, Peer
from taskpass.server.changed import Changed
from taskpass.server.migration_methods import WideningMethods
from taskpass.server.params import Params
from taskpass.server.views import aftermath_view, card, lease_view, request_view, task_view, vote_view

MAX_LISTED = 500
"""Rows in one answer, which has to fit in one line; it says whether there are more."""

_KEEP = {"oid", "columns", "verbs"}

Method = Callable[[Params, Peer], dict[str, object]]


class PeopleMethods:
    """The handler of the people's socket. ``health`` tells the runtime's own state."""

    def __init__(self, broker: Broker, *, changed: Changed, health: Callable[[], Mapping[str, object]]) -> None:
        self._broker = broker
        self._changed = changed
        self._runtime_health = health
        self._methods: dict[str, Method] = {
            "prepare_run": self._prepare_run,
            "end_run": self._end_run,
            "requests": self._requests,
            "show_request": self._show_request,
            "challenge": self._challenge,
            "vote": self._vote,
            "tasks": self._tasks,
            "show_task": self._show_task,
            "complete_task": self._complete_task,
            "leases": self._leases,
            "show_lease": self._show_lease,
            "revoke": self._revoke,
            "write_off": self._write_off,
            "survey_store": self._survey_store,
            "adopt_store": self._adopt_store,
            "drill": self._drill,
            "people": self._people,
            "health": self._health,
            **WideningMethods(broker).methods(),
        }

    def __call__(self, method: str, params: dict[str, object], peer: Peer) -> dict[str, object]:
        found = self._methods.get(method)
        if found is None:
            raise InvalidInput("no such method here", code="unknown_method")
        return found(Params(params), peer)

    def _actor(self, caller: Caller) -> str:
        """The person behind the account, for the record; an account of nobody is recorded as the account it is."""
        try:
            return f"human:{self._broker.human_of_uid(caller.uid)}"
        except TaskpassError:
            return f"uid:{caller.uid}"

    def _prepare_run(self, params: Params, peer: Peer) -> dict[str, object]:
        tool, uid = params.text("tool"), params.integer("uid", peer.caller.uid)
        params.done()
        if peer.caller.uid not in (0, uid):
            raise InvalidInput("only root starts an agent under another account")
        run = prepare_run(self._broker, peer, agent_uid=uid, tool=tool)
        return {
            "run": run.run,
            "directory": run.directory,
            "hide": [str(place) for place in self._broker.config.other_directories],
        }

    def _end_run(self, params: Params, peer: Peer) -> dict[str, object]:
        run_id = RunId(parse_id("run", params.text("run")))
        params.done()
        end_run(self._broker, run_id, reason="process_ended")
        return {"run": run_id}

    def _requests(self, params: Params, peer: Peer) -> dict[str, object]:
        state = params.optional_text("state")
        params.done()
        with self._broker.store.read() as unit:
            found = unit.requests.list(state=_state(state), limit=MAX_LISTED + 1)
        return {"requests": [request_view(request) for request in found[:MAX_LISTED]], "more": _more(found)}

    def _show_request(self, params: Params, peer: Peer) -> dict[str, object]:
        request_id = RequestId(parse_id("req", params.text("request")))
        params.done()
        with self._broker.store.read() as unit:
            request = unit.requests.get(request_id)
            task = unit.tasks.get(request.task)
            votes = unit.approvals.of_request(request_id)
            script = request.scope.script
            file = unit.scripts.get(script.digest) if script and request.state is not RequestState.DENIED else None
        return {
            **card(request, task, self._estimates(request), stated(self._broker, request.scope), file),
            "votes": [vote_view(item) for item in votes],
        }

    def _estimates(self, request: AccessRequest) -> dict[int, int]:
        """Row estimates are a help for people; a target that is away must not hide the card."""
        try:
            return self._broker.issuer(request.scope.resource).estimate_rows(request.manifest)
        except TaskpassError:
            return {}

    def _challenge(self, params: Params, peer: Peer) -> dict[str, object]:
        human, request_id, ballot = self._ballot(params)
        params.done()
        prepared = prepare_vote(self._broker, human, request_id, ballot)
        return {
            "nonce": prepared.nonce,
            "digest": prepared.digest,
            "data": b64encode(prepared.data).decode(),
            "manifest": prepared.manifest.to_json(),
            "lifetime": prepared.lifetime,
            "method": prepared.method.value,
            "salt": self._broker.human(human).reviewer_salt,
        }

    def _vote(self, params: Params, peer: Peer) -> dict[str, object]:
        human, request_id, ballot = self._ballot(params)
        nonce, signature = params.text("nonce"), params.text("signature")
        params.done()
        request, counted = vote(self._broker, human, request_id, ballot, nonce=nonce, signature=signature)
        self._changed.announce()
        return {**request_view(request), "sufficient": counted.sufficient, "missing": counted.missing}

    def _ballot(self, params: Params) -> tuple[HumanId, RequestId, Ballot]:
        human = HumanId(params.text("human"))
        request_id = RequestId(parse_id("req", params.text("request")))
        verb = params.text("verb")
        if verb not in list(Verdict):
            raise InvalidInput("verb is approve or deny")
        keeps = params.objects("keeps")
        return (
            human,
            request_id,
            Ballot(
                Verdict(verb),
                None if keeps is None else tuple(_keep(item) for item in keeps),
                params.optional_integer("lifetime"),
                params.text("comment", ""),
                params.texts("accept"),
            ),
        )

    def _tasks(self, params: Params, peer: Peer) -> dict[str, object]:
        every = params.flag("all")
        params.done()
        with self._broker.store.read() as unit:
            found = unit.tasks.list(state=None if every else TaskState.OPEN, limit=MAX_LISTED + 1)
        return {"tasks": [task_view(x) for x in found[:MAX_LISTED]], "more": _more(found)}

    def _show_task(self, params: Params, peer: Peer) -> dict[str, object]:
        task_id = TaskId(parse_id("tsk", params.text("task")))
        params.done()
        with self._broker.store.read() as unit:
            task = unit.tasks.get(task_id)
            return {
                **task_view(task),
                "requests": [request_view(item) for item in unit.requests.list(task=task_id, limit=MAX_LISTED)],
                "leases": [lease_view(item, people=True) for item in unit.leases.list(task=task_id, limit=MAX_LISTED)],
                "migrations": [
                    aftermath_view(item, people=True) for item in unit.aftermaths.list(task=task_id, limit=MAX_LISTED)
                ],
            }

    def _complete_task(self, params: Params, peer: Peer) -> dict[str, object]:
        task_id = TaskId(parse_id("tsk", params.text("task")))
        params.done()
        done = complete_task(self._broker, task_id, actor=self._actor(peer.caller), reason="completed")
        return {**task_view(done.task), "leases": [lease_view(item, people=True) for item in done.leases]}

    def _leases(self, params: Params, peer: Peer) -> dict[str, object]:
        every, debt = params.flag("all"), params.flag("debt")
        params.done()
        with self._broker.store.read() as unit:
            limit = MAX_LISTED + 1 if every and not debt else None
            found = unit.leases.list(states=None if every and not debt else UNENDED, limit=limit)
        found = unproven(found) if debt else found
        return {"leases": [lease_view(x, people=True) for x in found[:MAX_LISTED]], "more": _more(found)}

    def _show_lease(self, params: Params, peer: Peer) -> dict[str, object]:
        lease_id = LeaseId(parse_id("lse", params.text("lease")))
        params.done()
        with self._broker.store.read() as unit:
            lease = unit.leases.get(lease_id)
            grant = unit.grants.get(lease.grant)
        view = lease_view(lease, people=True)
        return {
            **view,
            "manifest": grant.manifest.to_json(),
            "connections": self._broker.endpoints.connections(lease_id),
        }

    def _revoke(self, params: Params, peer: Peer) -> dict[str, object]:
        selector = Selector(params.text("level"), params.text("value", ""))
        dry_run, reason = (
            params.flag("dry_run"),
            accept(params.text("reason", ""), what="the reason", limit=REASON_BYTES, empty=True),
        )
        params.done()
        if dry_run:
            leases = select(self._broker, selector)
        else:
            leases = revoke(self._broker, selector, actor=self._actor(peer.caller), reason=reason)
        return {"dry_run": dry_run, "leases": [lease_view(item, people=True) for item in leases]}

    def _write_off(self, params: Params, peer: Peer) -> dict[str, object]:
        lease_id = LeaseId(parse_id("lse", params.text("lease")))
        reason = accept(params.text("reason"), what="the reason", limit=REASON_BYTES)
        params.done()
        return lease_view(write_off(self._broker, lease_id, actor=self._actor(peer.caller), reason=reason), people=True)

    def _survey_store(self, params: Params, peer: Peer) -> dict[str, object]:
        params.done()
        return survey(self._broker).to_json()

    def _adopt_store(self, params: Params, peer: Peer) -> dict[str, object]:
        mark, without = params.text("mark"), params.texts("without")
        params.done()
        done = adopt(self._broker, actor=self._actor(peer.caller), mark=mark, without=without)
        self._changed.announce()
        return done.to_json()

    def _drill(self, params: Params, peer: Peer) -> dict[str, object]:
        resource = params.text("resource")
        params.done()
        return drill(self._broker, resource, actor=self._actor(peer.caller)).to_json()

    def _people(self, params: Params, peer: Peer) -> dict[str, object]:
        params.done()
        people = self._broker.config.people
        return {
            "people": [
                {
                    "human": human.id,
                    "os_users": list(human.os_users),
                    "can_review": bool(human.reviewer_key),
                    "groups": sorted(name for name, members in people.groups.items() if human.id in members),
                }
                for human in people.humans.values()
            ],
            "you": self._actor(peer.caller).removeprefix("human:"),
        }

    def _health(self, params: Params, peer: Peer) -> dict[str, object]:
        params.done()
        try:
            stored = self._stored()
        except StoreUnavailable as error:
            stored = {"store_error": error.to_json()}
        return {
            "version": __version__,
            **stored,
            "policy_snapshot": self._broker.policy.snapshot,
            "config_digest": self._broker.config.digest,
            "disk_low": is_disk_low(self._broker),
            "late_records": self._broker.late.pending(),
            **self._runtime_health(),
        }

    def _stored(self) -> dict[str, object]:
        """The part of the health that the store knows."""
        with self._broker.store.read() as unit:
            installation, (seq, hash_) = unit.installation, unit.audit.head()
            counts, owed = unit.leases.count_by_state(), unit.leases.unproven()
            blocking = unit.aftermaths.list(states=BLOCKING, limit=MAX_LISTED)
            budgets = budget_use_of_all(self._broker, unit)
            living, me = self._broker.owners.living(unit), self._broker.owners.me
        return {
            "installation": installation.id,
            "epoch": installation.epoch,
            "demo": installation.demo,
            "latest_seen": rfc3339(installation.latest_seen),
            "audit_head": {"seq": seq, "hash": hash_},
            "leases": {state.value: counts.get(state, 0) for state in LeaseState if state in UNENDED},
            "debt": [lease_view(item, people=True) for item in owed],
            "migrations": [aftermath_view(item, people=True) for item in blocking],
            "budgets": budgets,
            "drills": drill_states(self._broker),
            "brokers": [{"broker": x, "machine": machine, "this": x == me} for x, machine in living.items()],
        }


def _more(found: Sequence[object]) -> bool:
    """Whether a list was cut, so that nobody takes a part for the whole."""
    return len(found) > MAX_LISTED


def _state(text: str | None) -> RequestState | None:
    if text is None:
        return None
    if text not in list(RequestState):
        raise InvalidInput("no such state of a request", hint=", ".join(RequestState))
    return RequestState(text)


def _keep(item: dict[str, object]) -> Keep:
    columns, verbs = item.get("columns"), item.get("verbs")
    whole = type(item.get("oid")) is int and isinstance(columns, list) and isinstance(verbs, list)
    try:
        if item.keys() == _KEEP and whole and all(type(number) is int for number in cast("list[object]", columns)):
            return Keep.from_json(item)
    except (TypeError, ValueError):
        pass
    raise InvalidInput("a narrowing names oid, columns and verbs of each object that stays, and nothing else")
