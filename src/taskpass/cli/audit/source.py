"""Where audit records come from: the broker's store, opened for reading, or an export. No broker has to run."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from taskpass.audit import witness
from taskpass.audit.export import read_export
from taskpass.config.load import load
from taskpass.config.model import Config
from taskpass.core.audit import GENESIS, Record
from taskpass.core.errors import ConfigInvalid, InvalidInput
from taskpass.core.ids import InstallationId
from taskpass.store.configured import read_configured
from taskpass.store.open import open_reader
from taskpass.store.unit import SqlStore


@dataclass(frozen=True, slots=True)
class Source:
    """``records`` can be read once; ``keys`` are the printable keys that came with them; ``start`` see ``Export``."""

    installation: InstallationId
    keys: tuple[str, ...]
    records: Iterator[Record]
    start: tuple[int, str] = (0, GENESIS)
    witness: witness.Head | None = None
    reviewers: dict[str, str] | None = None


@contextmanager
def open_source(directory: Path, export: Path | None, *, after: int = 0) -> Generator[Source]:
    """Records of ``export``, or, without one, of the store that ``directory`` names. Raises ``TaskpassError``."""
    if export:
        try:
            stream = export.open("rb")
        except OSError as error:
            raise InvalidInput(f"the export cannot be read: {error.strerror}") from None
        with stream:
            found = read_export(stream)
            yield Source(found.installation, found.keys, found.records, found.start)
        return
    config = _configured(directory)
    store = _opened(directory, config)
    people = config.people.humans.values() if config else ()
    reviewers = {str(human.id): human.reviewer_key for human in people} if config else None
    try:
        with store.read() as unit:
            installation, keys = unit.installation.id, tuple(unit.audit_keys().values())
        records = store.iterate_audit(after=after)
        yield Source(installation, keys, records, witness=_witness(directory, config), reviewers=reviewers)
    finally:
        store.close()


def open_records(directory: Path) -> SqlStore:
    """The broker's store, for reading; for the caller to close."""
    return _opened(directory, _configured(directory))


def _opened(directory: Path, config: Config | None) -> SqlStore:
    return read_configured(config) if config else open_reader(f"sqlite:///{directory / 'taskpass.db'}")


def _configured(directory: Path) -> Config | None:
    """A broken configuration must not stop an auditor: the store is then looked for where it is by default."""
    try:
        return load(directory)
    except ConfigInvalid:
        return None


def _witness(directory: Path, config: Config | None) -> witness.Head | None:
    """The head kept outside the database: beside a SQLite store, else in the broker's directory."""
    _, slashes, file = (config.broker.store if config else "").partition("sqlite:///")
    try:
        return witness.read((Path(file).parent if slashes else directory) / witness.FILE_NAME)
    except InvalidInput:
        return None
