"""What an access is worth on its target, in words that a person can weigh before saying yes. Decides nothing."""

from __future__ import annotations

from taskpass.broker.context import Broker
from taskpass.core.errors import Denied
from taskpass.core.limits import UNITS
from taskpass.core.scope import Scope


def stated(broker: Broker, scope: Scope) -> dict[str, object]:
    """What the issuer can do at this level, and each limit with its unit and who enforces it.

    Empty for a resource that left the configuration. Asks no target: what depends on it is as it was found last.
    """
    try:
        found = broker.issuer(scope.resource).capabilities_of(scope.level)
    except Denied:
        return {}
    limits = [
        {"limit": name, "value": value, "unit": UNITS[name], "enforced_by": found.limits[name].value}
        for name, value in broker.limits_of(scope).to_json().items()
        if name in found.limits
    ]
    return {"level": scope.level.value, **found.to_json(), "limits": limits}
