"""Runs the migrations on a connection that the caller opened: no alembic.ini, no working directory, no output."""

from __future__ import annotations

import io
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration for this folder."""
    made = Config(output_buffer=io.StringIO(), stdout=io.StringIO())
    # A percent sign in the path would be read as interpolation.
    made.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def upgrade(connection: Connection, version: str) -> None:
    """Bring the schema to ``version`` inside the transaction that ``connection`` is in."""
    command.upgrade(config(connection), version)
