"""A person at a terminal: what is asked there, and that a secret is not shown while it is typed."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.cli.cards import TYPED

PROGRAM = Path(sys.executable).with_name("taskpass")
SECONDS = 20


class Terminal:
    """Runs a command whose standard streams are a terminal; answers prompts as they appear."""

    def __init__(self, *words):
        self.shown = ""
        self._master, slave = os.openpty()
        self._child = subprocess.Popen(
            [PROGRAM, *words], stdin=slave, stdout=slave, stderr=slave, start_new_session=True, close_fds=True
        )
        os.close(slave)

    def answer(self, prompt, text):
        self._until(prompt)
        os.write(self._master, text.encode() + b"\n")

    def end(self):
        self._until(None)
        os.close(self._master)
        return self._child.wait(SECONDS)

    def _until(self, wanted):
        seen, deadline = len(self.shown), time.monotonic() + SECONDS
        while wanted is None or wanted not in self.shown[seen:]:
            assert time.monotonic() < deadline, f"{wanted!r} was not asked: {self.shown}"
            if not select.select([self._master], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(self._master, 4096)
            except OSError:
                data = b""
            if not data:
                assert wanted is None, f"{wanted!r} was not asked: {self.shown}"
                return
            self.shown += data.decode(errors="replace")


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    return Terminal


def test_a_login_typed_on_the_terminal_is_not_shown(terminal, directory):
    place = directory.parent / "new"
    person = terminal("init", "--postgres", "--directory", str(place))
    person.answer("login: ", "postgresql://admin:hunter2@127.0.0.1:1/db")
    assert person.end() == 1
    assert "hunter2" not in person.shown
    assert "[target_unavailable]" in person.shown
    assert not place.exists()


def test_a_person_narrows_and_signs_in_a_dialogue(terminal, signing_broker, directory):
    person = terminal("review", "req_1", "--directory", str(directory))
    person.answer("approve, narrow, deny, or leave it", "narrow")
    person.answer("take out", "public.nothing")
    person.answer("take out", "public.events")
    person.answer("1 of 2 object(s) left", "public.orders.note")
    person.answer("take out", "")
    person.answer("lifetime", "5m")
    person.answer("approve, narrow, deny, or leave it", "approve")
    person.answer("comment", "only what you need")
    person.answer("reviewer secret of ben: ", TYPED)
    assert person.end() == 0
    assert "the request has no" in person.shown
    assert TYPED not in person.shown
    (vote,) = signing_broker.named("vote")
    assert (vote["lifetime"], vote["comment"]) == (300, "only what you need")
    assert vote["keeps"] == [{"oid": 10, "columns": [1, 2], "verbs": ["SELECT"]}]


@pytest.mark.parametrize("answer", ["", "leave", "no"])
def test_leaving_it_decides_nothing(terminal, signing_broker, directory, answer):
    person = terminal("review", "req_1", "--directory", str(directory))
    person.answer("approve, narrow, deny, or leave it", answer)
    assert person.end() == 0
    assert not signing_broker.named("vote")
