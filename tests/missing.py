"""What a machine lacks: a reason to skip for a person's laptop, and a failure where everything must be run."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skip, or with ``CI=true`` fail: a service that CI does not have would otherwise be tested nowhere."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}, and CI must have it", pytrace=False)
    pytest.skip(what)
