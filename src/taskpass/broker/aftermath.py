"""What a migration left: the snapshot before, the look afterwards, and what blocks until a person or an undoing.

A lease that is closed may leave a door open for ever (threats.md, item 8). So the catalogue is read before a migrate
lease can log in and after it is proven closed. Whatever cannot be looked at blocks like what was found (I5).
"""

from __future__ import annotations

import contextlib
from base64 import b64encode
from typing import cast

from taskpass.broker.context import Broker
from taskpass.core.aftermath import BLOCKING, Aftermath, AftermathEvent, AftermathState
from taskpass.core.approval import ACCEPT_WIDENING, CHALLENGE_SECONDS, Method, challenge, counts_for
from taskpass.core.audit import Event
from taskpass.core.clock import Instant, after
from taskpass.core.errors import Conflict, Denied, NotFound, TaskpassError
from taskpass.core.ids import HumanId, LeaseId
from taskpass.core.lease import Lease, LeaseState
from taskpass.core.manifest import Manifest
from taskpass.core.text import REASON_BYTES, accept
from taskpass.core.widening import Snapshot, remaining, widened, widening_digest
from taskpass.issuers.base import Issuer, Migrator
from taskpass.store.base import Unit

_LIVE = frozenset({LeaseState.INTENDED, LeaseState.ACTIVE})
_PROVEN = frozenset({LeaseState.CLOSED, LeaseState.CLEANED})


def migrator(issuer: Issuer) -> Migrator:
    """``issuer`` as one whose target can be migrated."""
    # Which issuer is one is known by what it resolves: only a migrator answers at level migrate.
    return cast("Migrator", issuer)


def demand_closed_doors(unit: Unit, manifest: Manifest) -> None:
    """Refuse a new lease where a migration's end was not looked at, or left more than it should.

    A migration that still lives only keeps other migrations out: two at once could not be told apart afterwards.
    """
    for each in unit.aftermaths.blocking(manifest.cluster, manifest.database):
        live = each.state is AftermathState.OPEN and unit.leases.get(each.lease).state in _LIVE
        if live and manifest.migration is None:
            continue
        if live:
            raise Conflict("another migration of this database is not over", hint="try again later", code="migrating")
        raise Conflict(
            "a migration may have left this database wider open, and nobody has accepted that",
            hint=f"undo what {each.lease} left, or a person decides: taskpass widening show {each.lease}",
            code="widened",
        )


def begin(unit: Unit, lease: Lease, manifest: Manifest, before: Snapshot, now: Instant) -> None:
    """Record what the catalogue held, in the unit that makes the lease active."""
    demand_closed_doors(unit, manifest)
    unit.aftermaths.add(
        Aftermath(
            lease=lease.id,
            task=lease.task,
            resource=lease.target.resource,
            cluster=manifest.cluster,
            database=manifest.database,
            state=AftermathState.OPEN,
            before=before,
            opened_at=now,
        )
    )


def settle(broker: Broker, lease_id: LeaseId) -> Aftermath | None:
    """Look at the database of a migration that is proven closed, and record what is found.

    None if there is no such migration, or its time has not come. What cannot be read is noted, and blocks on.
    """
    with broker.store.read() as unit:
        try:
            known = unit.aftermaths.get(lease_id)
        except NotFound:
            return None
        lease = unit.leases.get(lease_id)
    if known.state not in BLOCKING:
        return known
    if lease.state not in _PROVEN:
        return None
    try:
        now_there = migrator(broker.issuer_of(lease.target)).snapshot()
    except TaskpassError as error:
        return _note(broker, lease_id, f"{error.code}: {error.message}")
    if known.state is AftermathState.WIDENED:
        return _undone(broker, known) if not remaining(known.widening, now_there) else _note(broker, lease_id, "")
    return _found(broker, known, now_there)


def _note(broker: Broker, lease_id: LeaseId, error: str) -> Aftermath:
    with broker.store.write() as unit:
        return unit.aftermaths.note(lease_id, error=error, looked_at=broker.now(unit))


def _found(broker: Broker, known: Aftermath, now_there: Snapshot) -> Aftermath:
    widening = widened(known.before, now_there)
    event = AftermathEvent.FOUND if widening else AftermathEvent.LOOKED
    with broker.store.write() as unit:
        if unit.aftermaths.get(known.lease).state is not AftermathState.OPEN:
            return unit.aftermaths.get(known.lease)
        now = broker.now(unit)
        found = unit.aftermaths.advance(known.lease, event, widening=widening, looked_at=now, error="")
        unit.audit.append(_event(f"migration.{found.state}", found, "broker"), now)
    return found


