"""The agent of the demo's story: a program inside the sandbox that speaks to Taskpass by its commands only.

It prints one JSON object a line about what it did and what it met; the story outside judges.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

REPOSITORY = "https://git.example/shop/orders"
BRANCH = "fix/late-orders"
TICKET = "SHOP-1287"
REASON = "Find out why orders of last week have no payment"


def say(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def taskpass(*words: str) -> tuple[int, dict[str, Any]]:
    """One command with its JSON answer, and its exit code."""
    done = subprocess.run([sys.executable, "-I", "-m", "taskpass", *words], capture_output=True, text=True, check=False)
    try:
        return done.returncode, json.loads(done.stdout)
    except ValueError:
        return done.returncode, {"error": done.stderr.strip()[-400:]}


def work(*words: str) -> int:
    """``taskpass exec`` with the work of one resource as its command; its output is ours."""
    program = [sys.executable, "-I", "-m", "taskpass.demo.work"]
    command = [sys.executable, "-I", "-m", "taskpass", "exec", *words[:-1], "--", *program, words[-1]]
    return subprocess.run(command, check=False).returncode


def main() -> int:
    code, status = taskpass("status", "--json")
    say("started", pid=os.getpid(), uid=os.getuid(), code=code, separation=status.get("separation"))
    say("looked", hidden=[path for path in sys.argv[1:] if not os.path.exists(path)], asked=sys.argv[1:])
    code, task = taskpass("task", "open", "--repository", REPOSITORY, "--branch", BRANCH, "--ticket", TICKET, "--json")
    say("task", code=code, task=task.get("task"), error=task.get("error"))
    say("staging", code=work("--resource", "orders-staging", "--access", "read", "staging"))
    code, asked = taskpass("request", "--resource", "orders-production", "--reason", REASON, "--json")
    say("asked", code=code, request=asked.get("request"), state=asked.get("state"), error=asked.get("error"))
    code, answer = taskpass("wait", str(asked.get("request")), "--timeout", "60s", "--json")
    say("decided", code=code, state=answer.get("state"))
    say("production", code=work("--request", str(asked.get("request")), "production"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
