"""Run every bench and say which figures are over their limit. Exit code 1 if one is."""

from __future__ import annotations

import os
import platform
import sys

from bench import (
    decisions,
    endpoint_throughput,
    exec_overhead,
    issue,
    issue_rate,
    neighbour,
    revoke,
    startup,
    store_postgres,
    storm,
)
from bench.common import Figures


def main() -> int:
    figures = Figures()
    print(f"{os.cpu_count()} processors, {platform.system()} {platform.release()}, Python {platform.python_version()}")
    for module in (decisions, store_postgres, issue, issue_rate, neighbour, revoke, exec_overhead, startup, storm):
        print(f"\n{module.__doc__.splitlines()[0]}", flush=True)
        module.run(figures)
    print(f"\n{endpoint_throughput.__doc__.splitlines()[0]}", flush=True)
    if endpoint_throughput.main():
        figures.missed.append("endpoint throughput")
    print(f"\n{len(figures.missed)} figure(s) over their limit: {', '.join(figures.missed) or 'none'}")
    return 1 if figures.missed else 0


if __name__ == "__main__":
    sys.exit(main())
