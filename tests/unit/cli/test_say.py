from __future__ import annotations

import io

import pytest

from taskpass.cli import say
from taskpass.cli.times import seconds, when, words
from taskpass.core.errors import Denied, InvalidInput, Pending

HOSTILE = "\033[2J\u202eevil\n\u0007"


def test_an_error_is_one_line_and_one_hint_and_its_exit_code(capsys):
    code = say.fail(Denied("no", hint="ask for less", code="not_permitted"))
    assert code == 90
    assert capsys.readouterr().err == "taskpass: no [not_permitted]\nnext: ask for less\n"


def test_an_error_without_a_hint_still_says_what_to_do_next(capsys):
    assert say.fail(Pending("a person must approve")) == 91
    assert capsys.readouterr().err.splitlines()[-1].startswith("next: A person has to decide")


def test_nothing_that_somebody_wrote_reaches_the_terminal_as_it_is(capsys):
    say.fail(Denied(HOSTILE, hint=HOSTILE))
    say.table(("A",), [(HOSTILE,)])
    say.fields({"name": HOSTILE})
    say.show_json({"a": HOSTILE})
    out, err = capsys.readouterr()
    for text in (out, err):
        assert not {"\033", "\u202e", "\u0007"} & set(text)
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(
    ("environment", "terminal", "coloured"),
    [({}, True, True), ({}, False, False), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, True, False)],
)
def test_colour_needs_a_terminal_that_wants_it(monkeypatch, environment, terminal, coloured):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    assert ("\033" in say.style("x", "red", stream=stream)) is coloured


@pytest.mark.parametrize(
    ("text", "total"), [("90", 90), ("90s", 90), ("15m", 900), ("1h30m", 5400), ("1d", 86400), ("999999h", 3599996400)]
)
def test_durations_are_read(text, total):
    assert seconds(text, what="--ttl") == total


@pytest.mark.parametrize("text", ["", "0", "-5", "5x", "m", "1.5h", "0m", "1m1h", "9" * 21, "\u0661\u0665m", "15 m"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InvalidInput) as caught:
        seconds(text, what="--ttl")
    assert caught.value.code == "bad_ttl"


def test_times_are_shown_relative_and_absolute():
    assert when("2026-01-05T10:00:00.000Z", now=1767607200 - 750) == "in 12 min 30 s (2026-01-05 10:00:00 UTC)"
    assert when("2026-01-05T10:00:00.000Z", now=1767607200 + 5) == "5 s ago (2026-01-05 10:00:00 UTC)"
    assert when(None) == ""
    assert when("not a time") == "not a time"


def test_a_duration_of_nothing_has_a_word():
    assert words(0) == "0 s"
    assert words(86400 + 3600 + 60) == "1 d 1 h"
