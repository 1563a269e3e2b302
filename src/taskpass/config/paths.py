"""Where things live. Standard library only: the path that ``exec`` takes starts here.

Broker directory (``TASKPASS_DIR``, else ``$XDG_DATA_HOME/taskpass``): ``taskpass.toml``, ``policy/``, ``keys/``,
``credentials/``, ``taskpass.db``, ``reserve``, ``run/operator.sock``. Owned by the broker, 0700, hidden from sandboxes.

Runtime directory (``TASKPASS_RUNTIME_DIR``, else ``$XDG_RUNTIME_DIR/taskpass``, else ``/run/taskpass`` for root and
``/tmp/taskpass-<uid>`` otherwise): ``line.sock`` for callers outside any run, ``runs/<run>/`` with a socket each and
``leases/<lease>/.s.PGSQL.5432`` inside. It must stay short: a Unix socket path is at most 107 bytes.
"""

from __future__ import annotations

import os
from pathlib import Path

SOCKET_PATH_BYTES = 107


def broker_directory() -> Path:
    named = os.environ.get("TASKPASS_DIR")
    if named:
        return Path(named).absolute()
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local/share")
    return Path(data).absolute() / "taskpass"


def runtime_directory() -> Path:
    named = os.environ.get("TASKPASS_RUNTIME_DIR")
    if named:
        return Path(named).absolute()
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    if xdg:
        return Path(xdg).absolute() / "taskpass"
    return Path("/run/taskpass") if os.getuid() == 0 else Path(f"/tmp/taskpass-{os.getuid()}")  # noqa: S108


def agent_socket() -> Path:
    """The socket an agent's process speaks to: ``TASKPASS_SOCK`` inside a run, else the one outside any run."""
    named = os.environ.get("TASKPASS_SOCK")
    return Path(named) if named else runtime_directory() / "line.sock"


def operator_socket(directory: Path | None = None) -> Path:
    return (directory or broker_directory()) / "run" / "operator.sock"
