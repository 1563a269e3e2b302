"""Nobody escapes the shared suites: whatever has the shape of a backend, fakes included, is named where they run."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import taskpass.gateways
import taskpass.issuers
import taskpass.policy
import taskpass.store
import taskpass.testing
from taskpass.gateways.base import Endpoints
from taskpass.issuers.base import Issuer
from taskpass.policy.base import Policy
from taskpass.store.base import Store

ROOT = Path(__file__).parents[1]
KINDS = {
    "issuers": (Issuer, taskpass.issuers, ["conformance/test_issuers.py"]),
    "policies": (Policy, taskpass.policy, ["conformance/test_policies.py"]),
    "stores": (Store, taskpass.store, ["conformance/test_stores.py"]),
    "endpoints": (Endpoints, taskpass.gateways, ["unit/gateways/test_endpoint.py", "unit/gateways/test_fake.py"]),
}
MADE_BY = {"SqlStore": "open_store(", "PostgresIssuer": "enrolled import"}
"""What stands in the suite's file where the class itself is not named."""
OUTSIDE = {
    "UnkindIssuer": "breaks the contract on purpose, to see what the broker does then",
    "BreakableStore": "a store of the suite, behind faults",
    "ByEnvironment": "answers of one test, not an engine",
    "FakeEndpoints in taskpass.testing.broker_parts": "notes the order of calls for the broker's tests",
}


def _backends(port: type, package) -> dict[str, str]:
    """Class names by module, for every class that has all that ``port`` asks for."""
    wanted = {name for name in vars(port) if not name.startswith("_")}
    found: dict[str, str] = {}
    for place in (package, taskpass.testing):
        for item in pkgutil.walk_packages(place.__path__, place.__name__ + "."):
            if ".migrations" in item.name:
                continue
            module = importlib.import_module(item.name)
            for name, kind in inspect.getmembers(module, inspect.isclass):
                if kind.__module__ != item.name or getattr(kind, "_is_protocol", False):
                    continue
                if all(hasattr(kind, attribute) for attribute in wanted):
                    found[name] = item.name
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_backend_is_in_the_suite_of_its_kind(kind):
    port, package, files = KINDS[kind]
    found = _backends(port, package)
    assert found, "the shape of the port matches nothing: the roll call would be empty"
    text = "".join((ROOT / file).read_text() for file in files)
    missing = {
        name: module
        for name, module in found.items()
        if MADE_BY.get(name, name) not in text and name not in OUTSIDE and f"{name} in {module}" not in OUTSIDE
    }
    assert not missing
