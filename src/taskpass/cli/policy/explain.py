"""``taskpass policy explain``: why policy would answer as it does. For operators; agents are told a code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from taskpass.cli.operator import directory_option, json_option
from taskpass.cli.say import fields, show, show_json, table


@click.command("explain")
@click.option("--resource", metavar="NAME", help="A resource of the configuration; its environment is used.")
@click.option("--environment", metavar="NAME", help="An environment, if no resource is named.")
@click.option("--table", "tables", multiple=True, metavar="SCHEMA.TABLE", help="A table (may be repeated).")
@click.option("--ttl", metavar="DURATION", help="How long.")
@click.option("--separation", metavar="LEVEL", help="none, sandbox, uid or host.")
@click.option("--sponsor", metavar="PERSON", help="Whom the agent works for.")
@click.option("--tool", metavar="NAME", help="The agent's tool.")
@click.option("--repository", metavar="TEXT", help="Counts as claimed.")
@click.option("--branch", metavar="TEXT", help="Counts as claimed.")
@click.option("--ticket", metavar="TEXT", help="Counts as claimed.")
@directory_option
@json_option
def command(directory: Path, as_json: bool, tables: tuple[str, ...], ttl: str | None, **given: str | None) -> None:
    """Show which policies decide about a made-up request, and what would change the answer."""
    from taskpass.cli.times import seconds
    from taskpass.config.load import load
    from taskpass.policy.cedar import CedarPolicy
    from taskpass.policy.example import question
    from taskpass.policy.explain import explain

    config = load(directory)
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    resource = config.resources.get(str(asked.get("resource")))
    if resource:
        asked["environment"] = resource.environment.value
    if tables:
        asked["tables"] = list(tables)
    if ttl:
        asked["lifetime"] = seconds(ttl, what="--ttl")
    policy = CedarPolicy.load(config.policy_directory, groups=config.people.groups)
    found = explain(policy, question(asked)).to_json()
    if as_json:
        show_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    decision = found["decision"]
    duties = decision["obligations"]
    fields(
        {
            "outcome": f"{decision['outcome']} [{decision['code']}]",
            "longest": f"{duties['max_ttl']} s",
            "people": f"{duties['quorum']} of {', '.join(duties['approvers']) or 'nobody'}",
            "snapshot": decision["snapshot"],
        }
    )
    for title, key in (
        ("decide as asked", "unapproved"),
        ("decide once approved", "approved"),
        ("would change it", "change"),
    ):
        reasons: list[dict[str, Any]] = found.get(key) or []
        if reasons:
            show()
            show(title)
            table(
                ("POLICY", "EFFECT", "FILE", "TITLE"),
                [(r["policy"], r["effect"], r["file"], r["title"]) for r in reasons],
            )
