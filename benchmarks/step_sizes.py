"""What a step's size buys and costs: impressions per second, and the AUC of scoring before learning, over one pass of a log.

    python benchmarks/step_sizes.py --log DIR [--model dnn] [--size 100] [--set products=bfloat16] [--requests N]
    python benchmarks/step_sizes.py --quick

Ours see items alone, as the plain ones do (:mod:`benchmarks.plain`: one row per impression, padded), which are run at the first
size only. The AUC is that of the last fifth of the impressions, exact; the rate is that of steps on blocks in memory, decoding
included, one pass each: ratios of one run are what can be trusted. Without --log a generated log is joined first.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does, before torch is there

import torch

from benchmarks.plain import PlainLearner
from benchmarks.replay import generated, in_memory
from benchmarks.step import Step, items_only
from learners.metrics.ranking import exact_auc
from learners.samples import SampleBlock
from stream_app.config import Layer, RunConfig, resolve
from stream_app.launch import with_defaults
from stream_app.log_config import joined_layers
from stream_app.profile import Profile
from stream_app.sample_sources import open_source
from stream_app.topics.embedded import open_log


def one_pass(step: Step, blocks: list[SampleBlock]) -> dict[str, float]:
    """Return impressions per second, and the AUC of the last fifth."""
    scores, seconds, counted, warm = [], 0.0, 0, len(blocks) // 5
    for at, block in enumerate(blocks):
        own = SampleBlock(block.batch, block.schema)  # a block keeps what was made of it
        began = time.perf_counter()
        found = step(own)
        took = time.perf_counter() - began
        scores.append(found.numpy() if isinstance(found, torch.Tensor) else np.array(found[0]))
        if at >= warm:
            seconds, counted = seconds + took, counted + len(scores[-1])
    labels = np.concatenate([block.ragged("candidate.label").values for block in blocks])
    last = len(labels) // 5
    auc = exact_auc(np.concatenate(scores)[-last:], labels[-last:].astype(np.uint8))
    return {"per_s": counted / max(seconds, 1e-9), "auc": auc}


def read(folder: Path, model: str, size: int, requests: int) -> tuple[RunConfig, list[SampleBlock]]:
    """Return the requests of a log in blocks of ``size``."""
    flags = {"models": (model,), "eval": "immediate", "bootstrap": 0, "batch_requests": size}
    config = with_defaults(resolve([*joined_layers(folder), Layer("the benchmark", {"replay": flags})]))
    with open_log(folder) as log:
        return config, in_memory(open_source(log, config.join, Profile()), config, requests)


def rows_of(folder: Path, model: str, sizes: list[int], requests: int, more: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the figures of a model, ours by size and the plain one at the first of them."""
    found = {}
    for at, size in enumerate(sizes):
        config, blocks = read(folder, model, size, requests)
        if at == 0 and not more:
            ids = [block.ragged(f"{kind}.item").values for block in blocks for kind in ("candidate", "click")]
            rows = 1 << int(np.unique(np.concatenate(ids)).size).bit_length()
            PlainLearner(model, rows)(blocks[0])
            found[f"{model}, plain torch, {size} requests"] = one_pass(PlainLearner(model, rows), blocks)
        make = partial(items_only, config, blocks[0].schema, model, more)
        make()(blocks[0])  # compiles
        found[f"{model}, {size} requests"] = one_pass(make(), blocks)
    return found


def named(text: str) -> tuple[str, Any]:
    """Return name and value of ``NAME=VALUE``, a number or a word."""
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--model", action="append", choices=("dnn", "din", "egin"))
    parser.add_argument("--size", type=int, action="append", help="requests a step, repeatable; 100, 200, 400, 800")
    parser.add_argument(
        "--set", type=named, action="append", default=[], help="NAME=VALUE, an option of ours; then no plain ones"
    )
    parser.add_argument("--requests", type=int, default=300_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    requests = 2_000 if options.quick else options.requests
    torch.set_num_threads(options.threads)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.log or Path(temporary) / "log"
        if options.log is None:
            generated(folder, requests)
        for model in options.model or ("dnn", "din", "egin"):
            results |= rows_of(folder, model, options.size or [100, 200, 400, 800], requests, dict(options.set))
    print(json.dumps(results) if options.json else table(results))


def table(results: dict[str, dict[str, float]]) -> str:
    """Return the figures as text; ratios are to the plain one of the model."""
    lines = [f"{'':36}{'impressions/s':>14}{'AUC':>9}{'of plain':>10}"]
    plain = math.nan
    for name, row in results.items():
        plain = row["per_s"] if "plain" in name else plain
        ratio = "" if math.isnan(plain) else f"{row['per_s'] / plain:9.1f}x"
        lines.append(f"{name:36}{row['per_s']:14,.0f}{row['auc']:9.4f}{ratio}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
