"""What stands against serving a database, found as the broker's own login and closed by the SQL that is shown."""

from __future__ import annotations

import dataclasses

import pytest

from taskpass.core.errors import TargetUnavailable
from taskpass.core.separation import Environment
from taskpass.issuers.base import Severity
from taskpass.issuers.postgres import preflight
from tests.integration.postgres.enrolled import TABLES, Broker

pytestmark = pytest.mark.service


@pytest.fixture
def broker(database):
    database.execute(*TABLES)
    made = Broker(database)
    yield made
    made.forget()


def findings(broker, *, thorough=False, connection=None, **changes):
    target = dataclasses.replace(broker.issuer.target, **changes)
    return preflight.check(connection or broker.connect(), target, thorough=thorough)


def by_check(found):
    return {finding.check: finding for finding in found}


def fatal(found):
    return [finding.check for finding in found if finding.severity is Severity.FATAL]


def test_an_enrolled_database_has_nothing_fatal(broker):
    found = findings(broker, thorough=True)
    assert fatal(found) == []
    modern = broker.database.server.version >= 16
    expected = {"other_databases", "server_log"} if modern else {"other_databases", "server_log", "createrole"}
    assert {finding.check for finding in found} == expected
