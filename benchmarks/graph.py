"""Cost of EGIN's own parts, beside the obvious vectorised torch: edges, SimExtract, edge loss, queue of negatives.

Run: ``python benchmarks/graph.py [--requests N] [--repeats N] [--json]``. One thread. Each figure is the best of the repeats; a
part and its torch cousin take turns. Both give the same result, which is checked before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from learners.edge_loss import Scratch
from learners.graph import Edges, TimedNodes, i2i_edges, q2i_edges, q2q_edges
from learners.graph.nodes import BatchNodes, NodeOptions
from learners.samples import Ragged
from learners.sim_extract import SimExtract, sim_extract, sim_extract_torch
from learners.tables import TableConfig
from negative_queues import IdQueue, draw_key

HISTORY, CANDIDATES, DIM, WINDOW, NEGATIVES, QUEUE, PUSH = 20, 10, 16, 2, 100, 1_000_000, 500
HOUR_MS = 3_600_000


class Line(NamedTuple):
    """One row of the table."""

    part: str
    unit: str
    ours: float
    torch: float | None = None


def best_of(repeats: int, *runs: Callable[[], object]) -> list[float]:
    """Return the shortest of the repeats of each run in seconds; the runs take turns."""
    best = [float("inf")] * len(runs)
    for _ in range(repeats):
        for place, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[place] = min(best[place], time.perf_counter() - start)
    return best


def sequences(n_requests: int, seed: int) -> TimedNodes:
    """Return histories of 0 to ``2 HISTORY`` entries of popular ids over ten hours of a day each, in one of four categories."""
    rng = np.random.default_rng(seed)
    offsets = np.zeros(n_requests + 1, np.int64)
    np.cumsum(rng.integers(0, 2 * HISTORY + 1, n_requests), out=offsets[1:])
    n = int(offsets[-1])
    ids = rng.zipf(1.3, n) % 50_000 + 1
    day = np.repeat(np.arange(n_requests), np.diff(offsets)) * 24 * HOUR_MS
    ts = np.sort(day + rng.integers(0, 10 * HOUR_MS, n))
    return TimedNodes(Ragged(ids, offsets), ts, ids % 4 + 1)


def i2i_torch(ids: torch.Tensor, row: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """i2i without a kernel: compare the flat ids with themselves, shifted by 1 .. window."""
    ends = []
    for shift in range(1, window + 1):
        joined = (row[shift:] == row[:-shift]) & (ids[shift:] != ids[:-shift])
        older = joined.nonzero().squeeze(1)
        ends += [(older, older + shift), (older + shift, older)]
    return torch.cat([a for a, _ in ends]), torch.cat([b for _, b in ends])


def same_edges(ours: Edges, other: tuple[torch.Tensor, torch.Tensor]) -> bool:
    theirs = (end.tolist() for end in other)
    return Counter(zip(*(end.tolist() for end in ours), strict=True)) == Counter(zip(*theirs, strict=True))


def edge_lines(n_requests: int, repeats: int) -> list[Line]:
    item, query = sequences(n_requests, 0), sequences(n_requests, 1)
    ids = torch.from_numpy(item.ids.values)
    row = torch.repeat_interleave(torch.arange(n_requests), torch.from_numpy(item.ids.lengths))
    assert same_edges(i2i_edges(item.ids, WINDOW), i2i_torch(ids, row, WINDOW))
    lines = []
    for window in (WINDOW, 10):
        n = i2i_edges(item.ids, window).n_edges
        ours, other = best_of(repeats, partial(i2i_edges, item.ids, window), partial(i2i_torch, ids, row, window))
        lines.append(Line(f"i2i, window {window}", "M edges/s", n / ours / 1e6, n / other / 1e6))
    timed: dict[str, Callable[[], int]] = {
        "q2q, one hour": lambda: q2q_edges(query, HOUR_MS).n_edges,
        "q2q, sessions": lambda: q2q_edges(query._replace(categories=None), HOUR_MS, "session").n_edges,
        "q2i, an hour around": lambda: sum(edges.n_edges for edges in q2i_edges(query, item, HOUR_MS, "around")),
    }
    for name, run in timed.items():
        n = run()
        lines.append(Line(name, "M edges/s", n / best_of(repeats, run)[0] / 1e6))
    cap, key = 20, draw_key(0, "benchmark", "cap", 0)
    n = i2i_edges(item.ids, 10, cap=cap, key=key).n_edges
    (seconds,) = best_of(repeats, lambda: i2i_edges(item.ids, 10, cap=cap, key=key))
    return [*lines, Line(f"i2i, window 10, {cap} drawn per request", "M edges/s", n / seconds / 1e6)]


def sim_lines(n_requests: int, repeats: int) -> list[Line]:
    generator = torch.Generator().manual_seed(0)
    offsets = torch.from_numpy(sequences(n_requests, 2).ids.offsets)
    targets = torch.arange(n_requests + 1) * CANDIDATES
    target = torch.randn(int(targets[-1]), DIM, generator=generator)
    sequence = torch.randn(int(offsets[-1]), DIM, generator=generator)
    args = target, sequence, offsets, targets
    assert torch.allclose(sim_extract(*args).sims, sim_extract_torch(*args).sims, atol=1e-5)
    ours, other = best_of(repeats, lambda: sim_extract(*args), lambda: sim_extract_torch(*args))
    module = SimExtract(dim=10)
    slots = module.slots(*args)
    weight = torch.randn(len(target), module.width)

    def plain() -> torch.Tensor:
        assert module.position is not None
        return (module.bin(slots.bins) + module.position(slots.positions)).flatten(1)  # type: ignore[no-any-return]

    embed, gathered = best_of(
        repeats, lambda: torch.autograd.backward(module.embed(slots), weight), lambda: torch.autograd.backward(plain(), weight)
    )
    n = len(target) / 1e3
    return [
        Line("SimExtract: cosine, top 10, bins", "k candidates/s", n / ours, n / other),
        Line("SimExtract: embed, forward and backward", "k candidates/s", n / embed, n / gathered),
    ]


def loss_lines(repeats: int) -> list[Line]:
    rng = np.random.default_rng(3)
    item = sequences(50, 4)
    edges, lines = i2i_edges(item.ids, WINDOW), []
    options = NodeOptions(
        table=TableConfig(dim=DIM), own=True, bias=False, queue=1, n_negatives=NEGATIVES, log_q="none", temperature=1.0
    )
    for name, drawn in {
        "distinct negatives": np.arange(NEGATIVES) + 100_000,
        "popular negatives": rng.zipf(1.3, NEGATIVES) % 50_000 + 1,
    }.items():
        ids, places = np.unique(np.concatenate([item.ids.values, drawn]), return_inverse=True)
        vectors, n = torch.randn(len(ids), DIM).mul_(0.3).requires_grad_(), len(item.ts)
        nodes = BatchNodes(vectors, None, ids, places[n:], None, places[:n], options, Scratch())

        def ours(nodes: BatchNodes = nodes) -> float:
            return float(nodes.loss(edges, nodes, 1.0))  # its gradients are with the vectors

        def plain(nodes: BatchNodes = nodes) -> float:
            loss = nodes.plain_loss(edges, nodes)
            torch.autograd.backward(loss)
            return loss.item()

        assert np.isclose(ours(), plain(), rtol=1e-4)
        part = f"edge loss, {edges.n_edges} edges x {NEGATIVES} {name}"
        lines.append(Line(part, "ms per step", *(1e3 * seconds for seconds in best_of(repeats, ours, plain))))
    return lines


def push_all(queue: IdQueue, pushes: list[npt.NDArray[np.int64]]) -> None:
    for ids in pushes:
        queue.push(ids)


def queue_lines(repeats: int) -> list[Line]:
    rng = np.random.default_rng(5)
    queue = IdQueue(QUEUE)
    for _ in range(QUEUE // PUSH + 100):  # full, so that every push evicts
        queue.push(rng.integers(1, 1 << 62, PUSH))
    pushes = [rng.integers(1, 1 << 62, PUSH) for _ in range(100)]
    keys = [draw_key(0, "benchmark", "negatives", step) for step in range(100)]
    drawn = queue.draw(NEGATIVES, keys[0])
    push, draw, log_p = best_of(
        repeats,
        partial(push_all, queue, pushes),
        lambda: [queue.draw(NEGATIVES, key) for key in keys],
        lambda: [queue.log_probability(drawn) for _ in keys],
    )
    return [
        Line(f"queue of {QUEUE:,}: push {PUSH} ids", "us", push * 1e4),
        Line(f"queue of {QUEUE:,}: draw {NEGATIVES} ids", "us", draw * 1e4),
        Line(f"queue of {QUEUE:,}: log p of {NEGATIVES} ids", "us", log_p * 1e4),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="little data, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.requests, options.repeats = 200, 3
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = edge_lines(options.requests, options.repeats) + sim_lines(options.requests, options.repeats)
    lines += loss_lines(options.repeats) + queue_lines(options.repeats)
    if options.json:
        print(json.dumps([line._asdict() for line in lines], indent=1))
        return
    print(f"{'part':<55}{'unit':<16}{'ours':>10}{'torch':>10}")
    for line in lines:
        cousin = "" if line.torch is None else f"{line.torch:>10.2f}"
        print(f"{line.part:<55}{line.unit:<16}{line.ours:>10.2f}{cousin}")


if __name__ == "__main__":
    main()
