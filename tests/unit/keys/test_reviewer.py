from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskpass.core.errors import InvalidInput
from taskpass.core.secret import Secret
from taskpass.keys import ed25519, reviewer
from taskpass.testing.suites.records import Counting


class Ones:
    def bytes(self, count):
        return b"\xff" * count


SECRET = Secret("7k2m-0abc-1def-9xyz-q0r1-st5v")
SALT = reviewer.new_salt(Counting())
PUBLIC = reviewer.verifier(SECRET, SALT)[0]
DATA = b"challenge"
SIGNATURE = reviewer.sign(SECRET, SALT, DATA)


def test_a_new_secret_has_six_groups_of_four():
    made = reviewer.new_reviewer_secret(Counting())
    assert re.fullmatch(r"([0-9a-hjkmnp-tv-z]{4}-){5}[0-9a-hjkmnp-tv-z]{4}", made.reveal())
    assert reviewer.new_reviewer_secret(Ones()).reveal() == "-".join(["zzzz"] * 6)
    assert made.reveal() not in repr(made)


def test_what_a_person_signs_is_verified_with_the_public_key_only():
    assert reviewer.verify(PUBLIC, DATA, SIGNATURE)
    assert not reviewer.verify(PUBLIC, DATA + b"x", SIGNATURE)


@pytest.mark.parametrize(
    "typed", ["7K2M-0ABC-1DEF-9XYZ-Q0R1-ST5V", "  7k2moabcldef9xyzqori st5v ", "7k2m 0abc idef 9xyz qOrl st5v"]
)
def test_typing_it_differently_makes_no_difference(typed):
    assert reviewer.verifier(Secret(typed), SALT)[0] == PUBLIC


def test_another_secret_or_salt_is_another_key():
    other = Secret(SECRET.reveal()[:-1] + "w")
    assert reviewer.verifier(other, SALT)[0] != PUBLIC
    assert reviewer.verifier(SECRET, ed25519.encode(b"x" * 16))[0] != PUBLIC


@pytest.mark.parametrize("typed", ["", "7k2m", SECRET.reveal() + "0", SECRET.reveal()[:-1] + "u", "ü" * 24, "🙂" * 24])
def test_what_is_no_secret_is_refused_without_being_shown(typed):
    with pytest.raises(InvalidInput) as found:
        reviewer.derive(Secret(typed), SALT)
    assert not typed or typed not in f"{found.value.message}{found.value.hint}"


@pytest.mark.parametrize("salt", ["", "AAAA", "not base64", SALT + "=", "ü"])
def test_what_is_no_salt_is_refused(salt):
    with pytest.raises(InvalidInput):
        reviewer.derive(SECRET, salt)


@given(st.text(), st.binary(), st.text())
def test_junk_is_never_a_signature_and_never_an_error(public, data, signature):
    assert reviewer.verify(public, data, signature) is False
    assert reviewer.verify(PUBLIC, data, signature) is False
    assert reviewer.verify(public, data, SIGNATURE) is False


@pytest.mark.parametrize("where", range(len(SIGNATURE)))
def test_every_character_of_a_signature_counts(where):
    for other in "AZ09+/=-_ \n":
        changed = SIGNATURE[:where] + other + SIGNATURE[where + 1 :]
        assert reviewer.verify(PUBLIC, DATA, changed) == (changed == SIGNATURE)


def test_a_key_of_low_order_signs_nothing():
    signature = ed25519.encode(b"\1" + b"\0" * 63)
    for last in (0, 0x80):
        identity = ed25519.encode(b"\1" + b"\0" * 30 + bytes([last]))
        assert not any(reviewer.verify(identity, bytes([number]), signature) for number in range(64))
