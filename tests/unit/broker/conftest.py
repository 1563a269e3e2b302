"""One started broker for each test, on a copy of a store that is made once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from taskpass.testing.broker import make_harness

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""The store syncs every commit; where there is a file system in memory that costs nothing."""


@pytest.fixture
def place():
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="taskpass-test-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def demo_template(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo-store")
    directory.chmod(0o700)
    make_harness(directory, demo=True).stop()
    return directory / "taskpass.db"


@pytest.fixture
def h(place, new_store):
    made = make_harness(place, template=new_store)
    yield made
    made.stop()


@pytest.fixture
def demo(place, demo_template):
    made = make_harness(place, template=demo_template)
    yield made
    made.stop()
