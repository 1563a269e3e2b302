"""What an account can do in a database, as its server says: read back before anything is handed out.

Everything counts, whoever granted it: the kit, somebody by hand, PUBLIC. Not for what the system itself offers to every
login (its own catalogues, functions): that is ``public_reach``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from taskpass.issuers.base import Rights
from taskpass.issuers.postgres.connection import driver_errors


def read(connection: psycopg.Connection[Any], role: str) -> Rights:
    """Every right of ``role`` on relations and sequences that are not the system's. Raises as ``driver_errors``."""
    with driver_errors("reading the rights back"):
        return ask(connection, role)()


def ask(connection: psycopg.Connection[Any], role: str) -> Callable[[], Rights]:
    """As ``read``, in two steps, of which in a pipeline only the second one waits for the server.

    Driver errors come through in both: in a pipeline they may be those of an earlier statement.
    """
    # MAINTAIN exists since 17, and has_table_privilege refuses words that it does not know.
    query = _RIGHTS.replace("{maintain}", ", ('MAINTAIN')" if connection.info.server_version >= 170000 else "")
    # Prepared, because planning takes longer than running and every lease asks.
    cursor = connection.execute(query.encode(), [role], prepare=True)
    return lambda: {(oid, verb): frozenset(columns) for oid, verb, columns in cursor.fetchall()}


_RIGHTS = """
WITH me AS (SELECT r.oid FROM pg_roles r WHERE r.rolname = %s),
places AS (
    SELECT c.oid, c.relkind FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid, me
     WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND has_schema_privilege(me.oid, n.oid, 'USAGE')
       AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S'))
SELECT p.oid::bigint, v.verb, array_agg(a.attnum::int)
  FROM me, places p CROSS JOIN (VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('REFERENCES')) AS v(verb)
  JOIN pg_attribute a ON a.attrelid = p.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE p.relkind <> 'S' AND has_any_column_privilege(me.oid, p.oid, v.verb)
   AND has_column_privilege(me.oid, p.oid, a.attnum, v.verb)
 GROUP BY p.oid, v.verb
UNION ALL
SELECT p.oid::bigint, v.verb, '{}'::int[]
  FROM me, places p CROSS JOIN (VALUES ('DELETE'), ('TRUNCATE'), ('TRIGGER'){maintain}) AS v(verb)
 WHERE p.relkind <> 'S' AND has_table_privilege(me.oid, p.oid, v.verb)
UNION ALL
SELECT p.oid::bigint, v.verb, '{}'::int[]
  FROM me, places p CROSS JOIN (VALUES ('USAGE'), ('SELECT'), ('UPDATE')) AS v(verb)
 WHERE p.relkind = 'S' AND has_sequence_privilege(me.oid, p.oid, v.verb)
"""
