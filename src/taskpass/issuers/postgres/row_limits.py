"""Rows that only one tenant's leases may see: whether the target's own row security really holds a lease to that.

A policy on a setting (``current_setting('app.tenant')``) is no control: the agent's session may set it. What a session
cannot change is its login, so the kit keeps the tenant of each lease and policies ask ``taskpass.tenant()``.
Checked in the granting transaction, too: a policy that is loosened later makes another manifest.

Not for judging what else an expression says: ``tenant = taskpass.tenant() OR true`` is the DBA's word.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from taskpass.core.errors import TargetUnfit
from taskpass.core.manifest import ObjectRights
from taskpass.core.scope import Verb

BOUND_TO = "taskpass.tenant()"
_SETTABLE = "current_setting("
_COMMANDS = {Verb.SELECT: "r", Verb.INSERT: "a", Verb.UPDATE: "w", Verb.DELETE: "d"}


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy that applies to PUBLIC. A lease's role is a member of nothing that other policies could name.

    ``command`` is ``r``, ``a``, ``w``, ``d`` or ``*``; ``using`` and ``check`` are the expressions as the server
    prints them; ``bound`` says that the server itself knows it to depend on the kit's routine.
    """

    permissive: bool
    command: str
    using: str
    check: str
    bound: bool


def holds(verb: Verb, policies: Iterable[Policy]) -> bool:
    """Whether a lease that may ``verb`` is held to its tenant, if row security is on for the table.

    Permissive policies add rows and restrictive ones take rows away, so one bound restrictive policy is enough, and
    else every permissive one must be bound. Without a policy nothing is seen at all.
    """
    applied = [policy for policy in policies if policy.command in ("*", _COMMANDS[verb])]
    if any(_binds(verb, policy) for policy in applied if not policy.permissive):
        return True
    return all(_binds(verb, policy) for policy in applied if policy.permissive)


def _binds(verb: Verb, policy: Policy) -> bool:
    check = policy.check or policy.using
    said = {Verb.INSERT: (check,), Verb.UPDATE: (policy.using, check)}.get(verb, (policy.using,))
    return policy.bound and all(BOUND_TO in text and _SETTABLE not in text for text in said)


def demand(connection: psycopg.Connection[Any], objects: Sequence[ObjectRights]) -> None:
    """Raise ``TargetUnfit`` that names the first table on which nothing holds a lease to its tenant.

    Driver errors come through: callers are inside ``driver_errors``.
    """
    found: dict[int, list[Policy]] = {}
    with connection.cursor() as cursor:
        for oid, on, *rest in cursor.execute(_POLICIES, [[item.oid for item in objects]]).fetchall():
            if on:
                policies = found.setdefault(oid, [])
                policies += [Policy(*rest)] if rest[0] is not None else []
    for item in objects:
        if item.oid not in found or not all(holds(verb, found[item.oid]) for verb in item.verbs):
            raise TargetUnfit(
                f"{item.schema}.{item.name} is to be limited to one tenant's rows, and no policy there does that",
                hint="the DBA binds its policies to taskpass.tenant(): docs/how-to/limit-rows.md",
                code="rows_not_limited",
            )


_POLICIES = """
SELECT c.oid::bigint, c.relrowsecurity, p.polpermissive, p.polcmd::text,
       coalesce(pg_get_expr(p.polqual, p.polrelid), ''), coalesce(pg_get_expr(p.polwithcheck, p.polrelid), ''),
       EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_policy'::regclass AND d.objid = p.oid
                 AND d.refclassid = 'pg_proc'::regclass AND d.refobjid = to_regprocedure('taskpass.tenant()'))
  FROM pg_class c LEFT JOIN pg_policy p ON p.polrelid = c.oid AND 0 = ANY (p.polroles)
 WHERE c.oid = ANY (%s::oid[])
"""
