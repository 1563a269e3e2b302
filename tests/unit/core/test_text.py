"""Text that somebody else wrote, made safe to show, and bounded before it is stored."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskpass.core.errors import InvalidInput
from taskpass.core.text import accept, visible

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=40)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words", "plain words"),
        ("Grüße, 世界 🙂", "Grüße, 世界 🙂"),
        ("\x1b[31mred", "\\u{1b}[31mred"),
        ("a\rb", "a\\u{d}b"),
        ("a\nb", "a\\u{a}b"),
        ("a\tb", "a\\u{9}b"),
        ("user\u202egnp.exe", "user\\u{202e}gnp.exe"),
        ("\u2066x\u2069", "\\u{2066}x\\u{2069}"),
        ("zero\u200bwidth", "zero\\u{200b}width"),
        ("\ufeffbom", "\\u{feff}bom"),
        ("line\u2028separator", "line\\u{2028}separator"),
        ("soft\u00adhyphen", "soft\\u{ad}hyphen"),
        ("\x9b31m", "\\u{9b}31m"),
        ("\U000e0041tag", "\\u{e0041}tag"),
        ("\ue000private", "\\u{e000}private"),
        ("\ud800lone", "\\u{d800}lone"),
        ("d\u3164ba", "d\\u{3164}ba"),
        ("d\u034fba", "d\\u{34f}ba"),
        ("\u2800", "\\u{2800}"),
        ("x\ufe0f", "x\\u{fe0f}"),
        ("x\U000e0101", "x\\u{e0101}"),
        ("no\u00a0break", "no break"),
        ("wide\u3000space", "wide space"),
    ],
)
def test_what_would_act_is_shown_instead(text, shown):
    assert visible(text) == shown


@given(ANY_TEXT)
def test_nothing_that_is_shown_can_act(text):
    hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert not {unicodedata.category(character) for character in visible(text)} & hidden
    visible(text).encode()


@given(ANY_TEXT)
def test_showing_twice_changes_nothing(text):
    assert visible(visible(text)) == visible(text)


@given(ANY_TEXT, st.integers(0, 30))
def test_a_cut_says_how_much_is_missing(text, limit):
    shown, whole = visible(text, limit=limit), visible(text)
    if len(whole) <= limit:
        assert shown == whole
    else:
        assert shown == f"{whole[:limit]} […{len(whole) - limit} more characters]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "must be text"),
        (7, "must be text"),
        (b"x", "must be text"),
        ("a\0b", "NUL"),
        ("\ud800", "Unicode"),
        ("x" * 256, "256 bytes, at most 255"),
        ("é" * 128, "256 bytes"),
        ("", "must not be empty"),
        (" \t\n", "must not be empty"),
    ],
)
def test_what_cannot_be_stored_is_refused_in_words(text, words):
    with pytest.raises(InvalidInput) as caught:
        accept(text, what="a branch")
    assert caught.value.message.startswith("a branch")
    assert words in caught.value.message


@pytest.mark.parametrize("text", ["x" * 255, "'; DROP TABLE x; --", "\x1b[2J", "\u202e", " x "])
def test_odd_but_storable_text_is_kept_as_it_is(text):
    assert accept(text, what="a branch") == text


def test_emptiness_is_accepted_where_it_is_allowed():
    assert accept("", what="a reason", empty=True) == ""
