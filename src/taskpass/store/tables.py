"""The tables, for every engine. Migrations build them; a test holds the two together.

Not for: rules. Which state may follow which is in the aggregate's module of ``core`` and enforced by ``triggers``.
Instants are whole milliseconds; structured values (scope, manifest, decision, target, proof) are canonical JSON text.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite gives a table its row number as key only when the type is exactly INTEGER.
SEQUENCE = BigInteger().with_variant(Integer, "sqlite")


# By code point, as SQLite compares: the same order everywhere, and no index that a new version of the C library breaks.
TEXT = Text().with_variant(Text(collation="C"), "postgresql")


def _text(name: str) -> Column[str]:
    return Column(name, TEXT, nullable=False)


def _at(name: str, *, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable)


def _to(name: str, target: str, *, nullable: bool = False) -> Column[str]:
    return Column(name, TEXT, ForeignKey(target), nullable=nullable)


installation = Table(
    "installation",
    metadata,
    Column("only", Integer, CheckConstraint('"only" = 1', name="single"), primary_key=True, autoincrement=False),
    _text("id"),
    Column("epoch", BigInteger, nullable=False),
    Column("demo", Boolean, nullable=False),
    _at("created_at"),
    _at("latest_seen"),
)

runs = Table(
    "runs",
    metadata,
    Column("id", TEXT, primary_key=True),
    _text("tool"),
    _text("sponsor"),
    Column("uid", BigInteger, nullable=False),
    _text("directory"),
    _text("separation"),
    _text("namespace"),
    _at("created_at"),
    _at("ended_at", nullable=True),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", TEXT, primary_key=True),
    _text("spiffe_id"),
    _text("sponsor"),
    _text("machine"),
    _text("tool"),
    _text("separation"),
    _to("run", "runs.id", nullable=True),
    _text("parents"),
    _text("repository"),
    _text("repository_provenance"),
    _text("branch"),
    _text("branch_provenance"),
    _text("ticket"),
    _text("ticket_provenance"),
    _text("state"),
    _at("opened_at"),
    _at("expires_at"),
    _at("ended_at", nullable=True),
    _text("reason"),
    Index("ix_tasks_state_run", "state", "run"),
)
_UNATTACHED = text("state = 'open' AND run IS NULL AND parents = '[]'")
Index(
    "uq_tasks_unattached",
    tasks.c.sponsor,
    tasks.c.machine,
    tasks.c.repository,
    unique=True,
    sqlite_where=_UNATTACHED,
    postgresql_where=_UNATTACHED,
)

requests = Table(
    "requests",
    metadata,
    Column("id", TEXT, primary_key=True),
    _to("task", "tasks.id"),
    _text("resource"),
    _text("scope"),
    _text("environment"),
    _text("manifest"),
    Column("lifetime", BigInteger, nullable=False),
    _text("reason"),
    _text("decision"),
    _text("digest"),
    _text("separation"),
    _text("state"),
    _at("created_at"),
    _at("lapses_at"),
    _at("decided_at", nullable=True),
    _text("comment"),
    Index("ix_requests_state_lapses_at", "state", "lapses_at"),
    Index("ix_requests_task", "task"),
)

approvals = Table(
    "approvals",
    metadata,
    Column("id", TEXT, primary_key=True),
    _to("request", "requests.id"),
    _text("approver"),
    _text("method"),
    _text("verdict"),
    _text("manifest"),
    Column("lifetime", BigInteger, nullable=False),
    _text("digest"),
    _text("nonce"),
    _text("signature"),
    _text("key"),
    _at("created_at"),
    _at("expires_at"),
    _text("comment"),
    UniqueConstraint("request", "approver"),
)

approval_uses = Table(
    "approval_uses",
    metadata,
    # The primary key is what makes the use of an approval single.
    Column("approval", TEXT, ForeignKey("approvals.id"), primary_key=True),
    # Deferred: the grant may be added later in the same unit of work.
    Column("grant", TEXT, ForeignKey("grants.id", deferrable=True, initially="DEFERRED"), nullable=False),
)

challenges = Table(
    "challenges",
    metadata,
    Column("nonce", TEXT, primary_key=True),
    _text("verb"),
    _text("subject"),
    _text("human"),
    _at("expires_at"),
    Index("ix_challenges_expires_at", "expires_at"),
)

grants = Table(
    "grants",
    metadata,
    Column("id", TEXT, primary_key=True),
    _to("request", "requests.id"),
    _to("task", "tasks.id"),
    _text("resource"),
    _text("asked"),
    _text("manifest"),
    _text("digest"),
    _text("approvals"),
    Column("renewable", Boolean, nullable=False),
    _at("created_at"),
    _at("ends_at"),
    UniqueConstraint("request"),
    Index("ix_grants_task", "task"),
)

leases = Table(
    "leases",
    metadata,
    Column("id", TEXT, primary_key=True),
    _to("grant", "grants.id"),
    _to("task", "tasks.id"),
    _text("role"),
    _text("resource"),
    _text("target"),
    _text("manifest_digest"),
    _text("delivery"),
    _text("state"),
    _at("created_at"),
    _at("expires_at"),
    Column("renewals", BigInteger, nullable=False),
    _text("reason"),
    _at("closing_at", nullable=True),
    _at("closed_at", nullable=True),
    _text("proof"),
    Column("attempts", BigInteger, nullable=False),
    _at("retry_at", nullable=True),
    _text("last_error"),
    Column("incidents", BigInteger, nullable=False),
    UniqueConstraint("role"),
    Index("ix_leases_state_expires_at", "state", "expires_at"),
    Index("ix_leases_task", "task"),
    Index("ix_leases_grant", "grant"),
)

scripts = Table(
    "scripts",
    metadata,
    # The digest of the file's bytes, so that one file is kept once.
    Column("id", TEXT, primary_key=True),
    _text("text"),
)

aftermaths = Table(
    "aftermaths",
    metadata,
    Column("id", TEXT, ForeignKey("leases.id"), primary_key=True),
    _to("task", "tasks.id"),
    _text("resource"),
    _text("cluster"),
    Column("database", BigInteger, nullable=False),
    _text("state"),
    _text("before"),
    _at("opened_at"),
    Column("ran", TEXT, nullable=True),
    _text("widening"),
    _text("error"),
    _at("looked_at", nullable=True),
    _at("decided_at", nullable=True),
    _text("decided_by"),
    _text("comment"),
    Index("ix_aftermaths_state", "state"),
)

brokers = Table(
    "brokers",
    metadata,
    Column("id", TEXT, primary_key=True),
    _text("machine"),
    # By the database's clock, which all brokers share.
    _at("seen_at"),
)

owners = Table(
    "owners",
    metadata,
    # A lease or a run.
    Column("subject", TEXT, primary_key=True),
    _to("broker", "brokers.id"),
    Column("token", BigInteger, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", SEQUENCE, primary_key=True, autoincrement=False),
    _text("body"),
    _text("prev"),
    _text("hash"),
    _text("signature"),
    _text("key"),
)

audit_subjects = Table(
    "audit_subjects",
    metadata,
    Column("subject", TEXT, primary_key=True),
    Column("seq", BigInteger, ForeignKey("audit.seq"), primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

audit_keys = Table(
    "audit_keys",
    metadata,
    Column("id", TEXT, primary_key=True),
    # The printable public key: enough for a self-check, never a root of trust.
    _text("public"),
)
