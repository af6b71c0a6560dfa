"""Rows that left the joiner, as columns of a :class:`~learners.samples.SampleBlock`: bytes joined once per block.

Shapes: ``R`` rows, ``C`` candidates and ``H`` history entries over all rows of a block.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from learners.samples import QUERY_CATEGORIES, Ragged, SampleBlock, SampleSchema

from .config import JoinConfig
from .cut import cut
from .histories import ITEM, QUERY, User
from .pending import Request

_HEAD: Final = struct.Struct(f"<{7 + QUERY_CATEGORIES}q").pack
Ints = npt.NDArray[np.int64]
_DTYPES: Final[dict[str, type[np.generic]]] = {"float": np.float32, "id": np.int64}


def generation_of(config: JoinConfig, n_partitions: int) -> str:
    """Return the name of the samples that a config makes of so many partitions: a hash of both."""
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode((config, n_partitions), order="deterministic"))


def sample_schema(config: JoinConfig, n_partitions: int) -> SampleSchema:
    """Return the schema of a config's samples."""

    def named(features: dict[str, Any], kind: str) -> tuple[str, ...]:
        return tuple(name for name, given in features.items() if given == kind)

    return SampleSchema(
        generation=generation_of(config, n_partitions),
        item_sequences=tuple(config.item_sequences),
        has_query=config.query_length > 0,
        has_category=config.categories,
        request_floats=named(config.request_features, "float"),
        request_ids=named(config.request_features, "id"),
        candidate_floats=named(config.candidate_features, "float"),
        candidate_ids=named(config.candidate_features, "id"),
        has_truth=config.truth,
    )


class _SequenceColumns:
    """Histories of one sequence: whole sequences when rows come, cut point in time for a whole block at once."""

    def __init__(self, width: int, length: int) -> None:
        self._width = width
        self._length = length
        self.entries: list[bytes] = []

    def take(self, ts: Ints, last_ts: Ints) -> tuple[Ints, Ints, Ints, npt.NDArray[np.int32]]:
        """Cut the histories of rows, and start afresh.

        Args:
            ts: of the rows ``[R]``; a history holds the newest entries older than this.
            last_ts: ``[R]``; entries from here on are fresh, -1 for all.

        Returns:
            Ids and times ``[2, H]``, what is between them ``[H, width - 2]``, offsets ``[R + 1]``, fresh ``[R]``.
        """
        entries = np.frombuffer(b"".join(self.entries), np.int64).reshape(-1, self._width)
        sizes = np.fromiter(map(len, self.entries), np.int64, len(self.entries)) // (8 * self._width)
        self.entries = []
        offsets, fresh = np.empty(len(sizes) + 1, np.int64), np.empty(len(sizes), np.int32)
        ends, middle = cut(entries, sizes, ts, last_ts, self._length, offsets, fresh)
        return ends, middle, offsets, fresh


