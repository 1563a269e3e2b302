"""What migrations leave in their databases, and the files that they run."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_migrations"
down_revision = "0001"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "scripts",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("text", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scripts")),
    )
    op.create_table(
        "aftermaths",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("task", TEXT, nullable=False),
        sa.Column("resource", TEXT, nullable=False),
        sa.Column("cluster", TEXT, nullable=False),
        sa.Column("database", sa.BigInteger(), nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("before", TEXT, nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("ran", TEXT, nullable=True),
        sa.Column("widening", TEXT, nullable=False),
        sa.Column("error", TEXT, nullable=False),
        sa.Column("looked_at", sa.BigInteger(), nullable=True),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("decided_by", TEXT, nullable=False),
        sa.Column("comment", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["id"], ["leases.id"], name=op.f("fk_aftermaths_id")),
        sa.ForeignKeyConstraint(["task"], ["tasks.id"], name=op.f("fk_aftermaths_task")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_aftermaths")),
    )
    op.create_index("ix_aftermaths_state", "aftermaths", ["state"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("a store is never taken back to an older version")
