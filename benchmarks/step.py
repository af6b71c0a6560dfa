"""The training step alone: impressions per second of ``predict_learn`` on blocks in memory, against plain torch in one run.

    python benchmarks/step.py --log DIR [--config FILE] [--model egin] [--requests N] [--turns 3]
    python benchmarks/step.py --quick

Each turn runs every model, ours and plain, with 1 and with 2 threads, so that a busy machine slows all of them alike. The
plain ones are the models as they are usually written (:mod:`benchmarks.plain`): one row per impression, histories padded to
50, ``nn.Embedding(sparse=True)``, layers of the same widths; they see items alone, so ours stand beside them on items alone.
EGIN's is there twice, with the edges of its graph per impression like all else, and once per request. Both sides score and
learn. A step decodes its block too. With --ahead all that needs the block alone (plain: padding) is made on another thread,
which gains nothing on the CPU: the two threads wait for each other's Python. With --products bfloat16 ours on items alone run
that way, too, each beside itself in float32. CPU time is that of all threads. Stages are the
shares of one more run under the profiler; the limit is the speed of matrix products and of copies, measured in the same run.
Without --log a generated log is joined first.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import json
import os
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does, before torch is there

import torch

from benchmarks.plain import KINDS, PlainLearner
from benchmarks.replay import generated, in_memory
from learners.models import ModelContext, build
from learners.samples import SampleBlock, SampleSchema
from stream_app.config import Layer, RunConfig, read_layer, resolve
from stream_app.launch import with_defaults
from stream_app.log_config import joined_layers
from stream_app.prefetch import prefetch
from stream_app.profile import Profile
from stream_app.sample_sources import open_source
from stream_app.topics.embedded import open_log

STAGES = {
    "dense layers, up and back": [("request_mlp.py", "learn")],
    "backward of the rest": [("tape.py", "back"), ("graph.py", "_engine_run_backward")],
    "inputs": [("features.py", "forward")],
    "attention": [("attention.py", "forward")],
    "similarities": [("sim_extract.py", "slots"), ("sim_extract.py", "found")],
    "edges and their loss": [("egin.py", "_graph")],
    "optimiser of layers": [("adam.py", "step_with")],
    "optimiser of tables": [("columns.py", "step"), ("together.py", "_step")],
    "counts, queues": [("network.py", "after")],
}
Step = Callable[[SampleBlock], Any]


def measured(step: Step, blocks: list[SampleBlock], ahead: bool = False) -> tuple[float, float]:
    """Return impressions per second of wall time and of CPU time, of all threads."""
    n = sum(block.n_candidates for block in blocks)
    wall, cpu = time.perf_counter(), time.process_time()
    if ahead:
        with contextlib.closing(prefetch(prepared(step, blocks), Profile())) as ready:
            for block in ready:
                step(block)
    else:
        for block in blocks:
            step(SampleBlock(block.batch, block.schema))  # a block keeps what was made of it
    return n / (time.perf_counter() - wall), n / (time.process_time() - cpu)


def prepared(step: Step, blocks: list[SampleBlock]) -> Iterator[SampleBlock]:
    """Yield the blocks anew, since a block keeps what was made of it, as the learner of a step prepares them."""
    learner: Any = getattr(step, "__self__", step)
    for block in blocks:
        own = SampleBlock(block.batch, block.schema)
        learner.prepare(own)
        yield own


def stages(step: Step, blocks: list[SampleBlock]) -> dict[str, float]:
    """Return the share of the time in each stage; a stage that contains another one counts it too."""
    ready = list(prepared(step, blocks))
    profiler = cProfile.Profile()
    profiler.enable()
    for block in ready:
        step(block)
    profiler.disable()
    rows = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    whole = sum(row[2] for row in rows.values())
    shares = {}
    for stage, functions in STAGES.items():
        found = [row[3] for (path, _, name), row in rows.items() if (Path(path).name, name) in functions]
        if found:
            shares[stage] = sum(found) / whole
    return shares


def limits() -> dict[str, float]:
    """Return GFLOP/s of a product as the first layer has it, and GB/s of a copy, reads and writes counted."""
    a, b = torch.randn(1000, 200), torch.randn(200, 200)
    x, y = np.zeros(1 << 26, np.uint8), np.ones(1 << 26, np.uint8)
    return {
        "matrix_gflop_per_s": 2 * 1000 * 200 * 200 / fastest(lambda: torch.mm(a, b)) / 1e9,
        "copy_gb_per_s": 2 * x.nbytes / fastest(lambda: np.copyto(y, x), 5) / 1e9,
    }


def fastest(action: Callable[[], Any], n: int = 50) -> float:
    times = []
    for _ in range(n):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return min(times)


def contestants(
    config: RunConfig, schema: SampleSchema, blocks: list[SampleBlock], products: str | None = None
) -> dict[str, Callable[[], Step]]:
    """Return a maker of a fresh step per model, ours and plain; ours with those ``products``, too, where some are named."""
    ids = np.concatenate([block.ragged(f"{kind}.item").values for block in blocks for kind in ("candidate", "click")])
    rows = 1 << int(np.unique(ids).size).bit_length()

    makers: dict[str, Callable[[], Step]] = {}
    for model in config.replay.models:
        kind, options = config.model_type(model), config.model_options(model)
        makers[model] = partial(ours, config, schema, model, options)
        if kind in KINDS:
            makers[f"{model}, items only"] = partial(items_only, config, schema, model)
            if products is not None:
                makers[f"{model}, items only, {products}"] = partial(items_only, config, schema, model, {"products": products})
            makers[f"{model}, plain torch"] = partial(PlainLearner, kind, rows)
            if kind == "egin":
                makers[f"{model}, plain torch, edges once"] = partial(PlainLearner, kind, rows, edges_once=True)
    return makers


def ours(
    config: RunConfig, schema: SampleSchema, model: str, options: Mapping[str, Any], ignored: Sequence[str] | None = None
) -> Step:
    """Return the step of a fresh learner; without ``ignored`` it ignores what the run does."""
    ignored = config.replay.ignored_features if ignored is None else tuple(ignored)
    context = ModelContext(schema=schema, name=model, seed=config.replay.seed, ignored_features=ignored)
    return build(config.model_type(model), options, context).predict_learn


def items_only(config: RunConfig, schema: SampleSchema, model: str, more: Mapping[str, Any] | None = None) -> Step:
    """Return the step of a fresh learner that sees what the plain ones see: ids of candidates and histories."""
    options = {**config.model_options(model), "position": False, "statistics": False, **(more or {})}
    if config.model_type(model) == "egin":
        options["queries"] = False
    features = (schema.request_floats, schema.request_ids, schema.candidate_floats, schema.candidate_ids)
    return ours(config, schema, model, options, [name for names in features for name in names])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--model", action="append")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, action="append", help="repeatable; 1 and 2 by default")
    parser.add_argument("--ahead", action="store_true", help="prepare the blocks on another thread")
    parser.add_argument("--products", choices=["bfloat16"], help="ours on items alone that way, too")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    requests, turns = (2_000, 1) if options.quick else (options.requests, options.turns)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.log or Path(temporary) / "log"
        if options.log is None:
            generated(folder, requests)
        layers = [*joined_layers(folder), *([read_layer(options.config)] if options.config else [])]
        flags = {"models": tuple(options.model or ("egin", "din", "bst", "dnn")), "eval": "immediate", "bootstrap": 0}
        config = with_defaults(resolve([*layers, Layer("the benchmark", {"replay": flags})]))
        with open_log(folder) as log:
            source = open_source(log, config.join, Profile())
            schema, blocks = source.schema(), in_memory(source, config, requests)
    makers = contestants(config, schema, blocks, options.products)
    for make in makers.values():
        measured(make(), blocks[:10])  # compiles
    results: dict[str, Any] = {}
    for _ in range(turns):
        for threads in options.threads or [1, 2]:
            torch.set_num_threads(threads)
            limit = results.setdefault(f"limit, {threads} threads", {})
            for name, value in limits().items():
                limit[name] = max(limit.get(name, 0.0), value)
            for name, make in makers.items():
                wall, cpu = measured(make(), blocks, options.ahead)
                row = results.setdefault(f"{name}, {threads} threads", {"per_s": [], "per_cpu_s": []})
                row["per_s"].append(wall)
                row["per_cpu_s"].append(cpu)
    torch.set_num_threads(1)
    for model in config.replay.models:
        step = ours(config, schema, model, config.model_options(model))
        results[f"stages, {model}"] = stages(step, blocks[: max(5, len(blocks) // 4)])
    print(json.dumps(results) if options.json else table(results))


def table(results: dict[str, Any]) -> str:
    """Return the figures as text: medians, and the range of the turns."""
    lines = [f"{'':40}{'impressions/s':>16}{'per CPU second':>16}   turns"]
    for name, row in results.items():
        if "per_s" in row:
            spread = f"{min(row['per_s']):,.0f} to {max(row['per_s']):,.0f}"
            lines.append(
                f"{name:40}{statistics.median(row['per_s']):16,.0f}{statistics.median(row['per_cpu_s']):16,.0f}   {spread}"
            )
            for form in ("plain torch", "plain torch, edges once"):
                other = name.replace(", bfloat16", "").replace("items only", form)
                if ", items only" in name and (plain := results.get(other)):
                    times = statistics.median(row["per_s"]) / statistics.median(plain["per_s"])
                    of_cpu = statistics.median(row["per_cpu_s"]) / statistics.median(plain["per_cpu_s"])
                    lines.append(f"{'':40}{times:15.1f}x{of_cpu:15.1f}x   of {form}")
        elif name.startswith("limit"):
            lines.append(f"{name:40}{row['matrix_gflop_per_s']:10.0f} GFLOP/s{row['copy_gb_per_s']:10.0f} GB/s")
        else:
            lines.append(f"{name:40}" + ", ".join(f"{stage} {share:.0%}" for stage, share in row.items()))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