class Rows:
    """Collects rows and makes blocks of them.

    Args:
        config: the joiner's options.
        partition: of all rows.
        n_partitions: for the generation.
        seq: of the next row that a block gets.
    """

    def __init__(self, config: JoinConfig, partition: int, n_partitions: int, seq: int) -> None:
        self.schema = sample_schema(config, n_partitions)
        self.seq = seq
        self._partition = partition
        self._block_requests = config.block_requests
        self._blocks: list[SampleBlock] = []
        self._sequences = [(name, _SequenceColumns(ITEM, item.length)) for name, item in config.item_sequences.items()]
        self._queries = _SequenceColumns(QUERY, config.query_length) if config.query_length else None
        self._request_kinds = list(config.request_features.items())
        self._candidate_kinds = list(config.candidate_features.items())
        self._columns = [columns for _, columns in self._sequences]
        self._requests: list[Request] = []
        self._heads: list[bytes] = []
        self._labelled: list[tuple[int, ...]] = []
        self._weights: list[float] = []

    def add(self, request: Request, user: User, last_ts: int, due: int, labelled: tuple[int, ...], weight: float) -> None:
        """Add a row.

        Args:
            request: columns of the row; categories, domains and features as they shall be.
            user: whose histories are cut at the request's ``ts``.
            last_ts: entries from here on are fresh; -1 for all.
            due: when the labels are final.
            labelled: places of the candidates whose label is 1.
            weight: of all candidates.
        """
        requests = self._requests
        requests.append(request)
        self._heads.append(
            _HEAD(
                request.request,
                request.user,
                request.ts,
                due,
                request.query,
                *request.query_categories,
                request.domain,
                last_ts,
            )
        )
        self._labelled.append(labelled)
        self._weights.append(weight)
        for columns, entries in zip(self._columns, user.sequences, strict=True):
            columns.entries.append(entries.tobytes())
        if self._queries is not None:
            self._queries.entries.append(user.queries.tobytes())
        if len(requests) >= self._block_requests:
            self._blocks.append(self._block())

    def take_blocks(self) -> list[SampleBlock]:
        """Return the rows added since the last call."""
        if self._requests:
            self._blocks.append(self._block())
        blocks, self._blocks = self._blocks, []
        return blocks

    def _block(self) -> SampleBlock:
        requests, self._requests = self._requests, []
        n_rows = len(requests)
        heads = np.ascontiguousarray(np.frombuffer(b"".join(self._heads), np.int64).reshape(n_rows, -1).T)
        columns: dict[str, Any] = dict(zip(("request", "user", "ts", "due", "query"), heads, strict=False))
        columns["partition"] = np.full(n_rows, self._partition, np.int32)
        columns["seq"] = np.arange(self.seq, self.seq + n_rows, dtype=np.int64)
        columns["query_category"] = heads[5 : 5 + QUERY_CATEGORIES].T
        columns["domain"] = heads[5 + QUERY_CATEGORIES]
        self._take_sequences(columns, columns["ts"], heads[6 + QUERY_CATEGORIES])
        self._take_candidates(columns, requests)
        self._take_features(columns, requests)
        self.seq += n_rows
        self._heads, self._labelled, self._weights = [], [], []
        return SampleBlock.from_columns(self.schema, columns)

    def _take_sequences(self, columns: dict[str, Any], ts: Ints, last_ts: Ints) -> None:
        for name, sequence in self._sequences:
            (items, times), middle, offsets, columns[f"{name}.fresh"] = sequence.take(ts, last_ts)
            for part, values in (("item", items), ("category", middle[:, 0]), ("ts", times)):
                columns[f"{name}.{part}"] = Ragged(values, offsets)
        if self._queries is not None:
            (ids, times), middle, offsets, columns["query.fresh"] = self._queries.take(ts, last_ts)
            for part, values in (("id", ids), ("category", middle), ("ts", times)):
                columns[f"query.{part}"] = Ragged(values, offsets)

    def _take_candidates(self, columns: dict[str, Any], requests: list[Request]) -> None:
        sizes = np.array([request.n for request in requests], np.int64)
        offsets = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        labels = np.zeros(offsets[-1], np.float32)
        starts = offsets.tolist()
        labelled = [start + place for start, places in zip(starts, self._labelled, strict=False) for place in places]
        labels[np.array(labelled, np.int64)] = 1.0
        columns["candidate.label"] = Ragged(labels, offsets)
        columns["candidate.weight"] = Ragged(np.repeat(np.array(self._weights, np.float32), sizes), offsets)
        pieces: dict[str, tuple[list[bytes], npt.DTypeLike]] = {
            "candidate.item": ([request.items for request in requests], np.int64),
            "candidate.category": ([request.categories for request in requests], np.int64),
            "candidate.domain": ([request.domains for request in requests], np.int64),
            "candidate.position": ([request.positions for request in requests], np.int32),
        }
        if self.schema.has_truth:
            pieces["candidate.truth"] = [request.truth for request in requests], np.float32
        for at, (name, kind) in enumerate(self._candidate_kinds):
            pieces[f"candidate_feature.{name}"] = [request.candidate_features[at] for request in requests], _DTYPES[kind]
        for name, (parts, dtype) in pieces.items():
            columns[name] = Ragged(np.frombuffer(b"".join(parts), dtype), offsets)

    def _take_features(self, columns: dict[str, Any], requests: list[Request]) -> None:
        for at, (name, kind) in enumerate(self._request_kinds):
            values = [request.request_features[at] for request in requests]
            columns[f"request_feature.{name}"] = np.array(values, _DTYPES[kind])
