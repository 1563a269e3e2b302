"""A policy directory that tests write into, and an engine made from it."""

from __future__ import annotations

import pytest

from taskpass.policy.cedar import CedarPolicy
from taskpass.policy.starter import write_shipped

GROUPS = {
    "dba": frozenset({"dba-1@example", "dba-2@example"}),
    "sre": frozenset({"sre-1@example"}),
    "empty": frozenset(),
}


class Directory:
    """The shipped schema and whatever policies a test writes."""

    def __init__(self, path):
        self.path = path
        write_shipped(path)

    def clear(self):
        for path in self.path.glob("*.cedar"):
            path.unlink()

    def write(self, name, text):
        place = self.path / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
        place.chmod(0o600)
        return place

    def engine(self, groups=GROUPS):
        return CedarPolicy.load(self.path, groups=groups)


@pytest.fixture
def shipped(tmp_path):
    """The directory as `init` leaves it."""
    return Directory(tmp_path / "policy")


@pytest.fixture
def directory(shipped):
    """The shipped schema without policies."""
    shipped.clear()
    return shipped
