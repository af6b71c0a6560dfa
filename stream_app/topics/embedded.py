"""A durable log in a folder: no broker, one RocksDB per partition, followed by other processes as it grows.

::

    PATH/topics/TOPIC/topic.json    partitions, retention, format version
    PATH/topics/TOPIC/PARTITION/    a RocksDB: offset of a chunk's first record (8 bytes, big endian) -> chunk (see .chunks)

A partition has one writer at a time (RocksDB's lock) and any number of readers; different processes may write different
partitions. A partition is opened when it is first used: for appending as RocksDB's primary, for reading as a secondary,
which keeps no lock and catches up with its writer whenever it is read at the end of what it knows.

What an append has returned survives ``kill -9`` (it is in the write-ahead log, in the operating system's hands); it survives
a power loss only with ``sync=True``, which costs a disk flush per append.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from . import Message, Record, TopicError
from .address import FolderAddress
from .checks import (
    check_partition,
    check_same_partitions,
    check_shape,
    unknown_topic,
)
from .chunks import ChunkCursor
from .folder import TOPIC_FILE, TopicFile, check_folder, create_topic_file, lock_owner, read_topic_file, replace_topic_file
from .partition import Partition
from .rocks_memory import RocksMemory

_MEMORY_MB: Final = 96


class _Settings(NamedTuple):
    """What the partitions of one log share."""

    memory: RocksMemory
    sync: bool
    sparse: bool


class _RocksStore:
    """The RocksDB of one partition: its primary once something is to be written, else a secondary, or nothing yet."""

    def __init__(self, folder: Path, settings: _Settings) -> None:
        self.name = str(folder)
        self.sparse = settings.sparse
        self.writes = False
        self._folder = folder
        self._settings = settings
        self._db: Rdict | None = None

    @property
    def opened(self) -> bool:
        return self._db is not None

    def exists(self) -> bool:
        return (self._folder / "CURRENT").exists()

    def open_to_write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._db = Rdict(self.name, _rocksdb_options(self._settings.memory, writes=True))
        except Exception as error:
            raise self._not_opened(error) from error
        self.writes = True

    def _not_opened(self, error: Exception) -> TopicError:
        lock = self._folder / "LOCK"
        if not any(sign in str(error) for sign in ("lock hold by", "While lock file")):
            return TopicError(f"cannot open {self._folder}: {error}; repair or restore it")
        owner = "another handle of this process" if "current process" in str(error) else lock_owner(lock)
        return TopicError(
            f"partition {self._folder} is being written by {owner} (lock {lock}); "
            "a partition has one writer: stop that one, write another partition, or only read"
        )

    def follow(self) -> None:
        logs = self._write_ahead_logs()
        if self._db is None:
            # A secondary keeps its own little info log, outside the log that it reads. It writes on into the open file, so the
            # folder can go at once, and a follower that is killed leaves none behind. But RocksDB does not survive it when it
            # is to begin another file without the folder, so it never does: this one gets 200 bytes for 8 MB that are appended.
            options = _rocksdb_options(self._settings.memory, writes=False)
            options.set_max_log_file_size(0)
            with tempfile.TemporaryDirectory(prefix="freshet-follow-") as folder:
                self._db = Rdict(self.name, options, access_type=AccessType.secondary(folder))
        else:
            self._db.try_catch_up_with_primary()
        if not logs <= self._write_ahead_logs():
            # A secondary lists the data files first and reads the write-ahead logs after. A log that went away meanwhile may
            # have been neither read nor listed as a data file yet; by now it is listed.
            self._db.try_catch_up_with_primary()

    def _write_ahead_logs(self) -> set[str]:
        return {name for name in os.listdir(self._folder) if name.endswith(".log")}

    def chunks(self) -> ChunkCursor:
        return ChunkCursor(self._opened().iter(), self._settings.sparse)

    def get(self, key: bytes) -> bytes | None:
        # Not by a point look-up: a secondary's stops at what it has in memory, which is older than the data file when its
        # writer closed and opened again between two looks. An iterator takes the newest of all.
        at = self._opened().iter()
        at.seek(key)
        value: bytes | None = at.value() if at.valid() and at.key() == key else None
        return value

    def write(self, puts: Iterable[tuple[bytes, bytes]], delete: tuple[bytes, bytes] | None = None) -> None:
        batch = WriteBatch(raw_mode=True)
        for key, value in puts:
            batch.put(key, value)
        if delete is not None:
            batch.delete_range(*delete)
        options = WriteOptions()
        options.sync = self._settings.sync
        try:
            self._opened().write(batch, options)
        except Exception as error:
            raise TopicError(f"cannot write {self._folder}: {error}; see to the disk, then open the log again") from error

    def disk_bytes(self) -> int:
        return sum(file.stat().st_size for file in self._folder.glob("*"))

    def release(self) -> None:
        # RocksDB's lock stays as long as a reference to the database does.
        if self._db is not None:
            self._db.close()
        self._db = None
        self.writes = False

    def _opened(self) -> Rdict:
        assert self._db is not None
        return self._db


def _rocksdb_options(memory: RocksMemory, writes: bool) -> Options:
    """Small and bounded: a log has a dozen partitions and more, and appends need no large buffers."""
    table = BlockBasedOptions()
    table.set_block_size(16 << 10)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    memory.share(options, table, writes=writes)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_write_buffer_size(8 << 20)
    options.set_max_write_buffer_number(2)
    options.set_max_background_jobs(2)
    options.set_max_open_files(-1)  # A secondary keeps the files that its writer removes.
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


class EmbeddedTopic:
    """A topic of an :class:`EmbeddedLog`; may be used by several threads."""

    def __init__(self, name: str, partitions: list[Partition], retention_ms: int | None) -> None:
        self._name = name
        self._partitions = partitions
        self.retention_ms = retention_ms

    @property
    def name(self) -> str:
        """The topic's name."""
        return self._name

    @property
    def n_partitions(self) -> int:
        """Partitions, fixed at creation."""
        return len(self._partitions)

    def append(self, partition: int, messages: Sequence[Message]) -> int:
        """Append all of ``messages`` or none; return the offset after the last one. Durable when it returns.

        With a retention, chunks that lie wholly before the newest ``ts`` less the retention are dropped from time to time.

        Raises:
            TopicError: another handle or process writes this partition, the log is open for reading only, a message is
                not (int, bytes, bytes), or the disk refuses.
        """
        return self._partition(partition).append(messages, self.retention_ms)

    def append_at(self, partition: int, runs: Sequence[tuple[int, Sequence[Message]]]) -> int:
        """Append records that have their offsets already, all in one write; return the end. For a sparse log.

        Args:
            partition: where to.
            runs: (offset, messages that are dense from there on), in order; what lies between two runs, and between the end and
                the first one, is a gap: :meth:`read` stops before it, or goes on after it where ``position`` lies in it.

        Raises:
            TopicError: a run begins before the end of what is there, or as :meth:`append`.
        """
        return self._partition(partition).append_at(runs)

    def read(self, partition: int, position: int, max_records: int = 1_000, max_bytes: int = 16 << 20) -> list[Record]:
        """Return records from ``position`` on, as :meth:`stream_app.topics.Topic.read`.

        Raises:
            PositionLostError: ``position`` is before :meth:`start`.
            TopicError: ``position`` is after :meth:`end`.
        """
        return self._partition(partition).read(position, max_records, max_bytes)

    def position_at(self, partition: int, ts: int) -> int:
        """Return the offset of the first record held whose ``ts`` is at or after the given one, or the end."""
        return self._partition(partition).position_at(ts)

    def start(self, partition: int) -> int:
        """Return the first offset that is still held."""
        return self._partition(partition).start()

    def end(self, partition: int) -> int:
        """Return the offset that the next record will get; a reader asks the writer's files each time (about a ms)."""
        return self._partition(partition).end()

    def trim(self, partition: int, before_offset: int) -> int:
        """Drop the records before ``before_offset`` (at most the end); return the new start. For the partition's writer."""
        return self._partition(partition).trim(before_offset)

    def disk_bytes(self, partition: int) -> int:
        """Return the bytes of a partition's files."""
        return self._partition(partition).disk_bytes()

    def _partition(self, partition: int) -> Partition:
        check_partition(self._name, partition, len(self._partitions))
        return self._partitions[partition]

    def _close(self) -> None:
        for partition in self._partitions:
            partition.close()


