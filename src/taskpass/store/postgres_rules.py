"""The rules as triggers of PostgreSQL; ``install`` makes them anew where something differs.

They fire ``ALWAYS``, so that a session that plays replica does not get past them, and TRUNCATE is refused too. Unique
keys need no trigger here: PostgreSQL has no statement that puts a row in place of another without an UPDATE.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from sqlalchemy import Connection

from taskpass.store.rules import GUARDED, MARK, Rule, rules, seals

SCHEMA = "taskpass_store"
"""Not ``taskpass``: that is the target kit's, and a store may share a database with it in a demo."""

_REFUSE = """CREATE OR REPLACE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN RAISE EXCEPTION USING ERRCODE = 'check_violation', MESSAGE = TG_ARGV[0]; END$$"""

_LOOK_UP = """CREATE OR REPLACE FUNCTION {schema}.{name}() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$BEGIN
IF {condition} THEN RAISE EXCEPTION USING ERRCODE = 'check_violation', MESSAGE = '{message}'; END IF;
RETURN NEW; END$$"""

_PRESENT = f"""
SELECT pg_catalog.obj_description('{SCHEMA}'::regnamespace, 'pg_namespace'),
       coalesce(string_agg(t.tgname || ' ' || t.tgenabled::text || ' ' || pg_get_triggerdef(t.oid) || ' ' || p.prosrc,
                           E'\\n' ORDER BY c.relname, t.tgname), '')
  FROM pg_catalog.pg_trigger t
  JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
  JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
 WHERE c.relnamespace = '{SCHEMA}'::regnamespace AND NOT t.tgisinternal
"""  # noqa: S608 - a constant of ours

_NAMES = f"""
SELECT t.tgname, c.relname FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
 WHERE c.relnamespace = '{SCHEMA}'::regnamespace AND NOT t.tgisinternal
"""  # noqa: S608 - a constant of ours


def statements(*, sealed: bool) -> list[str]:
    """Everything that makes the rules, in order; ``sealed``: of a store that was moved elsewhere."""
    made = [_REFUSE.format(schema=SCHEMA)]
    for rule in (*rules(), *(seals() if sealed else ())):
        made += _statements(rule)
    for table in GUARDED:
        made += _always(
            f"{table}_truncate",
            table,
            f"BEFORE TRUNCATE ON {SCHEMA}.{table} FOR EACH STATEMENT"
            f" EXECUTE FUNCTION {SCHEMA}.refuse('{MARK}a row of {table} is never deleted')",
        )
    return made


def _statements(rule: Rule) -> Iterable[str]:
    names = ", ".join(f'"{column}"' for column in rule.columns)
    event = f"BEFORE {rule.event}{' OF ' + names if names else ''} ON {SCHEMA}.{rule.table} FOR EACH ROW"
    if rule.looks_up:
        # A trigger's own condition may not read a table, so it stands in a function of its own.
        yield _LOOK_UP.format(schema=SCHEMA, name=rule.name, condition=rule.condition, message=rule.message)
        yield from _always(rule.name, rule.table, f"{event} EXECUTE FUNCTION {SCHEMA}.{rule.name}()")
        return
    guard = f" WHEN ({rule.condition})" if rule.condition else ""
    yield from _always(rule.name, rule.table, f"{event}{guard} EXECUTE FUNCTION {SCHEMA}.refuse('{rule.message}')")


def _always(name: str, table: str, what: str) -> Iterable[str]:
    yield f"CREATE TRIGGER {name} {what}"
    yield f"ALTER TABLE {SCHEMA}.{table} ENABLE ALWAYS TRIGGER {name}"


def install(connection: Connection, *, sealed: bool) -> None:
    """Leave everything as it is if it is as it was made; otherwise make it again.

    What was made is remembered as a comment on the schema, because the server keeps triggers in words of its own.
    """
    texts = statements(sealed=sealed)
    comment, theirs = connection.exec_driver_sql(_PRESENT).one()
    if comment == _mark(texts, theirs):
        return
    for name, table in connection.exec_driver_sql(_NAMES).all():
        quoted = (str(word).replace('"', '""') for word in (name, SCHEMA, table))
        connection.exec_driver_sql('DROP TRIGGER "{}" ON "{}"."{}"'.format(*quoted))
    for statement in texts:
        connection.exec_driver_sql(statement)
    _, theirs = connection.exec_driver_sql(_PRESENT).one()
    # A COMMENT takes no parameter; the literal is words of ours, letters and digits.
    connection.exec_driver_sql(f"COMMENT ON SCHEMA {SCHEMA} IS '{_mark(texts, theirs)}'")


def _mark(texts: list[str], present: object) -> str:
    """Covers what we say and what the server made of it."""
    return "taskpass rules " + hashlib.sha256("\n".join([*texts, str(present)]).encode()).hexdigest()
