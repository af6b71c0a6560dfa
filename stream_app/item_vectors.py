"""Item vectors as one more merged, positioned input of a learner.

Records of topic ``items`` come in the order of (effective time, partition, offset), where the effective time is the running
maximum of ``ts`` in their partition. Before a step is scored, the records up to the step's point of the stream have been put to
the store: up to the ``due`` of its last row. Which records those are:

- In a replay, all whose effective time is not later: a function of the logs alone. The topic ends for a run where it ended when
  the run began.
- Beside a live stream, all of them that the topic holds when the step is begun. Nobody waits for an idle topic, and nothing is
  missed: a joiner lets a sample out once no input of its own, ``items`` among them, can have anything earlier. What comes late
  all the same (or before the ``due`` of a request that had to leave its joiner early) is put before the next step. The
  positions after each step stand in the recorded order, by which a run is repeated.

What a joiner refuses for its ``ts`` or its form counts for nothing here either. A record without a vector only moves the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from learners.learner import State
from learners.vectors import VectorError, VectorStore
from stream_app.config import ConfigError, RunConfig
from stream_app.events import ITEMS, IdHashes
from stream_app.joiner.decode import MAX_TS
from stream_app.joiner.features import FLOAT32_MAX
from stream_app.joiner.merge import NEVER
from stream_app.profile import Profile
from stream_app.topics import Log, Record, Topic, TopicError

READ_RECORDS: Final = 1_000
READ_BYTES: Final = 4 << 20
NO_END: Final = 2**62
VECTORS: Final = "vectors.f32"
"""File of the store in a run's folder."""

__all__ = ["VECTORS", "ItemVectors", "described", "item_vectors"]

Ints = npt.NDArray[np.int64]


class _ItemRecord(msgspec.Struct, frozen=True, gc=False):
    """What a learner reads of :class:`stream_app.events.Item`."""

    item_id: str
    ts: int
    vector: list[float] | None = None


class _Lane:
    """One partition of the topic.

    Args:
        position: offset of the next record to apply.
        high: running maximum of ``ts`` before it.
        end: offset to stop at.
        dim: numbers of each vector.
    """

    def __init__(self, position: int, high: int, end: int, dim: int) -> None:
        self.position, self.high, self.end = position, high, end
        self.read, self.read_high = position, high
        self.offsets: Ints = np.zeros(0, np.int64)
        self.effective: Ints = np.zeros(0, np.int64)
        self.items: Ints = np.zeros(0, np.int64)
        """0 where a record has no vector."""
        self.vectors: npt.NDArray[np.float32] = np.zeros((0, dim), np.float32)

    @property
    def at_end(self) -> bool:
        """Whether nothing is left to be read."""
        return self.read >= self.end

    def take(self, n: int) -> tuple[Ints, Ints, npt.NDArray[np.float32]]:
        """Return effective times, items and vectors of the first ``n`` records in memory, and drop them."""
        taken = self.effective[:n], self.items[:n], self.vectors[:n]
        if n:
            self.position, self.high = int(self.offsets[n - 1]) + 1, int(self.effective[n - 1])
            self.offsets, self.effective = self.offsets[n:], self.effective[n:]
            self.items, self.vectors = self.items[n:], self.vectors[n:]
        return taken