class EmbeddedLog:
    """A log in a folder.

    Args:
        path: the folder; made if it is not there, unless ``read_only``.
        read_only: refuse to create, append and trim.
        sync: flush the disk at each append, so that it also survives a power loss.
        sparse: offsets may have gaps (:meth:`EmbeddedTopic.append_at`); only its writer may read it then.
        memory: that RocksDB may use, shared with others; a budget of its own if there is none.

    Raises:
        TopicError: ``path`` is a file or a folder that holds something else, or is missing and ``read_only``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        sync: bool = False,
        sparse: bool = False,
        memory: RocksMemory | None = None,
    ) -> None:
        self.path = Path(path)
        self.read_only = read_only
        check_folder(self.path, read_only)
        # One budget for all partitions: a log may have dozens.
        self._settings = _Settings(memory or RocksMemory(_MEMORY_MB), sync, sparse)
        self._topics: dict[str, EmbeddedTopic] = {}
        self._lock = threading.Lock()
        self._closed = False

    def address(self) -> FolderAddress:
        """Return by what another process opens it."""
        return FolderAddress(str(self.path.resolve()))

    def topics(self) -> dict[str, int]:
        """Return the names of the topics that exist, with their partition counts."""
        self._check_open()
        return {name: read_topic_file(self._file(name)).partitions for name in self._names()}

    def create(self, name: str, n_partitions: int, retention_ms: int | None = None) -> EmbeddedTopic:
        """Create a topic, or return the one that exists with this shape, as :meth:`stream_app.topics.Log.create`.

        Raises:
            TopicError: it exists with another partition count, or does not exist and the log is open for reading only.
        """
        self._check_open()
        check_shape(name, n_partitions, retention_ms)
        file = self._file(name)
        if not self.read_only:
            content = TopicFile(n_partitions, retention_ms)
            if not create_topic_file(file, content):
                existing = read_topic_file(self._file(name))
                check_same_partitions(name, n_partitions, existing.partitions)
                if retention_ms not in (None, existing.retention_ms):
                    replace_topic_file(file, content)
        topic = self.topic(name)
        check_same_partitions(name, n_partitions, topic.n_partitions)
        return topic

    def topic(self, name: str) -> EmbeddedTopic:
        """Return a topic that exists.

        Raises:
            TopicError: it does not; the message names those that do. Or a newer version of Freshet wrote it.
        """
        self._check_open()
        if name not in self._names():
            raise unknown_topic(name, str(self.path), self._names())
        file = read_topic_file(self._file(name))
        with self._lock:
            self._check_open()  # Closed meanwhile, it would never let go of a topic that is made now.
            if name not in self._topics:
                partitions = [self._open_partition(name, index) for index in range(file.partitions)]
                self._topics[name] = EmbeddedTopic(name, partitions, file.retention_ms)
            topic = self._topics[name]
            topic.retention_ms = file.retention_ms
            return topic

    def close(self) -> None:
        """Release files and locks; using a topic afterwards is an error."""
        with self._lock:
            self._closed = True
            for topic in self._topics.values():
                topic._close()

    def _open_partition(self, topic: str, index: int) -> Partition:
        folder = self._file(topic).with_name(str(index))
        store = _RocksStore(folder, self._settings)
        return Partition(topic, index, store, read_only=self.read_only)

    def _names(self) -> list[str]:
        return sorted(file.parent.name for file in self.path.glob(f"topics/*/{TOPIC_FILE}"))

    def _file(self, name: str) -> Path:
        return self.path / "topics" / name / TOPIC_FILE

    def _check_open(self) -> None:
        if self._closed:
            raise TopicError(f"the log {self.path} is closed; open it again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_log(path: str | os.PathLike[str]) -> EmbeddedLog:
    """Open a log that exists, for reading.

    Raises:
        TopicError: there is none at ``path``.
    """
    return EmbeddedLog(path, read_only=True)
