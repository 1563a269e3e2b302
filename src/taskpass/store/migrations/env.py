"""Alembic's environment: uses the connection, and the transaction, that it is handed. Run by Alembic only."""

from __future__ import annotations

from alembic import context

from taskpass.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
