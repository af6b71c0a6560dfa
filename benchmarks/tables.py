"""Tables at 10^5 to 10^7 rows of 16: look-ups from key to row, look-up + update beside torch's and fbgemm's, peak memory.

Run: ``python benchmarks/tables.py [--quick]``. One thread. CPU time of this thread, the median of the repeats; those that are
compared take turns. Peers are told rows, and look up, take a gradient by autograd and step. Ours is measured as a network uses
it ("keys": rows found and counted, autograd, step), the same without autograd ("keys, update": found twice), and told rows like
the peers ("rows": without autograd). The bound of key -> row is what must be read at least: a slot and a key, at places that
are known beforehand, of arrays as large. At the end of each size a checkpoint of the table, whole and of what was touched since
a mark, for several shares of the rows: the mark and the copy, which learning waits for, and hashing, writing and syncing it,
once the memory is warm. "plain" is the whole copy by ``np.copyto``; copies take turns.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from learners.checkpoint.background import StateCopy
from learners.checkpoint.tensors import write_tensors
from learners.tables import EmbeddingTable, TableConfig, probing
from learners.tables.index import State
from negative_queues.kernels import kernel

DIM, BATCH, REPEATS, FILLED_BY, COPIES = 16, 20_000, 15, 100_000, 7
SHARES = (0.01, 0.1, 0.3, 0.5, 0.6, 1.0)
RATE, EPS, TS = 0.1, 1e-8, 1_700_000_000_000


def cpu_ms(runs: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """Return the median CPU time of each run in ms; the runs take turns."""
    took: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            took[name].append((time.thread_time() - start) * 1e3)
    return {name: statistics.median(times) for name, times in took.items()}


def peak_mb() -> float:
    """Return the highest resident memory so far, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def filled(n_rows: int) -> tuple[EmbeddingTable, float]:
    """Return a table that has grown to ``n_rows`` batch by batch, and what the peak of memory has risen by, in MB."""
    warm = EmbeddingTable("warm", TableConfig(dim=DIM))
    warm.update(np.arange(1, FILLED_BY), torch.ones(FILLED_BY - 1, DIM), TS)
    before = peak_mb()
    table = EmbeddingTable("table", TableConfig(dim=DIM, max_rows=max(n_rows + 1, 2)))
    grad = torch.ones(FILLED_BY, DIM)
    for start in range(1, n_rows + 1, FILLED_BY):
        table.update(np.arange(start, min(start + FILLED_BY, n_rows + 1)), grad[: n_rows + 1 - start], TS + start)
    return table, peak_mb() - before


def torch_peer(
    n_rows: int, ids: torch.Tensor, grad: torch.Tensor, optimiser: Callable[..., torch.optim.Optimizer]
) -> Callable[[], None]:
    """Return a look-up and an update of ``nn.EmbeddingBag(sparse=True)``, a bag a key."""
    bag = nn.EmbeddingBag(n_rows + 1, DIM, sparse=True, mode="sum")
    peer = optimiser(bag.parameters(), lr=RATE)
    offsets = torch.arange(len(ids))

    def run() -> None:
        peer.zero_grad()
        torch.autograd.backward(bag(ids, offsets), grad)
        peer.step()

    return run


def fbgemm_peer(n_rows: int, ids: torch.Tensor, grad: torch.Tensor) -> Callable[[], None]:
    """Return a look-up and an update of fbgemm's CPU table, row-wise Adagrad, a bag a key.

    Raises:
        ImportError, OSError: fbgemm does not load with this torch.
    """
    tbe: Any = importlib.import_module("fbgemm_gpu.split_table_batched_embeddings_ops_training")
    common: Any = importlib.import_module("fbgemm_gpu.split_table_batched_embeddings_ops_common")
    optimiser: Any = importlib.import_module("fbgemm_gpu.split_embedding_configs").EmbOptimType.EXACT_ROWWISE_ADAGRAD
    specs = [(n_rows + 1, DIM, common.EmbeddingLocation.HOST, tbe.ComputeDevice.CPU)]
    table = tbe.SplitTableBatchedEmbeddingBagsCodegen(specs, optimizer=optimiser, learning_rate=RATE, eps=EPS)
    offsets = torch.arange(len(ids) + 1)
    return lambda: torch.autograd.backward(table(ids, offsets), grad)


def peers(n_rows: int, ids: torch.Tensor, grad: torch.Tensor) -> dict[str, Callable[[], None]]:
    """Return the peers that run here."""
    found = {
        "EmbeddingBag + SparseAdam": torch_peer(n_rows, ids, grad, torch.optim.SparseAdam),
        "EmbeddingBag + Adagrad": torch_peer(n_rows, ids, grad, torch.optim.Adagrad),
    }
    try:
        found["fbgemm"] = fbgemm_peer(n_rows, ids, grad)
    except (ImportError, OSError, AttributeError) as error:
        print(f"fbgemm is left out: it does not load here ({type(error).__name__}: {str(error)[:90]})")
    return found


@kernel
def read_both(slots: Any, keys: Any, at: Any, rows: Any, out: Any) -> None:
    """Read a slot and a key per look-up; no read waits for another."""
    for i in range(len(at)):
        out[i] = keys[rows[i]] + slots[at[i]]


