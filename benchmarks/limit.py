"""What this machine could do at most, and what share of it each stage of a step reaches.

    python benchmarks/limit.py [--quick]

A stage has to move so many bytes and to do so many operations, counted from its sizes alone: every array read or written once,
two operations per multiply and add. At the measured speed of copies and of matrix products that takes at least the longer of
the two times, and the share is that bound over the stage's own CPU time. Bounds and stages take turns in one run on one thread;
the least time of each counts. A stage whose rows lie anywhere in a large table cannot copy: it pays a cache miss per row, so
``read at random`` stands beside the copy.

The last table is of whole models on a batch as Globo's are (:data:`BATCH`, counted in the first 300 batches), items and
histories only: the operations in the matrix products of one step, forward and backward, and how many impressions a second they
alone would let through, were all else free.

Legend: ``N`` keys, ``U`` of them distinct, ``D`` dim.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from learners.adam import DenseAdam
from learners.tables import EmbeddingTable, TableConfig

N, D, CANDIDATES, WIDE, HIDDEN = 10_000, 16, 1_000, 160, (200, 80)
MATRIX = 512
Run = Callable[[], object]


class Sizes(NamedTuple):
    """A batch's."""

    requests: int = 100
    candidates: int = 1_000
    distinct: int = 250
    """Items among the candidates."""
    entries: int = 347
    """Of all histories."""
    pairs: int = 3_468
    """A candidate and an entry of its request."""
    anchors: int = 107
    """Nodes that have fresh edges."""


BATCH = Sizes()


class Stage(NamedTuple):
    """One stage of a step, and what it must do."""

    name: str
    run: Run
    n_bytes: float
    operations: float


def least(runs: dict[str, Run], turns: int) -> dict[str, float]:
    """Return the least CPU seconds of each, over turns."""
    took = dict.fromkeys(runs, np.inf)
    for _ in range(turns):
        for name, run in runs.items():
            began = time.thread_time()
            run()
            took[name] = min(took[name], time.thread_time() - began)
    return took


def table_stages(n_rows: int) -> list[Stage]:
    """Return look-up, dedupe and gather, and update of ``N`` keys of a table."""
    table = EmbeddingTable("limit", TableConfig(dim=D, max_rows=n_rows + 2))
    grad = torch.ones(N, D)
    for start in range(1, n_rows + 1, N):
        table.update(np.arange(start, start + N), grad, start)
    keys = np.random.default_rng(0).integers(1, n_rows + 1, N)
    unique = len(np.unique(keys))
    rows, label = table.index.find(keys), f"{n_rows:,} rows"
    find = N * (8 + 4 + 8 + 4)  # the key, its slot, the key there, the row
    gather = 2 * unique * 4 * D + N * 8
    update = N * 4 * D + unique * (3 * 4 * D + 2 * 4)  # gradients, then weights in and out, accumulators in and out
    return [
        Stage(f"key -> row, {label}", lambda: table.index.find(keys), find, 0),
        Stage(f"look up, dedupe, gather, {label}", lambda: table.gather(keys), find + gather, 0),
        Stage(f"sum and row-wise Adagrad, {label}", lambda: table.update_rows(rows, grad), update, 5 * N * D),
    ]


def dense_stages() -> list[Stage]:
    """Return the layers on top, forward and with backward, and their optimiser."""
    widths = (WIDE, *HIDDEN, 1)
    pairs = list(itertools.pairwise(widths))
    layers = [nn.Linear(a, b) for a, b in pairs]
    network, x = nn.Sequential(*layers), torch.randn(CANDIDATES, WIDE)
    weights = sum(p.numel() for p in network.parameters())
    adam = DenseAdam(list(network.parameters()), 1e-3)
    products = 2.0 * CANDIDATES * sum(a * b for a, b in pairs)
    first = 2.0 * CANDIDATES * widths[0] * widths[1]  # its input needs no gradient
    moved = 4.0 * (weights + CANDIDATES * sum(widths))

    def both() -> None:
        adam.zero_grad()
        torch.autograd.backward(network(x).sum())

    def forward() -> None:
        with torch.no_grad():
            network(x)

    both()
    return [
        Stage("layers, forward", forward, moved, products),
        Stage("layers, forward and backward", both, 3 * moved, 3 * products - first),
        Stage("Adam of the layers", adam.step, weights * 4.0 * 7, weights * 12.0),
    ]


def products(batch: Sizes) -> dict[str, float]:
    """Return the operations in the matrix products of a step: 2 per multiply and add, thrice for forward and both gradients.

    What several candidates share (the item, the request, rows of slot embeddings) is multiplied once.
    """
    first, second = HIDDEN

    def layers(dense: int, per_item: int, per_request: int) -> int:
        shared = batch.distinct * per_item + batch.requests * per_request
        return first * (batch.candidates * dense + shared) + batch.candidates * (first * second + second)

    unit = D * 36  # DIN's activation unit
    attention = unit * (batch.pairs + batch.candidates + batch.entries)
    slots = (22 + 51) * 10 * 10 * first  # bins and positions, each in any of 10 slots, 10 wide
    edges = batch.anchors * 100 * (D + 1)  # 100 negatives
    return {
        "dnn": 6.0 * layers(D, D, D + 4),
        "din": 6.0 * (layers(3 * D, D, D + 4) + attention),
        "egin": 6.0 * (layers(3 * D, 2 * D, 3 * D + 4) + slots + edges),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    large, turns = (100_000, 10) if options.quick else (1_000_000, 100)
    a, b = torch.randn(CANDIDATES, MATRIX), torch.randn(MATRIX, MATRIX)
    x, y = np.zeros(1 << 26, np.uint8), np.ones(1 << 26, np.uint8)
    anywhere = np.random.default_rng(1).integers(0, len(x) // 64, N) * 64
    bounds: dict[str, Run] = {"copy": lambda: np.copyto(y, x), "product": lambda: torch.mm(a, b), "read": lambda: x[anywhere]}
    stages = [*table_stages(100_000), *(table_stages(large) if large > 100_000 else []), *dense_stages()]
    took = least({**bounds, **{stage.name: stage.run for stage in stages}}, turns)
    copy, product = 2 * x.nbytes / took["copy"], 2 * CANDIDATES * MATRIX * MATRIX / took["product"]
    print(f"copy {copy / 1e9:.1f} GB/s, matrix product {product / 1e9:.0f} GFLOP/s, ", end="")
    print(f"read at random {N / took['read'] / 1e6:.0f} M/s; {N:,} keys of dim {D}, {CANDIDATES:,} candidates")
    print(f"{'':46}{'kB':>9}{'MFLOP':>9}{'bound us':>10}{'takes us':>10}{'reached':>9}")
    for stage in stages:
        bound = max(stage.n_bytes / copy, stage.operations / product)
        figures = f"{stage.n_bytes / 1e3:9.0f}{stage.operations / 1e6:9.2f}{bound * 1e6:10.1f}{took[stage.name] * 1e6:10.1f}"
        print(f"{stage.name:46}{figures}{bound / took[stage.name]:9.0%}")

    print(f"\n{'products of a step':46}{'MFLOP':>9}{'bound us':>10}{'impressions/s':>16}{'on two cores':>16}")
    for model, operations in products(BATCH).items():
        rate = BATCH.candidates * product / operations
        print(f"{model:46}{operations / 1e6:9.0f}{operations / product * 1e6:10.0f}{rate:16,.0f}{2 * rate:16,.0f}")


if __name__ == "__main__":
    main()
