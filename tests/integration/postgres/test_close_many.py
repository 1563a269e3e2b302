"""Closing many at once on real servers: as strict as closing one, and nothing hides in the crowd."""

from __future__ import annotations

import contextlib
import socket
import threading

import psycopg
import pytest

from taskpass.core.errors import NotProven
from taskpass.issuers.base import CLOSE_ALONE, Taken
from taskpass.issuers.postgres import close_many
from taskpass.issuers.postgres.probe import PROOF
from tests.integration.postgres.enrolled import TABLES, Broker, outcome
from tests.integration.postgres.test_close import PAST_THE_CHECK, slow_start, until  # noqa: F401

pytestmark = pytest.mark.service

MANY = 12


@pytest.fixture
def broker(database):
    database.execute(*TABLES)
    made = Broker(database)
    yield made
    made.forget()


@pytest.fixture
def crowd(broker):
    return [broker.live() for _ in range(MANY)]


def close(broker, crowd):
    return broker.issuer.close_many([made.role for made in crowd], audit_head="9:sha256:00ff")


def test_every_one_is_proven_by_its_own_login_and_none_is_usable(broker, crowd):
    sessions = [broker.enter(made) for made in crowd[:5]]
    found = close(broker, crowd)
    assert {answer.answer for answer in found.values()} == {PROOF}
    assert [found[made.role].ended for made in crowd] == [1] * 5 + [0] * (MANY - 5)
    assert all(broker.refused(made) for made in crowd)
    assert all(broker.sessions(made) == [] for made in crowd)
    assert all(outcome(lambda session=session: session.execute("SELECT 1")) for session in sessions)
    assert {broker.role(made)[:2] for made in crowd} == {(False, True)}, "the password nobody knows goes with the role"
    assert broker.issuer.sweep_many([made.role for made in crowd]) == {}
    assert broker.issuer.clean_many([made.role for made in crowd]) == {made.role for made in crowd}
    assert all(broker.role(made) is None for made in crowd)


def test_closing_again_is_harmless(broker, crowd):
    close(broker, crowd)
    assert {answer.answer for answer in close(broker, crowd).values()} == {PROOF}


def test_what_is_not_the_ordinary_case_is_left_to_the_closing_of_one_and_holds_nobody_up(broker, crowd):
    absent, holder, prepared, *others = crowd
    with broker.database.server.connect(broker.database.name) as admin:
        admin.execute("SET ROLE taskpass_kit")
        admin.execute(f"DROP OWNED BY {absent.role}")
        admin.execute(f"DROP ROLE {absent.role}")
    with broker.enter(prepared) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM shop.orders")
        connection.execute("PREPARE TRANSACTION 'later'")
    with contextlib.closing(broker.enter(holder)) as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("BEGIN")
        connection.execute("ALTER ROLE CURRENT_USER PASSWORD 'mine'")
        found = close(broker, crowd)
    for made in (absent, holder, prepared):
        assert isinstance(found[made.role], NotProven)
        assert found[made.role].code == CLOSE_ALONE
    assert all(isinstance(found[made.role], Taken) for made in others)
    for made in (absent, holder, prepared):
        assert broker.issuer.close(made.role, audit_head="").answer in (PROOF, "absent")
        assert broker.refused(made)


def test_one_that_gets_in_after_all_is_not_called_proven(broker, crowd, monkeypatch):
    """A revoker with a defect: somebody else's hand lets one of them log in again before the proof."""
    real = close_many.prove_all_refused

    def meddle(place, roles, secret, entropy):
        broker.database.execute(f"ALTER ROLE {crowd[3].role} LOGIN")
        try:
            return real(place, roles, secret, entropy)
        finally:
            broker.database.execute(f"ALTER ROLE {crowd[3].role} NOLOGIN")

    monkeypatch.setattr(close_many, "prove_all_refused", meddle)
    found = close(broker, crowd)
    assert [made.role for made in crowd if not isinstance(found[made.role], Taken)] == [crowd[3].role]


def test_half_open_connections_of_others_do_not_hold_it_up(broker, crowd):
    server = broker.database.server
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection((server.host, server.port)))
        found = close(broker, crowd)
    assert {answer.answer for answer in found.values()} == {PROOF}


def enter_while_closing(broker, admin, crowd):
    client = {}

    def agent():
        with contextlib.suppress(psycopg.Error):
            client["connection"] = broker.enter(crowd[4])
            client["answer"] = client["connection"].execute("SELECT current_user").fetchone()

    thread = threading.Thread(target=agent, daemon=True)
    thread.start()
    until(lambda: admin.execute(PAST_THE_CHECK).fetchone()[0] > 0, what="the session's start")
    close(broker, crowd)
    thread.join(15)
    return client


