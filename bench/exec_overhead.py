"""What ``taskpass exec -- true`` adds to ``true``: asking, making, serving and taking back included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.common import RESOURCE, Figures, median, milliseconds, stage

PROGRAM = Path(sys.executable).with_name("taskpass")
ROUNDS = 15


def run(figures: Figures) -> None:
    with stage() as place:
        command = [str(PROGRAM), "exec", "--resource", RESOURCE, "--access", "read", "--", "true"]
        around = place.environment()

        def timed(words: list[str]) -> float:
            return milliseconds(lambda: subprocess.run(words, env=around, check=True, cwd=place.root))

        timed(command)
        pairs = [(timed(command), timed(["true"])) for _ in range(ROUNDS)]
    added = median([whole - plain for whole, plain in pairs])
    figures.at_most("taskpass exec -- true adds", added, 100, "ms")


if __name__ == "__main__":
    run(Figures())
