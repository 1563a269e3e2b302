"""A request as the people's socket shows it, and a broker's side of the signing."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace

from taskpass.core.approval import challenge
from taskpass.core.manifest import (
    Column,
    Dropped,
    DropReason,
    Held,
    Keep,
    Kind,
    Manifest,
    ObjectRights,
    OwnedSequence,
    Reach,
    Through,
    accept,
    narrow,
)
from taskpass.core.scope import Level, Verb
from taskpass.keys import reviewer

SELECT = frozenset({Verb.SELECT})


class Bytes:
    def __init__(self):
        self.number = 0

    def bytes(self, count):
        self.number += 1
        return bytes([self.number]) * count


SECRET = reviewer.new_reviewer_secret(Bytes())
TYPED = SECRET.reveal()
KEY, SALT = reviewer.verifier(SECRET, reviewer.new_salt(Bytes()))


def manifest(name="orders") -> Manifest:
    columns = (Column(1, "id"), Column(2, "amount"), Column(3, "note"))
    return Manifest(
        cluster="7412",
        database=5,
        database_name="shop",
        level=Level.READ,
        objects=(
            ObjectRights(10, Kind.TABLE, "public", name, "owner", columns, SELECT),
            ObjectRights(
                11, Kind.PARTITIONED, "public", "events", "owner", columns[:1], SELECT,
                (Reach(20, Kind.TABLE, "public", "events_2026", Through.PARTITION),),
            ),
        ),
        dropped=(Dropped(12, Kind.VIEW, "public", "report", DropReason.REACHES_EXCLUDED, "public.customers"),),
        ambient=("TEMP",),
    )  # fmt: skip


def writing() -> Manifest:
    """``orders`` may be written to, but deleting would take rows of ``customers`` along."""
    columns = (Column(1, "id"), Column(2, "amount"), Column(3, "note"), Column(4, "twice", (2,)))
    orders = ObjectRights(
        10, Kind.TABLE, "public", "orders", "owner", columns, frozenset({Verb.SELECT, Verb.INSERT, Verb.UPDATE}),
        reach=(
            Reach(30, Kind.TABLE, "public", "customers", Through.CASCADE, (Verb.DELETE,)),
            Reach(31, Kind.ROUTINE, "audit", "note", Through.OWNER_TRIGGER, (Verb.INSERT, Verb.UPDATE), "0f"),
        ),
        sequences=(OwnedSequence(40, "orders_id_seq", 1),),
        held=(Held(Verb.DELETE, "public.customers", Through.CASCADE),),
    )  # fmt: skip
    return replace(manifest(), level=Level.WRITE, objects=(orders,))


def card(asked=None, **claimed):
    asked = asked or manifest()
    return {
        "request": "req_1",
        "state": "pending",
        "digest": "sha256:0",
        "facts": {
            "resource": "orders",
            "environment": "production",
            "level": "read",
            "access": "read",
            "principal": "spiffe://acme.example/agent/claude/1",
            "sponsor": "ana",
            "machine": "laptop",
            "separation": "sandbox",
            "parents": [],
            "task": "tsk_1",
            "lifetime": 600,
            "delivery": "endpoint",
            "asked_at": "2026-01-05T10:00:00.000Z",
            "lapses_at": "2026-01-05T10:15:00.000Z",
        },
        "fetched": {"database": "shop"},
        "claimed": {"repository": {"value": "acme/shop", "provenance": "claimed"}, "reason": "look at orders"}
        | claimed,
        "manifest": asked.to_json(),
        "estimates": {"10": 120000},
        "capabilities": {
            "level": "read",
            "revocation": "now",
            "unlisted_nodes": 1,
            "limits": [
                {"limit": "connections", "value": 5, "unit": "sessions", "enforced_by": "target"},
                {"limit": "statement_seconds", "value": 60, "unit": "seconds", "enforced_by": "broker"},
                {"limit": "temp_megabytes", "value": 64, "unit": "megabytes", "enforced_by": "none"},
            ],
        },
        "duties": {"quorum": 1, "approvers": ["dba"], "max_ttl": 600, "read_only": True, "delivery": "endpoint"},
        "policies": ["production-asks"],
        "code": "approval_required",
        "votes": [],
    }


def offered(ballot, asked=None):
    """Answers a challenge as the real broker does: narrowed by the keeps that it was sent."""
    keeps = ballot.get("keeps")
    asked = accept(asked or manifest(), ballot.get("accept", []))
    left = narrow(asked, [Keep.from_json(keep) for keep in keeps]) if keeps is not None else asked
    data = challenge(
        verb=ballot["verb"], digest_="sha256:1", approver=ballot["human"], nonce="n", comment=ballot["comment"]
    )
    return {
        "nonce": "n",
        "digest": "sha256:1",
        "data": b64encode(data).decode(),
        "manifest": left.to_json(),
        "lifetime": ballot.get("lifetime", 600),
        "method": "reviewer-secret",
        "salt": SALT,
    }


def answers():
    return {
        "requests": {"requests": []},
        "show_request": card(),
        "people": {"people": [], "you": "ben"},
        "challenge": offered,
        "vote": {"request": "req_1", "state": "approved", "sufficient": True, "missing": ""},
    }
