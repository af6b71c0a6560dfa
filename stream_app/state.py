"""The joiner's durable state: one RocksDB folder per partition, one write batch per commit.

Keys are a letter and a big-endian number: ``h`` header; ``u`` + user; ``r`` + offset of a pending request; ``a`` + offset of a
waiting action; ``i`` + item, ``p`` + user: versions of metadata; ``q`` + query: its categories. Values are the words of a
record (:mod:`stream_app.joiner.core.records`), that of the header is MessagePack.
"""

from __future__ import annotations

import itertools
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast

import msgspec
import numpy as np
from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Checkpoint,
    DBCompressionType,
    Options,
    Rdict,
    ReadOptions,
    WriteBatch,
    WriteOptions,
)

from stream_app.joiner.core.layout import LETTERS, Ints
from stream_app.joiner.store import Header, State, StateError
from stream_app.topics.rocks_memory import RocksMemory

CACHE_ENTRIES: Final = 200_000
"""Users, pending requests and so on that stay decoded in memory between commits, each."""
_HEADER: Final = b"h"
_FORMAT: Final = 3
"""Of the stored records; 1 was MessagePack, 2 knew no domain and value of a waiting action."""
_WAY_OUT: Final = "delete it and join the log again (a worker's snapshots of it too: --snapshots)"
_KEY: Final = struct.Struct(">cq").pack
_RANGE: Final = 64
"""Neighbouring keys that are deleted by one range: requests leave in about the order of their offsets, thousands at a time.
Fewer are deleted one by one, since each range costs later reads a little."""
_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(Header)


class RocksState(State):
    """State of one partition in a folder.

    Args:
        folder: made if it is not there; one process at a time.
        header: where to begin if the folder is new.
        n_sequences: item sequences of the config.
        cache_entries: entries of each kind that stay in memory between commits, >= 1.
        sync: whether a commit waits for the disk: needed only to survive a power loss, not a kill.
        memory: that RocksDB may use, shared with others; a budget of its own if there is none.

    Raises:
        StateError: another process has the folder open, it holds something else, or ``cache_entries`` is below 1.
    """

    def __init__(
        self,
        folder: Path,
        header: Header,
        n_sequences: int,
        cache_entries: int = CACHE_ENTRIES,
        sync: bool = False,
        memory: RocksMemory | None = None,
    ) -> None:
        check_cache_entries(cache_entries)
        super().__init__(header, n_sequences)
        self._cache_entries = cache_entries
        self._sync = sync
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._db = Rdict(str(folder), _options(memory or RocksMemory()))
        except Exception as error:
            raise StateError(
                f"cannot open the joiner's state {folder}: {error}; is another join of this log running?"
            ) from error
        stored: bytes | None = self._db.get(_HEADER)
        if stored is not None:
            try:
                self.header = _decode_header(stored)
            except msgspec.DecodeError as error:
                self.close()
                raise StateError(f"{folder} is not a joiner's state that this version reads ({error}): {_WAY_OUT}") from error

    def fetch(self, wanted: Ints) -> Sequence[bytes | None]:
        """Read stored records."""
        get = cast(Callable[[list[bytes]], list[bytes | None]], self._db.get)
        return get([_KEY(LETTERS[kind : kind + 1], key) for kind, key in wanted.tolist()])

    def restore_steps(self) -> None:
        """Make the steps of the committed requests and actions."""
        self.slab.restore_steps(self._stored(b"r"), self._stored(b"a"))

    def commit(self) -> None:
        """Write all that was touched and the header in one batch."""
        batch = WriteBatch(raw_mode=True)
        gone: list[Ints] = []
        for packed in self.slab.packed():
            deque(map(batch.put, packed.keys, packed.values), maxlen=0)
            gone.append(packed.gone)
        for kind, first, end in _runs(np.concatenate(gone)):
            letter = LETTERS[kind : kind + 1]
            if end - first >= _RANGE:
                batch.delete_range(_KEY(letter, first), _KEY(letter, end))
            else:
                for key in range(first, end):
                    batch.delete(_KEY(letter, key))
        self.header.format = _FORMAT
        batch.put(_HEADER, _encode(self.header))
        options = WriteOptions()
        options.sync = self._sync
        self._db.write(batch, options)
        for kind in range(len(LETTERS)):
            self.slab.shrink(kind, self._cache_entries)

    def _stored(self, letter: bytes) -> list[bytes]:
        """Return the records of a kind, each behind its key of 8 bytes."""
        bounds = ReadOptions()
        bounds.set_iterate_upper_bound(bytes([letter[0] + 1]))
        stored = cast(Iterable[tuple[bytes, bytes]], self._db.items(from_key=letter, read_opt=bounds))
        return [key[1:] + value for key, value in stored]

    def checkpoint(self, folder: Path) -> None:
        """Copy what is committed to a new folder: its files are links where the disk allows."""
        Checkpoint(self._db).create_checkpoint(str(folder))

    def close(self) -> None:
        """Release the folder."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def check_cache_entries(cache_entries: int) -> None:
    """Refuse a state that may keep nothing in memory.

    Raises:
        StateError: it is below 1.
    """
    if cache_entries < 1:
        raise StateError(
            f"cache_entries = {cache_entries}: a join keeps 1 entry of each kind at least; give 1 or more "
            f"(--cache-entries; {CACHE_ENTRIES:,} where nothing is said)"
        )


def _runs(gone: Ints) -> Iterator[tuple[int, int, int]]:
    """Yield (kind, first key, key after the last) of the runs of neighbouring keys among (kind, key) ``[n, 2]``."""
    kinds, keys = gone[np.lexsort((gone[:, 1], gone[:, 0]))].T
    ends = np.flatnonzero((np.diff(keys) != 1) | (np.diff(kinds) != 0)) + 1
    bounds = [0, *ends.tolist(), len(keys)] if len(keys) else [0]
    for start, end in itertools.pairwise(bounds):
        yield int(kinds[start]), int(keys[start]), int(keys[end - 1]) + 1


def _decode_header(stored: bytes) -> Header:
    """Return a stored header.

    Raises:
        msgspec.DecodeError: it is none, or one of another format.
    """
    header = _decoder.decode(stored)
    if header.format != _FORMAT:
        raise msgspec.DecodeError(f"its records are of format {header.format}, this version's of {_FORMAT}")
    return header


def read_header(folder: Path) -> Header | None:
    """Return the header of a state that nobody has open; None where nothing was ever committed.

    Raises:
        StateError: somebody has, or it is not one of this version.
    """
    try:
        db = Rdict(str(folder), _options(RocksMemory()), access_type=AccessType.read_only())
        stored = db.get(_HEADER)
        db.close()
        return None if stored is None else _decode_header(stored)
    except Exception as error:
        raise StateError(f"{folder} is not a joiner's state that can be read ({error}): {_WAY_OUT}") from error


def _options(memory: RocksMemory) -> Options:
    options = Options(raw_mode=True)
    memory.share(options, BlockBasedOptions())
    options.create_if_missing(True)
    options.set_write_buffer_size(64 << 20)
    # Most of what is flushed has gone before it is compacted, so only what stays is worth compressing.
    options.set_compression_per_level([DBCompressionType.none(), *[DBCompressionType.lz4()] * 6])
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
    options.set_allow_concurrent_memtable_write(False)  # There is one writer; it need not be careful.
    options.set_stats_dump_period_sec(0)
    return options
