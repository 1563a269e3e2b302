"""Identifiers: their form, their order, and what a role name says."""

from __future__ import annotations

import pytest

from taskpass.core.clock import Instant
from taskpass.core.errors import InvalidInput
from taskpass.core.ids import (
    KINDS,
    InstallationId,
    LeaseId,
    lease_of_role,
    new_id,
    new_installation_id,
    parse_id,
    role_name,
)


class Counting:
    """Bytes that are all zero, then all one, and so on."""

    def __init__(self, start=0):
        self.next = start

    def bytes(self, count):
        self.next += 1
        return bytes([self.next - 1 & 255]) * count


HERE = InstallationId("abcdefgh")
NOW = Instant(1_767_600_000_000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_id_is_well_formed(kind):
    made = new_id(kind, NOW, Counting())
    assert parse_id(kind, made) == made
    assert len(made) == len(kind) + 1 + 26


def test_an_unknown_kind_is_refused():
    with pytest.raises(InvalidInput):
        new_id("xxx", NOW, Counting())


def test_ids_sort_by_time():
    times = [0, 1, 31, 32, 33, 10**6, NOW, NOW + 1, 2**48 - 1]
    made = [new_id("lse", Instant(at), Counting(255 - index)) for index, at in enumerate(times)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_the_random_part_tells_ids_of_one_moment_apart():
    entropy = Counting()
    assert new_id("lse", NOW, entropy) != new_id("lse", NOW, entropy)


def test_the_extremes_are_written_in_full():
    assert new_id("lse", Instant(0), Counting(0)) == "lse_" + "0" * 26
    assert new_id("lse", Instant(2**48 - 1), Counting(255)) == "lse_7" + "z" * 25


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lse_",
        "lse_" + "0" * 25,
        "lse_" + "0" * 27,
        "lse_8" + "0" * 25,
        "lse_" + "0" * 25 + "u",
        "lse_" + "0" * 25 + "i",
        "lse_" + "0" * 25 + "A",
        "lse_" + "0" * 26 + "\n",
        "tsk_" + "0" * 26,
        " lse_" + "0" * 26,
        "lse_" + "\u0660" * 26,
        None,
        7,
        b"lse_" + b"0" * 26,
    ],
)
def test_anything_else_is_refused_without_an_echo(text):
    with pytest.raises(InvalidInput) as caught:
        parse_id("lse", text)
    assert str(text or "nothing") not in caught.value.message


def test_a_role_name_leads_back_to_its_lease_in_its_own_installation_only():
    lease = LeaseId(new_id("lse", NOW, Counting(7)))
    role = role_name(HERE, lease)
    assert len(role) == 38
    assert lease_of_role(HERE, role) == lease
    assert lease_of_role(InstallationId("zzzzzzzz"), role) is None


@pytest.mark.parametrize("tail", ["", "u", "_", "\n", "'; DROP ROLE postgres; --"])
def test_a_name_that_only_resembles_a_role_is_nobodys(tail):
    role = role_name(HERE, LeaseId("lse_" + "0" * 26))
    assert lease_of_role(HERE, role.upper()) is None
    assert lease_of_role(HERE, role[:-1] + tail) is None
    assert lease_of_role(HERE, "x" + role) is None
    if tail:
        assert lease_of_role(HERE, role + tail) is None


@pytest.mark.parametrize("installation", ["", "short", "ABCDEFGH", "abcdefg'", "abcdefghi", "abcdefgu"])
def test_a_role_name_is_made_from_well_formed_parts_only(installation):
    with pytest.raises(InvalidInput):
        role_name(InstallationId(installation), LeaseId("lse_" + "0" * 26))


def test_a_role_name_wants_a_lease():
    with pytest.raises(InvalidInput):
        role_name(HERE, LeaseId("tsk_" + "0" * 26))


def test_installation_ids_fit_role_names():
    for start in (0, 1, 128, 255):
        assert role_name(new_installation_id(Counting(start)), LeaseId("lse_" + "0" * 26))
