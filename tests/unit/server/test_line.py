"""The line protocol as a client meets it, on real sockets with a fake attestor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvloop

from taskpass.core.errors import Denied, NotAuthenticated
from taskpass.core.separation import Separation
from taskpass.identity.base import Caller
from taskpass.server import line
from taskpass.server.line import Line, LineServers, parse_request
from taskpass.server.sockets import private_directory


class FakePeer:
    def __init__(self):
        self.caller = Caller(1, 1, "boot/1", Separation.NONE, None)
        self.living = True
        self.closed = threading.Event()

    def alive(self):
        return self.living

    def close(self):
        self.closed.set()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def servers(request):
    loop = request.param()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with ThreadPoolExecutor(4) as executor:
        serving = LineServers(loop, executor)
        yield serving
        asyncio.run_coroutine_threadsafe(serving.close(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()


@pytest.fixture
def path(tmp_path):
    return private_directory(tmp_path / "d") / "s"


class Talk:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(5)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rb")

    def send(self, text):
        self.socket.sendall(text)
        return self

    def answer(self):
        line = self.file.readline()
        return json.loads(line) if line else None

    def call(self, method, number=1, **params):
        return self.send(json.dumps({"id": number, "method": method, "params": params}).encode() + b"\n").answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()


def echo(method, params, peer):
    return {"method": method, "params": params, "uid": peer.caller.uid}


def test_a_request_is_answered_with_its_id(servers, path):
    servers.add(Line(path, echo, lambda _: FakePeer()))
    with Talk(path) as talk:
        assert talk.call("status", 7, a=[1]) == {
            "id": 7,
            "result": {"method": "status", "params": {"a": [1]}, "uid": 1},
        }


def test_several_requests_run_at_once_and_are_answered_in_order(servers, path):
    both = threading.Barrier(2, timeout=30)

    def handler(_method, params, _peer):
        both.wait()
        return params

    servers.add(Line(path, handler, lambda _: FakePeer()))
    with Talk(path) as talk:
        talk.send(b'{"id":1,"method":"a","params":{"n":1}}\n{"id":2,"method":"a","params":{"n":2}}\n')
        assert [talk.answer(), talk.answer()] == [{"id": 1, "result": {"n": 1}}, {"id": 2, "result": {"n": 2}}]


def test_an_error_of_ours_has_its_stable_shape_and_the_connection_stays(servers, path):
    def handler(method, _params, _peer):
        if method == "no":
            raise Denied("policy does not permit this", hint="ask for less")
        return {}

    servers.add(Line(path, handler, lambda _: FakePeer()))
    with Talk(path) as talk:
        assert talk.call("no")["error"] == {
            "code": "denied",
            "message": "policy does not permit this",
            "hint": "ask for less",
            "retryable": False,
            "family": "denied",
        }
        assert talk.call("yes", 2) == {"id": 2, "result": {}}


def test_a_defect_is_internal_and_its_values_reach_neither_log_nor_client(servers, path, caplog):
    def handler(_method, params, _peer):
        raise ValueError(f"password is {params['p']}")

    servers.add(Line(path, handler, lambda _: FakePeer()))
    with caplog.at_level(logging.DEBUG), Talk(path) as talk:
        answer = talk.call("x", p="hunter2")
    assert answer["error"]["code"] == "internal"
    assert "hunter2" not in json.dumps(answer) + caplog.text
    assert "ValueError" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no json",
        b"[]",
        b"null",
        b"{}",
        b'{"id":1}',
        b'{"id":"1","method":"a","params":{}}',
        b'{"id":true,"method":"a","params":{}}',
        b'{"id":-1,"method":"a","params":{}}',
        b'{"id":9007199254740992,"method":"a","params":{}}',
        b'{"id":1.0,"method":"a","params":{}}',
        b'{"id":1,"method":"A","params":{}}',
        b'{"id":1,"method":"a.b","params":{}}',
        b'{"id":1,"method":"a","params":[]}',
        b'{"id":1,"method":"a","params":null}',
        b'{"id":1,"method":"a","params":{},"emergency":true}',
        b'{"id":1,"id":2,"method":"a","params":{}}',
        b'{"id":1,"method":"a","params":{"x":1,"x":2}}',
        b'{"id":1,"method":"a","params":{"x":NaN}}',
        b'{"id":1,"method":"a","params":{"x":-Infinity}}',
        b'{"id":1,"method":"a","params":{"x":1e999}}',
        b'{"id":1,"method":"a","params":{"x":"\xff"}}',
        b'{"id":1,"method":"a","params":{"x":' + b"9" * 5000 + b"}}",
        b'{"id":1,"method":"a","params":{"x":' + b"[" * 50000 + b"]" * 50000 + b"}}",
    ],
)
def test_what_cannot_be_read_gets_one_clear_error_and_ends_the_connection(servers, path, text):
    servers.add(Line(path, echo, lambda _: FakePeer()))
    with Talk(path) as talk:
        answer = talk.send(text + b"\n").answer()
        assert answer["error"]["code"] == "bad_request"
        assert talk.answer() is None


def test_params_may_be_left_out():
    assert parse_request(b'{"id":0,"method":"hello"}') == (0, "hello", {})


def test_a_line_of_the_longest_size_is_read_and_one_byte_more_is_refused(servers, path):
    servers.add(Line(path, lambda *_: {}, lambda _: FakePeer(), max_line=1000))
    fits = b'{"id":1,"method":"a","params":{"x":"' + b"a" * (1000 - 40 + 1) + b'"}}'
    assert len(fits) == 1000
    with Talk(path) as talk:
        assert talk.send(fits + b"\n").answer() == {"id": 1, "result": {}}
        assert talk.send(b" " + fits + b"\n").answer()["error"]["code"] == "line_too_long"
        assert talk.answer() is None
    with Talk(path) as talk:
        assert talk.send(b"a" * 5000).answer()["error"]["code"] == "line_too_long"


def test_an_answer_that_is_too_long_or_not_json_is_an_error_and_not_a_broken_line(servers, path):
    answers = {"long": {"x": "a" * 2000}, "nan": {"x": float("nan")}, "odd": {"x": object()}}
    servers.add(Line(path, lambda method, *_: answers[method], lambda _: FakePeer(), max_line=1000))
    with Talk(path) as talk:
        assert talk.call("long")["error"]["code"] == "answer_too_long"
        assert talk.call("nan")["error"]["code"] == "internal"
        assert talk.call("odd")["error"]["code"] == "internal"


def test_a_caller_that_is_not_attested_is_told_why_and_closed(servers, path):
    def refuse(_):
        raise NotAuthenticated("who are you", code="peer_unknown")

    servers.add(Line(path, echo, refuse))
    with Talk(path) as talk:
        assert talk.answer()["error"]["code"] == "peer_unknown"
        assert talk.answer() is None


def test_life_is_checked_at_every_request(servers, path):
    peer = FakePeer()
    calls = []
    servers.add(Line(path, lambda method, *_: calls.append(method) or {}, lambda _: peer))
    with Talk(path) as talk:
        assert talk.call("first") == {"id": 1, "result": {}}
        peer.living = False
        assert talk.call("second")["error"]["code"] == "peer_gone"
        assert talk.answer() is None
    assert calls == ["first"]


def test_an_answer_does_not_go_to_whoever_holds_the_socket_after_the_peer_died(servers, path):
    peer = FakePeer()

    def handler(*_):
        peer.living = False
        return {"endpoint": "for the peer only"}

    servers.add(Line(path, handler, lambda _: peer))
    with Talk(path) as talk:
        answer = talk.call("issue")
        assert answer["error"]["code"] == "peer_gone"


def test_an_idle_connection_is_closed_and_its_peer_let_go(servers, path):
    peer = FakePeer()
    servers.add(Line(path, echo, lambda _: peer, idle=0.05))
    with Talk(path) as talk:
        assert talk.answer() is None
        assert peer.closed.wait(30)


def test_more_connections_than_allowed_are_closed_and_a_freed_place_serves_again(servers, path):
    peers = []
    servers.add(Line(path, echo, lambda _: peers.append(FakePeer()) or peers[-1], connections=1))
    with Talk(path) as first:
        assert first.call("a")["id"] == 1
        with Talk(path) as second:
            assert second.answer()["error"]["code"] == "too_many_connections"
            assert second.answer() is None
    assert peers[0].closed.wait(30)
    with Talk(path) as third:
        assert third.call("a")["id"] == 1


def test_one_socket_that_waits_in_every_call_leaves_threads_to_the_others(servers, path):
    """Four threads in all: two may wait for the first socket, also for callers that have hung up meanwhile."""
    go_on, waiting = threading.Event(), threading.Semaphore(0)

    def wait(*_):
        waiting.release()
        go_on.wait(30)
        return {}

    servers.add(Line(path, wait, lambda _: FakePeer(), at_once=2))
    servers.add(Line(path.parent / "t", echo, lambda _: FakePeer()))
    flood = b"".join(b'{"id":%d,"method":"a","params":{}}\n' % number for number in range(8))
    with Talk(path) as first:
        first.send(flood)
        assert waiting.acquire(timeout=30)
        assert waiting.acquire(timeout=30)
    with Talk(path) as second, Talk(path.parent / "t") as other:
        second.send(flood)
        assert other.call("a")["id"] == 1
        assert not waiting.acquire(timeout=0.05)
        go_on.set()
        assert [second.answer()["id"] for _ in range(8)] == list(range(8))


def as_uids(monkeypatch, *uids):
    """The accounts behind the next connections, as the kernel would name them."""
    coming = iter(uids)
    monkeypatch.setattr(line, "_uid_of", lambda connection: next(coming))


@contextlib.contextmanager
def answering(path):
    """A connection that was accepted: two sockets accept in no order, and the accounts are given out in order."""
    with Talk(path) as talk:
        assert talk.call("a")["id"] == 1
        yield talk


def test_one_account_that_opens_all_it_may_leaves_connections_to_the_others(servers, path, monkeypatch):
    servers._connections_of_uid = 2
    as_uids(monkeypatch, 7, 7, 7, 8, 7)
    peers = []
    servers.add(Line(path, echo, lambda _: peers.append(FakePeer()) or peers[-1]))
    servers.add(Line(other := path.with_name("other"), echo, lambda _: FakePeer()))
    with Talk(path) as first, Talk(other) as second:
        assert first.call("a")["id"] == second.call("a")["id"] == 1
        with Talk(path) as third, Talk(path) as neighbour:
            assert third.answer()["error"]["code"] == "too_many_connections"
            assert neighbour.call("a")["id"] == 1
        first.socket.shutdown(socket.SHUT_RDWR)
        assert peers[0].closed.wait(30)
        with Talk(path) as again:
            assert again.call("a")["id"] == 1


def test_one_account_that_waits_in_every_call_leaves_places_on_the_socket_it_shares(servers, path, monkeypatch):
    go_on, waiting = threading.Event(), threading.Semaphore(0)

    def wait(method, params, peer):
        if method == "wait":
            waiting.release()
            go_on.wait(30)
        return {}

    servers._at_once_of_uid = 3
    as_uids(monkeypatch, 7, 7, 8)
    servers.add(Line(path, wait, lambda _: FakePeer(), at_once=2))
    servers.add(Line(other := path.with_name("other"), wait, lambda _: FakePeer(), at_once=2))
    with contextlib.ExitStack() as stack:
        first, second, neighbour = (stack.enter_context(answering(place)) for place in (path, other, path))
        for talk in (first, second):
            talk.send(b"".join(b'{"id":%d,"method":"wait"}\n' % number for number in range(4)))
        for _ in range(3):
            assert waiting.acquire(timeout=30)
        assert neighbour.call("a")["id"] == 1
        assert not waiting.acquire(blocking=False)
        go_on.set()


def test_removing_a_socket_cuts_its_connections_and_leaves_the_others(servers, path):
    other = path.parent / "t"
    servers.add(Line(path, echo, lambda _: FakePeer()))
    servers.add(Line(other, echo, lambda _: FakePeer()))
    with Talk(path) as cut, Talk(other) as kept:
        cut.call("a")
        servers.remove(path)
        servers.remove(path)
        assert cut.answer() is None
        assert not path.exists()
        assert kept.call("a")["id"] == 1


def test_a_client_that_sends_and_hangs_up_still_has_its_request_handled(servers, path):
    seen = threading.Event()
    servers.add(Line(path, lambda *_: seen.set() or {}, lambda _: FakePeer()))
    with Talk(path) as talk:
        talk.send(b'{"id":1,"method":"release","params":{}}\n')
    assert seen.wait(30)


def test_who_is_refused_again_and_again_waits_and_nobody_else_does(servers, path, monkeypatch):
    """Refusals use the burst of one account up; its next call waits for its pace, and another account's does not."""

    def refuse(method, params, peer):
        if method == "refuse":
            raise Denied("no")
        return {}

    slow = LineServers(servers._loop, servers._executor, calls_per_second=0.001)
    as_uids(monkeypatch, 7, 8)
    monkeypatch.setattr(line, "_BURST", 10)
    slow.add(Line(path, refuse, lambda _: FakePeer()))
    with Talk(path) as hostile, Talk(path) as neighbour:
        for number in range(2):
            assert hostile.call("refuse", number)["error"]["code"] == "denied"
        hostile.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            hostile.call("a")
        assert neighbour.call("a")["id"] == 1
    slow.remove(path)
