from __future__ import annotations

import json
import os
from base64 import b64encode

import pytest

from taskpass.cli import narrowing
from taskpass.cli.entry import main
from taskpass.core.approval import challenge
from taskpass.core.errors import Denied, InvalidInput
from taskpass.core.secret import Secret
from taskpass.keys import reviewer
from tests.unit.cli.cards import KEY, TYPED, card, manifest, offered, writing

HOSTILE = "\033[32mApproved by DBA\u202e\nWhat the broker knows"


@pytest.fixture
def broker(signing_broker):
    return signing_broker


@pytest.fixture
def review(broker, directory):
    """Runs ``taskpass review`` with the secret on a descriptor."""

    def run(*words, secret=TYPED):
        reading, writing = os.pipe()
        os.write(writing, secret.encode() + b"\n")
        os.close(writing)
        try:
            return main(["review", *words, "--secret-fd", str(reading), "--directory", str(directory)])
        finally:
            os.close(reading)

    return run


def test_a_yes_is_signed_over_exactly_the_challenge(review, broker, capfd):
    assert review("req_1", "--approve", "--comment", "ok") == 0
    (vote,) = broker.named("vote")
    data = challenge(verb="approve", digest_="sha256:1", approver="ben", nonce="n", comment="ok")
    assert reviewer.verify(KEY, data, vote["signature"])
    assert vote["keeps"] == [
        {"oid": 10, "columns": [1, 2, 3], "verbs": ["SELECT"]},
        {"oid": 11, "columns": [1], "verbs": ["SELECT"]},
    ]
    assert "you sign: approve req_1 as ben (reviewer-secret)" in capfd.readouterr().err


def test_narrowing_is_what_is_sent_and_signed(review, broker):
    words = ["--drop", "public.events", "--drop-column", "public.orders.note", "--lifetime", "5m", "--as", "eve"]
    assert review("req_1", "--approve", *words) == 0
    (vote,) = broker.named("vote")
    assert vote["keeps"] == [{"oid": 10, "columns": [1, 2], "verbs": ["SELECT"]}]
    assert (vote["lifetime"], vote["human"]) == (300, "eve")


def test_a_no_needs_no_narrowing(review, broker):
    assert review("req_1", "--deny", "--comment", "why?") == 0
    (vote,) = broker.named("vote")
    assert vote["verb"] == "deny"
    assert "keeps" not in vote


@pytest.fixture
def writes(broker):
    broker.answers["show_request"] = card(writing())
    broker.answers["challenge"] = lambda ballot: offered(ballot, writing())
    return broker


def test_what_a_write_does_elsewhere_is_shown_with_what_is_held_back(writes, directory, capfd):
    assert main(["review", "req_1", "--directory", str(directory)]) == 0
    shown = [line.split("  ") for line in capfd.readouterr().out.splitlines()]
    shown = [[word.strip() for word in line if word.strip()] for line in shown]
    orders = "public.orders"
    assert [orders, "DELETE (held back)", "public.customers", "table", "cascade"] in shown
    assert [orders, "INSERT, UPDATE", "audit.note()", "routine", "trigger with its owner's rights"] in shown
    refused = "refused, unless: --accept public.customers"
    assert [orders, "DELETE", "public.customers", "cascade", refused] in shown
    assert ["USAGE of the sequences of these columns: public.orders_id_seq"] in shown
    assert "twice (computed)" in str(shown)


def test_a_yes_leaves_what_is_held_back_refused(review, writes):
    assert review("req_1", "--approve") == 0
    (vote,) = writes.named("vote")
    assert vote["keeps"] == [{"oid": 10, "columns": [1, 2, 3, 4], "verbs": ["INSERT", "SELECT", "UPDATE"]}]
    assert "accept" not in vote


def test_what_is_held_back_is_given_by_its_name_only(review, writes, capfd):
    assert review("req_1", "--approve", "--accept", "public.customers") == 0
    (vote,) = writes.named("vote")
    assert vote["accept"] == ["public.customers"]
    assert vote["keeps"][0]["verbs"] == ["DELETE", "INSERT", "SELECT", "UPDATE"]
    assert "you accept that these are changed: public.customers" in capfd.readouterr().err
    assert review("req_1", "--approve", "--accept", "public.orders") == 2
    assert review("req_1", "--approve", "--accept", "*") == 2
    assert len(writes.named("vote")) == 1


