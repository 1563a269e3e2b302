"""``taskpass release``: give one access back before it ends. Standard library only."""

from __future__ import annotations

from taskpass.cli.agent import JSON, View, connect
from taskpass.cli.say import show, show_json
from taskpass.cli.verb import Argument, Given, Verb


def _run(given: Given) -> int:
    with connect() as client:
        view = client.call("release", {"lease": given.text("lease")}, timeout=60)
    if given.flag("json"):
        show_json(view)
    else:
        show(taken_back(view))
    return 0


def taken_back(view: View) -> str:
    """One lease after it was taken back, in one line: proven or not yet."""
    proof: View = view.get("proof") or {}
    if view["state"] not in ("closed", "cleaned"):
        return f"{view['lease']} is {view['state']}: not proven closed yet, and retried until it is"
    if not proof.get("answer"):
        return f"{view['lease']} is {view['state']}"
    how = f"proven by {proof['answer']} in {proof['took_ms']} ms, {proof.get('ended', 0)} session(s) cut"
    return f"{view['lease']} is {view['state']}: {how}"


VERB = Verb(
    path="release",
    summary="Give one access back",
    about="Ends a lease of the caller's own task and says whether the target proved it.",
    run=_run,
    options=(JSON,),
    arguments=(Argument("lease", "The lease, lse_…"),),
)
