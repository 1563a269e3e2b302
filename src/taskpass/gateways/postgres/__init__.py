"""Endpoints for PostgreSQL: a Unix socket per lease whose clients are joined to a session that we logged in."""
