"""Split a migration file into statements with PostgreSQL's own grammar, and refuse what a broker must not send.

The file is never given to psql, whose meta commands run programs. What is refused is refused by its line, before
anything is sent. Not a sandbox: what the statements may do is decided by the rights of the owner that they run as. The
grammar is that of PostgreSQL 17; a statement is sent by a message that carries one statement only, so a server that
reads the text differently fails instead of running two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pgparse  # pyright: ignore[reportMissingTypeStubs]

from taskpass.core.errors import InvalidInput
from taskpass.core.script import MAX_STATEMENTS, Script, script_digest
from taskpass.core.text import visible

Node = Mapping[str, Any]

_MARK = re.compile(r"^[ \t]*--[ \t]*taskpass:[ \t]*(.*?)[ \t\r]*$", re.MULTILINE)
_NO_TRANSACTION = "no-transaction"
_SKIPPED = re.compile(rb"\s+|--[^\n]*")

_COPY_DATA = re.compile(r"\bFROM\s+STDIN\b[^;]*;\s*\Z", re.IGNORECASE)
_NO_COPY = "COPY is not possible here: no data but the statements is read"

_FIXED_SETTINGS = frozenset({"role", "session_authorization", "standard_conforming_strings", "backslash_quote"})
"""Who the session is, and how its text is read: both are what was approved."""

_KINDS = {
    "CreateStmt": "CREATE TABLE",
    "CreateTableAsStmt": "CREATE TABLE AS",
    "IndexStmt": "CREATE INDEX",
    "ViewStmt": "CREATE VIEW",
    "RuleStmt": "CREATE RULE",
    "CreateTrigStmt": "CREATE TRIGGER",
    "CreateSeqStmt": "CREATE SEQUENCE",
    "CreateEnumStmt": "CREATE TYPE",
    "CompositeTypeStmt": "CREATE TYPE",
    "CreateFdwStmt": "CREATE FOREIGN DATA WRAPPER",
    "VariableSetStmt": "SET",
    "VariableShowStmt": "SHOW",
    "GrantRoleStmt": "GRANT ROLE",
    "AlterOwnerStmt": "ALTER OWNER",
    "AlterObjectSchemaStmt": "ALTER SET SCHEMA",
    "AlterEnumStmt": "ALTER TYPE",
    "AlterSeqStmt": "ALTER SEQUENCE",
    "RefreshMatViewStmt": "REFRESH MATERIALIZED VIEW",
}

_OUTSIDE_ONLY = "it cannot run in a transaction"
_ONLY_WITHOUT = f"begin the file with the line:  -- taskpass: {_NO_TRANSACTION}"


@dataclass(frozen=True, slots=True)
class Statement:
    """``line`` counts from 1; ``kind`` is ours, in words; ``text`` is what is sent."""

    line: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Split:
    script: Script
    statements: tuple[Statement, ...]


def split(text: str) -> Split:
    """Raises ``InvalidInput`` (``script_refused``), naming the line, for what is no SQL or must not be sent."""
    digest = script_digest(text)
    if "\0" in text or any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise _refused(1, "the file is not text in UTF-8")
    data = text.encode()
    found = _parse(text)
    statements = tuple(_statement(data, raw) for raw in found)
    if not statements:
        raise _refused(1, "there is no statement in the file")
    if len(statements) > MAX_STATEMENTS:
        raise _refused(statements[MAX_STATEMENTS].line, f"a file has at most {MAX_STATEMENTS} statements")
    one_transaction = _reads_one_transaction(text, statements[0].line)
    for statement, raw in zip(statements, found, strict=True):
        _demand_allowed(statement.line, raw["stmt"], one_transaction=one_transaction)
    shown = tuple((statement.line, statement.kind) for statement in statements)
    return Split(Script(digest, len(data), one_transaction, shown), statements)


def _refused(line: int, why: str, hint: str = "") -> InvalidInput:
    return InvalidInput(f"line {line}: {why}", hint=hint, code="script_refused")


def _parse(text: str) -> list[dict[str, Any]]:
    try:
        return cast("list[dict[str, Any]]", pgparse.parse(text))  # pyright: ignore[reportUnknownMemberType]
    except pgparse.PGQueryError as error:  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        raise _not_sql(text, str(error.message), int(error.position or 1)) from None  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    except RecursionError:
        raise _refused(1, "an expression is nested too deeply", "write it in several statements") from None


def _not_sql(text: str, words: str, position: int) -> InvalidInput:
    at = min(max(position - 1, 0), len(text))
    line = text.count("\n", 0, at) + 1
    if text[at : at + 1] == "\\" or text.split("\n")[line - 1].lstrip().startswith("\\"):
        return _refused(line, "psql's meta commands are not SQL, and some of them run programs", "write SQL only")
    if _COPY_DATA.search(text, 0, at):
        return _refused(line, _NO_COPY, "write INSERT")
    return _refused(line, visible(words, limit=200), "the grammar is that of PostgreSQL 17")


def _statement(data: bytes, raw: Mapping[str, Any]) -> Statement:
    start = int(raw.get("stmt_location", 0))
    end = start + int(raw["stmt_len"]) if "stmt_len" in raw else len(data)
    start = _first_token(data, start)
    return Statement(data.count(b"\n", 0, start) + 1, _kind(raw["stmt"]), data[start:end].decode())


def _first_token(data: bytes, at: int) -> int:
    """Past white space and comments, so that a statement's line is where it can be read."""
    while True:
        if skipped := _SKIPPED.match(data, at):
            at = skipped.end()
        elif data.startswith(b"/*", at):
            at = _past_comment(data, at)
        else:
            return at


