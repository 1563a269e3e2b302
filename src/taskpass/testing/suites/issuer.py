"""What every issuer must do, whatever its target. See ``issuers.base`` for the contract.

Derive a class from ``IssuerSuite`` and give it a fixture ``rig``. Tests ask the issuer for its capabilities; they know
no vendor. ``Rig.enter`` is the agent: the only judge of whether an account works.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol, cast

import pytest

from taskpass.core.aftermath import Ran
from taskpass.core.clock import Entropy, Instant
from taskpass.core.errors import Conflict, InvalidInput, ManifestChanged, TargetUnavailable, TargetUnfit
from taskpass.core.ids import LeaseId, RoleName, new_id, role_name
from taskpass.core.manifest import Keep, Manifest, narrow
from taskpass.core.scope import Level, Scope, Verb
from taskpass.core.secret import Secret
from taskpass.core.widening import remaining, widened
from taskpass.issuers.base import Inventory, Issuer, Migrator, Order, Progress, Severity, Taken, rights_of


class LoginRefused(Exception):
    """The target did not let the account in."""


class Session(Protocol):
    """An open session of an account."""

    def alive(self) -> bool:
        """Whether it can still do anything."""
        ...


@dataclass(frozen=True)
class Files:
    """Files of two statements, in line 1 and 2. ``good`` ends well and widens nothing, ``failing`` fails in line 2,
    ``open_door`` leaves something wider, and line 2 of ``refused`` is no statement. ``scope`` is hands-on; ``done``
    says whether the effect of the first two's line 1 stands.
    """

    scope: Scope
    good: str
    failing: str
    open_door: str
    refused: str
    done: Callable[[], bool]


class Rig(Protocol):
    """An issuer under test with the agent's and the outside world's side of its target."""

    @property
    def issuer(self) -> Issuer:
        """A ``Migrator`` too if its capabilities say that it changes schemas."""
        ...

    @property
    def other(self) -> Issuer:
        """The issuer of another installation for the same target."""
        ...

    @property
    def scope(self) -> Scope:
        """Resolves to at least one object with at least two columns."""
        ...

    @property
    def writing(self) -> Scope:
        """The same objects at level write, if the issuer can change data."""
        ...

    @property
    def files(self) -> Files:
        """Migration files for the target, if the issuer can change a schema."""
        ...

    @property
    def entropy(self) -> Entropy: ...

    def enter(self, role: RoleName, secret: Secret) -> Session:
        """Log in. Raises ``LoginRefused``."""
        ...

    def change_meaning(self) -> None:
        """Something happens in the target after which the scope means another manifest."""
        ...

    def make_by_hand(self, name: str) -> None:
        """Somebody creates an account with that name."""
        ...

    def outlive(self, seconds: int) -> None:
        """Return when the target's clock is so many seconds further."""
        ...

    def cut_off(self) -> None:
        """The target does not answer any more."""
        ...


@dataclass(frozen=True)
class Made:
    lease: LeaseId
    role: RoleName
    secret: Secret
    order: Order


_TICKS = itertools.count(1_790_000_000_000)


def order(
    rig: Rig,
    issuer: Issuer | None = None,
    *,
    lifetime: int = 120,
    manifest: Manifest | None = None,
    scope: Scope | None = None,
) -> Made:
    """A fresh lease's order over everything that the rig's scope, or ``scope``, means now."""
    issuer, scope = issuer or rig.issuer, scope or rig.scope
    lease = LeaseId(new_id("lse", Instant(next(_TICKS)), rig.entropy))
    role = role_name(issuer.installation, lease)
    resolved = issuer.resolve(scope)
    secret = Secret(f"{rig.entropy.bytes(16).hex()}")
    made = Order(
        lease, role, scope, resolved.digest(), manifest or resolved, lifetime, secret, audit_head="7:sha256:00ff"
    )
    return Made(lease, role, secret, made)


def live(rig: Rig, issuer: Issuer | None = None, *, lifetime: int = 120, scope: Scope | None = None) -> Made:
    """An account that can log in."""
    issuer = issuer or rig.issuer
    made = order(rig, issuer, lifetime=lifetime, scope=scope)
    issuer.create(made.order)
    issuer.enable(made.role, lifetime=lifetime, audit_head="8:sha256:00ff")
    return made


