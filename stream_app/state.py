"""The joiner's durable state: one RocksDB folder per partition, one write batch per commit.

Keys are a letter and a big-endian number: ``h`` header; ``u`` + user; ``r`` + offset of a pending request; ``a`` + offset of a
waiting action; ``i`` + item, ``p`` + user: versions of metadata; ``q`` + query: its categories. Values are MessagePack.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec
from rocksdict import AccessType, Checkpoint, Options, Rdict, ReadOptions, WriteBatch, WriteOptions

from stream_app.joiner.histories import User, new_user
from stream_app.joiner.pending import Request, Version, Waiting
from stream_app.joiner.store import Header, State, StateError

CACHE_ENTRIES: Final = 200_000
"""Users, pending requests and so on that stay decoded in memory between commits, each."""
_HEADER: Final = b"h"
_ID: Final = struct.Struct(">cq").pack
_OFFSET: Final = struct.Struct(">cQ").pack
_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(Header).decode
_decode_request = msgspec.msgpack.Decoder(Request).decode
_decode_waiting = msgspec.msgpack.Decoder(Waiting).decode
_decode_versions = msgspec.msgpack.Decoder(list[Version]).decode
_decode_categories = msgspec.msgpack.Decoder(tuple[int, ...]).decode


_Value = TypeVar("_Value")


class _UserRecord(msgspec.Struct, array_like=True, gc=False):
    last_ts: int
    n_closed: int
    pending: dict[int, int]
    queries: bytes
    sequences: list[bytes]


_decode_user = msgspec.msgpack.Decoder(_UserRecord).decode


class RocksState(State):
    """State of one partition in a folder.

    Args:
        folder: made if it is not there; one process at a time.
        header: where to begin if the folder is new.
        n_sequences: item sequences of the config.
        cache_entries: entries of each kind that stay in memory between commits.
        sync: whether a commit waits for the disk: needed only to survive a power loss, not a kill.

    Raises:
        StateError: another process has the folder open, or it holds something else.
    """

    def __init__(
        self, folder: Path, header: Header, n_sequences: int, cache_entries: int = CACHE_ENTRIES, sync: bool = False
    ) -> None:
        super().__init__(header, n_sequences)
        self._cache_entries = cache_entries
        self._sync = sync
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._db = Rdict(str(folder), _options())
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
                raise StateError(f"{folder} is not a joiner's state that this version reads ({error}); delete it") from error
            self.forget_touched()

    def user(self, user: int) -> User:
        """Return a user's state, read if need be."""
        known = self.users.get(user)
        if known is None:
            stored = self._db.get(_ID(b"u", user))
            known = self.users[user] = new_user(self.n_sequences) if stored is None else _user(stored)
        return known

    def request(self, offset: int) -> Request | None:
        """Return a pending request, read if need be."""
        known = self.requests.get(offset)
        if known is None and offset not in self.touched_requests:
            stored = self._db.get(_OFFSET(b"r", offset))
            if stored is not None:
                known = self.requests[offset] = _decode_request(stored)
        return known

    def action(self, offset: int) -> Waiting | None:
        """Return a waiting action, read if need be."""
        known = self.waiting.get(offset)
        if known is None and offset not in self.touched_waiting:
            stored = self._db.get(_OFFSET(b"a", offset))
            if stored is not None:
                known = self.waiting[offset] = _decode_waiting(stored)
        return known

    def item(self, item: int) -> Sequence[Version]:
        """Return the versions of an item's metadata, read if need be."""
        return self._cached(self.items, b"i", item, _decode_versions, ())

    def profile(self, user: int) -> Sequence[Version]:
        """Return the versions of a user's metadata, read if need be."""
        return self._cached(self.profiles, b"p", user, _decode_versions, ())

    def categories_of(self, query: int) -> tuple[int, ...]:
        """Return the categories clicked under a query, read if need be."""
        return self._cached(self.query_categories, b"q", query, _decode_categories, ())

    def pending(self) -> Iterator[Request]:
        """Yield all committed pending requests."""
        yield from map(_decode_request, self._values(b"r"))

    def waiting_actions(self) -> Iterator[Waiting]:
        """Yield all committed waiting actions."""
        yield from map(_decode_waiting, self._values(b"a"))

    def commit(self) -> None:
        """Write all that was touched and the header in one batch."""
        batch = WriteBatch(raw_mode=True)
        put = batch.put
        for key, user in self.touched_users.items():
            put(_ID(b"u", key), _encode(_user_record(user)))
        _put_pending(batch, b"r", self.new_requests, self.touched_requests, self.requests)
        _put_pending(batch, b"a", self.new_waiting, self.touched_waiting, self.waiting)
        for letter, touched, values in (
            (b"i", self.touched_items, self.items),
            (b"p", self.touched_profiles, self.profiles),
            (b"q", self.touched_queries, self.query_categories),
        ):
            for key in touched:
                put(_ID(letter, key), _encode(values[key]))
        put(_HEADER, _encode(self.header))
        options = WriteOptions()
        options.sync = self._sync
        self._db.write(batch, options)
        self.forget_touched()
        self._shrink()

    def _cached(
        self, entries: dict[int, _Value], letter: bytes, key: int, decode: Callable[[bytes], _Value], missing: _Value
    ) -> _Value:
        known = entries.get(key)
        if known is None:
            stored = self._db.get(_ID(letter, key))
            known = entries[key] = missing if stored is None else decode(stored)
        return known

    def _values(self, letter: bytes) -> Iterator[bytes]:
        bounds = ReadOptions()
        bounds.set_iterate_upper_bound(bytes([letter[0] + 1]))
        yield from self._db.values(from_key=letter, read_opt=bounds)

    def _shrink(self) -> None:
        """Drop decoded entries beyond the cache: they are all committed. Of what waits, the newest: it is needed last."""
        for entries in (self.users, self.items, self.profiles, self.query_categories):
            excess = len(entries) - self._cache_entries
            if excess > 0:
                for key in list(islice(entries, excess + self._cache_entries // 4)):
                    del entries[key]
        for waiting in (self.requests, self.waiting):
            while len(waiting) > self._cache_entries:
                waiting.popitem()

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


def read_header(folder: Path) -> Header | None:
    """Return the header of a state that nobody has open; None where nothing was ever committed.

    Raises:
        StateError: somebody has, or it is not one of this version.
    """
    try:
        db = Rdict(str(folder), _options(), access_type=AccessType.read_only())
        stored = db.get(_HEADER)
        db.close()
        return None if stored is None else _decode_header(stored)
    except Exception as error:
        raise StateError(f"{folder} is not a joiner's state that can be read ({error}); delete it") from error


def _put_pending(
    batch: WriteBatch, letter: bytes, new: Sequence[int], touched: set[int], entries: Mapping[int, msgspec.Struct]
) -> None:
    """Put what still waits; delete what does not. What came and went since the last commit was never written."""
    for offset in new:
        entry = entries.get(offset)
        if entry is not None:
            batch.put(_OFFSET(letter, offset), _encode(entry))
    for offset in touched:
        entry = entries.get(offset)
        if entry is None:
            batch.delete(_OFFSET(letter, offset))
        else:
            batch.put(_OFFSET(letter, offset), _encode(entry))


def _user_record(user: User) -> _UserRecord:
    sequences = [entries.tobytes() for entries in user.sequences]
    return _UserRecord(user.last_ts, user.n_closed, user.pending, user.queries.tobytes(), sequences)


def _user(stored: bytes) -> User:
    record = _decode_user(stored)
    sequences = tuple([array("q", entries) for entries in record.sequences])
    return User(sequences, array("q", record.queries), record.pending, record.last_ts, record.n_closed)


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(64 << 20)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
    options.set_stats_dump_period_sec(0)
    return options
