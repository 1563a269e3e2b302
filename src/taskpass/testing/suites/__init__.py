"""Suites that every backend of a kind passes, ours or somebody else's."""