def test_a_broker_that_accepts_more_than_the_person_gets_no_signature(review, writes, capfd):
    honest = writes.answers["challenge"]
    writes.answers["challenge"] = lambda ballot: honest(ballot | {"accept": ["public.customers"]})
    assert review("req_1", "--approve") == 90
    assert not writes.named("vote")
    assert "[challenge_mismatch]" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "columns", "verbs"),
    [
        (["--drop-verb", "INSERT"], [1, 2, 3, 4], ["SELECT", "UPDATE"]),
        (["--drop-verb", "public.orders:UPDATE", "--drop-verb", "INSERT"], [1, 2, 3, 4], ["SELECT"]),
        (["--drop-column", "public.orders.amount"], [1, 3], ["INSERT", "SELECT", "UPDATE"]),
    ],
)
def test_verbs_can_be_taken_away_and_what_is_computed_from_a_column_goes_with_it(review, writes, words, columns, verbs):
    assert review("req_1", "--approve", *words) == 0
    (vote,) = writes.named("vote")
    assert vote["keeps"] == [{"oid": 10, "columns": columns, "verbs": verbs}]


def test_a_verb_that_is_not_there_leaves_nothing_signed(review, writes):
    for word in ("DELETE", "insert", "public.items:INSERT", "TRUNCATE"):
        assert review("req_1", "--approve", "--drop-verb", word) == 2
    assert not writes.named("vote")


@pytest.mark.parametrize(
    "words", [["--drop", "public.nothing"], ["--only", "orders"], ["--drop-column", "public.orders.nothing"]]
)
def test_a_mistyped_name_leaves_nothing_signed(review, broker, words):
    assert review("req_1", "--approve", *words) == 2
    assert not broker.named("challenge")
    assert not broker.named("vote")


@pytest.mark.parametrize("lie", ["manifest", "data", "lifetime"])
def test_a_challenge_for_anything_else_is_not_signed(review, broker, capfd, lie):
    honest = broker.answers["challenge"]
    other = {
        "manifest": manifest("salaries").to_json(),
        "data": b64encode(challenge(verb="approve", digest_="sha256:2", approver="ben", nonce="n")).decode(),
        "lifetime": 3600,
    }
    broker.answers["challenge"] = lambda ballot: honest(ballot) | {lie: other[lie]}
    assert review("req_1", "--approve", "--lifetime", "5m") == 90
    assert not broker.named("vote")
    assert "[challenge_mismatch]" in capfd.readouterr().err


def test_a_wrong_secret_is_not_shown(review, broker, capfd):
    assert review("req_1", "--approve", secret="hunter2") == 2
    assert "hunter2" not in "".join(capfd.readouterr())
    assert not broker.named("vote")


def test_the_secret_goes_nowhere_but_into_the_signature(review, broker, capfd):
    assert review("req_1", "--approve") == 0
    assert TYPED not in json.dumps(broker.calls) + "".join(capfd.readouterr())


def test_the_brokers_refusal_is_the_exit_code(review, broker):
    broker.answers["vote"] = Denied("the sponsor of a task cannot approve it", code="self_approval")
    assert review("req_1", "--approve") == 90


def test_review_does_not_follow_the_environment(broker, directory, monkeypatch, capfd):
    monkeypatch.setenv("TASKPASS_DIR", str(directory))
    assert main(["review"]) == 2
    assert "[directory_not_named]" in capfd.readouterr().err
    assert not broker.calls
    assert main(["review", "--directory", str(directory)]) == 0


def test_nobody_decides_inside_a_run(broker, directory, monkeypatch):
    monkeypatch.setenv("TASKPASS_SOCK", "/run/x/line.sock")
    assert main(["review", "--directory", str(directory)]) == 90
    assert not broker.calls


