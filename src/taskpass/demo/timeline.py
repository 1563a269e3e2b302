"""What the demo prints: one line per step with its time, and one per claim with whether it holds."""

from __future__ import annotations

import os
import sys
import time

_STYLES = {"who": "36", "good": "32", "bad": "1;31", "dim": "2"}


class Timeline:
    """Counts the claims that did not hold. Colours only on a terminal and without ``NO_COLOR``."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self.claims = 0
        self.broken: list[str] = []

    def restart(self) -> None:
        """The story's clock starts here."""
        self._started = time.monotonic()

    def title(self, text: str) -> None:
        print(f"\n{text}", flush=True)

    def step(self, who: str, text: str) -> None:
        print(f"{self._style('dim', self._now())}  {self._style('who', f'{who:<9}')} {text}", flush=True)

    def detail(self, text: str) -> None:
        for line in text.splitlines():
            print(f"{'':20} {self._style('dim', line)}", flush=True)

    def claim(self, text: str, holds: bool, *, found: str = "") -> None:
        """State ``text``; ``found`` is shown when it does not hold."""
        self.claims += 1
        if not holds:
            self.broken.append(text)
        mark = self._style("good", "✓") if holds else self._style("bad", "✗")
        print(f"{'':19}{mark} {text}{'' if holds else f'  — found: {found}'}", flush=True)

    def _now(self) -> str:
        return f"{time.monotonic() - self._started:6.2f} s"

    def _style(self, name: str, text: str) -> str:
        return f"\x1b[{_STYLES[name]}m{text}\x1b[0m" if self._colour else text
