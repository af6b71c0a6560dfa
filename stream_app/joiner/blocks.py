"""Rows that left the joiner, as columns of a :class:`~learners.samples.SampleBlock`: kernels fill them, blocks are cut of them.

Shapes: ``R`` rows, ``C`` candidates and ``H`` history entries over all rows of a block.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from learners.samples import QUERY_CATEGORIES, Ragged, SampleBlock, SampleSchema

from .config import FeatureKind, JoinConfig
from .core.layout import ENTRY, NEEDED, QUERY_ENTRY, ROWS, Columns, Ints
from .core.slab import Slab

_LATER: Final = ("label_min_value", "vector_dim", "domains", "min_value")
"""Options of the joiner and of its sequences that came after logs had been joined without them."""


def generation_of(config: JoinConfig, n_partitions: int) -> str:
    """Return the name of the samples that a config makes of so many partitions: a hash of both.

    Options of :data:`_LATER` that are not used are left out: the samples are those of before, and so is their name.
    """
    told = msgspec.to_builtins(config, order="deterministic")
    for part in (told, *told["item_sequences"].values()):
        for name in _LATER:
            if not part.get(name, True):
                del part[name]
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode((told, n_partitions)))


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


class Rows:
    """Columns that kernels write rows into, and blocks of them.

    Args:
        config: the joiner's options.
        partition: of all rows.
        n_partitions: for the generation.
        seq: of the next row that a block gets.
        slab: whose registers count the rows.
    """

    def __init__(self, config: JoinConfig, partition: int, n_partitions: int, seq: int, slab: Slab) -> None:
        self.schema = sample_schema(config, n_partitions)
        self.seq = seq
        self._config = config
        self._partition = partition
        self._slab = slab
        self._blocks: list[SampleBlock] = []
        longest = max([config.query_length, *(sequence.length for sequence in config.item_sequences.values())])
        self._wide = 16 * config.block_requests, longest * min(16, config.block_requests)
        self._longest = longest
        self.columns = self._new_columns()

    def _new_columns(self) -> Columns:
        config, (n, n_entries) = self._config, self._wide
        rows, n_sequences = config.block_requests, len(config.item_sequences)
        offsets = np.zeros((2 + n_sequences, rows + 1), np.int64)
        return Columns(
            np.empty((rows, 11), np.int64),
            np.empty((3, n), np.int64),
            np.empty(n, np.int32),
            np.empty(n, np.float32),
            np.empty((config.truth + len(config.candidate_features), n), np.int64),
            np.empty((len(config.request_features), rows), np.int64),
            np.empty((ENTRY * n_sequences + QUERY_ENTRY, n_entries), np.int64),
            offsets,
            np.empty((1 + n_sequences, rows), np.int32),
        )

    def widen(self) -> None:
        """Make room for more candidates and history entries; rows that are there stay."""
        old, (n, n_entries) = self.columns, self._wide
        self._wide = 2 * n + int(self._slab.regs[NEEDED]), 2 * n_entries + self._longest
        self.columns = new = self._new_columns()
        for name in ("heads", "page_features", "offsets", "fresh"):
            getattr(new, name)[:] = getattr(old, name)
        for name in ("ids", "positions", "labels", "features"):
            getattr(new, name)[..., :n] = getattr(old, name)
        new.entries[:, :n_entries] = old.entries

    def cut(self) -> None:
        """Make a block of the rows there are."""
        n = int(self._slab.regs[ROWS])
        if n:
            self._blocks.append(self._block(n))
            self._slab.regs[ROWS] = 0
            self.seq += n

    def take_blocks(self) -> list[SampleBlock]:
        """Return the rows that came since the last call."""
        self.cut()
        blocks, self._blocks = self._blocks, []
        return blocks

    def _block(self, n: int) -> SampleBlock:
        heads = self.columns.heads[:n].T.copy()
        columns: dict[str, Any] = dict(zip(("request", "user", "ts", "due", "query"), heads, strict=False))
        columns["partition"] = np.full(n, self._partition, np.int32)
        columns["seq"] = np.arange(self.seq, self.seq + n, dtype=np.int64)
        columns["query_category"] = heads[5 : 5 + QUERY_CATEGORIES].T
        columns["domain"] = heads[5 + QUERY_CATEGORIES]
        self._take_sequences(columns, n)
        self._take_candidates(columns, n, heads[6 + QUERY_CATEGORIES] > 0)
        for at, (name, kind) in enumerate(self._config.request_features.items()):
            columns[f"request_feature.{name}"] = _values(self.columns.page_features[at, :n], kind)
        return SampleBlock.from_columns(self.schema, columns)

    def _take_sequences(self, columns: dict[str, Any], n: int) -> None:
        out, first = self.columns, 0
        for at, name in enumerate(self._config.item_sequences):
            offsets = out.offsets[2 + at, : n + 1].copy()
            for part, values in zip(("item", "category", "ts"), out.entries[first : first + ENTRY], strict=True):
                columns[f"{name}.{part}"] = Ragged(values[: offsets[n]].copy(), offsets)
            columns[f"{name}.fresh"] = out.fresh[1 + at, :n].copy()
            first += ENTRY
        if self._config.query_length:
            offsets = out.offsets[1, : n + 1].copy()
            ids, *categories, ts = out.entries[first:, : offsets[n]]
            for part, values in (("id", ids.copy()), ("category", np.stack(categories, axis=1)), ("ts", ts.copy())):
                columns[f"query.{part}"] = Ragged(values, offsets)
            columns["query.fresh"] = out.fresh[0, :n].copy()

    def _take_candidates(self, columns: dict[str, Any], n: int, corrects: npt.NDArray[np.bool_]) -> None:
        out, offsets = self.columns, self.columns.offsets[0, : n + 1].copy()
        weights = np.where(corrects, self._config.correction_weight, 1.0).astype(np.float32)
        items, categories, domains = out.ids[:, : offsets[n]].copy()
        values: dict[str, npt.NDArray[Any]] = {
            "candidate.item": items,
            "candidate.category": categories,
            "candidate.domain": domains,
            "candidate.position": out.positions[: offsets[n]].copy(),
            "candidate.label": out.labels[: offsets[n]].copy(),
            "candidate.weight": np.repeat(weights, np.diff(offsets)),
        }
        features = out.features[:, : offsets[n]]
        if self.schema.has_truth:
            values["candidate.truth"] = _values(features[0], "float")
            features = features[1:]
        for (name, kind), column in zip(self._config.candidate_features.items(), features, strict=True):
            values[f"candidate_feature.{name}"] = _values(column, kind)
        columns |= {name: Ragged(column, offsets) for name, column in values.items()}


def _values(words: Ints, kind: FeatureKind) -> npt.NDArray[Any]:
    """Return a copy of a feature's words: ids, or the floats whose bits they are."""
    return words.copy() if kind == "id" else words.astype(np.uint32).view(np.float32)
