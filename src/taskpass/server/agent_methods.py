"""What workloads may call: ask, wait, use, let go. No method here approves, narrows,
or speaks of anyone else's task.
"""

from __future__ import annotations

from collections.abc import Callable

from taskpass import __version__
from taskpass.broker.acquire import acquire_access
from taskpass.broker.budget_use import budget_use
from taskpass.broker.capabilities import stated
from taskpass.broker.complete_task import complete_task
from taskpass.broker.context import Broker
from taskpass.broker.issue_lease import issue_lease
from taskpass.broker.open_task import open_task, own_task
from taskpass.broker.release_lease import release_lease
from taskpass.broker.request_access import Wish, cancel_request, own_request, request_access
from taskpass.broker.runs import bind_run
from taskpass.core.decision import Delivery
from taskpass.core.errors import InvalidInput, NotFound
from taskpass.core.ids import LeaseId, RequestId, TaskId, parse_id
from taskpass.core.lease import UNENDED
from taskpass.core.request import AccessRequest, RequestState
from taskpass.core.separation import serves
from taskpass.identity.base import Caller, Peer
from taskpass.server.changed import Changed
from taskpass.server.migration_methods import follow_migration
from taskpass.server.params import Params
from taskpass.server.views import aftermath_view, lease_view, request_view, task_view

MAX_WAIT = 45
"""Seconds a call may wait: no tool call waits longer (design: interfaces.md)."""

MAX_LISTED = 50
"""Requests that ``status`` shows, newest first; an answer has to fit in one line."""

Method = Callable[[Params, Caller], dict[str, object]]


