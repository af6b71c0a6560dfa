"""How cost grows: CPU time of a step against history length, candidates, rows, queue size and length of stream, as curves.

    python benchmarks/growth.py [--quick] [--images FOLDER]

Every curve doubles or grows tenfold one size and leaves the others. CPU time rather than wall time, so that a busy machine
bends no curve; sizes take turns, and a point is the median over the turns. ``exponent`` is the slope in the log-log picture
between the smallest and the largest size: 1 is linear, below 1 is better. With --images each curve is written as an SVG.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.peers import REQUESTS, Requests, blocks_of
from learners.learner import Learner
from learners.models import ModelContext, build
from learners.samples import Ragged, SampleBlock
from learners.tables import EmbeddingTable, TableConfig
from learners.tables.index import Keys
from negative_queues import IdQueue, draw_key

DIM, STEPS, BATCH, DRAWN = 16, 4, 10_000, 100
Run = Callable[[], object]


class Curve(NamedTuple):
    """One size against CPU milliseconds."""

    name: str
    size: str
    unit: str
    points: Mapping[str, list[tuple[float, float]]]
    """(size, ms) per line."""


def drawn(n: int, history: int, candidates: int) -> list[SampleBlock]:
    """Return blocks of 100 requests that all have so long a history and so many candidates."""
    rng, n_items = np.random.default_rng(0), 20_000
    items = rng.integers(1, n_items, (n, candidates))
    labels = np.zeros(items.shape, np.float32)
    labels[:, 0] = 1
    offsets = np.arange(n + 1, dtype=np.int64) * history
    past = Ragged(rng.integers(1, n_items, n * history), offsets)
    times = Ragged(np.sort(rng.integers(10**12 - 10**8, 10**12, n * history)), offsets)
    ts = np.sort(rng.integers(10**12, 10**12 + 10**8, n))
    return blocks_of(Requests(rng.integers(1, 1_000, n), ts, items, labels, past, times, n_items), longest=history)


def step_runs(model: str, sizes: list[int], history: int | None = None, candidates: int | None = None) -> dict[int, Run]:
    """Return per size a run of a few steps; the size left out is the one that grows."""
    runs: dict[int, Run] = {}
    for size in sizes:
        blocks = drawn(STEPS * REQUESTS, history or size, candidates or size)
        learner = build(model, {}, ModelContext(schema=blocks[0].schema, name=model, seed=0, device="cpu", ignored_features=()))
        runs[size] = partial(learned, learner, blocks)
    return runs


def learned(learner: Learner, blocks: list[SampleBlock]) -> None:
    for block in blocks:
        learner.predict_learn(block)


def cpu_ms(runs: Mapping[int, Run], turns: int) -> list[tuple[float, float]]:
    """Return (size, CPU ms) of each run: the median over turns that all sizes take one after the other."""
    took: dict[int, list[float]] = {size: [] for size in runs}
    for run in runs.values():
        run()
    for _ in range(turns):
        for size, run in runs.items():
            began = time.thread_time()
            run()
            took[size].append((time.thread_time() - began) * 1e3)
    return [(float(size), statistics.median(times)) for size, times in took.items()]


def steps_by(size: str, sizes: list[int], turns: int) -> Curve:
    """Return the step's CPU time against history length or candidates per request."""
    fixed = {"history": None, "candidates": 10} if size == "history" else {"history": 20, "candidates": None}
    lines = {}
    for model in ("egin", "din", "bst", "dnn"):
        lines[model] = [(n, ms / STEPS) for n, ms in cpu_ms(step_runs(model, sizes, **fixed), turns)]
    name = "history length" if size == "history" else "candidates per request"
    return Curve(f"step-{size}", name, "CPU ms per step of 100 requests", lines)


def with_next(keys: Iterator[Keys], act: Callable[[Keys], object]) -> None:
    act(next(keys))


def tables(sizes: list[int], turns: int) -> Curve:
    """Return look-ups and updates of 10,000 keys against rows."""
    find: dict[int, Run] = {}
    update: dict[int, Run] = {}
    grad = torch.ones(BATCH, DIM)
    for size in sizes:
        table = EmbeddingTable("growth", TableConfig(dim=DIM, max_rows=size + 2))
        for start in range(1, size + 1, BATCH):
            table.update(np.arange(start, min(start + BATCH, size + 1)), grad[: size + 1 - start], start)
        keys = itertools.cycle(np.random.default_rng(0).integers(1, size + 1, (100, BATCH)))  # none twice in a cache
        find[size] = partial(with_next, keys, table.index.find)
        update[size] = partial(with_next, keys, partial(table.update, grad=grad, ts=1))
    lines = {"look up": cpu_ms(find, 10 * turns), "update": cpu_ms(update, 10 * turns)}
    return Curve("table-rows", "rows", "CPU ms per 10,000 keys", lines)


