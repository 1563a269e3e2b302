"""Every policy engine passes the shared suite."""

from __future__ import annotations

import pytest

from taskpass.core.decision import Obligations, Outcome
from taskpass.policy.cedar import CedarPolicy
from taskpass.policy.starter import write_shipped
from taskpass.testing.fake_policy import FakePolicy
from taskpass.testing.suites.policy import PolicySuite

GROUPS = {"dba": frozenset({"dba-1@example", "dba-2@example"})}
PERMIT_ALL = '@id("all") permit (principal, action, resource);\n'
WHO_APPROVES = """
@id("who") @approvers("dba")
forbid (principal, action, resource)
when { resource.env == Taskpass::Environment::"production" } unless { context.approved };
"""
PERMIT_NONE = '@id("none") forbid (principal, action, resource) when { context.ttl_s < 0 };\n'


def cedar(directory, *texts):
    write_shipped(directory)
    for path in directory.glob("*.cedar"):
        path.unlink()
    for number, text in enumerate(texts):
        (directory / f"p{number}.cedar").write_text(text)
        (directory / f"p{number}.cedar").chmod(0o600)
    return CedarPolicy.load(directory, groups=GROUPS)


class TestCedar(PolicySuite):
    @pytest.fixture
    def lenient(self, tmp_path):
        return cedar(tmp_path / "policy", PERMIT_ALL, WHO_APPROVES)

    @pytest.fixture
    def empty(self, tmp_path):
        return cedar(tmp_path / "policy", PERMIT_NONE)


class TestFake(PolicySuite):
    @pytest.fixture
    def lenient(self):
        return EveryEnvironment()

    @pytest.fixture
    def empty(self):
        return FakePolicy()


class EveryEnvironment(FakePolicy):
    """Permits, and has approvers to name where the floor asks."""

    def __init__(self):
        super().__init__(Outcome.NEEDS_APPROVAL, obligations=Obligations(approvers=frozenset({"dba"})))