class ItemVectors:
    """Reads a topic of items into a store.

    Args:
        topic: of items.
        store: that is filled.
        max_clock_skew_ms: records whose ``ts`` is further from their broker time are passed over, as by the joiner.
        joiner_knows: whether the joiner makes dead letters of records with vectors of another length.
        live: whether the topic goes on.
        profile: where the time goes.
    """

    def __init__(
        self,
        topic: Topic,
        store: VectorStore,
        *,
        max_clock_skew_ms: int,
        joiner_knows: bool = False,
        live: bool = False,
        profile: Profile | None = None,
    ) -> None:
        self.store = store
        self._joiner_knows = joiner_knows
        self.refused = 0
        """Vectors of another length than the store's."""
        self._topic, self._live, self._profile = topic, live, profile or Profile()
        self._skew = max_clock_skew_ms
        self._none, self._taken = [0.0] * store.dim, False
        self._hashes = IdHashes("item")
        self._decode = msgspec.json.Decoder(_ItemRecord).decode
        self._lanes = [_Lane(topic.start(p), NEVER, topic.end(p), store.dim) for p in range(topic.n_partitions)]

    @property
    def positions(self) -> tuple[int, ...]:
        """Offset of the next record to be put, by partition."""
        return tuple(lane.position for lane in self._lanes)

    def advance(self, ts: int) -> None:
        """Put what came up to a point of the stream.

        Args:
            ts: effective time, UTC ms; records with this time are put.

        Raises:
            VectorError: the first vector has another length than the store's.
            TopicError: the topic cannot be read.
        """
        with self._profile.stage("item vectors"):
            if self._live:
                for p, lane in enumerate(self._lanes):
                    if not len(lane.effective) or lane.effective[-1] <= ts:
                        lane.end = max(lane.read, self._topic.end(p))
            while self._put_some(ts):
                pass

    def advance_to(self, positions: Sequence[int]) -> None:
        """Put what a live run had put when it stood at ``positions``.

        Raises:
            TopicError: the topic cannot be read, or does not hold the records any more.
        """
        for lane, position in zip(self._lanes, positions, strict=True):
            lane.end = position
        while self._put_some(NO_END):
            pass

    def _put_some(self, ts: int) -> bool:
        """Put the records in memory that no record still unread can come before; return whether there may be more."""
        for p, lane in enumerate(self._lanes):
            while not len(lane.effective) and not lane.at_end:
                self._read(p, lane)
        unread = [(int(lane.effective[-1]), p) for p, lane in enumerate(self._lanes) if not lane.at_end]
        bound, last = min([*unread, (ts, len(self._lanes))])
        pieces = []
        for p, lane in enumerate(self._lanes):
            pieces.append(lane.take(int(lane.effective.searchsorted(bound, side="right" if p <= last else "left"))))
        if pieces:
            effective, items, vectors = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
            order = np.argsort(effective, kind="stable")
            order = order[items[order] != 0]
            self.store.put(items[order], vectors[order])
        return last < len(self._lanes)

    def _read(self, partition: int, lane: _Lane) -> None:
        n = min(READ_RECORDS, lane.end - lane.read)
        records = self._topic.read(partition, lane.read, n, READ_BYTES)
        if not records:
            raise TopicError(
                f"topic {self._topic.name!r}, partition {partition}: it ends at {lane.read}, and had {lane.end} records when "
                "the run began: this is another log. Give the log that the run began with, or start a new run"
            )
        found = [self._item(record) for record in records]
        stamps = np.array([lane.read_high, *(ts for ts, _, _ in found)], np.int64)
        lane.offsets = np.array([record.offset for record in records], np.int64)
        lane.effective = np.maximum.accumulate(stamps)[1:]
        lane.items = np.array([item for _, item, _ in found], np.int64)
        lane.vectors = np.array([vector for _, _, vector in found], np.float32)
        lane.read, lane.read_high = records[-1].offset + 1, int(lane.effective[-1])

    def _item(self, record: Record) -> tuple[int, int, list[float]]:
        """Return time, item and vector of a record; no item where it has none, and no time either where it is refused."""
        try:
            raw = self._decode(record.value)
        except (ValueError, RecursionError):  # a dead letter, which the joiner writes
            return NEVER, 0, self._none
        if not 0 <= raw.ts <= MAX_TS or abs(raw.ts - record.ts) > self._skew:
            return NEVER, 0, self._none
        if raw.vector is None or not raw.item_id:
            return raw.ts, 0, self._none
        if len(raw.vector) != self.store.dim:
            if self._joiner_knows:
                return NEVER, 0, self._none
            if not self._taken:
                raise VectorError(
                    f"item {raw.item_id!r} has a vector of {len(raw.vector)} numbers, vectors.dim = {self.store.dim}: set "
                    f"vectors.dim = {len(raw.vector)} if all have so many"
                )
            self.refused += 1
            return raw.ts, 0, self._none
        if max(map(abs, raw.vector)) > FLOAT32_MAX:
            return NEVER, 0, self._none
        self._taken = True
        return raw.ts, self._hashes[raw.item_id], raw.vector

    def state(self) -> State:
        """Return the store and the positions."""
        lanes = [(lane.position, lane.high, lane.end) for lane in self._lanes]
        reading = {"lanes": np.array(lanes, np.int64).reshape(-1, 3), "refused": np.array(self.refused, np.int64)}
        return {**reading, **{f"store.{name}": array for name, array in self.store.state().items()}}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on exactly where the reader that returned ``state`` stood.

        Raises:
            VectorError: the store was of another size, or there are other partitions.
        """
        if len(state["lanes"]) != len(self._lanes):
            raise VectorError(
                f"topic {self._topic.name!r} has {len(self._lanes)} partitions, the run read {len(state['lanes'])}: "
                "give the log that the run began with"
            )
        self.load_store(state)
        self.refused = int(state["refused"])
        self._lanes = [_Lane(position, high, end, self.store.dim) for position, high, end in state["lanes"].tolist()]

    def load_store(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Begin with the vectors of another run, whose positions may be another log's.

        Raises:
            VectorError: the store was of another size.
        """
        self.store.load_state({n.removeprefix("store."): array for n, array in state.items() if n.startswith("store.")})
        self._taken = len(self.store) > 0


def described(state: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Return what a person asks about a state of :class:`ItemVectors`: size, fill, where the reading stood."""
    held, evicted = state["store.sizes"].tolist()
    capacity = int(state["store.capacity"])
    return {
        "dim": state["store.vector"].shape[1],
        "capacity": capacity,
        "items": held,
        "fill": held / capacity,
        "evicted": evicted,
        "refused": int(state["refused"]),
        "positions": state["lanes"][:, 0].tolist(),
    }


def item_vectors(
    log: Log, config: RunConfig, folder: Path | None = None, *, live: bool = False, profile: Profile | None = None
) -> ItemVectors | None:
    """Return the input that a config asks for; None where ``vectors.dim`` is 0.

    Args:
        log: with a topic of items.
        config: of the run.
        folder: of the run; None keeps the store's file nowhere.
        live: whether the log goes on.
        profile: where the time goes.

    Raises:
        ConfigError: the log has no items.
    """
    dim, capacity = config.vectors.dim, config.vectors.capacity
    if not dim:
        return None
    if ITEMS not in log.topics():
        raise ConfigError(
            f"vectors.dim = {dim}, and the log has no topic {ITEMS!r} that vectors could come from: leave vectors.dim out"
        )
    store = VectorStore(None if folder is None else folder / VECTORS, dim, capacity)
    skew, knows = config.join.max_clock_skew_ms, config.join.vector_dim > 0
    return ItemVectors(log.topic(ITEMS), store, max_clock_skew_ms=skew, joiner_knows=knows, live=live, profile=profile)