def test_a_session_that_was_starting_is_fenced(broker, crowd, slow_start):  # noqa: F811
    assert "answer" not in enter_while_closing(broker, slow_start, crowd)


def test_without_the_fence_it_survives(broker, crowd, slow_start, monkeypatch):  # noqa: F811
    monkeypatch.setattr(close_many, "starting", lambda node: set())
    assert "answer" in enter_while_closing(broker, slow_start, crowd)


HOSTILE = ([], [None], ["lse_x"], ["'; DROP TABLE taskpass.lease; --"], ["lse_" + "0" * 26] * 5001)


def test_a_list_that_is_malformed_or_too_long_is_refused(broker):
    with broker.connect() as connection:
        for routine in ("sweep_many", "seal_many", "clean_many"):
            for leases in HOSTILE:
                with pytest.raises(psycopg.Error) as refused:
                    connection.execute(f"SELECT taskpass.{routine}(%s::text[])", [leases])
                assert refused.value.sqlstate == "TP001"
                connection.rollback()


def test_what_is_not_closed_is_neither_sealed_nor_cleaned(broker, crowd):
    leases = [made.lease for made in crowd]
    with broker.connect() as connection:
        with pytest.raises(psycopg.Error) as refused:
            connection.execute("SELECT taskpass.seal_many(%s)", [leases])
        assert refused.value.sqlstate == "TP006"
        assert connection.execute("SELECT taskpass.clean_many(%s)", [leases]).fetchall() == []
    assert not broker.refused(crowd[0])


# ---- a large bulk: see docs/adr/0017 ----

WITNESSES = 3


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(close_many, "EACH", MANY - 1)
    monkeypatch.setattr(close_many, "WITNESSES", WITNESSES)


def meddle_before_the_proof(monkeypatch, meddle):
    """``meddle`` is given the roles of each round of logins, just before it; returns the rounds."""
    real, rounds = close_many.prove_all_refused, []

    def prove(place, roles, secret, entropy):
        rounds.append(list(roles))
        meddle(roles)
        return real(place, roles, secret, entropy)

    monkeypatch.setattr(close_many, "prove_all_refused", prove)
    return rounds


def test_of_a_large_bulk_witnesses_are_tried_the_others_read_back_and_each_proof_says_which(
    broker, crowd, large, monkeypatch
):
    rounds = meddle_before_the_proof(monkeypatch, lambda roles: None)
    found = close(broker, crowd)
    (witnesses,) = rounds
    by_answer = {role: answer.answer for role, answer in found.items()}
    assert [by_answer[role] for role in witnesses] == [PROOF] * WITNESSES
    others = {answer for role, answer in by_answer.items() if role not in witnesses}
    assert others == {"NOLOGIN read back; AuthenticationOk,28000 of 3 others"}
    assert all(broker.refused(made) for made in crowd)


def test_a_witness_that_is_let_in_makes_every_other_one_prove_itself(broker, crowd, large, monkeypatch):
    let_in = []

    def meddle(roles):
        if not let_in:
            let_in.append(roles[0])
            broker.database.execute(f"ALTER ROLE {roles[0]} LOGIN")

    rounds = meddle_before_the_proof(monkeypatch, meddle)
    found = close(broker, crowd)
    assert [len(roles) for roles in rounds] == [WITNESSES, MANY - WITNESSES]
    assert [role for role, answer in found.items() if not isinstance(answer, Taken)] == let_in
    assert {answer.answer for answer in found.values() if isinstance(answer, Taken)} == {PROOF}


def test_one_that_may_log_in_again_is_not_proven_by_the_witnesses(broker, crowd, large, monkeypatch):
    opened = []

    def meddle(roles):
        opened.append(next(made.role for made in crowd if made.role not in roles))
        broker.database.execute(f"ALTER ROLE {opened[0]} LOGIN")

    meddle_before_the_proof(monkeypatch, meddle)
    found = close(broker, crowd)
    assert [role for role, answer in found.items() if not isinstance(answer, Taken)] == opened
    assert found[opened[0]].code == CLOSE_ALONE


def test_accounts_of_before_there_were_makers_are_closed_and_cleaned_in_bulk_too(broker, crowd):
    with broker.database.server.connect(broker.database.name) as admin:
        if admin.info.server_version < 160000:
            pytest.skip("up to 15 there are no makers")
        for made in crowd[:3]:
            admin.execute(f"GRANT {made.role} TO taskpass_kit WITH ADMIN TRUE, INHERIT TRUE, SET TRUE")
            admin.execute(f"REVOKE {made.role} FROM taskpass_kit_{made.role[-1]} CASCADE")
    assert {answer.answer for answer in close(broker, crowd).values()} == {PROOF}
    assert broker.issuer.clean_many([made.role for made in crowd]) == {made.role for made in crowd}