def queues(sizes: list[int], turns: int) -> Curve:
    """Return a push of 1,000 ids and a draw of 100 against the size of a full queue."""
    push: dict[int, Run] = {}
    draw: dict[int, Run] = {}
    rng = np.random.default_rng(0)
    for size in sizes:
        queue, new = IdQueue(size), rng.integers(1, 1 << 40, 1_000)
        queue.push(rng.integers(1, 1 << 40, size))
        key = draw_key(0, "growth", "draw", size)
        push[size] = partial(queue.push, new)
        draw[size] = partial(queue.draw, DRAWN, key)
    lines = {"push 1,000": cpu_ms(push, 10 * turns), "draw 100": cpu_ms(draw, 10 * turns)}
    return Curve("queue-size", "queue size", "CPU ms", lines)


def stream(sizes: list[int]) -> Curve:
    """Return the whole time to learn a stream, against its requests."""
    blocks = drawn(max(sizes), 20, 10)
    lines: dict[str, list[tuple[float, float]]] = {}
    for model in ("egin", "din"):
        context = ModelContext(schema=blocks[0].schema, name=model, seed=0, device="cpu", ignored_features=())
        build(model, {}, context).predict_learn(blocks[0])  # compiles
        learner, began, points = build(model, {}, context), time.thread_time(), []
        for done, block in enumerate(blocks, 1):
            learner.predict_learn(block)
            if done * REQUESTS in sizes:
                points.append((float(done * REQUESTS), (time.thread_time() - began) * 1e3))
        lines[model] = points
    return Curve("stream-length", "requests learned", "CPU ms in all", lines)


def exponent(points: list[tuple[float, float]]) -> float:
    """Return the slope between the first and the last point in the log-log picture."""
    (x, y), (x_last, y_last) = points[0], points[-1]
    return math.log(y_last / y) / math.log(x_last / x)


def text(curve: Curve) -> str:
    """Return a curve as rows of figures."""
    sizes = [f"{size:,.0f}" for size, _ in next(iter(curve.points.values()))]
    lines = [f"{curve.unit} against {curve.size}", f"  {'':12}" + "".join(f"{size:>12}" for size in sizes) + "    exponent"]
    for name, points in curve.points.items():
        lines.append(f"  {name:12}" + "".join(f"{ms:12.3f}" for _, ms in points) + f"{exponent(points):12.2f}")
    return "\n".join(lines)


COLOURS = ("#3366aa", "#cc5544", "#339966", "#996699")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 320, 64, 110, 34, 46


def svg(curve: Curve) -> str:
    """Return a curve as a picture with logarithmic axes."""
    xs = [math.log10(x) for points in curve.points.values() for x, _ in points]
    ys = [math.log10(y) for points in curve.points.values() for _, y in points]
    low, high = math.floor(min(ys)), math.ceil(max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (math.log10(x) - min(xs)) / (max(xs) - min(xs)) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (math.log10(y) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="20">{curve.unit} against {curve.size}</text>',
    ]
    for power in range(low, high + 1):
        _, y = place(10 ** min(xs), 10.0**power)
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for size, _ in next(iter(curve.points.values())):
        x, _ = place(size, 10.0**low)
        out.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{size:,.0f}</text>')
    for colour, (name, points) in zip(COLOURS, curve.points.items(), strict=False):
        places = [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        out.append(f'<text x="{places[-1][0] + 8:.1f}" y="{places[-1][1] + 4:.1f}" fill="{colour}">{name}</text>')
    return "\n".join([*out, "</svg>", ""])


def main() -> int:
    """Measure, print, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--images", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    quick, turns = options.quick, 1 if options.quick else 5
    curves: tuple[Callable[[], Curve], ...] = (
        lambda: steps_by("history", [25, 50] if quick else [25, 50, 100, 200, 400], turns),
        lambda: steps_by("candidates", [1, 10] if quick else [1, 3, 10, 30, 100], turns),
        lambda: tables([10**4, 10**5] if quick else [10**5, 10**6, 10**7], turns),
        lambda: queues([10**4, 10**5] if quick else [10**4, 10**5, 10**6, 10**7], turns),
        lambda: stream([200, 400] if quick else [1_000, 2_000, 5_000, 10_000, 20_000]),
    )
    for measure in curves:
        curve = measure()
        print(text(curve), flush=True)
        if options.images:
            options.images.mkdir(parents=True, exist_ok=True)
            (options.images / f"{curve.name}.svg").write_text(svg(curve))
    return 0


if __name__ == "__main__":
    sys.exit(main())
