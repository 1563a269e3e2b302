"""A new store of the harness, made once: copying it is quicker than creating one for each test, and gives the same."""

from __future__ import annotations

import pytest

from taskpass.testing.broker import make_harness


@pytest.fixture(scope="session")
def new_store(tmp_path_factory):
    directory = tmp_path_factory.mktemp("store")
    directory.chmod(0o700)
    make_harness(directory).stop()
    return directory / "taskpass.db"
