"""The one error tree of Taskpass.

Every error has a stable ``code`` for programs, a message that is safe to show to anyone who may see the error at all
(no secret, no value of a policy, no name of a rule or of another person), a ``hint`` that says what to do next, and
``retryable``. The families say who can mend it. Drivers' exceptions never cross a port: an adapter turns them into
one of these.

``TaskpassError``
    ``InvalidInput``        the caller sent something malformed
    ``NotAuthenticated``    the caller is not who it must be
    ``Denied``              policy, floor, separation or ownership says no
    ``Pending``             a person has not decided yet
    ``Expired``             what is referred to has ended
    ``Conflict``            the state does not allow it (also: illegal transition, second broker)
    ``OverBudget``          the sponsor's tasks have used up what they may use now; it says when to try again
    ``ManifestChanged``     what would be granted is not what was decided
    ``ObligationUnmet``     a permit came with a duty that cannot be carried out
    ``ConfigInvalid``       the operator's files are wrong
    ``PolicyInvalid``       the policy bundle is refused
    ``StoreUnavailable``    the store cannot be read or written now
    ``TargetUnavailable``   the database cannot be reached now
    ``TargetUnfit``         the database or its accounts are not set up as they must be
    ``NotProven``           access was taken back but the target did not prove it yet
    ``SandboxUnavailable``  this machine cannot separate the agent
    ``Internal``            a defect of ours
"""

from __future__ import annotations

TYPE_CHECKING = False  # What typing.TYPE_CHECKING is, without importing typing: start-up is a feature.
if TYPE_CHECKING:
    from typing import ClassVar


class TaskpassError(Exception):
    """Base of all errors of Taskpass.

    ``message`` is one line without a secret; ``hint`` is one line that says what to do next, or empty; ``code`` is
    stable and documented in docs/reference/errors.md. A more precise ``code`` than the class's own may be given.
    """

    default_code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code

    def to_json(self) -> dict[str, object]:
        """Shape on every wire: code, message, hint, retryable."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "retryable": self.retryable}


class InvalidInput(TaskpassError):
    default_code = "invalid_input"
    exit_code = 2


class NotAuthenticated(TaskpassError):
    default_code = "not_authenticated"
    exit_code = 93


class Denied(TaskpassError):
    default_code = "denied"
    exit_code = 90


class Pending(TaskpassError):
    default_code = "pending"
    retryable = True
    exit_code = 91


class Expired(TaskpassError):
    default_code = "expired"
    exit_code = 92


class Conflict(TaskpassError):
    default_code = "conflict"


class IllegalTransition(Conflict):
    """A state machine was asked for a step that its table does not have."""

    default_code = "illegal_transition"


class NotFound(Conflict):
    """No such record, or not one that the caller may see: the two answers are the same on purpose."""

    default_code = "not_found"


class OverBudget(Conflict):
    """``retry_after``: seconds after which trying again is worth it; 0 where the answer does not say."""

    default_code = "over_budget"
    retryable = True

    def __init__(self, message: str, *, hint: str = "", code: str | None = None, retry_after: int = 0) -> None:
        again = f"try again in {retry_after} s" if retry_after else ""
        super().__init__(message, hint=", or ".join(part for part in (hint, again) if part), code=code)
        self.retry_after = retry_after

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "retry_after": self.retry_after}


class ManifestChanged(TaskpassError):
    """The rights recomputed while granting differ from the rights that were decided."""

    default_code = "manifest_changed"
    exit_code = 90


class ObligationUnmet(TaskpassError):
    default_code = "obligation_unmet"
    exit_code = 94


class ConfigInvalid(TaskpassError):
    default_code = "config_invalid"
    exit_code = 2


class PolicyInvalid(TaskpassError):
    default_code = "policy_invalid"
    exit_code = 2


class StoreUnavailable(TaskpassError):
    default_code = "store_unavailable"
    retryable = True


class TargetUnavailable(TaskpassError):
    default_code = "target_unavailable"
    retryable = True


class TargetUnfit(TaskpassError):
    default_code = "target_unfit"


class NotProven(TaskpassError):
    """A close ran but the target's answer does not prove it; the lease stays ``closing`` and is retried for ever."""

    default_code = "not_proven"
    retryable = True


class SandboxUnavailable(TaskpassError):
    default_code = "sandbox_unavailable"


class BrokerUnreachable(TaskpassError):
    default_code = "broker_unreachable"
    retryable = True
    exit_code = 93


class Internal(TaskpassError):
    default_code = "internal"
