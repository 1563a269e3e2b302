from __future__ import annotations

import pytest

from taskpass.core.errors import InvalidInput
from taskpass.core.limits import BOUNDS, UNITS, Limits


def test_the_defaults_are_within_the_bounds_and_every_limit_has_a_unit():
    assert set(Limits().to_json()) == set(BOUNDS) == set(UNITS)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_limit_beyond_its_bounds_is_refused_by_name(name):
    least, most = BOUNDS[name]
    assert getattr(Limits(**{name: least}), name) == least
    assert getattr(Limits(**{name: most}), name) == most
    for value in (least - 1, most + 1, 0):
        with pytest.raises(InvalidInput, match=name):
            Limits(**{name: value})
