from __future__ import annotations

import pytest

from taskpass.cli.exec import VERB as EXEC
from taskpass.cli.verb import help_text, parse
from taskpass.cli.wait import VERB as WAIT
from taskpass.core.errors import InvalidInput


def test_options_are_read_with_and_without_an_equals_sign():
    given = parse(EXEC, ["--resource", "orders", "--ttl=15m", "--table", "a.b", "--table=a.c", "--", "psql", "--x"])
    assert (given.text("resource"), given.text("ttl"), given.many("table")) == ("orders", "15m", ["a.b", "a.c"])
    assert given.rest == ["psql", "--x"]


def test_the_first_word_that_is_no_option_begins_the_command():
    assert parse(EXEC, ["--resource", "orders", "psql", "-c", "--resource"]).rest == ["psql", "-c", "--resource"]


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--resource", "x", "--help"]])
def test_help_is_asked_for_anywhere_before_the_command(words):
    assert parse(EXEC, words) is None
    assert parse(EXEC, ["--resource", "x", "--", "psql", "--help"]) is not None


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (["--resorce", "x", "--", "true"], "no option of that name", "did you mean --resource?"),
        (["--resource"], "needs a value", ""),
        (["--resource", "--", "true"], "needs a value", ""),
        (["--resource", "x", "--resource", "y", "--", "true"], "given twice", ""),
        (["--resource", "x"], "COMMAND… is missing", "taskpass exec"),
    ],
)
def test_what_is_wrong_is_named_and_never_repeats_a_value(words, said, hint):
    with pytest.raises(InvalidInput) as caught:
        parse(EXEC, words)
    assert said in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "REQUEST is missing"),
        (["a", "b"], "no further argument"),
        (["--json=1", "a"], "takes no value"),
        (["a", "--", "b"], "runs no command"),
    ],
)
def test_arguments_are_counted(words, said):
    with pytest.raises(InvalidInput, match=said):
        parse(WAIT, words)


def test_help_names_every_option():
    text = help_text(EXEC)
    assert all(option.name in text and option.help in text for option in EXEC.options)
    assert text.startswith("Usage: taskpass exec [OPTIONS] -- COMMAND…\n")
