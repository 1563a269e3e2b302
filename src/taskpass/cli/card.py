"""What a person decides on, on a terminal, in three classes that look different.

Only what the broker knows by itself may carry colour. Fetched text and the agent's words are quoted behind ``>`` in one
plain style, so that nothing somebody wrote can look like a fact (threats.md, item 23).
"""

from __future__ import annotations

from typing import Any

from taskpass.cli.manifest import print_manifest, quoted
from taskpass.cli.say import show, style
from taskpass.cli.script import print_script
from taskpass.cli.times import when, words
from taskpass.core.text import visible

_WIDTH = 12
_DELIVERIES = {"bearer": "a password that works for whoever has it (bearer)"}


def print_card(card: dict[str, Any]) -> None:
    """The whole card: facts, the exact rights, fetched text, the agent's words, who must decide."""
    facts = card["facts"]
    show(style(f"Request {card['request']} ({card['state']})", "bold"))
    show()
    show(style("What the broker knows", "bold", "cyan"))
    environment = style(facts["environment"], *(("red", "bold") if facts["environment"] == "production" else ("bold",)))
    _fact("resource", f"{style(visible(facts['resource']), 'bold')} in {environment}, level {facts['level']}")
    _fact("for", f"{words(facts['lifetime'])}, as {_DELIVERIES.get(facts['delivery'], facts['delivery'])}")
    _fact("agent", visible(facts["principal"]))
    _fact("works for", f"{visible(facts['sponsor'])} on {visible(facts['machine'])}, separation {facts['separation']}")
    _fact("task", visible(" < ".join([facts["task"], *facts["parents"]])))
    _fact("asked", when(facts["asked_at"]))
    _fact("lapses", when(facts["lapses_at"]))
    _duties(card)
    _worth(card.get("capabilities") or {})
    show()
    print_manifest(card["manifest"], card["estimates"])
    print_script(card["manifest"].get("migration"), card.get("file"))
    show()
    show("Fetched from the target; anybody there may have written it")
    for name, text in card["fetched"].items():
        _said(name, quoted(text))
    show()
    show("The agent's words; nobody has checked them")
    for name, text in card["claimed"].items():
        _said(name, f"{quoted(text['value'])} ({text['provenance']})" if isinstance(text, dict) else quoted(text))  # pyright: ignore[reportUnknownArgumentType]
    show()
    _votes(card.get("votes") or [])


def _fact(name: str, text: str) -> None:
    show(f"  {name:<{_WIDTH}}{text}")


def _said(name: str, text: str) -> None:
    show(f"> {name:<{_WIDTH}}{text}")


def _duties(card: dict[str, Any]) -> None:
    duties = card["duties"]
    groups = ", ".join(duties["approvers"]) or "nobody in particular"
    _fact("needs", f"{duties['quorum']} approval(s), from {visible(groups)}")
    _fact("because", visible(f"{card['code']}: {', '.join(card['policies'])}"))


_ENDS = {"now": "at once, open sessions included"}
_ENFORCED = {
    "target": "enforced by the target",
    "broker": "watched by the broker, which ends the session",
    "default": "a default that the agent can change",
    "none": "enforced by nobody here",
}


def _worth(capabilities: dict[str, Any]) -> None:
    """What the access is worth on this target: how fast it ends, and which limits really hold."""
    if not capabilities:
        return
    speed = str(capabilities["revocation"])
    _fact("ends", _ENDS.get(speed, speed))
    unlisted = capabilities["unlisted_nodes"]
    if unlisted is None or unlisted:
        count = "perhaps servers" if unlisted is None else f"{unlisted} server(s)"
        _fact("but", style(f"not on {count} that replicate from it and are not listed", "yellow"))
    for by, meaning in _ENFORCED.items():
        named = [_limit(item) for item in capabilities["limits"] if item["enforced_by"] == by]
        if named:
            _fact("limits", f"{', '.join(named)}: {meaning}")


def _limit(item: dict[str, Any]) -> str:
    name = str(item["limit"]).removesuffix("_seconds").removesuffix("_megabytes").replace("_", " ")
    return f"{name} {item['value']} {item['unit']}" if item["unit"] != "sessions" else f"{item['value']} {name}"


def _votes(votes: list[dict[str, Any]]) -> None:
    for vote in votes:
        comment = f" {quoted(vote['comment'])}" if vote["comment"] else ""
        show(f"vote: {vote['verdict']} by {visible(vote['approver'])} ({vote['method']}), {when(vote['at'])}{comment}")
