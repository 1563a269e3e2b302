"""Counting votes, as scenarios: a list of votes, and the state that is expected after each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from taskpass.core import digest
from taskpass.core.approval import Approval, Method, Verdict, challenge, counts_for, tally
from taskpass.core.clock import Instant
from taskpass.core.decision import Obligations
from taskpass.core.manifest import Column, Keep, Kind, Manifest, ObjectRights, keep_all, narrow
from taskpass.core.scope import Level, Verb
from taskpass.core.separation import Environment

NOW = Instant(1_000_000)
SPONSOR = "sponsor@example"
GROUPS = {
    "dba": frozenset({"dba-1@example", "dba-2@example", SPONSOR}),
    "owners": frozenset({"owner@example", "dba-1@example"}),
    "empty": frozenset(),
}
SELECT = frozenset({Verb.SELECT})


def table(oid, name, *columns):
    named = tuple(Column(number, column) for number, column in enumerate(columns, start=1))
    return ObjectRights(oid, Kind.TABLE, "public", name, "owner", named, SELECT)


ASKED = Manifest(
    "7", 5, "orders", Level.READ, (table(1, "orders", "id", "total", "note"), table(2, "items", "id", "price"))
)


def keep(**columns):
    """A narrowing to the named tables with the given column numbers."""
    oids = {"orders": 1, "items": 2}
    return [Keep(oids[name], frozenset(numbers), SELECT) for name, numbers in columns.items()]


def vote(approver, **fields):
    plain = Approval(
        id="apr_" + "0" * 26,
        request="req_" + "0" * 26,
        approver=approver,
        method=Method.SELF_CONFIRMATION if approver == SPONSOR else Method.REVIEWER_SECRET,
        verdict=Verdict.APPROVE,
        manifest=narrow(ASKED, fields.pop("keeps", keep_all(ASKED))),
        lifetime=600,
        digest="sha256:0",
        nonce="n",
        signature="s",
        key="k",
        created_at=NOW,
        expires_at=Instant(NOW + 60_000),
    )
    return replace(plain, **fields)


def count(votes, *, environment=Environment.STAGING, quorum=1, approvers=("dba",), demo=False, lifetime=900, now=NOW):
    return tally(
        votes,
        asked=ASKED,
        lifetime=lifetime,
        duties=Obligations(quorum=quorum, approvers=frozenset(approvers)),
        groups=GROUPS,
        barred=frozenset({SPONSOR}),
        environment=environment,
        demo=demo,
        now=now,
    )


def rights(manifest):
    return {item.name: [column.number for column in item.columns] for item in manifest.objects}


@dataclass(frozen=True)
class Step:
    vote: Approval
    sufficient: bool
    counted: int
    missing: str = ""
    lifetime: int = 600


DBA1, DBA2, OWNER = "dba-1@example", "dba-2@example", "owner@example"

SCENARIOS = {
    "one of the group is enough": ({}, [Step(vote(DBA1), True, 1)]),
    "a second yes changes nothing": ({}, [Step(vote(DBA1), True, 1), Step(vote(DBA2), True, 2)]),
    "somebody outside the group does not count": (
        {},
        [
            Step(vote(OWNER), False, 0, "1 more approval(s)", 900),
            Step(vote("stranger@example"), False, 0, "1 more approval(s)", 900),
            Step(vote(DBA1), True, 1),
        ],
    ),
    "a quorum of two needs two people": (
        {"quorum": 2},
        [
            Step(vote(DBA1), False, 1, "1 more approval(s)"),
            Step(vote(DBA1, nonce="again"), False, 1, "1 more approval(s)"),
            Step(vote(DBA2), True, 2),
        ],
    ),
    "two groups are both needed": (
        {"quorum": 2, "approvers": ("dba", "owners")},
        [
            Step(vote(DBA2), False, 1, "1 more approval(s)"),
            Step(vote(OWNER), True, 2),
        ],
    ),
    "a quorum without the second group is not enough": (
        {"quorum": 1, "approvers": ("dba", "owners")},
        [
            Step(vote(DBA2), False, 1, "an approval by a member of owners"),
            Step(vote(OWNER), True, 2),
        ],
    ),
    "one person in both groups represents both": (
        {"approvers": ("dba", "owners")},
        [Step(vote(DBA1), True, 1)],
    ),
    "a group that does not exist is never represented": (
        {"approvers": ("dba", "nowhere")},
        [Step(vote(DBA1), False, 1, "an approval by a member of nowhere")],
    ),
    "an empty group is never represented": (
        {"approvers": ("empty",)},
        [Step(vote(DBA1), False, 0, "1 more approval(s)", 900)],
    ),
    "without a group nobody can approve": (
        {"approvers": ()},
        [Step(vote(DBA1), False, 0, "1 more approval(s)", 900)],
    ),
    "a quorum of zero still needs one": (
        {"quorum": 0},
        [Step(vote(OWNER), False, 0, "1 more approval(s)", 900), Step(vote(DBA1), True, 1)],
    ),
    "the sponsor cannot approve, whatever group the sponsor is in": (
        {},
        [
            Step(vote(SPONSOR), False, 0, "1 more approval(s)", 900),
            Step(vote(SPONSOR, method=Method.REVIEWER_SECRET), False, 0, "1 more approval(s)", 900),
            Step(vote(DBA1), True, 1),
        ],
    ),
    "on a disposable target the sponsor confirms alone": (
        {"environment": Environment.DEV},
        [Step(vote(SPONSOR), True, 1)],
    ),
    "the sponsor's secret is no approval by somebody else there either": (
        {"environment": Environment.DEV},
        [Step(vote(SPONSOR, method=Method.REVIEWER_SECRET), False, 0, "1 more approval(s)", 900)],
    ),
    "somebody else's yes is no self-confirmation": (
        {"environment": Environment.DEV},
        [Step(vote(DBA1, method=Method.SELF_CONFIRMATION), False, 0, "1 more approval(s)", 900)],
    ),
    "self-confirmation does not make up a quorum of two": (
        {"environment": Environment.DEV, "quorum": 2},
        [
            Step(vote(SPONSOR), False, 1, "1 more approval(s)"),
            Step(vote(DBA1), True, 2),
        ],
    ),
    "the reviewer secret does not serve production": (
        {"environment": Environment.PRODUCTION},
        [Step(vote(DBA1), False, 0, "1 more approval(s)", 900)],
    ),
    "the reviewer secret serves production inside the demo": (
        {"environment": Environment.PRODUCTION, "demo": True},
        [Step(vote(DBA1), True, 1)],
    ),
    "self-confirmation serves production nowhere": (
        {"environment": Environment.PRODUCTION, "demo": True},
        [Step(vote(SPONSOR), False, 0, "1 more approval(s)", 900)],
    ),
    "a no is not a yes": (
        {},
        [Step(vote(DBA1, verdict=Verdict.DENY), False, 0, "1 more approval(s)", 900)],
    ),
    "an expired vote does not count": (
        {},
        [Step(vote(DBA1, expires_at=NOW), False, 0, "1 more approval(s)", 900)],
    ),
    "the shortest lifetime holds": (
        {"quorum": 2},
        [
            Step(vote(DBA1, lifetime=300), False, 1, "1 more approval(s)", 300),
            Step(vote(DBA2, lifetime=500), True, 2, lifetime=300),
        ],
    ),
    "no vote makes the lifetime longer than was asked": (
        {"lifetime": 120},
        [Step(vote(DBA1, lifetime=9999), True, 1, lifetime=120)],
    ),
    "approvers who agree on nothing leave nothing": (
        {"quorum": 2},
        [
            Step(vote(DBA1, keeps=keep(orders={1})), False, 1, "1 more approval(s)"),
            Step(
                vote(DBA2, keeps=keep(items={1})),
                False,
                2,
                "the approvers left nothing that all of them agreed on",
            ),
        ],
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name):
    options, steps = SCENARIOS[name]
    votes = []
    for step in steps:
        votes.append(step.vote)
        found = count(votes, **options)
        assert (found.sufficient, len(found.counted), found.missing, found.lifetime) == (
            step.sufficient,
            step.counted,
            step.missing,
            step.lifetime,
        ), f"after vote {len(votes)}"


def test_without_votes_nothing_is_sufficient():
    for quorum in range(3):
        assert not count([], quorum=quorum).sufficient


def test_two_approvers_who_narrow_differently_leave_what_both_left():
    votes = [
        vote(DBA1, keeps=keep(orders={1, 2}, items={1, 2})),
        vote(DBA2, keeps=keep(orders={2, 3}, items={1})),
    ]
    found = count(votes, quorum=2)
    assert found.sufficient
    assert rights(found.manifest) == {"orders": [2], "items": [1]}


def test_the_order_of_votes_does_not_matter_for_what_is_left():
    votes = [vote(DBA1, keeps=keep(orders={1, 2})), vote(DBA2, keeps=keep(orders={2, 3}, items={1}))]
    assert rights(count(votes, quorum=2).manifest) == rights(count(votes[::-1], quorum=2).manifest) == {"orders": [2]}


def test_a_vote_over_other_rights_leaves_nothing_of_them():
    """A vote that names more than was asked, or the same table under another name, adds nothing."""
    wider = replace(ASKED, objects=(*ASKED.objects, table(3, "salaries", "id")))
    assert rights(count([vote(DBA1, manifest=wider)]).manifest) == rights(ASKED)
    renamed = replace(ASKED, objects=(replace(ASKED.objects[0], name="salaries"),))
    assert not count([vote(DBA1, manifest=renamed)]).sufficient
    elsewhere = replace(ASKED, cluster="8")
    assert not count([vote(DBA1, manifest=elsewhere)]).sufficient


def test_a_vote_that_does_not_count_narrows_nothing():
    """Otherwise anybody could shrink what others approve, or shorten it."""
    votes = [vote("stranger@example", keeps=keep(orders={1}), lifetime=1), vote(DBA1)]
    found = count(votes)
    assert rights(found.manifest) == rights(ASKED)
    assert found.lifetime == 600


def test_a_vote_counts_until_the_instant_it_expires():
    assert count([vote(DBA1)], now=Instant(NOW + 59_999)).sufficient
    assert not count([vote(DBA1)], now=Instant(NOW + 60_000)).sufficient


@pytest.mark.parametrize(
    ("method", "environment", "demo", "counts"),
    [
        (Method.SELF_CONFIRMATION, Environment.PREVIEW, False, True),
        (Method.SELF_CONFIRMATION, Environment.DEV, False, True),
        (Method.SELF_CONFIRMATION, Environment.STAGING, True, False),
        (Method.SELF_CONFIRMATION, Environment.PRODUCTION, True, False),
        (Method.REVIEWER_SECRET, Environment.PREVIEW, False, True),
        (Method.REVIEWER_SECRET, Environment.DEV, False, True),
        (Method.REVIEWER_SECRET, Environment.STAGING, False, True),
        (Method.REVIEWER_SECRET, Environment.PRODUCTION, False, False),
        (Method.REVIEWER_SECRET, Environment.PRODUCTION, True, True),
    ],
)
def test_where_a_method_counts(method, environment, demo, counts):
    assert counts_for(method, environment, demo=demo) is counts


@pytest.mark.parametrize("field", ["verb", "digest_", "approver", "nonce", "comment"])
def test_a_challenge_covers_every_field(field):
    fields = {"verb": "approve", "digest_": "sha256:0", "approver": DBA1, "nonce": "n", "comment": "c"}
    assert challenge(**fields) != challenge(**(fields | {field: "other"}))


def test_a_challenge_carries_its_label():
    assert digest.CHALLENGE.encode() in challenge(verb="approve", digest_="d", approver=DBA1, nonce="n")
