"""A started broker of the harness, whose sweeper these tests replace by one with real threads."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from taskpass.testing.broker import make_harness

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def h(new_store):
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="taskpass-test-") as directory:
        made = make_harness(Path(directory), template=new_store)
        yield made
        made.stop()
