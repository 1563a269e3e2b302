"""The broker's own password: replaced in an order that leaves the right one in the file wherever it breaks off."""

from __future__ import annotations

import json

import pytest

from taskpass.broker.rotate_login import Kept, rotate_login
from taskpass.config.credentials import Credential, read_credential, write_credential
from taskpass.core.errors import Conflict, TargetUnavailable
from taskpass.core.secret import Secret
from taskpass.runtime.rotation import DAY, Rotation

OLD = "old-password"


class Crash(BaseException):
    """kill -9: nothing after it runs."""


class FakeLogin:
    """A server that keeps one password for one role. ``crash`` names the moment at which the broker dies."""

    def __init__(self):
        self.password, self.cluster, self.sessions, self.crash, self.away = OLD, "7", 0, "", False
        self.number = 0

    def propose(self):
        self.number += 1
        return Secret(f"new-password-{self.number}")

    def others(self):
        self._reach("others")
        return self.sessions

    def replace(self, secret):
        self._reach("before replace")
        self.password = secret.reveal()
        self._reach("after replace")

    def accepts(self, secret):
        self._reach("accepts")
        return secret.reveal() == self.password

    def _reach(self, moment):
        if self.away:
            raise TargetUnavailable("away")
        if self.crash == moment:
            raise Crash


class CrashingKept(Kept):
    def write(self, credential):
        kind = "next" if credential.next else "alone"
        self.login._reach(f"before writing {kind}")
        super().write(credential)
        self.login._reach(f"after writing {kind}")


@pytest.fixture
def login():
    return FakeLogin()


@pytest.fixture
def kept(tmp_path, login):
    tmp_path.chmod(0o700)
    write_credential(tmp_path, "orders.cred", Credential("taskpass_broker_00000000", Secret(OLD)))
    return CrashingKept(tmp_path, "orders.cred", ("orders",), login)


def stored(kept):
    return read_credential(kept.directory, {"file": kept.file})


def events(h, prefix="login."):
    with h.store.read() as unit:
        found = [json.loads(record.body)["event"] for record in unit.audit.records(after=0, limit=1000)]
    return [event for event in found if event.startswith(prefix)]


def test_a_rotation_leaves_the_new_password_alone_in_the_file_and_two_records(h, kept, login):
    at = rotate_login(h.broker, kept)
    assert [secret.reveal() for secret in stored(kept).passwords] == [login.password] == ["new-password-1"]
    assert stored(kept).rotated_at == at == h.clock.now()
    assert events(h) == ["login.rotation_started", "login.rotated"]


MOMENTS = [
    "others",
    "before writing next",
    "after writing next",
    "before replace",
    "after replace",
    "accepts",
    "before writing alone",
    "after writing alone",
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_crash_at_any_moment_leaves_a_password_that_works_and_the_next_rotation_finds_it(h, kept, login, moment):
    login.crash = moment
    with pytest.raises(Crash):
        rotate_login(h.broker, kept)
    assert login.password in {secret.reveal() for secret in stored(kept).passwords}
    login.crash = ""
    rotate_login(h.broker, kept)
    assert [secret.reveal() for secret in stored(kept).passwords] == [login.password]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_crash_while_what_a_crash_left_is_settled_is_settled_by_the_next(h, kept, login, moment):
    login.crash = "after replace"
    with pytest.raises(Crash):
        rotate_login(h.broker, kept)
    login.crash = moment
    with pytest.raises(Crash):
        rotate_login(h.broker, kept)
    assert login.password in {secret.reveal() for secret in stored(kept).passwords}
    login.crash = ""
    rotate_login(h.broker, kept)
    assert [secret.reveal() for secret in stored(kept).passwords] == [login.password]


def test_nothing_is_changed_without_a_record(h, kept, login):
    h.store.down = "store_full"
    with pytest.raises(Exception, match="store"):
        rotate_login(h.broker, kept)
    assert login.password == OLD
    assert [secret.reveal() for secret in stored(kept).passwords] == [OLD]


def test_a_login_that_others_use_too_is_left_alone(h, kept, login):
    login.sessions = 1
    with pytest.raises(Conflict) as caught:
        rotate_login(h.broker, kept)
    assert caught.value.code == "login_shared"
    assert login.password == OLD


def test_a_login_whose_passwords_are_both_wrong_is_said_to_be_lost_and_nothing_is_thrown_away(h, kept, login):
    kept.write(Credential("taskpass_broker_00000000", Secret(OLD), next=Secret("other")))
    login.password = "somebody else's"
    with pytest.raises(TargetUnavailable) as caught:
        rotate_login(h.broker, kept)
    assert caught.value.code == "login_lost"
    assert [secret.reveal() for secret in stored(kept).passwords] == ["other", OLD]


def test_it_is_done_at_the_start_and_daily_and_its_age_is_told(h, kept, login):
    rotation = Rotation(h.broker, [kept])
    assert rotation.report() == {"orders": {"age_seconds": None, "error": None}}
    assert [rotation.run(), rotation.run()] == [1, 0]
    h.clock.forward(DAY / 1000 - 60)
    assert rotation.run() == 0
    assert rotation.report() == {"orders": {"age_seconds": 86340, "error": None}}
    h.clock.forward(60)
    assert rotation.run() == 1
    assert Rotation(h.broker, [kept]).run() == 1, "a start is a reason of its own"


def test_a_target_that_does_not_answer_is_tried_again_and_told(h, kept, login):
    rotation = Rotation(h.broker, [kept])
    login.away = True
    assert rotation.run() == 0
    assert rotation.report()["orders"]["error"]["code"] == "target_unavailable"
    login.away = False
    assert rotation.run() == 1
    assert rotation.report() == {"orders": {"age_seconds": 0, "error": None}}
