"""Where the progress of imports is kept: a folder beside a log's data, or a topic of the cluster they write to."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from stream_app.topics import Log, Message

from .report import ImportReport
from .source import SourceError

__all__ = ["IMPORTS", "Book", "FolderBook", "ImportState", "TopicBook"]

IMPORTS: Final = "imports"
"""Topic of a cluster that says what was imported into it, and what is being imported."""
_SETTLE_S: Final = 1.0


class ImportState(msgspec.Struct, kw_only=True):
    """What is kept of an import."""

    kind: str
    files: list[str]
    base: dict[str, list[int]]
    """Ends of the raw topics that existed when the import began."""
    report: ImportReport | None = None
    """Set when the import is done."""


class Book(Protocol):
    """The imports into one log, by their identity."""

    place: str
    """What a log of its own is here, for messages."""

    def all(self) -> dict[str, ImportState]:
        """Return identity -> state."""
        ...

    def save(self, identity: str, state: ImportState) -> None:
        """Write a state: whole or not at all, and durable."""
        ...

    def settle(self, ends: Callable[[], list[int]]) -> None:
        """Wait until nothing that an import sent before it was killed can still arrive."""
        ...


class FolderBook:
    """``LOG/imports/IDENTITY.json``, one file per import."""

    place = "a new log folder"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> dict[str, ImportState]:
        """Return identity -> state.

        Raises:
            SourceError: a file is none of ours.
        """
        return {path.stem: self._load(path) for path in sorted(self._folder.glob("*.json"))}

    def save(self, identity: str, state: ImportState) -> None:
        """Write the file: whole or not at all, and durable."""
        path = self._folder / f"{identity}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(state), indent=1))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    def settle(self, ends: Callable[[], list[int]]) -> None:
        """Return at once: one process has the folder, and what it appended before it died is there."""

    def _load(self, path: Path) -> ImportState:
        try:
            return msgspec.json.decode(path.read_bytes(), type=ImportState)
        except msgspec.MsgspecError as error:
            raise SourceError(
                f"{path}: not a progress file of an import ({error}); remove the log folder and import again"
            ) from error


class _Entry(msgspec.Struct):
    identity: str
    state: ImportState


class TopicBook:
    """Topic ``imports`` of a cluster: a record per change, of which the newest of each import counts."""

    place = "topics of its own (--set kafka.topic_prefix=NAME)"

    def __init__(self, log: Log, sleep: Callable[[float], None] = time.sleep) -> None:
        self._topic = log.create(IMPORTS, 1)
        self._sleep = sleep

    def all(self) -> dict[str, ImportState]:
        """Return identity -> state.

        Raises:
            SourceError: a record is none of ours.
        """
        found: dict[str, ImportState] = {}
        position, end = self._topic.start(0), self._topic.end(0)
        while position < end:
            for record in self._topic.read(0, position):
                try:
                    entry = msgspec.json.decode(record.value, type=_Entry)
                except msgspec.MsgspecError as error:
                    raise SourceError(
                        f"topic {IMPORTS!r}, record {record.offset}: not the progress of an import ({error}); import into "
                        f"{self.place}"
                    ) from error
                found[entry.identity] = entry.state
                position = record.offset + 1
        return found

    def save(self, identity: str, state: ImportState) -> None:
        """Append a record."""
        value = msgspec.json.encode(_Entry(identity, state))
        self._topic.append(0, [Message(time.time_ns() // 1_000_000, identity.encode(), value)])

    def settle(self, ends: Callable[[], list[int]]) -> None:
        """Wait until two looks at the ends agree: a broker may still be at what a killed process sent last."""
        seen = ends()
        while True:
            self._sleep(_SETTLE_S)
            if (now := ends()) == seen:
                return
            seen = now