class AgentMethods:
    """The handler of the agents' sockets."""

    def __init__(self, broker: Broker, *, changed: Changed) -> None:
        self._broker = broker
        self._changed = changed
        self._methods: dict[str, Method] = {
            "hello": self._hello,
            "open_task": self._open_task,
            "list_resources": self._list_resources,
            "request_access": self._request_access,
            "request_status": self._request_status,
            "cancel_request": self._cancel_request,
            "issue": self._issue,
            "migration": self._migration,
            "release": self._release,
            "complete_task": self._complete_task,
            "status": self._status,
        }

    def __call__(self, method: str, params: dict[str, object], peer: Peer) -> dict[str, object]:
        """Answer one call; raises ``TaskpassError`` for every refusal."""
        found = self._methods.get(method)
        if found is None:
            raise InvalidInput("no such method here", code="unknown_method")
        return found(Params(params), peer.caller)

    def _hello(self, params: Params, caller: Caller) -> dict[str, object]:
        params.done()
        if caller.run is not None:
            bind_run(self._broker, caller)
        with self._broker.store.read() as unit:
            installation = unit.installation.id
        return {
            "version": __version__,
            "installation": installation,
            "run": caller.run,
            "separation": caller.separation.word,
        }

    def _open_task(self, params: Params, caller: Caller) -> dict[str, object]:
        repository, branch, ticket = (params.text(name, "") for name in ("repository", "branch", "ticket"))
        child = params.optional_text("child")
        params.done()
        task = open_task(self._broker, caller, repository=repository, branch=branch, ticket=ticket, child=child)
        return task_view(task)

    def _list_resources(self, params: Params, caller: Caller) -> dict[str, object]:
        params.done()
        return {
            "resources": [
                {
                    "resource": item.name,
                    "environment": item.environment.value,
                    "access": sorted(item.access),
                    "served": serves(caller.separation, item.environment),
                }
                for item in self._broker.config.resources.values()
            ]
        }

    def _request_access(self, params: Params, caller: Caller) -> dict[str, object]:
        wish = Wish(
            resource=params.text("resource"),
            access=params.text("access", "read"),
            only=params.texts("tables"),
            lifetime=params.optional_integer("ttl"),
            reason=params.text("reason", ""),
            task_id=params.optional_text("task"),
            file=params.optional_text("file"),
            delivery=_delivery(params.text("delivery", Delivery.ENDPOINT)),
        )
        connect = params.flag("connect")
        params.done()
        if connect:
            request, issued = acquire_access(self._broker, caller, wish, until_process_ends=True)
        else:
            request, issued = request_access(self._broker, caller, wish), None
        lease = {"lease": lease_view(issued.lease, issued.endpoint, issued.bearer)} if issued else {}
        return {**request_view(request, stated(self._broker, request.scope)), **lease}

    def _request_status(self, params: Params, caller: Caller) -> dict[str, object]:
        request_id = RequestId(parse_id("req", params.text("request")))
        wait = params.integer("wait", 0)
        params.done()
        if not 0 <= wait <= MAX_WAIT:
            raise InvalidInput(f"wait is 0 to {MAX_WAIT} seconds")
        self._changed.wait_until(lambda: self._own(caller, request_id).state is not RequestState.PENDING, wait)
        request = self._own(caller, request_id)
        return request_view(request, stated(self._broker, request.scope))

    def _own(self, caller: Caller, request_id: RequestId) -> AccessRequest:
        with self._broker.store.read() as unit:
            return own_request(self._broker, unit, caller, request_id)[0]

    def _cancel_request(self, params: Params, caller: Caller) -> dict[str, object]:
        request_id = RequestId(parse_id("req", params.text("request")))
        params.done()
        cancelled = cancel_request(self._broker, caller, request_id)
        self._changed.announce()
        return request_view(cancelled)

    def _issue(self, params: Params, caller: Caller) -> dict[str, object]:
        request_id = RequestId(parse_id("req", params.text("request")))
        holder = params.text("holder", "process")
        params.done()
        if holder not in ("process", "task"):
            raise InvalidInput("holder is process or task")
        if holder == "task" and caller.run is None:
            raise InvalidInput("outside a run a lease ends with the process that asked", hint="leave holder out")
        issued = issue_lease(self._broker, caller, request_id, until_process_ends=holder == "process")
        return lease_view(issued.lease, issued.endpoint, issued.bearer)

    def _migration(self, params: Params, caller: Caller) -> dict[str, object]:
        return follow_migration(self._broker, params, caller)

    def _release(self, params: Params, caller: Caller) -> dict[str, object]:
        lease_id = LeaseId(parse_id("lse", params.text("lease")))
        params.done()
        return lease_view(release_lease(self._broker, caller, lease_id))

    def _complete_task(self, params: Params, caller: Caller) -> dict[str, object]:
        task_id = params.optional_text("task")
        params.done()
        with self._broker.store.read() as unit:
            task = own_task(self._broker, unit, caller, task_id)
        done = complete_task(self._broker, task.id, actor=task.principal.spiffe_id, reason="completed")
        return {**task_view(done.task), "leases": [lease_view(lease) for lease in done.leases]}

    def _status(self, params: Params, caller: Caller) -> dict[str, object]:
        task_id = params.optional_text("task")
        params.done()
        with self._broker.store.read() as unit:
            try:
                task = own_task(self._broker, unit, caller, task_id)
            except NotFound:
                if task_id is not None:
                    raise
                return {"task": None, "separation": caller.separation.word, **self._list_resources(Params({}), caller)}
            requests = unit.requests.list(task=TaskId(task.id), limit=MAX_LISTED)
            leases = unit.leases.list(states=UNENDED, task=task.id)
            migrations = unit.aftermaths.list(task=task.id, limit=MAX_LISTED)
            budgets = budget_use(self._broker, unit, task.principal.sponsor)
        return {
            **task_view(task),
            "requests": [request_view(request) for request in requests],
            "leases": [lease_view(lease) for lease in leases],
            "migrations": [aftermath_view(found) for found in migrations],
            "budgets": budgets,
            **self._list_resources(Params({}), caller),
        }


def _delivery(text: str) -> Delivery:
    if text not in list(Delivery):
        raise InvalidInput("delivery is endpoint or bearer")
    return Delivery(text)
