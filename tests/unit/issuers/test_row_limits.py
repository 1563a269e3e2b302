from __future__ import annotations

import dataclasses

from taskpass.core.scope import Verb
from taskpass.issuers.postgres.row_limits import Policy, holds


def test_the_level_and_verb_of_a_policy_count():
    using = "(tenant = ( SELECT taskpass.tenant() AS tenant))"
    reading = Policy(True, "r", using, "", True)
    assert holds(Verb.SELECT, [reading])
    assert not holds(Verb.SELECT, [dataclasses.replace(reading, bound=False)])
    writing = Policy(True, "w", using, "true", True)
    assert not holds(Verb.UPDATE, [writing])
    assert holds(Verb.UPDATE, [dataclasses.replace(writing, check="")])
    assert holds(Verb.INSERT, [Policy(True, "a", "", using, True)])
