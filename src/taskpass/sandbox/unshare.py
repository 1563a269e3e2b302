"""The sandbox through util-linux ``unshare`` and our own first process (``sandbox.inner``), which makes the mounts.

For ordinary users where there is no bubblewrap, and for root, who needs no user namespace but must then give the agent
an account without rights. Only the command line; starting it is ``sandbox.launch``.
"""

from __future__ import annotations

from collections.abc import Sequence

_NAMESPACES = ("--mount", "--pid", "--ipc", "--fork", "--kill-child=SIGKILL")
_AS_USER = ("--user", "--map-current-user", "--keep-caps")


def arguments(program: str, *, as_root: bool, inside: Sequence[str]) -> list[str]:
    """The command line that runs ``inside`` as the first process of the run, still with the rights to mount."""
    return [program, *(() if as_root else _AS_USER), *_NAMESPACES, "--", *inside]


def trial(program: str, *, as_root: bool) -> list[str]:
    """A command line that ends with 0 if such namespaces, and a ``/proc`` in them, can be made here."""
    return [program, *(() if as_root else _AS_USER), *_NAMESPACES, "--mount-proc", "--", "true"]
