"""What a broker finds that it did not leave: after a restart, in a target, in a store that was put back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from taskpass.broker.reconcile import reconcile
from taskpass.broker.revoke import Selector, revoke
from taskpass.core.errors import Conflict, TargetUnfit, TaskpassError
from taskpass.core.ids import role_name
from taskpass.core.lease import LeaseState
from taskpass.issuers.base import Finding, Severity
from taskpass.testing.broker import DEV, STAGING
from taskpass.testing.unkind_issuer import Role


def leased(h):
    agent = h.run()
    agent.open_task()
    lease = agent.lease()
    return agent, lease, agent.connect(lease)


def installation(h):
    with h.store.read() as unit:
        return unit.installation.id


def orphan(h, lease="lse_" + "7" + "0" * 25, *, login=True):
    name = role_name(installation(h), lease)
    h.servers[DEV].roles[name] = Role(name, login, "x", h.servers[DEV].now() + 10**7)
    return name


def test_after_a_restart_nothing_that_was_served_is_left(h):
    _, lease, session = leased(h)
    h.restart()
    assert h.lease(lease.id).state is LeaseState.CLOSING
    assert h.lease(lease.id).reason == "broker_restarted"
    h.settle(3)
    assert not session.alive
    assert h.lease(lease.id).state is LeaseState.CLEANED


def test_after_a_restart_a_target_that_is_away_is_waited_for(h):
    _, lease, _ = leased(h)
    h.servers[DEV].down = True
    h.restart()
    h.settle(5)
    assert h.lease(lease.id).state is LeaseState.CLOSING
    h.servers[DEV].down = False
    h.settle(61)
    assert h.lease(lease.id).state is LeaseState.CLEANED


def test_a_role_of_ours_that_no_lease_explains_is_closed_and_recorded(h):
    name = orphan(h)
    found = reconcile(h.broker)
    assert found.orphans == (name,)
    assert h.servers[DEV].roles == {}
    assert h.events()[-2:] == ["orphan.found", "orphan.closed"]
    assert reconcile(h.broker).orphans == ()


def test_one_orphan_that_cannot_be_closed_hides_no_other(h):
    first, second = orphan(h), orphan(h, "lse_" + "7" + "1" * 25)
    server = h.servers[DEV]
    closed = []

    def first_fails(call):
        if call == "close" and not closed:
            closed.append(1)
            server.unprovable = True
        elif call == "close":
            server.unprovable = False

    server.before = first_fails
    found = reconcile(h.broker)
    assert len(found.orphans) == 1
    assert set(found.unreachable) == {DEV}
    assert {first, second} >= set(server.roles)
    assert len(reconcile(h.broker).orphans) == 1


def test_roles_of_others_are_reported_and_untouched(h):
    server = h.servers[DEV]
    names = ["tp_zzzzzzzz_" + "0" * 26, "tp_handmade"]
    for name in names:
        server.roles[name] = Role(name, True, "x", server.now() + 10**7)
    session = server.login(names[0], "x")
    h.settle(61)
    assert set(h.sweeper.reconciled.foreign) == set(names)
    assert session.alive
    assert set(server.roles) == set(names)


def test_a_live_lease_is_left_alone(h):
    _, lease, session = leased(h)
    assert reconcile(h.broker).orphans == ()
    assert session.alive
    assert h.lease(lease.id).state is LeaseState.ACTIVE


def test_a_lease_that_is_being_made_is_left_alone(h):
    agent = h.run()
    agent.open_task()
    found = []
    h.servers[DEV].after = lambda call: found.append(reconcile(h.broker)) if call == "create" else None
    lease = agent.lease()
    assert found[0].orphans == ()
    assert h.lease(lease.id).state is LeaseState.ACTIVE


@pytest.mark.parametrize("sign", ["login", "session"])
def test_a_closed_lease_whose_role_is_open_again_is_closed_again(h, sign):
    """An older copy of the database was promoted, or somebody changed the role by hand."""
    _, lease, _ = leased(h)
    server = h.servers[DEV]
    server.block_all = True
    revoke(h.broker, Selector("all"), actor="test")
    role = server.roles[lease.role]
    role.login, role.password = True, "again"
    session = server.login(lease.role, "again")
    role.login = sign == "login"
    reconcile(h.broker)
    assert not session.alive
    assert h.usable() == set()
    assert h.lease(lease.id).incidents == 1


def test_a_target_that_left_the_config_is_still_closed(h):
    _, lease, session = leased(h)
    revoke(h.broker, Selector("resource", STAGING), actor="test")
    resources = {name: item for name, item in h.broker.config.resources.items() if name != DEV}
    issuers = {name: item for name, item in h.broker.issuers.items() if name != DEV}
    h.broker = replace(h.broker, config=replace(h.broker.config, resources=resources), issuers=issuers)
    orphan(h)
    revoke(h.broker, Selector("all"), actor="test")
    assert not session.alive
    assert h.lease(lease.id).state is LeaseState.CLOSED
    assert len(reconcile(h.broker).orphans) == 1


class TestRestoredStore:
    def copy(self, h):
        for name in ("taskpass.db", "taskpass.db-wal"):
            source = h.directory / name
            if source.exists():
                shutil.copyfile(source, h.directory / f"{name}.night")

    def put_back(self, h):
        h.store.close()
        for path in h.directory.glob("taskpass.db*"):
            if not path.name.endswith(".night"):
                path.unlink()
        (h.directory / "audit-head").unlink(missing_ok=True)
        for path in h.directory.glob("*.night"):
            path.rename(path.with_suffix("") if path.suffix == ".night" else path)
            h.directory.joinpath(path.name.removesuffix(".night")).chmod(0o600)
        h.start()

    def test_behind_the_targets_audit_head_issues_nothing(self, h):
        agent = h.run()
        agent.open_task()
        request = agent.request()
        self.copy(h)
        agent.issue(request)
        self.put_back(h)
        agent.harness = h
        with pytest.raises(Conflict) as refused:
            agent.issue(request)
        assert refused.value.code == "store_restored"
        with pytest.raises(Conflict):
            agent.request()
        agent.request(STAGING)

    def test_behind_the_targets_epoch_issues_nothing(self, h):
        agent = h.run()
        agent.open_task()
        h.servers[DEV].epoch = 2
        with pytest.raises(Conflict) as refused:
            agent.request()
        assert refused.value.code == "store_restored"

    def test_that_was_adopted_tells_the_target_and_goes_on(self, h):
        agent = h.run()
        agent.open_task()
        h.servers[DEV].epoch = 2
        with h.store.inner.write() as unit:
            unit.raise_epoch(2)
        agent.request()
        assert h.servers[DEV].epoch == 3

    def test_does_not_touch_what_it_does_not_remember(self, h):
        """Whose leases these are is for a person to say; until then they end by the target's own clock."""
        name = orphan(h)
        h.servers[DEV].audit_seq = 10**6
        assert reconcile(h.broker).orphans == ()
        assert name in h.servers[DEV].roles
        assert "store_restored" in reconcile(h.broker).unreachable[DEV]

    def test_still_takes_back(self, h):
        _, lease, session = leased(h)
        h.servers[DEV].epoch = 9
        revoke(h.broker, Selector("all"), actor="test")
        assert not session.alive
        assert h.lease(lease.id).state is LeaseState.CLOSED