def bound_of(table: EmbeddingTable, rows: npt.NDArray[np.int32]) -> Callable[[], None]:
    """Return the reads of a look-up of ``rows`` without the search."""
    slots, out = table.index.slots, np.empty(len(rows), np.int64)
    at = np.random.default_rng(1).integers(0, len(slots), len(rows))
    return lambda: read_both(slots, table.index.keys, at, rows, out)


def measure(n_rows: int, with_peers: bool) -> None:
    """Print one size."""
    table, peak = filled(n_rows)
    told = table.describe()
    print(f"\n{n_rows:,} rows: peak {peak:,.0f} MB; in use {told['bytes'] / 1e6:,.0f} MB, load {told['load']:.2f}")
    rng = np.random.default_rng(0)
    many, keys = rng.integers(1, n_rows + 1, 1_000_000), rng.integers(1, n_rows + 1, BATCH)
    rows, grad = table.index.find(keys), torch.randn(BATCH, DIM)

    def by_key() -> None:
        torch.autograd.backward(table.gather(keys, learn=True, ts=TS).of(0), grad)
        table.apply_gradients()

    def by_key_update() -> None:
        table.gather(keys).of(0)
        table.update(keys, grad, TS)

    def by_row() -> None:
        probing.gather(table.columns.arrays[0], rows, np.empty((BATCH, DIM), np.float32))
        table.update_rows(rows, grad)

    runs: dict[str, Callable[[], object]] = {
        "find 10^6": lambda: table.index.find(many),
        "bound": bound_of(table, table.index.find(many)),
        "ours, keys": by_key,
        "ours, keys, update": by_key_update,
        "ours, rows": by_row,
    }
    if with_peers:
        runs |= peers(n_rows, torch.from_numpy(rows).long(), grad)
    for run in runs.values():
        run()
    times = cpu_ms(runs)
    find, bound = times.pop("find 10^6"), times.pop("bound")
    print(f"  {'key -> row':<28}{1e3 / find:8.1f} M/s   {bound / find:5.2f} of the bound, {1e3 / bound:.0f} M/s")
    best = "fbgemm" if "fbgemm" in times else "ours, rows"
    for name, ms in times.items():
        print(f"  {name:<28}{ms:8.2f} ms   {ms / times[best]:5.2f} of {best}")
    checkpointed(table, n_rows)


def checkpointed(table: EmbeddingTable, n_rows: int) -> None:
    """Print a checkpoint of the whole table, and for each share one of the rows that were touched since a mark."""
    rng, copies = np.random.default_rng(2), StateCopy()
    held = [column[: table.index.n] for column in (table.index.columns()["row"].view("V24"), *table.columns.arrays)]
    plain = [array.copy() for array in held]

    def copy_plainly() -> None:
        for room, array in zip(plain, held, strict=True):
            np.copyto(room.view(np.uint8), array.view(np.uint8))

    def copy_delta(mark: int) -> State:
        return copies.take({"delta": table.delta(mark)})["delta"]

    for share in SHARES:
        began = time.thread_time()
        mark = table.mark()
        marked = (time.thread_time() - began) * 1e3
        n_touched = max(1, int(share * n_rows))
        for keys in np.array_split(rng.permutation(n_rows)[:n_touched] + 1, -(-n_touched // FILLED_BY)):
            table.update(keys, torch.ones(len(keys), DIM), TS)
        runs: dict[str, Callable[[], Any]] = {
            "plain": copy_plainly,
            "whole": lambda: copies.take({"whole": table.state()})["whole"],
            "delta": partial(copy_delta, mark),
        }
        for run in runs.values():
            run()
        ms = cpu_ms(runs, COPIES)
        if share == SHARES[0]:
            size, wrote = written(runs["whole"]())
            per_gb = 1e3 * ms["whole"] / size
            print(f"  whole              {size:6.1f} MB   copy {ms['whole']:6.1f} ms CPU ({per_gb:3.0f} per GB), {wrote}")
        size, wrote = written(runs["delta"]())
        per_row = 1e6 * ms["delta"] / n_touched
        told = f"{ms['delta'] / ms['whole']:.2f} of whole, {ms['delta'] / ms['plain']:.2f} of plain, {per_row:.0f} ns a row"
        copied = f"mark {marked:4.1f}, copy {ms['delta']:6.1f} ms CPU ({told})"
        print(f"  delta, {share:4.0%} touched {size:6.1f} MB   {copied}, {wrote}")


def written(state: State) -> tuple[float, str]:
    """Return the size of a state's file in MB, and what it took to write it."""
    with tempfile.TemporaryDirectory() as folder:
        wall, began = time.perf_counter(), time.thread_time()
        size = write_tensors(Path(folder) / "state", state).size
        return size / 1e6, f"write {time.thread_time() - began:.2f} s CPU, {time.perf_counter() - wall:.2f} s"


def main() -> None:
    """Run the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10^5 and 10^6 rows only")
    parser.add_argument("--alone", type=int, help="one size without peers: memory")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.alone:
        measure(options.alone, with_peers=False)
    else:
        for n_rows in (10**5, 10**6) if options.quick else (10**5, 10**6, 10**7):
            measure(n_rows, with_peers=True)


if __name__ == "__main__":
    main()
