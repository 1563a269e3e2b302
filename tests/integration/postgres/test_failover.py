"""A standby is promoted without the last commits, on real servers: what is found, from both sides, and what is proven.

The broker around the issuer is the real one, with a store of its own; policy, people and processes are the tests'.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json

import psycopg
import pytest

from taskpass.broker.reconcile import reconcile
from taskpass.broker.release_lease import release_lease
from taskpass.broker.take_back import close_lease
from taskpass.core.errors import TargetUnfit
from taskpass.core.lease import LeaseState
from taskpass.issuers.postgres.connection import Timeline
from taskpass.issuers.postgres.issuer import PostgresIssuer
from taskpass.testing.broker import DEV, make_harness
from taskpass.testing.postgres import EmbeddedServer
from tests.conftest import Database, require_version
from tests.integration.postgres.enrolled import CLOCK, ENTROPY, TABLES, Broker, until
from tests.integration.postgres.standby import catch_up, streaming

pytestmark = pytest.mark.service


@pytest.fixture(params=[18], ids=lambda version: f"pg{version}")
def pair(request):
    require_version(request.param)
    with EmbeddedServer(request.param, durable=False) as primary, streaming(primary) as copy:
        yield primary, copy


class Place:
    """A harness whose target is a database on a real server."""

    def __init__(self, directory, primary):
        self.h = make_harness(directory)
        with self.h.store.read() as unit:
            installation = unit.installation.id
        with primary.connect() as admin:
            admin.execute("CREATE DATABASE shop")
        self.database = Database(primary, "shop")
        self.database.execute(*TABLES)
        self.enrolled = Broker(self.database, installation=installation)
        access = dataclasses.replace(
            self.h.broker.config.resources[DEV].access["read"], tables=("shop.*",), exclude=("shop.hidden",)
        )
        resources = dict(self.h.broker.config.resources)
        (cluster, oid) = self.database.fetch(
            "SELECT system_identifier::text, (SELECT oid::bigint FROM pg_database WHERE datname = 'shop')"
            " FROM pg_control_system()"
        )[0]
        resources[DEV] = dataclasses.replace(
            resources[DEV],
            issuer="postgres",
            address=self.database.address,
            cluster=cluster,
            database=oid,
            access={"read": access},
        )
        self.issuer = self.new_issuer(resources[DEV].target())
        self.h.broker = dataclasses.replace(
            self.h.broker,
            config=dataclasses.replace(self.h.broker.config, resources=resources),
            issuers={DEV: self.issuer},
            issuer_of=lambda target: self.issuer,
            fitness=Fit(),
        )

    def new_issuer(self, target):
        return PostgresIssuer(target, self.enrolled.installation, self.enrolled.password, clock=CLOCK, entropy=ENTROPY)

    def lease(self):
        agent = self.h.run()
        agent.open_task()
        return agent, agent.lease()

    def secret(self, lease):
        return self.h.endpoints.open_orders[lease.id].secret

    def close(self, agent, lease):
        release_lease(self.h.broker, agent.caller, lease.id)
        close_lease(self.h.broker, lease.id)
        assert self.h.lease(lease.id).state is LeaseState.CLOSED

    def events(self, name):
        bodies = [json.loads(record.body) for record in self.h.store.iterate_audit()]
        return [body for body in bodies if body["event"] == name]

    def stop(self):
        self.issuer.close_connections()
        self.enrolled.issuer.close_connections()
        self.database.close()
        self.h.stop()


class Fit:
    def demand(self, resource):
        pass


@pytest.fixture
def place(tmp_path, pair):
    made = Place(tmp_path, pair[0])
    yield made
    made.stop()


def cut_off(copy):
    """The standby hears no more of its primary."""
    copy.configure(primary_conninfo="")
    with copy.connect() as admin:
        until(
            lambda: (
                admin.execute("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'").fetchone() == (0,)
            ),
            what="the end of replication",
        )


def promote_in_place(primary, copy):
    """The primary dies, and the standby takes over its address."""
    primary.crash()
    with copy.connect() as admin:
        admin.execute("SELECT pg_promote(true, 20)")
    copy.stop()
    copy.port = primary.port
    copy.start()


def enters(server, lease, secret):
    with contextlib.suppress(psycopg.OperationalError):
        server.connect("shop", lease.role, secret, connect_timeout=10).close()
        return True
    return False


def test_what_a_promotion_without_the_last_commits_gave_back_is_taken_again_with_proof(place, pair):
    primary, copy = pair
    (kept_agent, kept), (agent, closed) = place.lease(), place.lease()
    secret = place.secret(closed)
    reconcile(place.h.broker)
    assert [event["data"]["timeline"] for event in place.events("target.seen")] == [1]
    catch_up(primary, copy)
    cut_off(copy)
    place.close(agent, closed)
    _, unheard = place.lease()
    promote_in_place(primary, copy)
    # The new primary knows nothing of the closing: the account that was proven closed gets in again.
    assert enters(copy, closed, secret)

    found = reconcile(place.h.broker)

    assert found.orphans == (closed.role,)
    assert not enters(copy, closed, secret)
    (orphan,), (taken,) = place.events("orphan.found"), place.events("orphan.closed")
    assert (orphan["data"]["could_login"], orphan["data"]["lease_state"]) == (True, "closed")
    assert taken["data"]["proof"]["answer"] == "AuthenticationOk,28000"
    assert place.h.lease(closed.id).incidents == 1
    (lost,) = place.events("lease.lost")
    assert lost["subject"]["lease"] == unheard.id
    assert place.h.lease(unheard.id).reason == "lost_in_target"
    assert close_lease(place.h.broker, unheard.id).absent
    assert place.h.lease(kept.id).state is LeaseState.ACTIVE
    assert enters(copy, kept, place.secret(kept))
    (behind,) = place.events("target.behind")
    assert behind["data"]["audit_seq"] < behind["data"]["told"]
    assert (behind["data"]["was"], behind["data"]["timeline"]) == (1, 2)
    place.close(kept_agent, kept)
    assert reconcile(place.h.broker).orphans == ()


def test_a_former_primary_that_comes_back_at_the_address_proves_nothing_and_serves_nothing(place, pair):
    primary, copy = pair
    (agent, lease), (other_agent, other) = place.lease(), place.lease()
    catch_up(primary, copy)
    promote_in_place(primary, copy)
    reconcile(place.h.broker)
    assert place.events("target.seen")[-1]["data"]["timeline"] == 2
    place.close(other_agent, other)
    copy.stop()
    primary.start()
    # Also for a broker that has been started since: it is the record that remembers.
    place.issuer.close_connections()
    place.issuer = place.new_issuer(place.issuer.target)
    place.h.broker = dataclasses.replace(
        place.h.broker, issuers={DEV: place.issuer}, issuer_of=lambda target: place.issuer
    )
    assert "former_primary" in reconcile(place.h.broker).unreachable[DEV]
    release_lease(place.h.broker, agent.caller, lease.id)
    assert close_lease(place.h.broker, lease.id) is None
    assert place.h.lease(lease.id).state is LeaseState.CLOSING
    assert "former_primary" in place.h.lease(lease.id).last_error
    assert place.events("orphan.found") == []


def test_a_timeline_never_goes_back():
    seen = Timeline()
    for found in (1, 0, 3, 3):
        seen.demand(found)
    with pytest.raises(TargetUnfit) as refused:
        seen.demand(2)
    assert refused.value.code == "former_primary"
