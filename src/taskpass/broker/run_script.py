"""Run one approved file as the owner: what is told meanwhile, and the end, which takes the access back at once.

The agent that asked gets words, never the role or its password: nothing listens for it. The lease lives as long as the
run; when it is taken back, the run ends with it. Not for: what the file left behind (``aftermath``).
"""

from __future__ import annotations

import contextlib

from taskpass.broker.aftermath import migrator
from taskpass.broker.context import Broker
from taskpass.broker.take_back import close_lease, take_back
from taskpass.core.aftermath import Ran
from taskpass.core.audit import Event
from taskpass.core.errors import Conflict, TaskpassError
from taskpass.core.lease import Lease
from taskpass.core.manifest import Migration
from taskpass.core.secret import Secret
from taskpass.core.text import visible
from taskpass.issuers.base import Progress


def run_script(broker: Broker, lease: Lease, migration: Migration, secret: Secret) -> Ran:
    """Run the file to its end, record how it ended, take the access back, look at what it left."""
    ran = Ran.UNKNOWN
    try:
        ran = _run(broker, lease, migration, secret)
        with contextlib.suppress(TaskpassError):
            _record(broker, lease, migration, ran)
    finally:
        with contextlib.suppress(TaskpassError):
            take_back(broker, [lease.id], reason="file_ran", actor="broker")
            close_lease(broker, lease.id)
        broker.progress.finish(lease.id, ran)
    return ran


def _run(broker: Broker, lease: Lease, migration: Migration, secret: Secret) -> Ran:
    script = migration.script
    assert script is not None
    try:
        with broker.store.read() as unit:
            text = unit.scripts.get(script.digest)
        issuer = migrator(broker.issuer_of(lease.target))
        if issuer.read_script(text) != script:
            # The file in the store is not what the signatures are over.
            raise Conflict("the file is not what was approved", code="script_changed")
        return issuer.run_script(
            lease.role, secret, migration.owner, text, lambda step: broker.progress.tell(lease.id, step)
        )
    except TaskpassError as error:
        broker.progress.tell(lease.id, Progress("failed", text=visible(f"{error.message} [{error.code}]", limit=500)))
        return Ran.ROLLED_BACK


def _record(broker: Broker, lease: Lease, migration: Migration, ran: Ran) -> None:
    steps, _ = broker.progress.read(lease.id, 0, 0)
    failed = next((step for step in steps if step.what == "failed"), None)
    with broker.store.write() as unit:
        now = broker.now(unit)
        unit.aftermaths.note(lease.id, ran=ran)
        unit.audit.append(
            Event(
                "migration.ran",
                "broker",
                {"task": lease.task, "lease": lease.id},
                {
                    "ran": ran.value,
                    "owner": migration.owner,
                    "script": migration.script.digest if migration.script else None,
                    "statements": sum(step.what == "done" for step in steps),
                    "failed_line": failed.line if failed else None,
                    "failed": failed.text if failed else "",
                },
            ),
            now,
        )
