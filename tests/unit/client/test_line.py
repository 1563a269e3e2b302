"""The client against the real server, and against servers and places that misbehave."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from taskpass.client.errors import from_wire
from taskpass.client.line import LineClient
from taskpass.core import errors
from taskpass.core.errors import BrokerUnreachable, Denied, Internal, InvalidInput, NotAuthenticated


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s"


class FakeBroker:
    """Accepts one connection after the other and answers each received chunk with the next prepared bytes."""

    def __init__(self, path, *answers):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.answers = answers
        self.received = []
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        for answer in self.answers:
            connection, _ = self.listener.accept()
            with connection:
                self.received.append(connection.recv(65536))
                if answer is None:
                    connection.recv(1)
                else:
                    with contextlib.suppress(OSError):
                        connection.sendall(answer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.thread.join(30)
        self.listener.close()


def failure(path, **named):
    with pytest.raises(errors.TaskpassError) as caught, LineClient(path) as client:
        client.call("status", **named)
    return caught.value


def test_a_call_gives_the_result_and_numbers_its_requests(path):
    with FakeBroker(path, b'{"id":1,"result":{"a":1}}\n') as broker, LineClient(path) as client:
        assert client.call("hello", {"x": 1}) == {"a": 1}
    assert broker.received == [b'{"id":1,"method":"hello","params":{"x":1}}\n']


def test_a_refusal_carries_code_hint_and_exit_code(path):
    answer = (
        b'{"id":1,"error":{"code":"separation","family":"denied","message":"no","hint":"use run","retryable":false}}\n'
    )
    with FakeBroker(path, answer):
        error = failure(path)
    assert isinstance(error, Denied)
    assert (error.code, error.message, error.hint, error.exit_code) == ("separation", "no", "use run", 90)


def test_an_error_of_another_version_keeps_its_code():
    error = from_wire({"code": "brand_new", "family": "unheard_of", "message": "m"})
    assert isinstance(error, Internal)
    assert error.code == "brand_new"


@pytest.mark.parametrize("found", [None, "no", [], 1])
def test_an_error_without_a_shape_is_still_an_error(found):
    assert from_wire(found).code == "bad_answer"


def test_every_class_of_error_comes_back_as_itself():
    for kind in (errors.NotAuthenticated, errors.Pending, errors.Expired, errors.ObligationUnmet, errors.NotFound):
        assert type(from_wire({"family": kind.default_code, "code": "x", "message": "m"})) is kind


def test_no_socket_means_the_broker_does_not_run(path):
    error = failure(path)
    assert (error.code, error.exit_code) == ("broker_unreachable", 93)
    assert "taskpass up" in error.hint


def test_a_stale_socket_means_the_same(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    assert failure(path).code == "broker_unreachable"


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second account")
def test_a_socket_that_may_not_be_used_points_at_the_tools_own_sandbox(path, tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0o600)
        child = os.fork()
        if child == 0:
            os.chdir(tmp_path)
            os.chmod(tmp_path, 0o711)
            os.setresuid(4321, 4321, 4321)
            try:
                LineClient("s").call("status")
            except BrokerUnreachable as error:
                os._exit(0 if error.code == "socket_forbidden" and "sandbox" in error.hint else 2)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_broker_that_does_not_answer_is_given_up(path):
    with FakeBroker(path, None):
        assert failure(path, timeout=0.05).code == "timeout"


@pytest.mark.parametrize("answer", [b"", b'{"id":1,'])
def test_a_connection_that_ends_too_early_is_said_so(path, answer):
    with FakeBroker(path, answer):
        assert failure(path).code == "connection_lost"


@pytest.mark.parametrize(
    "answer", [b"no\n", b"[]\n", b'{"id":2,"result":{}}\n', b'{"id":1,"result":3}\n', b'{"id":1}\n']
)
def test_an_answer_that_is_not_one_is_refused(path, answer):
    with FakeBroker(path, answer):
        assert failure(path).code == "bad_answer"


def test_an_endless_answer_is_cut_off(path):
    with FakeBroker(path, b"a" * (3 * 1024 * 1024)) as broker:
        with pytest.raises(BrokerUnreachable), LineClient(path) as client:
            client.call("status")
        assert broker.received


def test_after_a_broken_connection_the_next_call_connects_anew(path):
    with FakeBroker(path, b"", b'{"id":2,"result":{}}\n') as broker, LineClient(path) as client:
        with pytest.raises(BrokerUnreachable):
            client.call("release")
        assert client.call("status") == {}
    assert len(broker.received) == 2


def test_a_connection_that_the_broker_closed_while_idle_is_made_anew(path):
    with FakeBroker(path, b'{"id":1,"result":{}}\n', b'{"id":2,"result":{}}\n') as broker, LineClient(path) as client:
        assert client.call("prepare_run") == {}
        while client._socket.recv(1, socket.MSG_PEEK) != b"":
            pass
        assert client.call("end_run") == {}
    assert len(broker.received) == 2


def test_a_second_call_on_an_open_connection_waits_for_nothing(path):
    ours, theirs = socket.socketpair()
    with ours, theirs, LineClient(path) as client:
        client._socket = ours

        def answer():
            for number in (1, 2):
                theirs.recv(65536)
                theirs.sendall(b'{"id":%d,"result":{}}\n' % number)

        served = threading.Thread(target=answer, daemon=True)
        served.start()
        client.call("status", timeout=30)
        started = time.monotonic()
        client.call("status", timeout=30)
        served.join(30)
        assert time.monotonic() - started < 10


def test_a_path_that_is_too_long_is_said_so(tmp_path):
    assert isinstance(failure(tmp_path / ("a" * 200)), InvalidInput)


def test_nothing_is_sent_to_a_socket_of_another_account(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(NotAuthenticated) as caught, LineClient(path, owners=frozenset({os.getuid() + 1})) as client:
            client.call("vote", {"secret": "never sent"})
        assert caught.value.code == "broker_not_trusted"
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(100) == b""


def test_the_client_imports_the_standard_library_only():
    code = (
        "import sys; before = set(sys.modules); import taskpass.client.line, taskpass.client.git,"
        " taskpass.client.run_child; new = {m.split('.')[0] for m in set(sys.modules) - before};"
        " print(sorted(new - sys.stdlib_module_names - {'taskpass'}));"
        " print([m for m in sys.modules if m in ('asyncio', 'subprocess', 'dataclasses', 'inspect', 'logging')])"
    )
    source = os.path.join(os.path.dirname(__file__), "../../../src")
    command = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {source!r}); {code}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n[]\n"
