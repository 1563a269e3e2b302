"""Taskpass gives an AI coding tool access for one coding task, and takes it back with proof."""

__version__ = "0.1.0"
