"""Closing many leases of one target at once: the same order and the same proof as for one (see ``close``), in bulk.

    forbid all (one commit, one fresh password) -> end what is listed, one scan for all -> fence what was starting ->
    two clean scans -> a login for each role, many side by side: AuthenticationOk and then 28000 -> seal all

A bulk of more than ``EACH`` is proven by what the server reads back of every role, after the commit that forbade all of
them, and by the logins of ``WITNESSES`` of them: see docs/adr/0017. Its proofs say so.

What is not the ordinary case is left out and closed one by one afterwards: a role that is absent or held by another
transaction, one with a prepared transaction, one whose answer is no proof. Not for targets with listed nodes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from taskpass.core.clock import Entropy
from taskpass.core.errors import NotProven, TaskpassError
from taskpass.core.ids import LeaseId, RoleName
from taskpass.core.lease import Target
from taskpass.core.secret import Secret
from taskpass.issuers.base import CLOSE_ALONE, Taken
from taskpass.issuers.postgres import scram
from taskpass.issuers.postgres.close import PATIENCE, PAUSE, REFUSALS, starting
from taskpass.issuers.postgres.connection import Connection, Connections, driver_errors
from taskpass.issuers.postgres.nodes import attached, unlisted
from taskpass.issuers.postgres.probe import PROOF, Place
from taskpass.issuers.postgres.probe_many import prove_all_refused

EACH = 250
"""Roles that are each logged in with. It takes about a millisecond of a processor for each, most of it the server's."""

WITNESSES = 48
"""Of a larger bulk, so many are logged in with, chosen at random after all of them were forbidden: nobody can know
before which of them it will be."""

READ_BACK = "NOLOGIN read back; AuthenticationOk,28000 of {} others"
"""The answer in the proof of a role that was not logged in with."""

DRAIN = 0.1
"""Seconds for which a session that is just starting is left to arrive or go before it is fenced."""


