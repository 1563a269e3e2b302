"""Ask and, where policy permits at once, connect: one call, one recorded step less than asking first and issuing then.

The rules are those of ``request_access`` and ``issue_lease``; nothing is decided here.
"""

from __future__ import annotations

from taskpass.broker.context import Broker
from taskpass.broker.issue_lease import Issued, finish, intend
from taskpass.broker.refusals import budget_refusals
from taskpass.broker.request_access import Wish, ask, record
from taskpass.core.request import AccessRequest, RequestState
from taskpass.identity.base import Caller


def acquire_access(
    broker: Broker, caller: Caller, wish: Wish, *, until_process_ends: bool
) -> tuple[AccessRequest, Issued | None]:
    """The recorded request, and the lease if policy permits it; without one, the request is pending or denied.

    Raises as ``request_access`` and ``issue_lease``.
    """
    asked = ask(broker, caller, wish)
    with budget_refusals(broker, asked.task, asked.resource.name), broker.store.write() as unit:
        request = record(broker, unit, asked)
        if request.state is not RequestState.APPROVED:
            return request, None
        intent = intend(broker, unit, request, asked.task, asked.decision)
    return intent.request, finish(broker, caller, intent, until_process_ends=until_process_ends)
