"""The demo is the product's own claim about itself: it runs whole, as shipped, and each of its claims holds."""

from __future__ import annotations

import os
import subprocess
import sys


def test_every_claim_of_the_demo_holds() -> None:
    around = {key: value for key, value in os.environ.items() if not key.startswith("TASKPASS_")}
    done = subprocess.run(
        [sys.executable, "-I", "-m", "taskpass", "demo"],
        capture_output=True,
        text=True,
        timeout=180,
        env=around,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "✗" not in done.stdout
    assert "22 of 22 claims held" in done.stdout
