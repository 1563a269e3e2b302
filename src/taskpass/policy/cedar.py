"""Cedar as a policy engine: the contract of ``policy.base`` over a validated bundle.

Each part of a request is evaluated twice, the answers are combined by ``core.decision``, its floor applied, and the
strictest part is the answer for the whole. Every way in which Cedar does not say *Allow* is a deny; nothing raises.

An evaluation costs about 0.1 ms for each part. Most bundles cannot tell two tables of a schema apart (``policy.bundle``
proves it while loading), and then each schema is a part; only a bundle that can is asked about each table, and about at
most ``MAX_OBJECTS`` of them, because rules about tables must not be evaded by asking for many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import cedarpy

from taskpass.core.decision import Decision, Evaluation, Obligations, Outcome, combine, floor, strictest
from taskpass.core.errors import TaskpassError
from taskpass.core.ids import HumanId
from taskpass.core.scope import Level
from taskpass.policy.base import MAX_OBJECTS, Question
from taskpass.policy.bundle import ENGINE, Bundle, Groups, demand_groups, load
from taskpass.policy.entities import Asked, ask
from taskpass.policy.words import one_line

MAX_NAMED = 20
"""At most so many parts and errors are named in one answer; the count of the rest follows."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One part of a request: its two evaluations and what they come to, floor included."""

    name: str
    unapproved: Evaluation
    approved: Evaluation
    decision: Decision


class CedarPolicy:
    """Immutable after ``load``; safe in several threads. A changed directory or group needs a new one."""

    def __init__(self, bundle: Bundle, groups: Groups) -> None:
        demand_groups(bundle, groups)
        self.bundle = bundle
        self._groups = {name: frozenset(members) for name, members in groups.items()}
        self._snapshot = bundle.snapshot(self._groups)
        self._schema = cedarpy.Schema.from_str(bundle.schema)
        self._policies = cedarpy.PolicySet.from_str(bundle.policies)

    @classmethod
    def load(cls, directory: Path, *, groups: Mapping[str, frozenset[HumanId]]) -> CedarPolicy:
        """The policy of ``directory``; raises ``PolicyInvalid`` if bundle or groups are not fit to decide by."""
        return cls(load(directory), groups)

    @property
    def snapshot(self) -> str:
        return self._snapshot

    def decide(self, question: Question) -> Decision:
        return self.judge(question)[0]

    def judge(self, question: Question) -> tuple[Decision, tuple[Judged, ...]]:
        """The answer together with how each part was judged, for operators."""
        try:
            asked = ask(question, self._groups, by_schema=not self.bundle.tells_tables_apart)
            if not asked.parts:
                return self._deny("nothing_asked"), ()
            if len(asked.parts) > MAX_OBJECTS:
                return self._deny("too_many_objects"), ()
            parts = self._parts(asked, question)
            return self._whole(parts), parts
        except TaskpassError as error:
            return self._deny("policy_error", error.message), ()
        except BaseException as error:
            # Whatever goes wrong here must come out as a deny; a panic of the Rust side is no ``Exception``.
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            return self._deny("policy_error", f"the question could not be put to Cedar: {type(error).__name__}"), ()

    def _parts(self, asked: Asked, question: Question) -> tuple[Judged, ...]:
        entities = cedarpy.Entities.from_json_str(  # pyright: ignore[reportUnknownMemberType]
            asked.entities, self._schema
        )
        requests = asked.requests(approved=False) + asked.requests(approved=True)
        answers = cedarpy.is_authorized_batch(  # pyright: ignore[reportUnknownMemberType]
            requests, self._policies, entities, self._schema
        )
        count = len(asked.parts)
        evaluations = [self._evaluation(answer) for answer in answers]
        return tuple(
            Judged(part.name, first, second, self._combined(first, second, question))
            for part, first, second in zip(asked.parts, evaluations[:count], evaluations[count:], strict=True)
        )

    def _evaluation(self, answer: cedarpy.AuthzResult) -> Evaluation:
        errors = [one_line(text) for text in answer.diagnostics.errors]
        names = cast(
            "dict[str, str]",
            answer.diagnostics.id_annotations_by_reason,  # pyright: ignore[reportUnknownMemberType]
        )
        ids = tuple(names.get(reason, "") for reason in answer.diagnostics.reasons)
        if any(name not in self.bundle.rules for name in ids) or (answer.allowed and not ids):
            errors.append("a policy decided that is not in the bundle")
            ids = tuple(name for name in ids if name in self.bundle.rules)
        if answer.decision == cedarpy.Decision.NoDecision and not errors:
            errors.append("Cedar gave no decision")
        duties = strictest(self.bundle.rules[name].terms.duties for name in ids)
        return Evaluation(answer.allowed, tuple(sorted(ids)), duties, tuple(errors))

    def _combined(self, first: Evaluation, second: Evaluation, question: Question) -> Decision:
        decision = combine(first, second, engine=ENGINE, snapshot=self._snapshot)
        if decision.code != "policy_denied":
            decision = floor(
                decision,
                question.environment,
                writes=question.level is not Level.READ,
                hands_on=question.manifest.hands_on,
            )
            return self._answerable(decision, question)
        codes = sorted({code for name in second.policies if (code := self.bundle.rules[name].terms.reason_code)})
        return replace(decision, code=codes[0]) if codes else decision

    def _whole(self, parts: tuple[Judged, ...]) -> Decision:
        lowest = min(part.decision.outcome for part in parts)
        strict = [part for part in parts if part.decision.outcome is lowest]
        return Decision(
            outcome=lowest,
            code=min(part.decision.code for part in strict),
            obligations=strictest(part.decision.obligations for part in parts),
            policies=_unique(name for part in parts for name in part.decision.policies),
            errors=_some(_unique(text for part in parts for text in part.decision.errors)),
            engine=ENGINE,
            snapshot=self._snapshot,
            parts=_some(tuple(part.name for part in strict)) if len(strict) < len(parts) else (),
        )

    def _answerable(self, decision: Decision, question: Question) -> Decision:
        """An approval that nobody could give is a deny: the people are counted without the sponsor.

        Where self-confirmation serves, the sponsor counts.
        """
        if decision.outcome is not Outcome.NEEDS_APPROVAL:
            return decision
        sponsor = question.task.principal.sponsor
        barred: frozenset[HumanId] = frozenset() if question.environment.disposable else frozenset({sponsor})
        able = [self._groups.get(name, frozenset()) - barred for name in sorted(decision.obligations.approvers)]
        people = frozenset[HumanId]().union(*able, {sponsor} - barred)
        if not all(able):
            return replace(decision, outcome=Outcome.DENY, code="no_approvers")
        if not 1 <= decision.obligations.quorum <= len(people):
            return replace(decision, outcome=Outcome.DENY, code="too_few_approvers")
        return decision

    def _deny(self, code: str, *errors: str) -> Decision:
        return Decision(Outcome.DENY, code, Obligations(), (), errors, ENGINE, self._snapshot)


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


def _some(items: tuple[str, ...]) -> tuple[str, ...]:
    more = len(items) - MAX_NAMED
    return (*items[:MAX_NAMED], f"and {more} more") if more > 0 else items
