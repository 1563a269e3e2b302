"""One started broker for each test, on a copy of a store that is made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskpass.testing.broker import make_harness


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    return _template(tmp_path_factory, demo=False)


@pytest.fixture(scope="session")
def demo_template(tmp_path_factory):
    return _template(tmp_path_factory, demo=True)


def _template(tmp_path_factory, *, demo: bool) -> Path:
    directory = tmp_path_factory.mktemp("template")
    directory.chmod(0o700)
    made = make_harness(directory, demo=demo)
    made.stop()
    return directory / "taskpass.db"


@pytest.fixture
def h(tmp_path, template):
    tmp_path.chmod(0o700)
    made = make_harness(tmp_path, template=template)
    yield made
    made.stop()


@pytest.fixture
def demo(tmp_path, demo_template):
    tmp_path.chmod(0o700)
    made = make_harness(tmp_path, template=demo_template)
    yield made
    made.stop()
