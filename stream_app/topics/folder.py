"""The folder of an embedded log: what makes it one, and the file that says what shape each topic has."""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from . import TopicError

FORMAT_VERSION: Final = 1
TOPIC_FILE: Final = "topic.json"
_FLOCK: Final = "hhqqi"  # struct flock of fcntl(2) on 64-bit Linux


class _Version(msgspec.Struct, frozen=True):
    """The one field of a topic file that every version has."""

    version: int


class TopicFile(msgspec.Struct, frozen=True):
    """Content of ``topic.json``."""

    partitions: int
    retention_ms: int | None
    version: int = FORMAT_VERSION


def check_folder(path: Path, read_only: bool) -> None:
    """Refuse what is not a log; make the folder of a new one."""
    if path.exists() and not path.is_dir():
        raise TopicError(f"{path} is a file, not the folder of a log; give a folder")
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if "topics" in names:
        return
    if names:
        raise TopicError(
            f"{path} is not a log: it has files but no 'topics' folder; give a log's folder, or a new or empty one"
        )
    if read_only:
        raise TopicError(f"there is no log at {path}; check the path, or make one with `freshet simulate` or `freshet import`")
    (path / "topics").mkdir(parents=True, exist_ok=True)


def read_topic_file(file: Path) -> TopicFile:
    """Return the shape of a topic.

    Raises:
        TopicError: a newer version of Freshet wrote it, or it is damaged.
    """
    data = file.read_bytes()
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version > FORMAT_VERSION:
            raise TopicError(
                f"{file}: written by a newer Freshet (log format {version}, this one reads up to {FORMAT_VERSION}); "
                "upgrade Freshet, or use another log folder"
            )
        return msgspec.json.decode(data, type=TopicFile)
    except msgspec.MsgspecError as error:
        raise TopicError(f"{file}: not a topic file ({error}); restore it, or remove the topic's folder") from error


def create_topic_file(file: Path, content: TopicFile) -> bool:
    """Write ``file`` whole or not at all; return False if it exists (of two processes, one creates)."""
    if file.exists():
        return False
    draft = _draft(file, content)
    try:
        os.link(draft, file)
    except FileExistsError:
        return False
    finally:
        draft.unlink()
    return True


def replace_topic_file(file: Path, content: TopicFile) -> None:
    """Put ``content`` in the place of ``file`` at once."""
    os.replace(_draft(file, content), file)


def _draft(file: Path, content: TopicFile) -> Path:
    """Write ``content`` to a file of its own beside ``file``, down to the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(msgspec.json.format(msgspec.json.encode(content), indent=2))
        stream.flush()
        os.fsync(stream.fileno())
    os.chmod(name, 0o644)
    return Path(name)


def lock_owner(lock: Path) -> str:
    """Return who holds RocksDB's lock. Only for a lock of another process: closing the file would lose our own."""
    with lock.open("rb") as file:
        reply = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    pid = struct.unpack(_FLOCK, reply)[-1]
    return f"process {pid}" if pid > 0 else "another process"
