"""Where audit records come from: the broker's store, opened for reading, or an export. No broker has to run."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from taskpass.audit import witness
from taskpass.audit.export import read_export
from taskpass.config.load import load
from taskpass.core.audit import GENESIS, Record
from taskpass.core.errors import ConfigInvalid, InvalidInput
from taskpass.core.ids import InstallationId
from taskpass.store.open import open_reader


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
    address, reviewers = configured(directory)
    store = open_reader(address)
    try:
        with store.read() as unit:
            installation, keys = unit.installation.id, tuple(unit.audit_keys().values())
        records = store.iterate_audit(after=after)
        yield Source(installation, keys, records, witness=_witness(address), reviewers=reviewers)
    finally:
        store.close()


def configured(directory: Path) -> tuple[str, dict[str, str] | None]:
    """The store's address, and the reviewers' keys. A broken configuration must not stop an auditor."""
    try:
        config = load(directory)
    except ConfigInvalid:
        return f"sqlite:///{directory / 'taskpass.db'}", None
    return config.broker.store, {human.id: human.reviewer_key for human in config.people.humans.values()}


def _witness(address: str) -> witness.Head | None:
    path = Path(address.removeprefix("sqlite:///")).parent / witness.FILE_NAME
    try:
        return witness.read(path)
    except InvalidInput:
        return None