def _past_comment(data: bytes, at: int) -> int:
    depth = 0
    while at < len(data):
        if data.startswith(b"/*", at):
            depth, at = depth + 1, at + 2
        elif data.startswith(b"*/", at):
            depth, at = depth - 1, at + 2
            if depth == 0:
                return at
        else:
            at += 1
    return at


def _reads_one_transaction(text: str, first: int) -> bool:
    """False if the file says so before its first statement. A mark elsewhere would be a wish that nobody fulfils."""
    without = False
    for mark in _MARK.finditer(text):
        line = text.count("\n", 0, mark.start()) + 1
        if mark[1] != _NO_TRANSACTION:
            raise _refused(line, f'the only word after "-- taskpass:" is {_NO_TRANSACTION}')
        if line > first:
            raise _refused(line, f'"-- taskpass: {_NO_TRANSACTION}" is for the whole file', _ONLY_WITHOUT)
        without = True
    return not without


# ---- what a statement is ----


def _kind(stmt: Node) -> str:
    name, node = _only(stmt)
    if name == "GrantStmt":
        return "GRANT" if node.get("is_grant") else "REVOKE"
    if name == "TransactionStmt":
        return _words(str(node["kind"]).removeprefix("TRANS_STMT_"))
    for label, key in (("ALTER", "objtype"), ("DROP", "removeType"), ("RENAME", "renameType"), ("CREATE", "kind")):
        if (
            name
            == {"ALTER": "AlterTableStmt", "DROP": "DropStmt", "RENAME": "RenameStmt", "CREATE": "DefineStmt"}[label]
        ):
            return f"{label} {_words(str(node.get(key, '')).removeprefix('OBJECT_'))}"
    return _KINDS.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.removesuffix("Stmt")).upper()


def _words(text: str) -> str:
    return text.replace("_", " ").replace("MATVIEW", "MATERIALIZED VIEW")


def _only(node: Node) -> tuple[str, Node]:
    """A node of the tree is an object with one key: its type."""
    name = next(iter(node))
    return name, cast("Node", node[name])


# ---- what is refused ----


def _demand_allowed(line: int, stmt: Node, *, one_transaction: bool) -> None:
    name, node = _only(stmt)
    if name == "TransactionStmt":
        _demand_no_control(line, str(node["kind"]), one_transaction=one_transaction)
    elif name == "CopyStmt":
        raise _refused(line, _NO_COPY, "write INSERT")
    elif name == "LoadStmt" or name == "AlterSystemStmt":
        raise _refused(line, f"{_kind(stmt)} reaches beyond the database")
    elif name in ("CreateRoleStmt", "AlterRoleStmt") and _has_option(node, "password"):
        raise _refused(line, "a password must never stand in a file")
    elif one_transaction and _needs_no_transaction(name, node):
        raise _refused(line, f"{_kind(stmt)}: {_OUTSIDE_ONLY}", _ONLY_WITHOUT)
    for kind, inner in _nodes(stmt):
        if kind == "VariableSetStmt" and str(inner.get("name", "")).lower() in _FIXED_SETTINGS:
            raise _refused(line, f"{str(inner['name']).lower()} must stay what it is", "the file runs as the owner")
        if kind == "FuncCall" and _sets_what_is_fixed(inner):
            raise _refused(line, "set_config is for a setting that is named, and not for who runs the file")


def _demand_no_control(line: int, kind: str, *, one_transaction: bool) -> None:
    if "PREPARE" in kind or "PREPARED" in kind:
        raise _refused(line, "a prepared transaction would outlive the access")
    if one_transaction:
        raise _refused(line, "the whole file is one transaction already, which commits or not at all", _ONLY_WITHOUT)


def _needs_no_transaction(name: str, node: Node) -> bool:
    if name in ("IndexStmt", "DropStmt") and node.get("concurrent"):
        return True
    if name == "ReindexStmt" and _has_option(node, "concurrently"):
        return True
    return name == "VacuumStmt" and bool(node.get("is_vacuumcmd"))


def _has_option(node: Node, wanted: str) -> bool:
    given = [*node.get("options", ()), *node.get("params", ())]
    return any(item.get("DefElem", {}).get("defname") == wanted for item in given)


def _sets_what_is_fixed(call: Node) -> bool:
    names = [part.get("String", {}).get("sval", "") for part in call.get("funcname", ())]
    if not names or names[-1] != "set_config":
        return False
    arguments = cast("list[dict[str, Any]]", call.get("args") or [{}])
    setting: object = arguments[0].get("A_Const", {}).get("sval", {}).get("sval")
    return setting is None or str(setting).lower() in _FIXED_SETTINGS


def _nodes(tree: object) -> Iterator[tuple[str, Node]]:
    """Every typed node of the tree, at any depth."""
    todo = [tree]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo.extend(cast("list[object]", item))
        elif isinstance(item, dict):
            for key, value in cast("dict[str, object]", item).items():
                todo.append(value)
                if isinstance(value, dict):
                    yield key, cast("Node", value)
