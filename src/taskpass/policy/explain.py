"""For operators: why policy answered as it did, and whether a bundle is fit. Agents are told a code and no more.

Everything is data; the CLI prints it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from taskpass.core.clock import SECOND, Instant
from taskpass.core.decision import Decision, Evaluation, Outcome
from taskpass.core.errors import PolicyInvalid
from taskpass.core.ids import HumanId
from taskpass.policy import tables
from taskpass.policy.base import MAX_OBJECTS, Question
from taskpass.policy.bundle import Rule, parse_bundle
from taskpass.policy.cedar import MAX_NAMED, CedarPolicy, Judged
from taskpass.policy.files import read_directory


@dataclass(frozen=True, slots=True)
class Reason:
    """A policy in an explanation: its id, where it stands, and the fields that it looks at."""

    policy: str
    file: str
    effect: str
    title: str
    fields: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "policy": self.policy,
            "file": self.file,
            "effect": self.effect,
            "title": self.title,
            "fields": list(self.fields),
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """``unapproved`` and ``approved``: the policies that determined the two evaluations, over all parts.

    ``change`` are policies one of whose fields would have to differ for a better answer: the forbids that fit, or, if
    nothing permitted, the permits that could have. ``parts`` are the pieces that were judged, at most ``MAX_NAMED``.
    """

    decision: Decision
    unapproved: tuple[Reason, ...]
    approved: tuple[Reason, ...]
    change: tuple[Reason, ...]
    parts: tuple[Judged, ...]

    def to_json(self) -> dict[str, object]:
        return {
            "decision": self.decision.to_json(),
            "unapproved": [item.to_json() for item in self.unapproved],
            "approved": [item.to_json() for item in self.approved],
            "change": [item.to_json() for item in self.change],
            "parts": [
                {
                    "name": part.name,
                    "outcome": part.decision.outcome.word,
                    "unapproved": _evaluation(part.unapproved),
                    "approved": _evaluation(part.approved),
                }
                for part in self.parts
            ],
        }


def explain(policy: CedarPolicy, question: Question) -> Explanation:
    """How ``policy`` comes to its answer to ``question``."""
    decision, parts = policy.judge(question)
    rules = policy.bundle.rules
    strict = sorted(parts, key=lambda part: part.decision.outcome)
    return Explanation(
        decision=decision,
        unapproved=_reasons(rules, {name for part in parts for name in part.unapproved.policies}),
        approved=_reasons(rules, {name for part in parts for name in part.approved.policies}),
        change=_reasons(rules, _would_change(rules, parts, question)),
        parts=tuple(strict[:MAX_NAMED]),
    )


def _reasons(rules: Mapping[str, Rule], names: set[str]) -> tuple[Reason, ...]:
    found = (rules[name] for name in sorted(names))
    return tuple(
        Reason(rule.id, rule.file, "forbid" if rule.forbids else "permit", rule.terms.title, tuple(sorted(rule.fields)))
        for rule in found
    )


def _would_change(rules: Mapping[str, Rule], parts: tuple[Judged, ...], question: Question) -> set[str]:
    names: set[str] = set()
    for part in parts:
        if part.decision.outcome is Outcome.PERMIT:
            continue
        asked = part.approved if not part.approved.allowed else part.unapproved
        names |= set(asked.policies) or _permits_for(rules, question)
    return names


def _permits_for(rules: Mapping[str, Rule], question: Question) -> set[str]:
    """The permits that do not speak of other environments only."""
    here = question.environment.value
    return {r.id for r in rules.values() if not r.forbids and (not r.environments or here in r.environments)}


def _evaluation(evaluation: Evaluation) -> dict[str, object]:
    return {
        "allowed": evaluation.allowed,
        "policies": list(evaluation.policies),
        "obligations": evaluation.obligations.to_json(),
        "errors": list(evaluation.errors),
    }


class Mark(StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    mark: Mark
    what: str
    hint: str = ""

    def to_json(self) -> dict[str, object]:
        return {"mark": self.mark.value, "what": self.what, "hint": self.hint}


def check(directory: Path, groups: Mapping[str, frozenset[HumanId]], *, now: Instant | None = None) -> list[Finding]:
    """Whether the bundle in ``directory`` would be loaded, and what an operator should know. Never raises.

    With ``now``, policies whose ``@review_by`` has passed are named. Any ``ERROR`` means that nothing is decided.
    """
    try:
        files = read_directory(directory)
        policy = CedarPolicy(parse_bundle(files), groups)
        results = tables.run_rows(policy, files)
    except PolicyInvalid as error:
        return [Finding(Mark.ERROR, error.message, error.hint)]
    rules = policy.bundle.rules.values()
    return [
        Finding(Mark.OK, f"{len(rules)} policies in {len(policy.bundle.files) - 1} files, {policy.snapshot}"),
        *_tested(results),
        *(_overdue(rule) for rule in rules if now is not None and _is_overdue(rule, now)),
        *(_lonely(group) for group in sorted(_wanted(rules)) if len(groups[group]) == 1),
        *(_tells_apart(rule) for rule in rules if rule.tables),
    ]


def _tested(results: list[tables.Result]) -> list[Finding]:
    failed = [Finding(Mark.ERROR, str(result)) for result in results if not result.passed]
    if not results:
        return [Finding(Mark.WARNING, "the policies have no tests", "write tables into policy/tests/*.yaml")]
    return failed or [Finding(Mark.OK, f"{len(results)} table tests pass")]


def _is_overdue(rule: Rule, now: Instant) -> bool:
    due = rule.terms.review_by
    return due is not None and (due.toordinal() - _EPOCH_DAY) * 86400 * SECOND <= now


_EPOCH_DAY = 719163
"""1970-01-01 as an ordinal day."""


def _overdue(rule: Rule) -> Finding:
    return Finding(Mark.WARNING, f"{rule.file}: policy {rule.id} was to be reviewed by {rule.terms.review_by}")


def _tells_apart(rule: Rule) -> Finding:
    return Finding(
        Mark.WARNING,
        f"{rule.file}: policy {rule.id} tells tables apart, so a request for more than {MAX_OBJECTS} objects is denied",
    )


def _wanted(rules: Iterable[Rule]) -> set[str]:
    return {group for rule in rules for group in rule.terms.duties.approvers}


def _lonely(group: str) -> Finding:
    return Finding(
        Mark.WARNING,
        f"the approver group {group} has one member, and nobody approves for the agents of that person",
        "list a second person in taskpass.toml under [people.groups]",
    )
