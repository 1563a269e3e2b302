"""A short kill -9 campaign; ``make torture N=…`` runs a long one."""

from __future__ import annotations

import random

from tests import torture

KILLS = 20


def test_twenty_kills_leave_nothing_usable_and_nothing_unrecorded() -> None:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    report = torture.campaign(KILLS, seed)
    assert report.ok, f"{report}\n{report.usable}\n{report.lost}\n{report.unfinished}\n{report.broken_chain}"
    assert report.issued > 0
    assert report.queries > 0


def test_a_few_kills_with_the_store_on_postgresql_leave_nothing_either() -> None:
    seed = random.SystemRandom().randrange(2**31)
    print(f"seed {seed}")
    report = torture.campaign(3, seed, store="postgres")
    assert report.ok, f"{report}\n{report.usable}\n{report.lost}\n{report.unfinished}\n{report.broken_chain}"
