"""Which broker serves a lease or a run, and which brokers live: for several brokers on one store."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003_owners"
down_revision = "0002_migrations"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "brokers",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("machine", TEXT, nullable=False),
        sa.Column("seen_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_brokers")),
    )
    op.create_table(
        "owners",
        sa.Column("subject", TEXT, nullable=False),
        sa.Column("broker", TEXT, nullable=False),
        sa.Column("token", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["broker"], ["brokers.id"], name=op.f("fk_owners_broker")),
        sa.PrimaryKeyConstraint("subject", name=op.f("pk_owners")),
    )


def downgrade() -> None:
    raise NotImplementedError("a store is never taken back to an older version")
