"""Verifiers: PostgreSQL's text form, made from fresh salt, checked against an implementation that is not ours."""

from __future__ import annotations

import base64
import re

from scramp import ScramMechanism

from taskpass.core.secret import Secret
from taskpass.issuers.postgres import scram


class Fixed:
    def __init__(self, fill=7):
        self.fill = fill

    def bytes(self, count):
        return bytes([self.fill]) * count


def test_a_verifier_is_what_another_implementation_computes():
    text = scram.verifier(Secret("pencil"), Fixed(), iterations=4096)
    salt, stored, server, iterations = ScramMechanism("SCRAM-SHA-256").make_auth_info(
        "pencil", salt=bytes([7]) * 16, iteration_count=4096
    )
    encoded = [base64.b64encode(raw).decode() for raw in (salt, stored, server)]
    assert text == f"SCRAM-SHA-256${iterations}:{encoded[0]}${encoded[1]}:{encoded[2]}"


def test_a_verifier_does_not_hold_the_secret():
    assert "pencil" not in scram.verifier(Secret("pencil"), Fixed())


def test_the_salt_is_fresh():
    assert scram.verifier(Secret("a"), Fixed(1)) != scram.verifier(Secret("a"), Fixed(2))


def test_a_new_secret_has_256_bits_in_characters_that_need_no_preparation():
    text = scram.new_secret(Fixed()).reveal()
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", text)