class BulkClosing:
    """One attempt. ``run`` gives a proof, or the error that keeps it from one, for every role; each is idempotent."""

    def __init__(
        self, connections: Connections, target: Target, entropy: Entropy, roles: dict[LeaseId, RoleName], head: str
    ) -> None:
        self._connections = connections
        self._target = target
        self._entropy = entropy
        self._roles = roles
        self._head = head
        self._started = time.monotonic()
        self._ended: set[tuple[LeaseId, int]] = set()
        self._fenced = 0
        self._steps: list[tuple[str, int]] = []
        self._errors: dict[LeaseId, TaskpassError] = {}
        self._answers: dict[LeaseId, str] = {}

    def run(self) -> dict[RoleName, Taken | TaskpassError]:
        """Raises ``TargetUnavailable`` or ``NotProven`` if nothing could be done for any of them."""
        secret = scram.new_secret(self._entropy)
        with self._connections.use() as primary:
            self._forbid(primary, scram.verifier(secret, self._entropy))
            self._empty(primary)
            self._leave_out(self._prepared(primary), "the account has a prepared transaction")
            beyond = unlisted(attached(primary), self._target)
            self._step("emptied")
            self._prove(secret)
            self._step("proven")
            self._seal(primary)
        ended = Counter(lease for lease, _ in self._ended)
        done = {self._roles[lease]: self._taken(lease, ended, beyond) for lease in self._left()}
        return {**done, **{self._roles[lease]: error for lease, error in self._errors.items()}}

    def _left(self) -> list[LeaseId]:
        return [lease for lease in self._roles if lease not in self._errors]

    def _forbid(self, primary: Connection, verifier: str) -> None:
        query = "SELECT lease, role IS NOT NULL, busy FROM taskpass.close_many(%s, %s, %s)"
        with driver_errors("forbidding many logins"):
            rows = primary.execute(query, [list(self._roles), verifier, self._head]).fetchall()
        self._leave_out((lease for lease, present, _ in rows if not present), "the account is absent")
        self._leave_out((lease for lease, _, busy in rows if busy), "another transaction holds the account's row")
        self._step("forbidden")

    def _leave_out(self, leases: Iterable[LeaseId], why: str) -> None:
        for lease in leases:
            self._errors[lease] = _alone(why)

    def _empty(self, primary: Connection) -> None:
        """End listed sessions and the starting ones, until two scans in a row are clean."""
        pending = starting(primary)
        patient_until = time.monotonic() + DRAIN
        refused: Counter[tuple[int, str]] = Counter()
        clean = 0
        while clean < 2:
            listed = self._sweep(primary)
            if pending and time.monotonic() >= patient_until:
                self._fence(primary, pending, refused)
            clean = 0 if listed or pending else clean + 1
            if pending:
                pending = {each for each in pending & starting(primary) if refused[each] < REFUSALS}
            if time.monotonic() > self._started + PATIENCE:
                raise NotProven("sessions of the accounts are still open", hint="it is tried again")
            if clean < 2:
                time.sleep(PAUSE)

    def _sweep(self, primary: Connection) -> int:
        with driver_errors("ending sessions of many"):
            found = primary.execute("SELECT lease, pid FROM taskpass.sweep_many(%s)", [list(self._roles)]).fetchall()
        self._ended.update((lease, pid) for lease, pid in found)
        return len(found)

    def _fence(
        self, primary: Connection, pending: Collection[tuple[int, str]], refused: Counter[tuple[int, str]]
    ) -> None:
        with driver_errors("fencing starting sessions"):
            row = primary.execute("SELECT taskpass.fence(%s)", [[pid for pid, _ in pending]]).fetchone()
        ended: Sequence[int] = row[0] if row else []
        self._fenced += len(ended)
        refused.update(each for each in pending if each[0] not in ended)

    def _prove(self, secret: Secret) -> None:
        """Up to ``EACH`` roles are logged in with; of more the witnesses. If one of these is let in, or anything else
        than refused, then nothing is concluded from them, and each of the others is logged in with as well.
        """
        left = self._left()
        if len(left) <= EACH:
            self._log_in(left, secret)
            return
        witnesses = _chosen(left, WITNESSES, self._entropy)
        self._log_in(witnesses, secret)
        others = [lease for lease in left if lease not in self._answers and lease not in self._errors]
        if self._errors.keys() & set(witnesses):
            self._log_in(others, secret)
            return
        forbidden = self._read_back(others)
        self._answers.update(dict.fromkeys(forbidden, READ_BACK.format(len(witnesses))))
        self._leave_out(
            (x for x in others if x not in forbidden), "the server does not say that the account may not log in"
        )

    def _log_in(self, leases: Collection[LeaseId], secret: Secret) -> None:
        place = Place(self._target.address, self._target.tls.get("ca", ""))
        names = {self._roles[lease]: lease for lease in leases}
        for role, error in prove_all_refused(place, list(names), secret, self._entropy).items():
            if error is None:
                self._answers[names[role]] = PROOF
            else:
                self._errors[names[role]] = _alone(error.message)

    def _read_back(self, leases: Collection[LeaseId]) -> set[LeaseId]:
        """Those whose role is there and may not log in, as a login made now sees it, without the kit's routines."""
        names = {self._roles[lease]: lease for lease in leases}
        with self._connections.fresh() as now, driver_errors("reading back which logins are forbidden"):
            rows = now.execute(_FORBIDDEN, [list(names)]).fetchall()
        return {names[row[0]] for row in rows}

    def _prepared(self, primary: Connection) -> list[LeaseId]:
        with driver_errors("looking for prepared transactions"):
            rows = primary.execute("SELECT lease FROM taskpass.prepared_many(%s)", [list(self._roles)]).fetchall()
        return [row[0] for row in rows]

    def _seal(self, primary: Connection) -> None:
        if left := self._left():
            with driver_errors("sealing closed accounts"):
                primary.execute("SELECT taskpass.seal_many(%s)", [left])
        self._step("sealed")

    def _step(self, name: str) -> None:
        self._steps.append((name, round((time.monotonic() - self._started) * 1000)))

    def _taken(self, lease: LeaseId, ended: Counter[LeaseId], beyond: int | None) -> Taken:
        return Taken(
            answer=self._answers[lease],
            nodes={self._target.address: 2},
            ended=ended[lease],
            fenced=self._fenced,
            took_ms=self._steps[-1][1],
            steps=tuple(self._steps),
            unlisted=beyond,
        )


def _chosen(leases: Sequence[LeaseId], count: int, entropy: Entropy) -> list[LeaseId]:
    """``count`` of ``leases``, any of them as likely as the others."""
    return sorted(leases, key=lambda _: entropy.bytes(8))[:count]


_FORBIDDEN = """
SELECT r.rolname FROM pg_catalog.pg_roles r WHERE r.rolname = ANY (%s::pg_catalog.name[]) AND NOT r.rolcanlogin
"""


def _alone(why: str) -> NotProven:
    return NotProven(f"{why}; it is closed by itself", code=CLOSE_ALONE)
