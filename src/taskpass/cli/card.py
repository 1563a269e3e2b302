"""What a person decides on, on a terminal, in three classes that look different.

Only what the broker knows by itself may carry colour. Fetched text and the agent's words are quoted behind ``>`` in one
plain style, so that nothing somebody wrote can look like a fact (threats.md, item 23).
"""

from __future__ import annotations

from typing import Any

from taskpass.cli.manifest import print_manifest, quoted
from taskpass.cli.say import show, style
from taskpass.cli.times import when, words
from taskpass.core.text import visible

_WIDTH = 12


def print_card(card: dict[str, Any]) -> None:
    """The whole card: facts, the exact rights, fetched text, the agent's words, who must decide."""
    facts = card["facts"]
    show(style(f"Request {card['request']} ({card['state']})", "bold"))
    show()
    show(style("What the broker knows", "bold", "cyan"))
    environment = style(facts["environment"], *(("red", "bold") if facts["environment"] == "production" else ("bold",)))
    _fact("resource", f"{style(visible(facts['resource']), 'bold')} in {environment}, level {facts['level']}")
    _fact("for", f"{words(facts['lifetime'])}, as {facts['delivery']}")
    _fact("agent", visible(facts["principal"]))
    _fact("works for", f"{visible(facts['sponsor'])} on {visible(facts['machine'])}, separation {facts['separation']}")
    _fact("task", visible(" < ".join([facts["task"], *facts["parents"]])))
    _fact("asked", when(facts["asked_at"]))
    _fact("lapses", when(facts["lapses_at"]))
    _duties(card)
    show()
    print_manifest(card["manifest"], card["estimates"])
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


def _votes(votes: list[dict[str, Any]]) -> None:
    for vote in votes:
        comment = f" {quoted(vote['comment'])}" if vote["comment"] else ""
        show(f"vote: {vote['verdict']} by {visible(vote['approver'])} ({vote['method']}), {when(vote['at'])}{comment}")
