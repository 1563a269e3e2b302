"""Request -> usable endpoint, beside the same steps in the database without a broker, and beside bare SQL.

*The same steps*: resolve, create, enable through the kit, by the issuer alone. *Bare*: one transaction of an
administrator who creates a role with a password and grants the same columns. As PostgreSQL does by itself, the password
is hashed with 4096 iterations; the time with one iteration, which is enough for an endpoint's secret, is printed too.
The first two in turn, the third after them, within one run. Each comes after a pause, as an access does that somebody
asks for: right after another one of its kind it would find everything in the processor's caches.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial

from bench.common import RESOURCE, Figures, median, milliseconds, percentile, stage
from taskpass.client.line import LineClient
from taskpass.config.credentials import read_credential
from taskpass.config.load import load
from taskpass.core.ids import InstallationId, LeaseId, RoleName, new_id, role_name
from taskpass.core.manifest import Manifest
from taskpass.issuers.base import Order
from taskpass.issuers.postgres import scram
from taskpass.issuers.postgres.issuer import PostgresIssuer
from taskpass.runtime.system import SystemClock, SystemEntropy
from taskpass.testing.stage import Stage

ROUNDS = 25
PAUSE = 0.1
"""Seconds before each measurement."""


def run(figures: Figures) -> None:
    with stage() as place, LineClient(place.runtime / "line.sock") as client:
        task = str(client.call("open_task", {"repository": "bench", "branch": "main", "ticket": "B-1"})["task"])
        alone, bare = Alone(place), Bare(place)
        alone.run(), bare.run(alone.manifest)
        times: dict[str, list[float]] = {"whole": [], "steps": [], "bare": []}
        for _ in range(ROUNDS):
            held: list[str] = []
            times["whole"].append(_after_a_pause(partial(_through_the_broker, client, task, held)))
            times["steps"].append(_after_a_pause(alone.run))
            alone.take_back()
            client.call("release", {"lease": held[0]})
            _come_to_rest(place, held[0])
        # Apart, because granting on a schema makes every other session of the database plan its statements again.
        times["bare"] = [_after_a_pause(partial(bare.run, alone.manifest)) for _ in range(ROUNDS)]
        once = [_after_a_pause(partial(bare.run, alone.manifest, hashed=True)) for _ in range(ROUNDS)]
        figures.note(f"bare SQL with a verifier of one iteration instead of a password: p50 {median(once):.1f} ms")
        alone.issuer.close_connections()
    _report(figures, **times)


def _come_to_rest(place: Stage, lease: str) -> None:
    """Cleaning up after one round is no part of the next one."""
    while place.call("show_lease", lease=lease)["state"] != "cleaned":
        time.sleep(0.05)


def _after_a_pause(work: Callable[[], object]) -> float:
    time.sleep(PAUSE)
    return milliseconds(work)


def _through_the_broker(client: LineClient, task: str, held: list[str]) -> None:
    answer = client.call("request_access", {"resource": RESOURCE, "task": task, "connect": True})
    held.append(str(answer["lease"]["lease"]))


def _report(figures: Figures, whole: list[float], steps: list[float], bare: list[float]) -> None:
    figures.note(
        f"request -> endpoint: p50 {median(whole):.1f} ms, p99 {percentile(whole, 0.99):.1f} ms ({ROUNDS} rounds);"
        f" same steps without a broker: p50 {median(steps):.1f} ms; bare SQL: p50 {median(bare):.1f} ms"
    )
    figures.at_most("request -> endpoint / same steps without a broker", median(whole) / median(steps), 2, "x")
    figures.at_most("request -> endpoint - bare SQL", median(whole) - median(bare), 8, "ms")


class Alone:
    """The issuer of the same installation in this process: the broker's steps in the database, and nothing else."""

    def __init__(self, place: Stage) -> None:
        resource = load(place.directory).resources[RESOURCE]
        installation = InstallationId(str(place.call("health")["installation"]))
        password = read_credential(place.directory, resource.login).password
        self.entropy, self.clock = SystemEntropy(), SystemClock()
        self.issuer = PostgresIssuer(
            resource.target(),
            installation,
            password,
            clock=self.clock,
            entropy=self.entropy,
            # The broker that was started beside it replaces its password.
            passwords=lambda: read_credential(place.directory, resource.login).passwords,
        )
        self.scope = resource.scope("read")
        self.manifest = self.issuer.resolve(self.scope)
        self._roles: list[RoleName] = []

    def run(self) -> None:
        lease = LeaseId(new_id("lse", self.clock.now(), self.entropy))
        role = role_name(self.issuer.installation, lease)
        now = self.issuer.resolve(self.scope)
        self.issuer.create(Order(lease, role, self.scope, now.digest(), now, 60, scram.new_secret(self.entropy)))
        self.issuer.enable(role, lifetime=60, audit_head="")
        self._roles.append(role)

    def take_back(self) -> None:
        while self._roles:
            role = self._roles.pop()
            self.issuer.close(role, audit_head="")
            self.issuer.clean(role)


class Bare:
    """One transaction by an administrator: a role, and the same columns."""

    def __init__(self, place: Stage) -> None:
        self._admin = place.servers[RESOURCE].connect("orders", autocommit=False)
        self._number = itertools.count()

    def run(self, manifest: Manifest, *, hashed: bool = False) -> None:
        name, secret = f"bare_{next(self._number)}", scram.new_secret(SystemEntropy())
        password = scram.verifier(secret, SystemEntropy()) if hashed else secret.reveal()
        self._admin.execute(f"CREATE ROLE {name} LOGIN VALID UNTIL 'infinity' PASSWORD '{password}'")
        self._admin.execute(f"GRANT USAGE ON SCHEMA shop TO {name}")
        for item in manifest.objects:
            columns = ", ".join(column.name for column in item.columns)
            self._admin.execute(f"GRANT SELECT ({columns}) ON {item.schema}.{item.name} TO {name}")
        self._admin.commit()


if __name__ == "__main__":
    run(Figures())
