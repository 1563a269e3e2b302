"""The first schema.

Written out, not taken from ``tables``: a migration stays as it was when later ones change the tables.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("body", TEXT, nullable=False),
        sa.Column("prev", TEXT, nullable=False),
        sa.Column("hash", TEXT, nullable=False),
        sa.Column("signature", TEXT, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit")),
    )
    op.create_table(
        "audit_keys",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("public", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_keys")),
    )
    op.create_table(
        "challenges",
        sa.Column("nonce", TEXT, nullable=False),
        sa.Column("verb", TEXT, nullable=False),
        sa.Column("subject", TEXT, nullable=False),
        sa.Column("human", TEXT, nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("nonce", name=op.f("pk_challenges")),
    )
    op.create_index("ix_challenges_expires_at", "challenges", ["expires_at"], unique=False)
    op.create_table(
        "installation",
        sa.Column("only", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("demo", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("latest_seen", sa.BigInteger(), nullable=False),
        sa.CheckConstraint('"only" = 1', name=op.f("ck_installation_single")),
        sa.PrimaryKeyConstraint("only", name=op.f("pk_installation")),
    )
    op.create_table(
        "runs",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("tool", TEXT, nullable=False),
        sa.Column("sponsor", TEXT, nullable=False),
        sa.Column("uid", sa.BigInteger(), nullable=False),
        sa.Column("directory", TEXT, nullable=False),
        sa.Column("separation", TEXT, nullable=False),
        sa.Column("namespace", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_table(
        "audit_subjects",
        sa.Column("subject", TEXT, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["seq"], ["audit.seq"], name=op.f("fk_audit_subjects_seq")),
        sa.PrimaryKeyConstraint("subject", "seq", name=op.f("pk_audit_subjects")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tasks",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("spiffe_id", TEXT, nullable=False),
        sa.Column("sponsor", TEXT, nullable=False),
        sa.Column("machine", TEXT, nullable=False),
        sa.Column("tool", TEXT, nullable=False),
        sa.Column("separation", TEXT, nullable=False),
        sa.Column("run", TEXT, nullable=True),
        sa.Column("parents", TEXT, nullable=False),
        sa.Column("repository", TEXT, nullable=False),
        sa.Column("repository_provenance", TEXT, nullable=False),
        sa.Column("branch", TEXT, nullable=False),
        sa.Column("branch_provenance", TEXT, nullable=False),
        sa.Column("ticket", TEXT, nullable=False),
        sa.Column("ticket_provenance", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("opened_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("reason", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["run"], ["runs.id"], name=op.f("fk_tasks_run")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
    )
    op.create_index("ix_tasks_state_run", "tasks", ["state", "run"], unique=False)
    op.create_index(
        "uq_tasks_unattached",
        "tasks",
        ["sponsor", "machine", "repository"],
        unique=True,
        sqlite_where=sa.text("state = 'open' AND run IS NULL AND parents = '[]'"),
        postgresql_where=sa.text("state = 'open' AND run IS NULL AND parents = '[]'"),
    )
    op.create_table(
        "requests",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("task", TEXT, nullable=False),
        sa.Column("resource", TEXT, nullable=False),
        sa.Column("scope", TEXT, nullable=False),
        sa.Column("environment", TEXT, nullable=False),
        sa.Column("manifest", TEXT, nullable=False),
        sa.Column("lifetime", sa.BigInteger(), nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("decision", TEXT, nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("separation", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("lapses_at", sa.BigInteger(), nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("comment", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["task"], ["tasks.id"], name=op.f("fk_requests_task")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_requests")),
    )
    op.create_index("ix_requests_state_lapses_at", "requests", ["state", "lapses_at"], unique=False)
    op.create_index("ix_requests_task", "requests", ["task"], unique=False)
    op.create_table(
        "approvals",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("request", TEXT, nullable=False),
        sa.Column("approver", TEXT, nullable=False),
        sa.Column("method", TEXT, nullable=False),
        sa.Column("verdict", TEXT, nullable=False),
        sa.Column("manifest", TEXT, nullable=False),
        sa.Column("lifetime", sa.BigInteger(), nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("nonce", TEXT, nullable=False),
        sa.Column("signature", TEXT, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("comment", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["request"], ["requests.id"], name=op.f("fk_approvals_request")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_approvals")),
        sa.UniqueConstraint("request", "approver", name=op.f("uq_approvals_request_approver")),
    )
    op.create_table(
        "grants",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("request", TEXT, nullable=False),
        sa.Column("task", TEXT, nullable=False),
        sa.Column("resource", TEXT, nullable=False),
        sa.Column("asked", TEXT, nullable=False),
        sa.Column("manifest", TEXT, nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("approvals", TEXT, nullable=False),
        sa.Column("renewable", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["request"], ["requests.id"], name=op.f("fk_grants_request")),
        sa.ForeignKeyConstraint(["task"], ["tasks.id"], name=op.f("fk_grants_task")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
        sa.UniqueConstraint("request", name=op.f("uq_grants_request")),
    )
    op.create_index("ix_grants_task", "grants", ["task"], unique=False)
    op.create_table(
        "approval_uses",
        sa.Column("approval", TEXT, nullable=False),
        sa.Column("grant", TEXT, nullable=False),
        sa.ForeignKeyConstraint(["approval"], ["approvals.id"], name=op.f("fk_approval_uses_approval")),
        sa.ForeignKeyConstraint(
            ["grant"], ["grants.id"], name=op.f("fk_approval_uses_grant"), initially="DEFERRED", deferrable=True
        ),
        sa.PrimaryKeyConstraint("approval", name=op.f("pk_approval_uses")),
    )
    op.create_table(
        "leases",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("grant", TEXT, nullable=False),
        sa.Column("task", TEXT, nullable=False),
        sa.Column("role", TEXT, nullable=False),
        sa.Column("resource", TEXT, nullable=False),
        sa.Column("target", TEXT, nullable=False),
        sa.Column("manifest_digest", TEXT, nullable=False),
        sa.Column("delivery", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("renewals", sa.BigInteger(), nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("closing_at", sa.BigInteger(), nullable=True),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.Column("proof", TEXT, nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("retry_at", sa.BigInteger(), nullable=True),
        sa.Column("last_error", TEXT, nullable=False),
        sa.Column("incidents", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["grant"], ["grants.id"], name=op.f("fk_leases_grant")),
        sa.ForeignKeyConstraint(["task"], ["tasks.id"], name=op.f("fk_leases_task")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_leases")),
        sa.UniqueConstraint("role", name=op.f("uq_leases_role")),
    )
    op.create_index("ix_leases_grant", "leases", ["grant"], unique=False)
    op.create_index("ix_leases_state_expires_at", "leases", ["state", "expires_at"], unique=False)
    op.create_index("ix_leases_task", "leases", ["task"], unique=False)
