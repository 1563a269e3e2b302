"""A restored store and the person who adopts it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from taskpass.audit import witness
from taskpass.audit.verify import verify
from taskpass.broker.adopt import adopt, survey
from taskpass.broker.reconcile import reconcile
from taskpass.core.errors import Conflict, InvalidInput, StoreUnavailable, TargetUnavailable, TaskpassError
from taskpass.core.lease import LeaseState
from taskpass.core.request import RequestState
from taskpass.keys.ed25519 import PublicKeys
from taskpass.store.check import check
from taskpass.testing.broker import DEV, STAGING, MemorySigner


def backup(h):
    h.store.close()
    for path in h.directory.glob("taskpass.db*"):
        shutil.copyfile(path, path.with_name(f"night.{path.name}"))
    h.start()


def restore(h, *, witness=False):
    """Put the backup back, with the file beside it gone or left as it is."""
    h.store.close()
    for path in h.directory.glob("taskpass.db*"):
        path.unlink()
    for path in h.directory.glob("night.*"):
        path.rename(path.with_name(path.name.removeprefix("night.")))
    (h.directory / "taskpass.db").chmod(0o600)
    if not witness:
        (h.directory / "audit-head").unlink(missing_ok=True)
    h.start()


@pytest.fixture
def lost(h):
    """A lease that the restored store never heard of, with its role open in the target."""
    agent = h.run()
    agent.open_task()
    known = agent.lease()
    waiting = agent.request(STAGING)
    backup(h)
    lease = agent.lease()
    restore(h)
    return agent, known, waiting, lease


def accepted(h, **more):
    return adopt(h.broker, actor="human:ana", mark=survey(h.broker).mark, **more)


def code(act):
    with pytest.raises(TaskpassError) as refused:
        act()
    return refused.value.code


def test_the_survey_names_what_the_copy_does_not_know_and_changes_nothing(h, lost):
    _, known, _, lease = lost
    before = h.events()
    found = survey(h.broker)
    dev = next(target for target in found.targets if target.resource == DEV)
    assert (dev.unknown, dev.usable, dev.gone) == ((lease.role,), 1, ())
    assert found.restored
    assert found.leases == (known.id,)
    assert found.requests == 1
    assert found.to_json()["lost"] == h.servers[DEV].audit_seq - found.seq
    assert h.events() == before


def test_adopting_takes_everything_back_and_issuing_works_again(h, lost):
    agent, known, waiting, lease = lost
    assert code(lambda: agent.request()) == "store_restored"
    seen = h.servers[DEV].audit_seq
    done = accepted(h)
    assert done.closed == (lease.role,)
    assert done.left == ()
    assert done.seq == seen + 1
    assert h.usable() == set()
    assert h.lease(known.id).state in (LeaseState.CLOSED, LeaseState.CLEANED)
    assert h.lease(known.id).reason == "store_adopted"
    assert {server.epoch for server in h.servers.values()} == {done.epoch}
    with h.store.read() as unit:
        assert unit.requests.get(waiting.id).state is RequestState.CANCELLED
    agent.lease()
    assert check(h.store).problems == ()


def test_a_yes_of_before_the_restore_is_not_used_after_it(h, lost):
    agent, _, waiting, _ = lost
    accepted(h)
    assert code(lambda: agent.issue(waiting)) == "expired"


def test_the_adoption_says_who_did_it_and_what_was_lost(h, lost):
    last = survey(h.broker).seq
    accepted(h)
    [body] = [json.loads(r.body) for r in h.store.iterate_audit() if '"event":"store.adopted"' in r.body]
    assert (body["actor"], body["data"]["last"]) == ("human:ana", last)
    assert body["data"]["highest"] == body["seq"] - 1
    assert body["epoch"] == 2


def test_a_copy_that_overtakes_what_the_target_remembers_is_still_a_copy(h, lost):
    agent, _, _, _ = lost
    reconcile(h.broker)
    while survey(h.broker).seq <= h.servers[DEV].audit_seq:
        agent.harness.run().open_task()
    assert code(lambda: agent.request()) == "store_restored"
    h.restart()
    assert code(lambda: agent.request()) == "store_restored"
    assert survey(h.broker).restored
    accepted(h)
    agent.lease()


def test_what_one_target_says_does_not_stop_the_others(h):
    """Its administrator could make it say anything."""
    agent = h.run()
    agent.open_task()
    h.servers[DEV].audit_seq = 10**12
    assert code(lambda: agent.request()) == "store_restored"
    assert agent.request(STAGING).state is RequestState.PENDING


def test_the_file_beside_the_store_stops_all_and_is_replaced_by_the_adoption(h):
    agent = h.run()
    agent.open_task()
    backup(h)
    h.run().open_task()
    restore(h, witness=True)
    assert survey(h.broker).contradicted
    assert code(lambda: agent.request(STAGING)) == "store_restored"
    done = accepted(h)
    assert h.broker.witnessed() >= done.seq
    assert not h.broker.store_is_copy()
    agent.lease()
    h.restart()
    assert not h.broker.store_is_copy()
    agent.request(STAGING)


def test_a_store_that_nothing_contradicts_is_not_adopted(h):
    with pytest.raises(Conflict) as refused:
        accepted(h)
    assert refused.value.code == "store_not_restored"


def test_what_changed_since_it_was_shown_is_shown_again(h, lost):
    mark = survey(h.broker).mark
    h.servers[DEV].audit_seq += 1
    before = h.events()
    with pytest.raises(Conflict) as refused:
        adopt(h.broker, actor="human:ana", mark=mark)
    assert refused.value.code == "adoption_changed"
    assert h.events() == before


def test_a_target_that_does_not_answer_is_left_out_by_name_only(h, lost):
    agent, _, _, lease = lost
    h.servers[STAGING].down = True
    with pytest.raises(TargetUnavailable) as refused:
        accepted(h)
    assert refused.value.code == "adoption_incomplete"
    with pytest.raises(InvalidInput):
        accepted(h, without=["nowhere"])
    done = accepted(h, without=[STAGING])
    assert done.closed == (lease.role,)
    agent.lease()


def test_a_target_that_was_left_out_and_remembers_more_goes_on_refusing(h, lost):
    agent, _, _, lease = lost
    assert code(lambda: agent.request()) == "store_restored"
    h.servers[DEV].down = True
    accepted(h, without=[DEV])
    h.servers[DEV].down = False
    h.clock.forward(61)
    h.sweeper.tick()
    assert code(lambda: agent.request()) == "store_restored"
    assert lease.role in h.servers[DEV].roles
    accepted(h)
    assert lease.role not in h.usable()
    agent.lease()


@pytest.mark.parametrize("how", ["before", "during"])
def test_an_adoption_that_cannot_be_recorded_changes_nothing(h, lost, how):
    agent, _, _, lease = lost
    assert code(lambda: agent.request()) == "store_restored"
    mark = survey(h.broker).mark
    h.store.fail_at, h.store.fail_how = h.store.writes + 1, how
    with pytest.raises(StoreUnavailable):
        adopt(h.broker, actor="human:ana", mark=mark)
    assert lease.role in h.usable()
    assert code(lambda: agent.request()) == "store_restored"
    accepted(h)
    assert lease.role not in h.usable()


def test_an_adoption_that_was_cut_off_after_its_record_is_finished_by_the_next_start(h, lost):
    _, known, _, _ = lost
    h.store.fail_at, h.store.fail_how = h.store.writes + 1, "after"
    with pytest.raises(StoreUnavailable):
        accepted(h)
    h.restart()
    if survey(h.broker).restored:
        accepted(h)
    for _ in range(3):
        h.clock.forward(31)
        h.sweeper.tick()
    assert h.usable() == set()
    assert h.lease(known.id).state in (LeaseState.CLOSED, LeaseState.CLEANED)
    agent = h.run()
    agent.open_task()
    agent.lease()


class Killed(BaseException):
    """What stands for a process that is killed."""


@pytest.mark.parametrize("step", ["accept_store", "end_leases"])
def test_an_adoption_that_is_killed_after_its_record_can_be_made_again(h, monkeypatch, step):
    """Before the file beside the store is written it goes on contradicting; after it the rest is done at start."""
    agent = h.run()
    agent.open_task()
    known = agent.lease()
    backup(h)
    agent.lease()
    restore(h, witness=True)

    def killed(*_, **__):
        raise Killed

    if step == "accept_store":
        h.broker = replace(h.broker, accept_store=killed)
    else:
        monkeypatch.setattr(f"taskpass.broker.adopt.{step}", killed)
    with pytest.raises(Killed):
        accepted(h)
    monkeypatch.undo()
    h.restart()
    if step == "accept_store":
        assert code(lambda: agent.request()) == "store_restored"
        found = survey(h.broker)
        assert found.contradicted
        done = accepted(h)
        assert done.left == ()
    reconcile(h.broker)
    h.settle()
    assert code(lambda: accepted(h)) == "store_not_restored"
    assert h.usable() == set()
    assert h.lease(known.id).state in (LeaseState.CLOSED, LeaseState.CLEANED)
    with h.store.read() as unit:
        assert {server.epoch for server in h.servers.values()} == {unit.installation.epoch}
    h.run().open_task()
    report = verify(
        h.store.iterate_audit(),
        own(h),
        None,
        own_keys=PublicKeys([MemorySigner().public]),
        witness=witness.read(h.directory / "audit-head"),
    )
    assert report.fault is None
    assert check(h.store).problems == ()


def own(h):
    with h.store.read() as unit:
        return unit.installation.id
