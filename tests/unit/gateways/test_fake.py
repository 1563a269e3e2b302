"""The fake keeps the same promises as the real endpoints, as far as a verb can see."""

from __future__ import annotations

import asyncio

import pytest

from taskpass.core.errors import Conflict, StoreUnavailable
from taskpass.core.ids import LeaseId
from taskpass.testing.fake_endpoints import FakeEndpoints
from tests.unit.gateways.harness import LEASE, Bench, echo


@pytest.fixture(params=["real", "fake"])
def kind(request):
    """(endpoints, order, connect): ``connect`` makes one client connection."""
    bench = Bench(asyncio.new_event_loop)
    order = bench.order(bench.target(echo).address)
    if request.param == "real":
        made = bench.endpoints
        yield made, order, lambda endpoint: bench.client(endpoint).ready()
    else:
        made = FakeEndpoints()
        yield made, order, lambda _endpoint: made.connect(LEASE)
    made.close(LEASE, message="the test is over")
    bench.stop()


def test_an_endpoint_is_described_by_its_order(kind):
    endpoints, order, _ = kind
    endpoint = endpoints.open(order)
    assert (endpoint.host, endpoint.port, endpoint.database, endpoint.user) == (order.directory, 5432, "orders", "tp_x")


def test_connections_are_counted_and_reported_at_the_end(kind):
    endpoints, order, connect = kind
    endpoint = endpoints.open(order)
    connect(endpoint)
    connect(endpoint)
    assert endpoints.connections(LEASE) == 2
    assert endpoints.close(LEASE, message="over") == 2
    assert endpoints.connections(LEASE) == 0


def test_an_end_is_idempotent_and_final(kind):
    endpoints, order, _ = kind
    endpoints.open(order)
    with pytest.raises(Conflict):
        endpoints.open(order)
    assert [endpoints.close(LEASE, message="over") for _ in range(2)] == [0, 0]
    with pytest.raises(Conflict, match="has ended"):
        endpoints.open(order)
    assert endpoints.close(LeaseId("lse_unknown"), message="over") == 0


def test_the_fake_remembers_orders_and_words_and_fails_once_when_told():
    bench = Bench()
    order = bench.order("/x:1/orders")
    bench.stop()
    fake = FakeEndpoints(failure=StoreUnavailable("no"))
    with pytest.raises(StoreUnavailable):
        fake.open(order)
    fake.open(order)
    assert fake.served == {LEASE: order}
    fake.close(LEASE, message="over")
    assert (fake.served, fake.ended) == ({}, {LEASE: "over"})
