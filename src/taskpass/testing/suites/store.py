"""What every store must do, whatever its engine. See ``store.base`` for the contract.

Derive a class from ``StoreSuite`` and give it a fixture ``place``: a fresh store that can be opened more than once.
"""

from __future__ import annotations

from taskpass.testing.suites.store_aggregates import AggregateSuite
from taskpass.testing.suites.store_states import StateSuite
from taskpass.testing.suites.store_units import UnitSuite


class StoreSuite(UnitSuite, StateSuite, AggregateSuite):
    """Behaviour that callers rely on. Method names are the sentences."""