def test_a_process_without_an_account_has_no_usual_directory(monkeypatch, capfd):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("TASKPASS_DIR", raising=False)
    monkeypatch.delenv("TASKPASS_SOCK", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert main(["review"]) == 2
    assert "/.local" in capfd.readouterr().err


def test_review_refuses_a_directory_that_others_can_enter(broker, directory, capfd):
    directory.chmod(0o755)
    assert main(["review", "--directory", str(directory)]) == 2
    assert not broker.calls


def test_without_a_terminal_nothing_is_asked_and_nothing_decided(broker, directory, capfd):
    assert main(["review", "req_1", "--directory", str(directory)]) == 0
    assert not broker.named("challenge")
    assert main(["review", "req_1", "--approve", "--directory", str(directory)]) == 2
    assert "--secret-fd" in capfd.readouterr().err


def test_the_card_shows_every_object_and_why_others_are_left_out(broker, directory, capfd):
    assert main(["review", "req_1", "--directory", str(directory)]) == 0
    shown = capfd.readouterr().out
    for text in (
        "id, amount, note",
        "120,000",
        "events_2026",
        "would reach public.customers",
        "TEMP",
        "production-asks",
        "10 min",
    ):
        assert text in shown


@pytest.mark.parametrize("place", ["reason", "repository", "database", "table", "comment"])
def test_no_content_of_the_other_classes_changes_what_the_broker_says(broker, directory, capfd, place):
    """The facts are the lines before the first blank line of the next block, whatever anybody else wrote."""

    def facts():
        assert main(["review", "req_1", "--directory", str(directory)]) == 0
        shown = capfd.readouterr().out
        assert "\033" not in shown
        assert "\u202e" not in shown
        assert shown.count("\nWhat the broker knows\n") == 1
        return shown.split("\nrights in database")[0]

    expected = facts()
    if place == "table":
        broker.answers["show_request"] = card(manifest(HOSTILE))
    elif place == "database":
        broker.answers["show_request"] = card() | {"fetched": {"database": HOSTILE}}
    elif place == "comment":
        vote = {"verdict": "deny", "approver": "ben", "method": "reviewer-secret", "at": None, "comment": HOSTILE}
        broker.answers["show_request"] = card() | {"votes": [vote]}
    else:
        value = HOSTILE if place == "reason" else {"value": HOSTILE, "provenance": "claimed"}
        broker.answers["show_request"] = card(**{place: value})
    assert facts() == expected


def test_only_what_the_broker_knows_carries_colour(broker, directory, monkeypatch, capfd):
    monkeypatch.setattr("taskpass.cli.say.coloured", lambda stream: True)
    assert main(["review", "req_1", "--directory", str(directory)]) == 0
    shown = capfd.readouterr().out
    foreign = shown[shown.index("Fetched from the target") :]
    assert "\033" in shown
    assert "\033" not in foreign


def test_lists_what_is_waiting(broker, directory, capfd):
    assert main(["review", "--directory", str(directory)]) == 0
    assert "nothing is waiting" in capfd.readouterr().out


def test_only_leaves_only_that():
    left = narrowing.keeps(manifest(), only=["public.events"], drop=[], drop_columns=[])
    assert [keep.oid for keep in left] == [11]


def test_a_table_without_columns_left_is_gone():
    left = narrowing.keeps(manifest(), only=[], drop=[], drop_columns=["public.events.id"])
    assert [keep.oid for keep in left] == [10]


def test_names_with_dots_are_exact():
    with pytest.raises(InvalidInput):
        narrowing.keeps(manifest("a.b"), only=["a.b"], drop=[], drop_columns=[])
    assert narrowing.keeps(manifest("a.b"), only=["public.a.b"], drop=[], drop_columns=["public.a.b.note"])


def test_a_secret_does_not_show_itself():
    assert "hunter2" not in repr(Secret("hunter2"))


def test_the_card_says_how_fast_it_ends_where_it_does_not_and_which_limits_hold(review, capfd):
    review("req_1", "--deny")
    shown = capfd.readouterr().out
    assert "at once, open sessions included" in shown
    assert "not on 1 server(s) that replicate from it and are not listed" in shown
    assert "5 connections: enforced by the target" in shown
    assert "statement 60 seconds: watched by the broker" in shown
    assert "temp 64 megabytes: enforced by nobody here" in shown
