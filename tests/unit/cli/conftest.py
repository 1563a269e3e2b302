"""A broker that answers from a script, over a real Unix socket."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from taskpass.core.errors import TaskpassError
from tests.unit.cli import cards


class ScriptedBroker:
    """``answers`` maps a method to a result, an error, or a function of the parameters; ``calls`` is what came."""

    def __init__(self, path):
        self.path = path
        self.answers = {}
        self.calls = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def named(self, method):
        return [params for name, params in self.calls if name == method]

    def _serve(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rw") as stream:
                for line in stream:
                    stream.write(json.dumps(self._answer(json.loads(line))) + "\n")
                    stream.flush()

    def _answer(self, asked):
        self.calls.append((asked["method"], asked["params"]))
        found = self.answers.get(asked["method"])
        try:
            result = found(asked["params"]) if callable(found) else found
            if isinstance(result, TaskpassError):
                raise result
        except TaskpassError as error:
            return {"id": asked["id"], "error": error.to_json() | {"family": error.default_code}}
        return {"id": asked["id"], "result": result if result is not None else {}}

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)


@pytest.fixture
def agents_broker(tmp_path, monkeypatch):
    """The agents' socket."""
    broker = ScriptedBroker(tmp_path / "line.sock")
    monkeypatch.setenv("TASKPASS_SOCK", str(broker.path))
    monkeypatch.delenv("TASKPASS_TASK", raising=False)
    monkeypatch.chdir(tmp_path)
    yield broker
    broker.close()


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A broker's directory."""
    place = tmp_path / "broker"
    place.mkdir(mode=0o700)
    (place / "run").mkdir(mode=0o700)
    monkeypatch.delenv("TASKPASS_DIR", raising=False)
    monkeypatch.delenv("TASKPASS_SOCK", raising=False)
    return place


@pytest.fixture
def peoples_broker(directory):
    """The people's socket of ``directory``."""
    broker = ScriptedBroker(directory / "run" / "operator.sock")
    yield broker
    broker.close()


@pytest.fixture
def signing_broker(peoples_broker):
    """The people's socket with one request to decide about, and challenges to sign."""
    peoples_broker.answers = cards.answers()
    return peoples_broker
