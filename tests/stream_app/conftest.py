"""Samples made by hand, for the tests of what reads and learns them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from learners.samples import Ragged, SampleBlock, SampleSchema, ragged_rows

SCHEMA = SampleSchema(
    generation="made by hand", item_sequences=("click",), has_query=False, request_floats=("odd",), has_truth=True
)


def rows(
    seqs: Sequence[int],
    due: Sequence[int],
    *,
    partition: int = 0,
    ts: Sequence[int] | None = None,
    schema: SampleSchema = SCHEMA,
    weight: float = 1.0,
) -> SampleBlock:
    """Return a block, each row a function of (partition, seq): three of 20 items, the lower ones liked more."""
    draws = [np.random.default_rng([partition, seq]) for seq in seqs]
    items = [draw.choice(np.arange(1, 21), 3, replace=False) for draw in draws]
    truth = [1 / (1 + np.exp(row / 4 - 2)) for row in items]
    labels = [draw.random(3) < p for draw, p in zip(draws, truth, strict=True)]
    R = len(seqs)
    empty = Ragged(np.zeros(0, np.int64), np.zeros(R + 1, np.int64))
    zeros = ragged_rows([[0] * 3] * R, np.int64)
    ints = np.asarray(seqs, np.int64)
    return SampleBlock.from_columns(
        schema,
        {
            "partition": np.full(R, partition, np.int32),
            "seq": ints,
            "request": ints * 7 + partition + 1,
            "user": ints % 5 + 1 + 10 * partition,
            "ts": np.asarray(due if ts is None else ts, np.int64),
            "due": np.asarray(due, np.int64),
            "query": np.zeros(R, np.int64),
            "query_category": np.zeros((R, 4), np.int64),
            "domain": np.zeros(R, np.int64),
            "request_feature.odd": (ints % 2).astype(np.float32),
            "click.item": empty,
            "click.category": empty,
            "click.ts": empty,
            "click.fresh": np.zeros(R, np.int32),
            "candidate.item": ragged_rows([list(row) for row in items], np.int64),
            "candidate.category": zeros,
            "candidate.domain": zeros,
            "candidate.position": ragged_rows([range(3)] * R, np.int32),
            "candidate.label": ragged_rows([list(row) for row in labels], np.float32),
            "candidate.weight": ragged_rows([[weight] * 3] * R, np.float32),
            "candidate.truth": ragged_rows([list(row) for row in truth], np.float32),
        },
    )


@pytest.fixture(scope="session")
def make_block() -> Callable[..., SampleBlock]:
    """The function :func:`rows`."""
    return rows
