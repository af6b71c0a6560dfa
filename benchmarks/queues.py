"""What negatives cost: push and draw at 10^4 to 10^7 entries, a contrastive step beside CrossBatchMemory, EGIN's share.

Run: ``python benchmarks/queues.py [--quick] [--json]``. One thread. CPU time of this thread, the median of the repeats; two
that are compared take turns. CrossBatchMemory (pytorch-metric-learning, SupCon) and ours return the same loss, which is
checked first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.losses import CrossBatchMemory, SupConLoss
from torch import Tensor

from learners.models.egin import EGIN
from learners.network import NeuralLearner
from negative_queues import IdQueue, InfoNCE, InfoNCEOptions, KeyQueue, Reservoir, draw_key
from negative_queues.drawing import mixed_draw, recent_slots, uniform_slots
from stream_app.config import Layer, resolve
from stream_app.entrants import build_entrants
from stream_app.join import join_log
from stream_app.launch import with_defaults
from stream_app.log_config import joined_layers, log_layers, write_joined, write_log_config
from stream_app.profile import Profile
from stream_app.sample_sources import open_source
from stream_app.samples_reader import Range, SampleReader
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.topics.embedded import EmbeddedLog, open_log

PUSH, DRAW, DIM, BATCH, STEP_DIM = 1_000, 100, 16, 256, 64
KEY = draw_key(0, "benchmark", "queues", 0)


class Line(NamedTuple):
    """One row of the table: CPU milliseconds, or a share."""

    part: str
    size: int
    ours: float
    other: float | None = None


def cpu_ms(repeats: int, *runs: Callable[[], object]) -> list[float]:
    """Return the median CPU time of each run in ms; the runs take turns."""
    took: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for place, run in enumerate(runs):
            start = time.thread_time()
            run()
            took[place].append((time.thread_time() - start) * 1e3)
    return [statistics.median(times) for times in took]


def cross_batch_memory(capacity: int, dim: int) -> Any:
    loss = SupConLoss(0.2, distance=DotProductSimilarity(normalize_embeddings=False))
    return CrossBatchMemory(loss, dim, capacity)


def ring_lines(capacity: int, repeats: int) -> list[Line]:
    """Push and draw on full rings."""
    rng = np.random.default_rng(0)
    ids, keys, reservoir = IdQueue(capacity), KeyQueue(capacity, DIM), Reservoir(10_000)
    ids.push(rng.integers(1, 1 << 40, capacity))
    keys.enqueue(torch.zeros(capacity, DIM), {"item": np.ones(capacity, np.int64)})
    memory = cross_batch_memory(capacity, DIM)
    new, rows = rng.integers(1, 1 << 40, PUSH), torch.randn(PUSH, DIM)
    labels = torch.from_numpy(new)
    reservoir.offer(new)
    push, draw, recent, mixed = cpu_ms(
        repeats,
        lambda: ids.push(new),
        lambda: ids.draw(DRAW, KEY),
        lambda: ids.at(recent_slots(ids, DRAW, KEY, capacity / 4)),
        lambda: mixed_draw(ids, reservoir, DRAW, KEY, 0.25),
    )
    enqueue, added, attempted, drawn = cpu_ms(
        repeats,
        lambda: keys.enqueue(rows, {"item": labels}),
        lambda: memory.add_to_memory(rows, labels, PUSH),
        lambda: attempt(keys, rows, labels),
        lambda: keys.entries(uniform_slots(keys, DRAW, KEY)),
    )
    return [
        Line(f"IdQueue: push {PUSH} ids", capacity, push),
        Line(f"IdQueue: draw {DRAW}, uniform", capacity, draw),
        Line(f"IdQueue: draw {DRAW}, recency-weighted", capacity, recent),
        Line(f"IdQueue: draw {DRAW}, a quarter of a reservoir", capacity, mixed),
        Line(f"KeyQueue: enqueue {PUSH} keys of {DIM} (other: CrossBatchMemory)", capacity, enqueue, added),
        Line(f"KeyQueue: enqueue {PUSH} keys that could be undone", capacity, attempted),
        Line(f"KeyQueue: draw {DRAW} keys with ids", capacity, drawn),
    ]


def attempt(queue: KeyQueue, rows: Tensor, labels: Tensor) -> None:
    with queue.attempt():
        queue.enqueue(rows, {"item": labels})


def step_lines(capacity: int, repeats: int) -> list[Line]:
    """A loss against the whole queue, forward and backward into the queries, enqueue included."""
    memory = cross_batch_memory(capacity, STEP_DIM)
    options = InfoNCEOptions(temperature=0.2, normalize=False, order="before")
    contrast = InfoNCE(KeyQueue(capacity, STEP_DIM), options)
    generator = torch.Generator().manual_seed(0)
    full = torch.nn.functional.normalize(torch.randn(capacity, STEP_DIM, generator=generator), dim=1)
    contrast.queue.enqueue(full, {"item": torch.arange(1, capacity + 1)})
    memory.add_to_memory(full, torch.arange(1, capacity + 1), capacity)
    rows = torch.nn.functional.normalize(torch.randn(2, BATCH, STEP_DIM, generator=generator), dim=2)
    query, key = rows[0].clone().requires_grad_(), rows[1]
    enqueue = torch.arange(2 * BATCH) >= BATCH
    at = [capacity + 1, capacity + 1]

    def labels(side: int) -> Tensor:
        at[side] += BATCH
        return torch.arange(at[side] - BATCH, at[side])

    def ours() -> Tensor:
        loss = contrast(query, key, {"item": labels(0)})
        torch.autograd.backward(loss)
        return loss

    def theirs() -> Tensor:
        both = torch.cat([query, key])
        loss = cast(Tensor, memory(both, labels(1).repeat(2), enqueue_mask=enqueue))
        torch.autograd.backward(loss)
        return loss

    assert torch.allclose(ours(), theirs(), atol=1e-4)
    mine, other = cpu_ms(repeats, ours, theirs)
    return [Line(f"step of {BATCH} x {STEP_DIM} (other: CrossBatchMemory)", capacity, mine, other)]


def egin_lines(requests: int) -> list[Line]:
    """Queue work of a step of EGIN with its two queues of a million, as a share of the step."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "log"
        with EmbeddedLog(folder) as log:
            report = run_simulate(SimulateOptions(requests=requests), log, folder)
        write_log_config(folder, report.join, report.ignored_features)
        join = resolve(log_layers(folder)).join
        with EmbeddedLog(folder) as log:
            join_log(log, folder / "joiner", join)
        write_joined(folder, join)
        flags = {"models": ("egin",), "eval": "immediate", "threads": 1, "bootstrap": 0}
        config = with_defaults(resolve([*joined_layers(folder), Layer("the benchmark", {"replay": flags})]))
        with open_log(folder) as log:
            source = open_source(log, config.join, Profile())
            (entrant, *_) = build_entrants(config, source.schema())
            reader = SampleReader(source, source.schema(), source.places(), config.replay.batch_requests, Range(), 0, Profile())
            blocks = [batch.block for batch in reader]
    learner = cast(NeuralLearner, entrant.learner)
    queues = {kind: nodes.queue for kind, nodes in cast(EGIN, learner.network).nodes.items()}
    for block in blocks[:5]:
        learner.learn(block)  # compiles
    before = {kind: queue.seen for kind, queue in queues.items()}
    start = time.thread_time()
    for block in blocks[5:]:
        learner.learn(block)
    step = (time.thread_time() - start) * 1e3 / len(blocks[5:])
    rng, spent = np.random.default_rng(0), 0.0
    for kind, queue in queues.items():  # full ones of distinct ids: every push evicts, and few look-ups find a warm cache
        full = IdQueue(1_000_000)
        full.push(rng.integers(1, 1 << 40, full.capacity))
        ids = rng.integers(1, 1 << 40, (queue.seen - before[kind]) // len(blocks[5:]))
        spent += sum(cpu_ms(100, partial(full.push, ids), partial(full.draw, DRAW, KEY)))
    return [
        Line("EGIN: a step", 1_000_000, step),
        Line("EGIN: its pushes and draws", 1_000_000, spent),
        Line("EGIN: their share of the step", 1_000_000, spent / step),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small queues, to see that it runs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes, repeats = ((10_000,), 3) if options.quick else ((10_000, 100_000, 1_000_000, 10_000_000), 50)
    lines = [line for size in sizes for line in ring_lines(size, repeats)]
    for size in (10_000,) if options.quick else (10_240, 40_960):
        lines += step_lines(size, 2 if options.quick else 7)
    lines += egin_lines(1_000 if options.quick else 5_000)
    if options.json:
        print(json.dumps([line._asdict() for line in lines], indent=1))
        return
    print(f"{'part':<62}{'entries':>12}{'ours, ms':>12}{'other, ms':>12}")
    for line in lines:
        other = "" if line.other is None else f"{line.other:>12.3f}"
        print(f"{line.part:<62}{line.size:>12,}{line.ours:>12.3f}{other}")


if __name__ == "__main__":
    main()