class TestFitness:
    def test_a_target_with_a_fatal_finding_serves_nothing_until_it_is_mended(self, h):
        agent = h.run()
        agent.open_task()
        h.servers[DEV].unfit = [Finding("public_create", Severity.FATAL, "CREATE on schema canary for PUBLIC", "fix")]
        with pytest.raises(TargetUnfit) as refused:
            agent.request()
        assert refused.value.code == "target_unfit_public_create"
        assert "canary" not in refused.value.message + refused.value.hint
        h.servers[DEV].unfit = []
        agent.request()

    def test_a_target_that_became_unfit_after_the_yes_issues_nothing(self, h):
        agent = h.run()
        agent.open_task()
        request = agent.request()
        h.servers[DEV].unfit = [Finding("public_create", Severity.FATAL, "x")]
        h.fitness.check(DEV)
        with pytest.raises(TargetUnfit):
            agent.issue(request)
        assert h.leases() == []

    def test_a_target_that_is_away_is_named_so(self, h):
        agent = h.run()
        agent.open_task()
        h.servers[DEV].down = True
        with pytest.raises(TaskpassError) as refused:
            agent.request()
        assert refused.value.code == "target_unavailable"
        assert refused.value.retryable


# ---- what a failover loses ----


def found(h, event):
    bodies = [json.loads(record.body) for record in h.store.iterate_audit()]
    return [body for body in bodies if body["event"] == event]


