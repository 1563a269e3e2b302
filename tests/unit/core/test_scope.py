"""Patterns: what they match, what they refuse, and that no pattern takes long."""

from __future__ import annotations

import fnmatch
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskpass.core.errors import InvalidInput
from taskpass.core.scope import MAX_PATTERNS, Level, Scope, matches, pattern


def scope(tables=("public.*",), exclude=(), only=()):
    return Scope("orders", "read", Level.READ, tuple(tables), tuple(exclude), tuple(only))


@pytest.mark.parametrize(
    ("text", "schema", "table", "fits"),
    [
        ("public.orders", "public", "orders", True),
        ("public.orders", "public", "Orders", False),
        ("public.orders", "public", "orders2", False),
        ("public.*", "public", "", True),
        ("public.*", "public2", "orders", False),
        ("*.orders", "sales", "orders", True),
        ("*.*", "any", "thing.with.dots", True),
        ("public.or*rs", "public", "orders", True),
        ("public.or*rs", "public", "ors", False),
        ("public.o*d*s", "public", "orders", True),
        ("public.*a*a*", "public", "xa", False),
        ("public.a*a", "public", "a", False),
        ("public.?rders", "public", "orders", False),
        ("public.[o]rders", "public", "orders", False),
        ("public.order.", "public", "orders", False),
        ("public.two\nlines", "public", "two\nlines", True),
        ("public.*", "public", "two\nlines", True),
        ("public.orders", "public", "orders\n", False),
    ],
)
def test_a_pattern_matches_exact_text_except_for_stars(text, schema, table, fits):
    assert matches((text,), schema, table) is fits


def test_a_pattern_with_many_stars_is_decided_at_once():
    """As a regular expression this one runs for longer than a person lives, and it may come from an agent."""
    began = time.monotonic()
    assert not matches(("public." + "*a" * 100 + "*b",), "public", "a" * 63)
    assert not matches(("*" * 120 + "x.*",), "a" * 63, "orders")
    assert time.monotonic() - began < 20


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_matching_agrees_with_the_textbook(glob, name):
    glob, textbook = f"x{glob}", re.compile(fnmatch.translate(f"x{glob}"))
    assert matches((f"s.{glob}",), "s", f"x{name}") is (textbook.fullmatch(f"x{name}") is not None)


@pytest.mark.parametrize(
    "text", ["orders", ".orders", "public.", ".", "", "   ", 7, None, "a.\0", "x" * 300 + ".y", "\ud800.x"]
)
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(InvalidInput):
        pattern(text)


def test_an_excluded_table_is_never_wanted():
    asked = scope(exclude=["public.customers*"], only=["public.*"])
    assert asked.wants("public", "orders")
    assert not asked.wants("public", "customers_pii")
    assert asked.excludes("public", "customers_pii")
    assert not asked.excludes("public", "orders")


def test_only_makes_a_scope_smaller_and_never_larger():
    asked = scope(tables=["public.orders"], only=["*.*"])
    assert asked.wants("public", "orders")
    assert not asked.wants("hr", "salaries")
    assert not scope(only=["hr.*"]).wants("public", "orders")


def test_nothing_is_excluded_without_an_exclude_list():
    assert not scope().excludes("public", "orders")


def test_a_scope_names_tables():
    with pytest.raises(InvalidInput, match="names no tables"):
        scope(tables=[])


@pytest.mark.parametrize("field", ["tables", "exclude", "only"])
def test_patterns_are_counted_and_checked_everywhere(field):
    with pytest.raises(InvalidInput, match="too many"):
        scope(**{field: ["public.x"] * (MAX_PATTERNS + 1)})
    with pytest.raises(InvalidInput):
        scope(**{field: ["nodot"]})


def test_a_scope_survives_json():
    asked = scope(exclude=["public.a"], only=["public.b"])
    assert Scope.from_json(asked.to_json()) == asked
