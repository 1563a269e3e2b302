"""The rules of Taskpass: pure values and functions.

Not for: I/O, clocks, randomness, logging. Everything that varies is passed in, so that each rule can be read and
tested alone. Besides the standard library only ``rfc8785`` (a pure function) is imported here; import-linter holds it.
"""