def _undone(broker: Broker, known: Aftermath) -> Aftermath:
    with broker.store.write() as unit:
        if unit.aftermaths.get(known.lease).state is not AftermathState.WIDENED:
            return unit.aftermaths.get(known.lease)
        now = broker.now(unit)
        found = unit.aftermaths.advance(known.lease, AftermathEvent.UNDO, looked_at=now, error="")
        unit.audit.append(_event("migration.undone", found, "broker"), now)
    return found


def _event(name: str, found: Aftermath, actor: str, **more: object) -> Event:
    """Evidence: what was found, item by item."""
    return Event(
        name,
        actor,
        {"task": found.task, "lease": found.lease},
        {
            "resource": found.resource,
            "cluster": found.cluster,
            "database": found.database,
            "widening": [each.to_json() for each in found.widening],
            "ran": found.ran.value if found.ran else None,
            **more,
        },
    )


def settle_all(broker: Broker) -> int:
    """Every migration that is over and not decided, found after a crash too; how many came to an end by it."""
    with broker.store.read() as unit:
        waiting = unit.aftermaths.list(states=[AftermathState.OPEN, AftermathState.WIDENED])
    ended = 0
    for each in waiting:
        with contextlib.suppress(TaskpassError):
            found = settle(broker, each.lease)
            ended += found is not None and found.state is not each.state
    return ended


# ---- a person accepts ----


def prepare_acceptance(broker: Broker, human: HumanId, lease_id: LeaseId, comment: str) -> tuple[str, bytes, Aftermath]:
    """A nonce and the bytes to sign, over everything that is accepted. Raises if this person's yes cannot count."""
    accept(comment, what="the reason", limit=REASON_BYTES)
    with broker.store.write() as unit:
        found, _ = _to_accept(broker, unit, human, lease_id)
        nonce = b64encode(broker.entropy.bytes(24)).decode()
        digest = acceptance_digest(found)
        expires = after(broker.now(unit), CHALLENGE_SECONDS)
        unit.challenges.add(nonce, verb=ACCEPT_WIDENING, subject=digest, human=human, expires_at=expires)
    return nonce, challenge(verb=ACCEPT_WIDENING, digest_=digest, approver=human, nonce=nonce, comment=comment), found


def acceptance_digest(found: Aftermath) -> str:
    return widening_digest(found.lease, found.widening)


def accept_widening(
    broker: Broker, human: HumanId, lease_id: LeaseId, comment: str, *, nonce: str, signature: str
) -> Aftermath:
    """Record a person's signed word that what was found may stay. New leases on that database are possible again."""
    accept(comment, what="the reason", limit=REASON_BYTES)
    with broker.store.write() as unit:
        now = broker.now(unit)
        found, method = _to_accept(broker, unit, human, lease_id)
        digest = acceptance_digest(found)
        unit.challenges.take(nonce, verb=ACCEPT_WIDENING, subject=digest, human=human, now=now)
        data = challenge(verb=ACCEPT_WIDENING, digest_=digest, approver=human, nonce=nonce, comment=comment)
        key = broker.human(human).reviewer_key
        if not key or not broker.verify_signature(key, data, signature):
            raise Denied(
                "the signature is not by this person's key", hint="check the reviewer secret", code="bad_signature"
            )
        done = unit.aftermaths.advance(
            lease_id, AftermathEvent.ACCEPT, decided_at=now, decided_by=human, comment=comment
        )
        proof = {"method": method.value, "digest": digest, "nonce": nonce, "signature": signature, "public_key": key}
        unit.audit.append(_event("migration.accepted", done, f"human:{human}", comment=comment, **proof), now)
    return done


def _to_accept(broker: Broker, unit: Unit, human: HumanId, lease_id: LeaseId) -> tuple[Aftermath, Method]:
    found = unit.aftermaths.get(lease_id)
    lease = unit.leases.get(lease_id)
    if lease.state not in _PROVEN:
        raise Conflict("this migration is not over", hint="taskpass lease show tells what it waits for")
    if found.state not in BLOCKING:
        raise Conflict(f"this migration is {found.state}: there is nothing to accept", code="already_decided")
    environment = lease.target.environment
    request = unit.requests.get(unit.grants.get(lease.grant).request)
    approvers, groups = request.decision.obligations.approvers, broker.config.people.groups
    if human == unit.tasks.get(lease.task).principal.sponsor:
        method = Method.SELF_CONFIRMATION
        if not environment.disposable:
            raise Denied(
                "the sponsor of a task cannot accept what it left", hint="another person decides", code="self_approval"
            )
    else:
        method = Method.REVIEWER_SECRET
        if approvers and not any(human in groups.get(group, frozenset()) for group in approvers):
            raise Denied("this person is in none of the groups that may decide this", code="not_an_approver")
    if not counts_for(method, environment, demo=unit.installation.demo):
        raise Denied(
            f"a {method} does not count for {environment}", hint="production needs a passkey", code="method_too_weak"
        )
    return found, method
