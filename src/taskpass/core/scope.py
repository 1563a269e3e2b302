"""What is asked for: a level on tables of a resource, as patterns, or an owner to migrate as.

It grants nothing; it resolves to a manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from taskpass.core.errors import InvalidInput
from taskpass.core.script import Script
from taskpass.core.text import accept

MAX_PATTERNS = 200


class Level(StrEnum):
    """How far an access goes."""

    READ = "read"
    WRITE = "write"
    MIGRATE = "migrate"
    """Everything that the owner of the objects can do: one approved file that the broker runs, or hands-on."""


class Verb(StrEnum):
    """What is granted on a table. All but ``DELETE`` are granted by column."""

    SELECT = "SELECT"
    INSERT = "INSERT"
    UPDATE = "UPDATE"
    DELETE = "DELETE"


WRITE_VERBS = frozenset(Verb) - {Verb.SELECT}

VERBS_OF_LEVEL: dict[Level, frozenset[Verb]] = {
    Level.READ: frozenset({Verb.SELECT}),
    Level.WRITE: frozenset(Verb),
    Level.MIGRATE: frozenset(),
}
"""What a level may grant at most. ``SELECT`` is always part of it: with UPDATE alone a row cannot be picked by its
columns, so the only statement that works is the one that changes every row (feasibility.md, section 4)."""


def pattern(text: object) -> str:
    """A table pattern ``schema.table``; ``*`` stands for any run of characters in either half. Names are as stored."""
    name = accept(text, what="a table pattern")
    if name.count(".") < 1 or not all(name.split(".", 1)):
        raise InvalidInput("a table pattern must name schema and table", hint='write "public.orders" or "public.*"')
    return name


def matches(patterns: tuple[str, ...], schema: str, table: str) -> bool:
    """Whether ``schema.table`` fits one of ``patterns``; exact text, case included, only ``*`` is special."""
    return any(_fits(p.split(".", 1)[0], schema) and _fits(p.split(".", 1)[1], table) for p in patterns)


def _fits(glob: str, name: str) -> bool:
    """Glob matching in at most len(glob) x len(name) steps.

    Patterns come from the requesting side too, and a regular expression with many ``.*`` can take longer than anybody
    lives. The leftmost place for each piece between two stars is always the right one.
    """
    first, *rest = glob.split("*")
    if not rest:
        return name == first
    *middle, last = rest
    at, end = len(first), len(name) - len(last)
    if at > end or not name.startswith(first) or not name.endswith(last):
        return False
    for piece in middle:
        found = name.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


@dataclass(frozen=True, slots=True)
class Scope:
    """``tables`` minus ``exclude`` of ``resource`` at ``level``, optionally narrowed by ``only`` (the caller's wish).

    ``tables``, ``exclude`` and ``verbs`` (empty: all of the level) come from the operator's config; ``only`` can make
    the scope smaller, never larger. At level ``migrate`` there are no tables but an ``owner``, and ``script`` is the
    one file to run; None means hands-on. Tables that ``limited_rows`` names are part of it only as far as row security
    lets ``tenant`` see them; a table without such a policy is refused.
    """

    resource: str
    access: str
    level: Level
    tables: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    owner: str = ""
    script: Script | None = None
    verbs: frozenset[Verb] = frozenset()
    tenant: str = ""
    limited_rows: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "verbs", self.verbs or VERBS_OF_LEVEL[self.level])
        if self.level is Level.MIGRATE:
            if not self.owner or self.tables or self.exclude or self.only or self.verbs or self.tenant:
                raise InvalidInput(
                    f"access {self.access} of {self.resource} is everything that one owner owns, not a list of tables",
                    hint="leave the tables out",
                )
            return
        if self.owner or self.script:
            raise InvalidInput("only a migration has an owner and a file", hint="use --access migrate")
        if Verb.SELECT not in self.verbs or not self.verbs <= VERBS_OF_LEVEL[self.level]:
            raise InvalidInput(f"access {self.access} of {self.resource} has verbs that are not of its level")
        if not self.tables:
            raise InvalidInput(f"access {self.access} of {self.resource} names no tables")
        if bool(self.tenant) != bool(self.limited_rows):
            raise InvalidInput(f"access {self.access} of {self.resource} needs a tenant and its tables, or neither")
        if max(map(len, (self.tables, self.exclude, self.only, self.limited_rows))) > MAX_PATTERNS:
            raise InvalidInput(f"too many table patterns, at most {MAX_PATTERNS}")
        for text in (*self.tables, *self.exclude, *self.only, *self.limited_rows):
            pattern(text)

    def wants(self, schema: str, table: str) -> bool:
        """Whether an object of that name is asked for (and not excluded)."""
        return (
            matches(self.tables, schema, table)
            and not self.excludes(schema, table)
            and (not self.only or matches(self.only, schema, table))
        )

    def excludes(self, schema: str, table: str) -> bool:
        return bool(self.exclude) and matches(self.exclude, schema, table)

    def to_json(self) -> dict[str, object]:
        return {
            "resource": self.resource,
            "access": self.access,
            "level": self.level.value,
            "tables": list(self.tables),
            "exclude": list(self.exclude),
            "only": list(self.only),
            # Absent at other levels, so that what was recorded before there were these stays what it is.
            **({"owner": self.owner} if self.owner else {}),
            **({"script": self.script.to_json()} if self.script else {}),
            **({"verbs": sorted(verb.value for verb in self.verbs)} if self.level is Level.WRITE else {}),
            **({"tenant": self.tenant, "limited_rows": list(self.limited_rows)} if self.tenant else {}),
        }

    @classmethod
    def from_json(cls, data: dict[str, object]) -> Scope:
        def words(key: str) -> tuple[str, ...]:
            value = data[key]
            assert isinstance(value, list)
            return tuple(str(item) for item in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]

        script = data.get("script")
        return cls(
            str(data["resource"]),
            str(data["access"]),
            Level(str(data["level"])),
            words("tables"),
            words("exclude"),
            words("only"),
            str(data.get("owner", "")),
            Script.from_json(script) if isinstance(script, dict) else None,  # pyright: ignore[reportUnknownArgumentType]
            frozenset(Verb(word) for word in words("verbs")) if "verbs" in data else frozenset(),
            str(data.get("tenant", "")),
            words("limited_rows") if "limited_rows" in data else (),
        )
