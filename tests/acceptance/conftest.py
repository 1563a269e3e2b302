"""Stages for the acceptance tests. Whoever stops a server or a broker of a stage starts it again."""

from __future__ import annotations

import pytest

from taskpass.core.errors import SandboxUnavailable
from taskpass.sandbox.detect import detect
from taskpass.testing.postgres import available
from tests.acceptance.actors import Small, opened
from tests.missing import missing


@pytest.fixture(scope="module")
def installation():
    """One installation with one dev database."""
    if 16 not in available():
        missing("PostgreSQL 16 is not installed on this machine")
    with Small(durable=False) as made:
        yield made.prepare()


@pytest.fixture
def stage(installation):
    """The module's installation, whatever the test before did to it: its database up, its broker serving."""
    installation.server.start()
    if installation.broker is None or installation.broker.poll() is not None:
        installation.start_broker()
    return installation


@pytest.fixture
def agent(stage):
    """A caller outside any run."""
    with stage.agent() as client:
        yield client
    stage.quiet()


@pytest.fixture
def sandboxed():
    """For tests that need ``taskpass run``."""
    try:
        return detect()
    except SandboxUnavailable as error:
        missing(f"no sandbox works here: {error.message}")


@pytest.fixture(autouse=True)
def closing():
    """Close what the test opened, and say nothing if the other end did so before."""
    yield
    while opened:
        opened.pop().close()
