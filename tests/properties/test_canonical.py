"""Canonical bytes are those of RFC 8785, whichever of the two ways writes them."""

from __future__ import annotations

import json

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from taskpass.core.digest import SAFE_INTEGER, canonical
from taskpass.core.errors import InvalidInput

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LEAVES = st.none() | st.booleans() | st.integers(-SAFE_INTEGER, SAFE_INTEGER) | TEXT
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=25
)


@given(VALUES)
@example({'\x7f\x00\x1f\u2028\\"/': ["\b\f\n\r\t", 2**53 - 1, -0, True, None]})
@example({"\ufb33": 1, "\U0001f600": 2, "a": 3})
def test_it_writes_what_the_reference_implementation_writes(value):
    assert canonical(value) == rfc8785.dumps(value)
    assert json.loads(canonical(value)) == value


@pytest.mark.parametrize(
    "value", [1.0, {"a": 1e300}, {1: 2}, {"a": {None: 1}}, 2**53, [-(2**53)], "\ud800", {"\ud800": 1}, b"x", {"a": {1}}]
)
def test_what_has_no_exact_form_is_refused(value):
    with pytest.raises(InvalidInput):
        canonical(value)