def test_a_lease_that_the_target_has_forgotten_is_ended_as_an_incident(h):
    _, lease, _ = leased(h)
    _, kept, session = leased(h)
    del h.servers[DEV].roles[lease.role]
    reconcile(h.broker)
    assert (h.lease(lease.id).state, h.lease(lease.id).reason) == (LeaseState.CLOSING, "lost_in_target")
    assert h.lease(lease.id).incidents == 1
    assert [body["subject"]["lease"] for body in found(h, "lease.lost")] == [lease.id]
    assert session.alive
    assert h.lease(kept.id).state is LeaseState.ACTIVE
    h.settle(3)
    assert h.lease(lease.id).state is LeaseState.CLEANED


def test_a_lease_that_the_target_knows_as_closed_is_ended_once_it_had_time_to_be_enabled(h):
    _, lease, _ = leased(h)
    h.servers[DEV].roles[lease.role].login = False
    reconcile(h.broker)
    assert h.lease(lease.id).state is LeaseState.ACTIVE
    h.clock.forward(61)
    reconcile(h.broker)
    assert h.lease(lease.id).reason == "lost_in_target"


def test_a_lease_that_is_made_while_stock_is_taken_is_not_lost(h):
    agent = h.run()
    agent.open_task()
    made = []

    def in_between(call):
        if call == "inventory" and not made:
            made.append(None)
            stock = dict(h.servers[DEV].roles)
            made[0] = agent.lease()
            late.update(h.servers[DEV].roles)
            h.servers[DEV].roles.clear()
            h.servers[DEV].roles.update(stock)

    late = {}
    h.servers[DEV].before = in_between
    reconcile(h.broker)
    assert h.lease(made[0].id).state is LeaseState.ACTIVE
    assert found(h, "lease.lost") == []


def test_a_target_that_remembers_less_than_it_was_told_is_recorded_once(h):
    leased(h)
    reconcile(h.broker)
    assert found(h, "target.behind") == []
    told = h.servers[DEV].audit_seq
    h.servers[DEV].audit_seq = 1
    reconcile(h.broker)
    reconcile(h.broker)
    (behind,) = found(h, "target.behind")
    assert behind["data"]["audit_seq"] == 1
    assert 1 < behind["data"]["told"] <= told


@pytest.mark.parametrize(
    ("why", "reason"),
    [("member", "wider_than_manifest"), ("privileged", "wider_than_manifest"), ("renamed", "changed_in_target")],
)
def test_a_lease_whose_account_another_hand_changed_is_taken_back(h, why, reason):
    _, lease, session = leased(h)
    issuer = h.broker.issuer(DEV)
    inventory = issuer.inventory
    issuer.inventory = lambda: replace(inventory(), changed=((lease.id, why), ("lse_" + "7" + "0" * 25, why)))
    reconcile(h.broker)
    issuer.inventory = inventory
    assert (h.lease(lease.id).state, h.lease(lease.id).reason) == (LeaseState.CLOSING, reason)
    h.settle(3)
    assert not session.alive
    assert h.lease(lease.id).state is LeaseState.CLEANED
