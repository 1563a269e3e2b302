"""The sandbox through bubblewrap, for ordinary users: it needs no more than user namespaces and is often allowed them
where programs in general are not. Only how the plan is said to it; starting it is ``sandbox.launch``.
"""

from __future__ import annotations

from collections.abc import Sequence

from taskpass.sandbox.plan import Mount, Plan, Show

NAMESPACES = ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--die-with-parent")


def arguments(program: str, plan: Plan, *, filter_descriptor: int | None, inside: Sequence[str]) -> list[str]:
    """The command line that runs ``inside`` as the first process of the run."""
    words = [program, *NAMESPACES, "--as-pid-1", "--dev-bind", "/", "/"]
    for mount in plan.mounts:
        words += _mount(mount)
    words += ["--proc", "/proc", "--chdir", str(plan.directory)]
    if filter_descriptor is not None:
        words += ["--seccomp", str(filter_descriptor)]
    return [*words, "--", *inside]


def trial(program: str) -> list[str]:
    """A command line that ends with 0 if such a sandbox can be made here."""
    mounts = ["--dev-bind", "/", "/", "--perms", "1777", "--tmpfs", "/dev/shm", "--proc", "/proc"]  # noqa: S108
    return [program, *NAMESPACES, "--as-pid-1", *mounts, "--", "true"]


def _mount(mount: Mount) -> list[str]:
    path = str(mount.path)
    if mount.show is Show.HIDDEN:
        return ["--perms", f"{mount.mode:o}", "--tmpfs", path]
    return ["--ro-bind" if mount.show is Show.READ else "--bind", path, path]
