from __future__ import annotations

from taskpass.gateways.postgres.boundary import Boundary
from taskpass.wire.postgres.messages import message, ready_for_query

ROW = message(b"D", b"x" * 100)


def follow(*chunks):
    boundary = Boundary()
    for chunk in chunks:
        boundary.follow(chunk)
    return boundary


def test_every_cut_of_a_stream_is_known_to_be_a_boundary_or_not():
    stream = ROW + message(b"C", b"") + ready_for_query()
    ends = {len(ROW), len(ROW) + 5, len(stream)}
    for cut in range(1, len(stream) + 1):
        for earlier in range(cut):
            assert follow(stream[:earlier], stream[earlier:cut]).reached is (cut in ends)


def test_it_says_how_many_of_the_next_bytes_end_the_message():
    stream = ROW + ready_for_query()
    for cut in range(len(ROW)):
        expected = len(ROW) - cut if cut else 0
        assert follow(stream[:cut]).next_in(stream[cut:]) == expected
    assert follow(ROW[:10]).next_in(ROW[10:50]) is None
    assert follow(ROW[:2]).next_in(ROW[2:4]) is None


def test_asking_takes_nothing():
    boundary = follow(ROW[:10])
    boundary.next_in(ROW[10:])
    assert not boundary.reached


def test_a_server_that_lies_about_lengths_costs_the_place_and_nothing_else():
    for length in (0, 3, 2**31 - 1, 2**32 - 1):
        boundary = follow(b"D" + length.to_bytes(4, "big") + b"rest" * 10)
        boundary.next_in(b"more")
