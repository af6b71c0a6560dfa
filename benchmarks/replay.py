"""Replay from the samples of a log against the same learner fed from memory, in one run, turn by turn; and its memory.

    python benchmarks/replay.py --log DIR [--model egin] [--config FILE] [--requests N] [--turns 3]
    python benchmarks/replay.py --quick

Without --log a generated one is joined first. Both sides score and learn every request (``immediate``); the replay also reads,
decodes, merges and counts its metrics. Memory is that of this process at each tenth of the last replay.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import msgspec
import torch

from learners.samples import SampleBlock
from stream_app.config import Layer, RunConfig, read_layer, resolve
from stream_app.inspect import JOINER
from stream_app.join import join_log
from stream_app.launch import with_defaults
from stream_app.log_config import joined_layers, log_layers, write_joined, write_log_config
from stream_app.profile import Profile
from stream_app.replay import Replay, Step, build_entrants
from stream_app.sample_sources import Source, open_source
from stream_app.samples_reader import Range, SampleReader
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.topics import Log
from stream_app.topics.embedded import EmbeddedLog, open_log


def generated(folder: Path, requests: int) -> None:
    with EmbeddedLog(folder) as log:
        report = run_simulate(SimulateOptions(requests=requests), log, folder)
    write_log_config(folder, report.join, report.ignored_features)
    join = resolve(log_layers(folder)).join
    with EmbeddedLog(folder) as log:
        join_log(log, folder / JOINER, join)
    write_joined(folder, join)


def in_memory(source: Source, config: RunConfig, n_requests: int) -> list[SampleBlock]:
    reader = SampleReader(source, source.schema(), source.places(), config.replay.batch_requests, Range(), 0, Profile())
    blocks: list[SampleBlock] = []
    for batch in reader:
        blocks.append(batch.block)
        if len(blocks) * config.replay.batch_requests >= n_requests:
            break
    return blocks


def bare(config: RunConfig, source: Source, blocks: list[SampleBlock]) -> float:
    """Return impressions per second of the learner alone."""
    (entrant, *_) = build_entrants(config, source.schema())
    began = time.perf_counter()
    for block in blocks:
        entrant.learner.predict_learn(block)
    return sum(block.n_candidates for block in blocks) / (time.perf_counter() - began)


def replayed(config: RunConfig, log: Log, n_impressions: int, n_batches: int, memory: list[float]) -> float:
    """Return impressions per second of a replay, its reading, decoding and metrics included."""
    source = open_source(log, config.join, Profile())
    entrants = [e for e in build_entrants(config, source.schema()) if e.name in config.replay.models]
    replay = Replay(config, source, entrants)
    memory.clear()

    def on_step(step: Step) -> None:
        if step.batches % max(1, n_batches // 10) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory.append(pages * resource.getpagesize() / 1e6)

    seen = 0

    def stop() -> bool:
        nonlocal seen
        seen += 1
        return seen >= n_batches

    began = time.perf_counter()
    replay.run(on_step, stop)
    return n_impressions / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--model", default="egin")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    requests = 4_000 if options.quick else options.requests
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.log or Path(temporary) / "log"
        if options.log is None:
            generated(folder, requests)
        layers = [*joined_layers(folder), *([read_layer(options.config)] if options.config else [])]
        flags = {"models": (options.model,), "eval": "immediate", "threads": options.threads, "bootstrap": 0}
        config = with_defaults(resolve([*layers, Layer("the benchmark", {"replay": flags})]))
        torch.set_num_threads(config.replay.threads)
        memory: list[float] = []
        alone, whole = [], []
        with open_log(folder) as log:
            source = open_source(log, config.join, Profile())
            blocks = in_memory(source, config, requests)
            n_impressions = sum(block.n_candidates for block in blocks)
            bare(config, source, blocks[:20])  # compiles
            for _ in range(options.turns):
                alone.append(bare(config, source, blocks))
                whole.append(replayed(config, log, n_impressions, len(blocks), memory))
    ratios = [w / a for w, a in zip(whole, alone, strict=True)]
    result = {
        "model": options.model,
        "options": msgspec.to_builtins(config.models[options.model]),
        "threads": config.replay.threads,
        "impressions": n_impressions,
        "alone_impressions_per_s": statistics.median(alone),
        "replay_impressions_per_s": statistics.median(whole),
        "ratio": statistics.median(ratios),
        "memory_mb": [round(m) for m in memory],
    }
    if options.json:
        print(json.dumps(result))
        return
    print(f"{options.model}, {config.replay.threads} threads, {n_impressions:,} impressions, median of {options.turns} turns")
    print(f"learner fed from memory   {result['alone_impressions_per_s']:>12,.0f} impressions/s")
    print(f"replay from samples       {result['replay_impressions_per_s']:>12,.0f} impressions/s")
    print(f"ratio                     {result['ratio']:>12.2f}   (turns: {', '.join(f'{r:.2f}' for r in ratios)})")
    print(f"memory by tenth, MB       {', '.join(str(round(m)) for m in memory)}")


if __name__ == "__main__":
    main()
