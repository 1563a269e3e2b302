"""Keys as files of the broker: one file per purpose, 0600, in a directory that only the broker can change.

Not for: keeping a key from whoever runs as the broker's uid or as root. Never put ``keys/`` into a backup.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from taskpass.core.clock import Entropy, Instant, rfc3339
from taskpass.core.errors import ConfigInvalid, Conflict, InvalidInput
from taskpass.keys import ed25519
from taskpass.keys.ed25519 import AUDIT_PREFIX, PublicKeys

AUDIT = "audit"
_FILE_BYTES = 4096
_CHMOD = "chmod go-rwx it"


class FileKey:
    """A ``Signer`` over a key that was loaded from its file."""

    __slots__ = ("_private", "created_at", "key_id", "public")

    def __init__(self, private: Ed25519PrivateKey, created_at: str) -> None:
        public = ed25519.public_of(private)
        self._private = private
        self.key_id = ed25519.key_id(public)
        self.public = AUDIT_PREFIX + public
        self.created_at = created_at
        """RFC 3339; the age of a key is shown by ``doctor``."""

    def __repr__(self) -> str:
        return f"FileKey({self.key_id})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a key is not pickled")

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)


def create(directory: Path, purpose: str, *, entropy: Entropy, at: Instant) -> FileKey:
    """Make a key; never replaces one. Raises ``Conflict`` if the file exists, ``ConfigInvalid`` for unsafe places."""
    directory.mkdir(mode=0o700, exist_ok=True)
    check_parents(directory / purpose)
    private = Ed25519PrivateKey.from_private_bytes(entropy.bytes(ed25519.KEY_BYTES))
    key = FileKey(private, rfc3339(at))
    content = {
        "purpose": purpose,
        "algorithm": "ed25519",
        "key_id": key.key_id,
        "created_at": key.created_at,
        "private": ed25519.encode(private.private_bytes_raw()),
    }
    _write_new(_path(directory, purpose), json.dumps(content, indent=1).encode() + b"\n")
    return key


def load(directory: Path, purpose: str) -> FileKey:
    """The key of ``purpose``. Raises ``ConfigInvalid`` (``key_missing``, ``key_unsafe``, ``key_invalid``)."""
    path = _path(directory, purpose)
    content = _parse(_read(path))
    raw = ed25519.decode(str(content.get("private")), ed25519.KEY_BYTES)
    if raw is None or content.get("purpose") != purpose or content.get("algorithm") != "ed25519":
        raise _invalid()
    key = FileKey(Ed25519PrivateKey.from_private_bytes(raw), str(content.get("created_at", "")))
    if key.key_id != content.get("key_id"):
        raise _invalid()
    return key


def trust(text: str) -> PublicKeys:
    """The trusted key or keys that ``--trust`` names: a printable key, or a file with one on each line."""
    if text.startswith(AUDIT_PREFIX):
        return PublicKeys([text])
    try:
        lines = Path(text).read_text("utf-8").splitlines()
    except (OSError, ValueError):
        raise InvalidInput(
            "the trusted key is neither a key nor a readable file", hint=f"a key begins with {AUDIT_PREFIX}"
        ) from None
    return PublicKeys([line for line in lines if line.strip() and not line.startswith("#")])


def check_parents(path: Path) -> None:
    """Refuse a path of which another user could exchange an element; raises ``ConfigInvalid`` (``key_unsafe``).

    Each directory must belong to root or to us and be writable by its owner only, or be sticky (as /tmp is). A link is
    followed only if it is root's, and then the path behind it is held to the same.
    """
    absolute = path.absolute()
    for place in {absolute, Path(os.path.realpath(absolute.parent)) / absolute.name}:
        for element in place.parents:
            _check_element(element)


def _check_element(element: Path) -> None:
    try:
        found = element.lstat()
    except FileNotFoundError:
        return  # nothing is there, so nothing will be found below it
    except OSError:
        raise ConfigInvalid("a directory of the key's path cannot be looked at", code="key_unsafe") from None
    sticky = bool(found.st_mode & stat.S_ISVTX) and found.st_uid == 0
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigInvalid(
            "a directory of the key's path belongs to another user", hint=str(element), code="key_unsafe"
        )
    if stat.S_ISLNK(found.st_mode):
        if found.st_uid != 0:
            raise ConfigInvalid("the key's path leads through a link", hint=str(element), code="key_unsafe")
    elif found.st_mode & 0o022 and not sticky:
        raise ConfigInvalid("a directory of the key's path is writable by others", hint=str(element), code="key_unsafe")


def _path(directory: Path, purpose: str) -> Path:
    return directory / f"{purpose}.key"


def _write_new(path: Path, data: bytes) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Conflict("there is such a key already", hint="a key is never replaced silently") from None
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _read(path: Path) -> bytes:
    check_parents(path)
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ConfigInvalid("there is no such key", hint="run taskpass init", code="key_missing") from None
    except OSError as error:
        raise ConfigInvalid(f"the key's file cannot be opened: {error.strerror}", code="key_unsafe") from None
    with os.fdopen(file, "rb") as stream:
        # Looked at through the open file, so that it cannot be exchanged between the look and the reading.
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise ConfigInvalid("the key's file is not a file of ours", hint="chown it", code="key_unsafe")
        if found.st_mode & 0o077:
            raise ConfigInvalid("the key's file is open to others", hint=_CHMOD, code="key_unsafe")
        return stream.read(_FILE_BYTES)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        content: Any = json.loads(data)
    except ValueError:
        raise _invalid() from None
    if not isinstance(content, dict):
        raise _invalid()
    return content  # pyright: ignore[reportUnknownVariableType]


def _invalid() -> ConfigInvalid:
    return ConfigInvalid("the key's file is damaged", hint="restore it from where you keep it", code="key_invalid")
