"""What a killed import needs to go on: ``LOG/imports/FINGERPRINT.json``, one file per import.

1. The fingerprint names the source files (name, size, hashes of both ends), the importer, its options and the limit.
2. Before the first append the file is written with the ends of all raw topics: the *base*.
3. Batches are appended; nothing else is written.
4. After the last append the file says that the import is done, with its report.

A run that finds a base makes the same events again, and leaves out ``end - base`` records per partition. Dead after 2: nothing
is left out. After any append of 3: exactly what was appended is left out, since an append is all or nothing. After 4: the
report is returned. So the ends that the log itself keeps are the progress, and nothing has to be kept in step with them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from stream_app.events import RAW_TOPICS
from stream_app.topics import Log

from .report import ImportReport
from .source import SourceError

__all__ = ["ImportState", "begin", "fingerprint", "skips"]

_END_BYTES: Final = 1 << 20
_FORMAT: Final = 1


class ImportState(msgspec.Struct, kw_only=True):
    """The content of a progress file."""

    kind: str
    files: list[str]
    base: dict[str, list[int]]
    """Ends of the raw topics that existed when the import began."""
    report: ImportReport | None = None
    """Set when the import is done."""

    def save(self, path: Path) -> None:
        """Write the file: whole or not at all, and durable."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self), indent=1))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


def fingerprint(kind: str, files: Sequence[Path], options: msgspec.Struct, limit: int | None) -> str:
    """Return the identity of an import: 16 hexadecimal digits."""
    digest = hashlib.sha256(
        msgspec.json.encode([_FORMAT, kind, limit, msgspec.to_builtins(options, enc_hook=str)], order="sorted")
    )
    for path in files:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_END_BYTES)
            file.seek(max(0, size - _END_BYTES))
            ends = hashlib.sha256(head + file.read()).hexdigest()
        digest.update(msgspec.json.encode([path.name, size, ends]))
    return digest.hexdigest()[:16]


def begin(folder: Path, identity: str, kind: str, files: Sequence[Path], log: Log) -> tuple[Path, ImportState, bool]:
    """Return the progress file of an import, its state, and whether an earlier run had begun it.

    Raises:
        SourceError: another import into this log is unfinished: its records could not be told from this one's.
    """
    path = folder / f"{identity}.json"
    if path.exists():
        return path, _load(path), True
    for other in sorted(folder.glob("*.json")):
        state = _load(other)
        if state.report is None:
            raise SourceError(
                f"the import of {', '.join(state.files) or state.kind} ({state.kind}) into this log was cut off: run it again "
                f"with the same options to finish it, or use a new log folder. (Its progress is in {other.name})"
            )
    names = log.topics()
    base: dict[str, list[int]] = {
        name: [log.topic(name).end(p) for p in range(names[name])] for name in RAW_TOPICS if name in names
    }
    state = ImportState(kind=kind, files=[file.name for file in files], base=base)
    state.save(path)
    return path, state, False


def skips(state: ImportState, log: Log, n_partitions: int) -> dict[str, list[int]]:
    """Return the records per topic and partition that earlier runs of this import appended.

    Raises:
        SourceError: the log is shorter than when the import began.
    """
    found: dict[str, list[int]] = {}
    for name, n_found in log.topics().items():
        if name not in RAW_TOPICS or n_found != n_partitions:
            continue
        base = state.base.get(name, [0] * n_partitions)
        found[name] = [log.topic(name).end(p) - base[p] for p in range(n_partitions)]
        if min(found[name]) < 0:
            raise SourceError(
                f"topic {name!r} is shorter than when this import began: the log was replaced, its `imports` folder was not; "
                "remove the whole log folder and import again"
            )
    return found


def _load(path: Path) -> ImportState:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ImportState)
    except msgspec.MsgspecError as error:
        raise SourceError(
            f"{path}: not a progress file of an import ({error}); remove the log folder and import again"
        ) from error
