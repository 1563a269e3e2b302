"""The mark that a store bears once it was moved, or is being moved, elsewhere: nothing is written to it any more.

A table of its own that no store in use has, so that versions and kinds of database need not agree on more.
"""

from __future__ import annotations

from sqlalchemy import Column, Connection, MetaData, Table, Text, inspect, select

from taskpass.core.errors import StoreUnavailable

seals = Table("moved_to", MetaData(), Column("place", Text, primary_key=True))


def moved() -> StoreUnavailable:
    """What a rule of a sealed store means to somebody who had it open before."""
    return StoreUnavailable("this store was moved", hint="restart with the new one's address", code="store_moved")


def sealed_for(connection: Connection) -> str:
    """Where this store was moved to; empty if it was not."""
    if not inspect(connection).has_table(seals.name):
        return ""
    return str(connection.execute(select(seals.c.place)).scalar() or "")
