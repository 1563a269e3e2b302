"""A filter of system calls that keeps an agent from typing into its person's terminal (TIOCSTI, TIOCLINUX).

The terminal is handed through untouched and shared with the person's shell, so without this filter the agent could put
a command line into it that runs outside the sandbox as soon as it ends (CVE-2017-5226). A classic BPF program, as in
linux/filter.h and linux/seccomp.h. Not for any other hardening.
"""

from __future__ import annotations

import os
import struct

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _REQUEST_AT = 0, 4, 24
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_FOREIGN_NUMBERS = 0x40000000
"""Calls of the x32 variant begin here; we do not look into them."""

_MACHINES = {"x86_64": (0xC000003E, 16), "aarch64": (0xC00000B7, 29)}
"""Architecture and number of ``ioctl``."""


def terminal_filter(machine: str | None = None) -> bytes:
    """The program for ``machine`` (default: this one), or empty for one that we do not know."""
    known = _MACHINES.get(machine or os.uname().machine)
    if known is None:
        return b""
    architecture, ioctl = known
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 0, 7, architecture),  # Calls of another architecture are refused: their numbers mean other things.
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 5, 0, _FOREIGN_NUMBERS),
        (_EQUAL, 0, 3, ioctl),
        (_LOAD, 0, 0, _REQUEST_AT),
        (_EQUAL, 2, 0, _TIOCSTI),
        (_EQUAL, 1, 0, _TIOCLINUX),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