def names(inventory: Inventory) -> set[str]:
    return {role.name for role in inventory.own}


class IssuerSuite:
    """Behaviour that callers rely on. Method names are the sentences."""

    # ---- making ----

    def test_a_created_account_cannot_log_in_until_it_is_enabled(self, rig: Rig) -> None:
        made = order(rig)
        rig.issuer.create(made.order)
        with pytest.raises(LoginRefused):
            rig.enter(made.role, made.secret)
        rig.issuer.enable(made.role, lifetime=60, audit_head="")
        assert rig.enter(made.role, made.secret).alive()

    def test_the_account_has_exactly_the_granted_rights(self, rig: Rig) -> None:
        resolved = rig.issuer.resolve(rig.scope)
        first = resolved.objects[0]
        keep = Keep(first.oid, frozenset({first.columns[0].number}), first.verbs)
        made = order(rig, manifest=narrow(resolved, [keep]))
        rig.issuer.create(made.order)
        assert rig.issuer.rights(made.role) == {(first.oid, "SELECT"): frozenset({first.columns[0].number})}

    def test_nothing_to_grant_is_refused(self, rig: Rig) -> None:
        made = order(rig, manifest=narrow(rig.issuer.resolve(rig.scope), []))
        with pytest.raises(InvalidInput):
            rig.issuer.create(made.order)
        assert made.role not in names(rig.issuer.inventory())

    def test_another_meaning_of_the_scope_is_refused_and_leaves_nothing(self, rig: Rig) -> None:
        made = order(rig)
        rig.change_meaning()
        with pytest.raises(ManifestChanged):
            rig.issuer.create(made.order)
        assert made.role not in names(rig.issuer.inventory())

    def test_creating_again_replaces_the_secret_and_makes_no_second_account(self, rig: Rig) -> None:
        made = live(rig)
        again = Order(
            *(made.lease, made.role, rig.scope, made.order.asked, made.order.manifest, 120, Secret("another" * 6))
        )
        rig.issuer.create(again)
        rig.issuer.enable(made.role, lifetime=60, audit_head="")
        assert rig.enter(made.role, again.secret).alive()
        with pytest.raises(LoginRefused):
            rig.enter(made.role, made.secret)
        assert [role.name for role in rig.issuer.inventory().own].count(made.role) == 1

    def test_what_was_never_created_cannot_be_enabled(self, rig: Rig) -> None:
        with pytest.raises(Conflict):
            rig.issuer.enable(order(rig).role, lifetime=60, audit_head="")

    def test_several_accounts_can_be_made_at_once(self, rig: Rig) -> None:
        orders = [order(rig) for _ in range(4)]
        with ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(rig.issuer.create, [made.order for made in orders]))
        assert {made.role for made in orders} <= names(rig.issuer.inventory())

    # ---- writing ----

    def test_a_writing_account_has_exactly_the_verbs_that_were_left(self, rig: Rig) -> None:
        if not rig.issuer.capabilities_of(Level.WRITE).changes_data:
            pytest.skip("this target is only read")
        resolved = rig.issuer.resolve(rig.writing)
        whole = order(rig, scope=rig.writing)
        rig.issuer.create(whole.order)
        assert rig.issuer.rights(whole.role) == rights_of(resolved)
        first = resolved.objects[0]
        assert first.verbs >= {Verb.SELECT, Verb.INSERT, Verb.UPDATE, Verb.DELETE}
        columns = frozenset(column.number for column in first.columns)
        keep = Keep(first.oid, columns, frozenset({Verb.SELECT, Verb.INSERT}))
        part = order(rig, scope=rig.writing, manifest=narrow(resolved, [keep]))
        rig.issuer.create(part.order)
        assert {verb for oid, verb in rig.issuer.rights(part.role) if oid == first.oid} == {"SELECT", "INSERT"}

    def test_a_verb_above_what_was_decided_is_refused(self, rig: Rig) -> None:
        if not rig.issuer.capabilities_of(Level.WRITE).changes_data:
            pytest.skip("this target is only read")
        reads, writes = order(rig), rig.issuer.resolve(rig.writing)
        with pytest.raises(ManifestChanged):
            rig.issuer.create(replace(reads.order, manifest=writes))
        assert reads.role not in names(rig.issuer.inventory())

    # ---- migrating ----

    def test_a_file_runs_as_the_owner_until_the_lease_is_closed(self, rig: Rig) -> None:
        issuer, files = _migrator(rig), rig.files
        made = order(rig, scope=_approved(issuer, files, files.good))
        steps: list[Progress] = []

        def run() -> Ran:
            return issuer.run_script(made.role, made.secret, files.scope.owner, files.good, steps.append)

        issuer.create(made.order)
        with pytest.raises(TargetUnavailable):
            run()
        before = issuer.snapshot()
        issuer.enable(made.role, lifetime=60, audit_head="")
        assert issuer.rights(made.role) == {}
        assert run() is Ran.COMMITTED
        assert files.done()
        assert [(step.what, step.line) for step in steps] == [("begun", 1), ("done", 1), ("begun", 2), ("done", 2)]
        assert not any(secret in repr(steps) for secret in (made.role, made.secret.reveal()))
        assert widened(before, issuer.snapshot()) == ()
        assert not issuer.close(made.role, audit_head="").absent
        with pytest.raises(TargetUnavailable):
            run()

    def test_a_file_that_fails_half_way_leaves_nothing_and_names_the_line(self, rig: Rig) -> None:
        issuer, files = _migrator(rig), rig.files
        made = live(rig, scope=_approved(issuer, files, files.failing))
        steps: list[Progress] = []
        ran = issuer.run_script(made.role, made.secret, files.scope.owner, files.failing, steps.append)
        assert ran is Ran.ROLLED_BACK
        assert (steps[-1].what, steps[-1].line) == ("failed", 2)
        assert not files.done()

    def test_what_a_file_leaves_wider_shows_in_the_second_snapshot(self, rig: Rig) -> None:
        issuer, files = _migrator(rig), rig.files
        made, before = live(rig, scope=_approved(issuer, files, files.open_door)), issuer.snapshot()
        issuer.run_script(made.role, made.secret, files.scope.owner, files.open_door, lambda step: None)
        issuer.close(made.role, audit_head="")
        found = widened(before, issuer.snapshot())
        assert found
        assert remaining(found, before) == ()

    def test_a_migration_is_one_file_as_one_enrolled_owner(self, rig: Rig) -> None:
        issuer, files = _migrator(rig), rig.files
        with pytest.raises(InvalidInput) as refused:
            issuer.read_script(files.refused)
        assert (refused.value.code, "line 2" in refused.value.message) == ("script_refused", True)
        made = order(rig, scope=_approved(issuer, files, files.good))
        other = issuer.resolve(_approved(issuer, files, files.failing))
        with pytest.raises(ManifestChanged):
            issuer.create(replace(made.order, asked=other.digest()))
        with pytest.raises(TargetUnfit):
            issuer.resolve(replace(made.order.scope, owner="nobody_s_owner"))

    # ---- taking back ----

    def test_closing_ends_sessions_and_refuses_the_login(self, rig: Rig) -> None:
        made = live(rig)
        session = rig.enter(made.role, made.secret)
        taken = rig.issuer.close(made.role, audit_head="")
        assert not taken.absent
        assert taken.answer
        assert taken.nodes
        assert min(taken.nodes.values()) >= 2
        with pytest.raises(LoginRefused):
            rig.enter(made.role, made.secret)
        if rig.issuer.capabilities.cuts_open_sessions:
            assert taken.ended == 1
            assert not session.alive()

    def test_an_account_without_sessions_is_closed(self, rig: Rig) -> None:
        made = live(rig)
        assert rig.issuer.close(made.role, audit_head="").ended == 0
        with pytest.raises(LoginRefused):
            rig.enter(made.role, made.secret)

    def test_closing_twice_is_success(self, rig: Rig) -> None:
        made = live(rig)
        assert rig.issuer.close(made.role, audit_head="").answer == rig.issuer.close(made.role, audit_head="").answer

    def test_closing_what_never_was_is_success_and_says_so(self, rig: Rig) -> None:
        assert rig.issuer.close(order(rig).role, audit_head="").absent

    def test_closing_what_was_cleaned_is_success(self, rig: Rig) -> None:
        made = live(rig)
        rig.issuer.close(made.role, audit_head="")
        assert rig.issuer.clean(made.role)
        assert rig.issuer.close(made.role, audit_head="").absent

    def test_an_account_that_was_only_created_is_closed(self, rig: Rig) -> None:
        made = order(rig)
        rig.issuer.create(made.order)
        assert not rig.issuer.close(made.role, audit_head="").absent

    def test_a_closed_account_can_never_be_enabled_or_created_again(self, rig: Rig) -> None:
        made = live(rig)
        rig.issuer.close(made.role, audit_head="")
        with pytest.raises(Conflict):
            rig.issuer.enable(made.role, lifetime=60, audit_head="")
        with pytest.raises(Conflict):
            rig.issuer.create(made.order)
        with pytest.raises(LoginRefused):
            rig.enter(made.role, made.secret)

    def test_an_effect_that_comes_after_the_closing_is_refused(self, rig: Rig) -> None:
        made = order(rig)
        assert rig.issuer.close(made.role, audit_head="").absent
        with pytest.raises(Conflict):
            rig.issuer.create(made.order)
        assert made.role not in names(rig.issuer.inventory())

    def test_an_account_ends_by_itself_and_closing_it_is_proven(self, rig: Rig) -> None:
        if not rig.issuer.capabilities.expires_by_itself:
            pytest.skip("this target does not end accounts by itself")
        made = live(rig, lifetime=1)
        rig.outlive(1)
        with pytest.raises(LoginRefused):
            rig.enter(made.role, made.secret)
        assert not rig.issuer.close(made.role, audit_head="").absent

    def test_a_late_sweep_of_a_closed_account_finds_nothing(self, rig: Rig) -> None:
        made = live(rig)
        rig.enter(made.role, made.secret)
        rig.issuer.close(made.role, audit_head="")
        assert rig.issuer.sweep(made.role) == 0

    def test_several_accounts_can_be_closed_at_once(self, rig: Rig) -> None:
        made = [live(rig) for _ in range(4)]

        def close(each: Made) -> Taken:
            return rig.issuer.close(each.role, audit_head="")

        with ThreadPoolExecutor(max_workers=4) as pool:
            taken = list(pool.map(close, made))
        assert not any(each.absent for each in taken)
        for each in made:
            with pytest.raises(LoginRefused):
                rig.enter(each.role, each.secret)

    # ---- cleaning ----

    def test_cleaning_leaves_nothing_and_may_be_repeated(self, rig: Rig) -> None:
        made = live(rig)
        rig.issuer.close(made.role, audit_head="")
        assert made.role in names(rig.issuer.inventory())
        assert rig.issuer.clean(made.role)
        assert made.role not in names(rig.issuer.inventory())
        assert rig.issuer.clean(made.role)

    def test_cleaning_what_never_was_is_success(self, rig: Rig) -> None:
        assert rig.issuer.clean(order(rig).role)

    def test_an_open_account_is_not_cleaned(self, rig: Rig) -> None:
        made = live(rig)
        with pytest.raises(Conflict):
            rig.issuer.clean(made.role)
        assert rig.enter(made.role, made.secret).alive()

    # ---- what stands there ----

    def test_the_inventory_shows_who_can_log_in(self, rig: Rig) -> None:
        made, other = live(rig), order(rig)
        rig.issuer.create(other.order)
        session = rig.enter(made.role, made.secret)
        found = {role.name: role for role in rig.issuer.inventory().own}
        assert (found[made.role].lease, found[made.role].can_login, found[made.role].sessions) == (made.lease, True, 1)
        assert (found[other.role].lease, found[other.role].can_login) == (other.lease, False)
        assert session.alive()

    def test_a_hand_made_account_is_reported_and_never_ours(self, rig: Rig) -> None:
        rig.make_by_hand("tp_hand_made")
        inventory = rig.issuer.inventory()
        assert "tp_hand_made" in inventory.foreign
        assert "tp_hand_made" not in names(inventory)

    def test_another_installation_is_reported_and_never_touched(self, rig: Rig) -> None:
        theirs = live(rig, rig.other)
        inventory = rig.issuer.inventory()
        assert theirs.role in inventory.foreign
        for effect in _effects(rig.issuer, theirs):
            with pytest.raises(InvalidInput):
                effect()
        assert rig.enter(theirs.role, theirs.secret).alive()

    def test_the_epoch_is_remembered_and_never_lowered(self, rig: Rig) -> None:
        rig.issuer.set_epoch(3)
        rig.issuer.set_epoch(2)
        assert rig.issuer.inventory().epoch == 3
        assert rig.other.inventory().epoch == 0

    def test_the_highest_audit_number_is_remembered(self, rig: Rig) -> None:
        made = live(rig)
        rig.issuer.close(made.role, audit_head="41:sha256:00ff")
        rig.issuer.clean(made.role)
        assert rig.issuer.inventory().audit_seq == 41
        assert rig.other.inventory().audit_seq == 0

    def test_the_throw_away_account_of_a_rehearsal_is_gone_afterwards(self, rig: Rig) -> None:
        before = names(rig.issuer.inventory())
        findings = rig.issuer.preflight(thorough=True)
        assert not [finding for finding in findings if finding.severity is Severity.FATAL]
        assert "rehearsal" in {finding.check for finding in findings}
        assert names(rig.issuer.inventory()) == before

    # ---- no answer ----

    def test_the_clients_of_a_drill_judge_that_an_account_ended(self, rig: Rig) -> None:
        made = order(rig)
        rig.issuer.rehearse(made.role, made.secret, audit_head="7:sha256:00ff")
        assert rig.issuer.rights(made.role) == {}
        clients = rig.issuer.drill(made.role, made.secret, reads=None)
        clients.control()
        kinds = clients.open()
        clients.ordered()
        rig.issuer.close(made.role, audit_head="9:sha256:00ff")
        met = clients.met()
        clients.close()
        assert len(kinds) >= 6
        assert {each.kind for each in met} >= {*kinds, "password"}
        assert [each for each in met if not each.ended] == []

    def test_a_server_that_accepts_no_password_at_all_fails_the_control_of_a_drill(self, rig: Rig) -> None:
        made = order(rig)
        rig.issuer.rehearse(made.role, made.secret, audit_head="")
        rig.issuer.close(made.role, audit_head="")
        with pytest.raises(TargetUnfit):
            rig.issuer.drill(made.role, made.secret, reads=None).control()

    def test_nobody_rehearses_under_another_installation_s_name(self, rig: Rig) -> None:
        made = order(rig, rig.other)
        with pytest.raises(InvalidInput):
            rig.issuer.rehearse(made.role, made.secret, audit_head="")
        with pytest.raises(InvalidInput):
            rig.issuer.drill(made.role, made.secret, reads=None)

    def test_a_target_without_an_answer_is_unavailable_and_nothing_is_called_proven(self, rig: Rig) -> None:
        made = live(rig)
        rig.cut_off()
        calls: list[Callable[[], object]] = [
            lambda: rig.issuer.resolve(rig.scope),
            rig.issuer.inventory,
            rig.issuer.preflight,
            lambda: rig.issuer.set_epoch(1),
            *_effects(rig.issuer, made),
        ]
        for call in calls:
            with pytest.raises(TargetUnavailable) as caught:
                call()
            assert caught.value.retryable
            assert made.secret.reveal() not in repr(caught.value) + str(caught.value.__context__)

    def test_the_issuer_stays_usable_after_giving_its_connections_back(self, rig: Rig) -> None:
        made = live(rig)
        rig.issuer.close_connections()
        assert not rig.issuer.close(made.role, audit_head="").absent


def _migrator(rig: Rig) -> Migrator:
    if not rig.issuer.capabilities_of(Level.MIGRATE).changes_schema:
        pytest.skip("this target is not migrated")
    # Which issuer is one is known by its capabilities.
    return cast("Migrator", rig.issuer)


def _approved(issuer: Migrator, files: Files, text: str) -> Scope:
    """What a person approves: this very file, as the owner of ``files``."""
    return replace(files.scope, script=issuer.read_script(text))


def _effects(issuer: Issuer, made: Made) -> list[Callable[[], object]]:
    return [
        lambda: issuer.create(made.order),
        lambda: issuer.enable(made.role, lifetime=60, audit_head=""),
        lambda: issuer.rehearse(made.role, made.secret, audit_head=""),
        lambda: issuer.close(made.role, audit_head=""),
        lambda: issuer.sweep(made.role),
        lambda: issuer.clean(made.role),
        lambda: issuer.rights(made.role),
    ]
