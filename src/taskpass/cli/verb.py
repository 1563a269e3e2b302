"""How a command that must start fast is described and read: standard library only.

Plain classes, because importing ``dataclasses`` takes longer than starting Python. One description serves the parser
here, the help text, and click (for completions and the reference page). Not for commands of operators: those are click
commands from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taskpass.core.errors import InvalidInput


class Option:
    """``--name``. Without ``metavar`` it is a flag; ``many`` may be given several times."""

    __slots__ = ("help", "many", "metavar", "name", "needed")

    def __init__(
        self,
        name: str,
        help: str,  # noqa: A002
        metavar: str = "",
        *,
        many: bool = False,
        needed: bool = False,
    ) -> None:
        self.name, self.help, self.metavar, self.many, self.needed = name, help, metavar, many, needed

    @property
    def key(self) -> str:
        return self.name.removeprefix("--").replace("-", "_")


class Argument:
    __slots__ = ("help", "name", "needed")

    def __init__(self, name: str, help: str, *, needed: bool = True) -> None:  # noqa: A002
        self.name, self.help, self.needed = name, help, needed


class Given:
    """What the caller gave. ``rest`` is everything after ``--``."""

    __slots__ = ("rest", "texts")

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {}
        self.rest: list[str] = []

    def text(self, key: str, default: str = "") -> str:
        return self.texts.get(key, [default])[-1]

    def many(self, key: str) -> list[str]:
        return self.texts.get(key, [])

    def flag(self, key: str) -> bool:
        return key in self.texts


class Verb:
    """``path`` as typed (``task open``); ``rest`` names what follows ``--``, empty if nothing may."""

    __slots__ = ("about", "arguments", "options", "path", "rest", "run", "summary")

    def __init__(
        self,
        path: str,
        summary: str,
        about: str,
        run: Callable[[Given], int],
        *,
        options: tuple[Option, ...] = (),
        arguments: tuple[Argument, ...] = (),
        rest: str = "",
    ) -> None:
        self.path, self.summary, self.about, self.run = path, summary, about, run
        self.options, self.arguments, self.rest = options, arguments, rest


def parse(verb: Verb, words: Sequence[str]) -> Given | None:
    """Read the words after the verb; None if help was asked for. Raises ``InvalidInput`` naming what is wrong."""
    given = Given()
    free: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            given.rest = left
            break
        if word in ("-h", "--help"):
            return None
        if word.startswith("-") and word != "-":
            _option(verb, word, left, given)
        elif verb.rest and len(free) >= len(verb.arguments):
            # As with env(1) and timeout(1): the first word that is ours no more begins the command.
            given.rest = [word, *left]
            break
        else:
            free.append(word)
    _arguments(verb, free, given)
    _demand(verb, given)
    return given


def _option(verb: Verb, word: str, left: list[str], given: Given) -> None:
    name, equals, value = word.partition("=")
    option = next((o for o in verb.options if o.name == name), None)
    if option is None:
        raise InvalidInput(f"taskpass {verb.path} has no option of that name", hint=_near(verb, name))
    if not option.metavar:
        if equals:
            raise InvalidInput(f"{name} takes no value")
        given.texts[option.key] = []
        return
    if not equals:
        if not left or left[0] == "--":
            raise InvalidInput(f"{name} needs a value: {option.metavar}")
        value = left.pop(0)
    if option.key in given.texts and not option.many:
        raise InvalidInput(f"{name} is given twice")
    given.texts.setdefault(option.key, []).append(value)


def _near(verb: Verb, name: str) -> str:
    import difflib

    known = [option.name for option in verb.options]
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"see: taskpass {verb.path} --help"


def _arguments(verb: Verb, free: list[str], given: Given) -> None:
    if len(free) > len(verb.arguments):
        raise InvalidInput(f"taskpass {verb.path} takes no further argument", hint=f"see: taskpass {verb.path} --help")
    for argument, word in zip(verb.arguments, free, strict=False):
        given.texts[argument.name] = [word]


def _demand(verb: Verb, given: Given) -> None:
    for argument in verb.arguments:
        if argument.needed and argument.name not in given.texts:
            raise InvalidInput(f"{argument.name.upper()} is missing", hint=usage(verb))
    for option in verb.options:
        if option.needed and option.key not in given.texts:
            raise InvalidInput(f"{option.name} is missing", hint=usage(verb))
    if verb.rest and not given.rest:
        raise InvalidInput(f"{verb.rest} is missing", hint=usage(verb))
    if given.rest and not verb.rest:
        raise InvalidInput(f"taskpass {verb.path} runs no command", hint=usage(verb))


def usage(verb: Verb) -> str:
    """The line that shows how the verb is typed."""
    needed = [f"{o.name} {o.metavar}" for o in verb.options if o.needed]
    arguments = [a.name.upper() if a.needed else f"[{a.name.upper()}]" for a in verb.arguments]
    rest = [f"-- {verb.rest}"] if verb.rest else []
    options = ["[OPTIONS]"] if len(needed) < len(verb.options) else []
    return " ".join(["taskpass", verb.path, *needed, *options, *arguments, *rest])


def help_text(verb: Verb) -> str:
    """What ``--help`` prints."""
    rows = [(a.name.upper(), a.help) for a in verb.arguments]
    rows += [(f"{o.name} {o.metavar}".strip(), o.help + (" (may be repeated)" if o.many else "")) for o in verb.options]
    rows.append(("--help", "Show this and exit."))
    width = max(len(left) for left, _ in rows) + 2
    listed = "\n".join(f"  {left:<{width}}{right}" for left, right in rows)
    return f"Usage: {usage(verb)}\n\n{verb.about}\n\n{listed}\n"
