"""Where ``taskpass`` starts. Agents' verbs take a path that imports the standard library only; start-up is a feature.

Everything else goes to click. Errors end here: one line, one hint, a documented exit code, never a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from taskpass.core.errors import TaskpassError

FAST = {
    "exec": "taskpass.cli.exec",
    "migrate": "taskpass.cli.migrate",
    "request": "taskpass.cli.request",
    "wait": "taskpass.cli.wait",
    "status": "taskpass.cli.status",
    "release": "taskpass.cli.release",
    "task open": "taskpass.cli.task.open",
    "task complete": "taskpass.cli.task.complete",
}
"""Verbs of agents and hooks, and the module whose ``VERB`` describes each."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    from taskpass.cli.say import fail, talk

    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(words)
        sys.stdout.flush()
    except TaskpassError as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has left. Python would complain again at exit.
        sys.stdout = None
        return 141
    except Exception as error:  # noqa: BLE001
        # The text of an unforeseen error may hold anything, a secret too: only its kind and place are shown.
        talk(f"taskpass: a defect in taskpass: {type(error).__name__} at {_place(error)} [internal]")
        talk("next: report this line; nothing else is needed")
        return 1
    return code


def _run(words: list[str]) -> int:
    for length in (2, 1):
        module = FAST.get(" ".join(words[:length]))
        if module and len(words) >= length:
            return _fast(module, words[length:])
    from taskpass.cli.main import run

    return run(words)


def _fast(module: str, words: list[str]) -> int:
    from taskpass.cli.verb import Verb, help_text, parse

    verb: Verb = import_module(module).VERB
    given = parse(verb, words)
    if given is None:
        sys.stdout.write(help_text(verb))
        return 0
    return verb.run(given)


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace is None:
        return "an unknown place"
    return f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}"
