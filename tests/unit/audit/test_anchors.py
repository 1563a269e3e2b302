from __future__ import annotations

import pytest

from taskpass.audit.anchors import Anchor, parse_server_log

HASH = "sha256:" + "ab" * 32
MESSAGE = f"taskpass: issue lease=lse_1 head=12:{HASH}"


def test_heads_are_found_in_a_server_s_log():
    text = "\n".join(
        [
            "2026-11-24 13:00:00.000 UTC [1] LOG:  starting PostgreSQL 16",
            f"2026-11-24 13:00:01.000 UTC [7] taskpass@orders LOG:  {MESSAGE}",
            f"LOG:  taskpass: head=13:{HASH}\r",
            "2026-11-24 13:00:02.000 UTC [7] LOG:  taskpass: close lease=lse_1",
            "",
        ]
    )
    assert parse_server_log(text) == [
        Anchor(12, HASH, "line 2 of the server's log"),
        Anchor(13, HASH, "line 3 of the server's log"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        f"\t{MESSAGE}",
        f"\tLOG:  {MESSAGE}",
        f"[7] LOG:  statement: SELECT 'LOG:  {MESSAGE}'",
        f'[7] ERROR:  column "LOG:  {MESSAGE}" does not exist',
        f"[7] STATEMENT:  SELECT 'LOG:  {MESSAGE}'",
        f"[7] LOG:  xtaskpass: head=12:{HASH}",
        f"[7] LOG:  taskpass: head=0:{HASH}",
        f"[7] LOG:  taskpass: head=12:{HASH}0",
        f"[7] LOG:  taskpass: head=12:{HASH[:-1]}",
        f"[7] LOG:  taskpass: head=99999999999999999999:{HASH}",
        MESSAGE,
    ],
)
def test_what_an_agent_wrote_is_no_head(line):
    assert parse_server_log(line) == []
