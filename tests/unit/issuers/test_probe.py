"""What counts as proof on the wire: one answer of the server, and nothing that only resembles it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading

import pytest
from scramp import ScramException

from taskpass.core.errors import NotProven, TargetUnavailable, TargetUnfit
from taskpass.core.secret import Secret
from taskpass.issuers.postgres.probe import PROOF, Place, control, prove_refused
from taskpass.wire.postgres.messages import authentication, error_response
from tests.unit.wire.conversation import CANARY, SESSION, ScramServer

OK = authentication(0)
REFUSED = error_response("28000", "role is not permitted to log in")


class Numbers:
    """Distinct bytes for each call."""

    def __init__(self):
        self.counter = itertools.count(1)

    def bytes(self, count):
        return next(self.counter).to_bytes(count, "big")


class Server(threading.Thread):
    """Serves one scripted login after the other on a Unix socket; ``None`` hangs up at once."""

    def __init__(self, directory, scripts):
        super().__init__(daemon=True)
        self.scripts = scripts
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{directory}/.s.PGSQL.5432")
        self.listener.listen()
        self.place = Place(f"{directory}:5432/orders")

    def run(self):
        with self.listener:
            self.listener.settimeout(5)
            for script in self.scripts:
                stream, _ = self.listener.accept()
                # A server that does not accept the proof, and a client that has heard enough, both hang up.
                with stream, contextlib.suppress(OSError, ScramException):
                    stream.settimeout(0.5)
                    self.serve(stream, script)

    @staticmethod
    def serve(stream, script):
        stream.recv(10_000)
        if isinstance(script, bytes):
            stream.sendall(script)
            return
        if script is None:
            return
        out = script.start()
        while out:
            stream.sendall(out)
            received = stream.recv(10_000)
            out = script.answer(received) if received else b""


@pytest.fixture
def server(tmp_path):
    started = []

    def start(*scripts):
        started.append(Server(tmp_path, scripts))
        started[-1].start()
        return started[-1].place

    yield start
    for each in started:
        each.join(30)


def prove(place):
    return prove_refused(place, "tp_x", Secret(CANARY), Numbers())


def test_a_right_password_that_is_refused_after_authentication_is_proof(server):
    assert prove(server(ScramServer(after=OK + REFUSED))) == PROOF


@pytest.mark.parametrize(
    "words", ["Rolle darf sich nicht einloggen", "ロールは許可されません", "", "password authentication failed"]
)
def test_the_words_of_the_server_do_not_matter(server, words):
    assert prove(server(ScramServer(after=OK + error_response("28000", words, severity="SCHWERWIEGEND")))) == PROOF


NO_PROOF = {
    "it is let in": ScramServer(after=SESSION),
    "it is let in without a password": SESSION,
    "the refusal comes before authentication ends (pg_hba)": REFUSED,
    "the refusal comes after the password but before AuthenticationOk": ScramServer(after=REFUSED),
    "it is refused without a password (trust)": OK + REFUSED,
    "the password is wrong or the account is expired or absent": ScramServer(
        after=error_response("28P01", "role is not permitted to log in")
    ),
    "too many connections": ScramServer(after=OK + error_response("53300", "role is not permitted to log in")),
    "no right to connect to the database": ScramServer(after=OK + error_response("42501", "permission denied")),
    "the server starts up": error_response("57P03", "the database system is starting up"),
    "the server hangs up": None,
    "the server hangs up after AuthenticationOk": ScramServer(after=OK),
    "the server asks for the password in clear": authentication(3),
    "the server asks for MD5": authentication(5, b"salt"),
    "it is not PostgreSQL": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "the server does not know the password itself": ScramServer(password="another one", after=OK + REFUSED),
}


@pytest.mark.parametrize("script", NO_PROOF.values(), ids=NO_PROOF.keys())
def test_no_other_answer_is_proof(server, script):
    with pytest.raises((NotProven, TargetUnavailable)) as caught:
        prove(server(script))
    assert CANARY not in f"{caught.value!r} {caught.value.hint}"


def test_a_replaced_password_is_named_as_such(server):
    with pytest.raises(NotProven) as caught:
        prove(server(ScramServer(after=error_response("28P01", ""))))
    assert caught.value.code == "rekeyed"


def test_no_server_is_unavailable(tmp_path):
    with pytest.raises(TargetUnavailable):
        prove(Place(f"{tmp_path}:5432/orders"))


def show(place):
    control(place, "tp_x", Secret(CANARY), Secret("wrong"), Numbers())


WRONG = error_response("28P01", "")


def test_the_control_is_passed_by_a_server_that_checks_passwords(server):
    show(server(ScramServer(after=SESSION), WRONG))


@pytest.mark.parametrize(
    "scripts",
    [
        (SESSION, SESSION),
        (SESSION, WRONG),
        (ScramServer(after=SESSION), SESSION),
        (ScramServer(after=SESSION), OK + REFUSED),
        (ScramServer(after=OK + REFUSED),),
        (WRONG,),
        (None,),
    ],
    ids=["trust", "trust for some", "any password", "another refusal", "cannot log in", "wrong password", "hangs up"],
)
def test_the_control_is_failed_by_every_other_server(server, scripts):
    with pytest.raises(TargetUnfit):
        show(server(*scripts))
