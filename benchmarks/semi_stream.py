"""SEMI with and without CCL on the generator's two domains, with item vectors.

    python -m benchmarks.semi_stream [--seeds 2] [--shared 0 1] [--pretrain] [--quick]

Samples are the video pages; products come as clicks alone. Most users come to videos only during the stream, after many clicks
on products. Scored just before learning, last half of the pages; differences are paired by seed with a 95% t interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from benchmarks.semi import pairs_table
from learners.samples import SampleBlock
from stream_app.config import Layer, resolve
from stream_app.item_vectors import item_vectors
from stream_app.join import stream_samples
from stream_app.replay import Replay, build_entrants
from stream_app.results import result_of
from stream_app.sample_sources import TopicSource
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.topics import Message
from stream_app.topics.memory import MemoryLog

SEMI = {"type": "semi", "dim": 8, "hidden": [64], "feed_forward": 64, "heads": 4}
CCL = {"ccl": "on", "ccl_batch": 32, "ccl_min_sessions": [2, 5], "ccl_capacity": 512, "ccl_momentum": 0.99, "ccl_rate": 3e-3}
MODELS: Mapping[str, Mapping[str, Any]] = {
    "semi": SEMI,
    "semi+ccl": {**SEMI, **CCL},
    "semi+ccl slow": {**SEMI, **CCL, "ccl_rate": 1e-3},
    "semi video": {**SEMI, "domains": "video"},
    "din": {"type": "din", "dim": 8, "hidden": [64]},
}


def pretrained(until: int) -> Mapping[str, Mapping[str, Any]]:
    """Return SEMI that learns clicks from a time on, with and without CCL before it (no rate, no change)."""
    late = {**SEMI, **CCL, "ccl": "pretrain", "ccl_pretrain_until": until}
    return {
        "semi late": {**late, "ccl_rate": 1e-12},
        "ccl, then semi": late,
        "ccl slow, then semi": {**late, "ccl_rate": 1e-3},
        "semi": SEMI,
    }


def world(requests: int, shared: float, seed: int) -> SimulateOptions:
    """Return a world of few video pages and many clicks on products."""
    return SimulateOptions(
        requests=requests,
        users=requests // 20,
        items=3_000,
        domains=2,
        shared=shared,
        seed=seed,
        partitions=1,
        pages_of="video",
        video_late=0.8,
        vector_dim=32,
        query_share=0.0,
        affinity=4.0,
        repeat=0.0,
        quality=0.0,
        concurrency=200,
    )


def stream_results(options: SimulateOptions, pretrain: bool) -> dict[str, Any]:
    """Simulate, join and replay with all models, in memory."""
    log = MemoryLog()
    report = run_simulate(options, log, None)
    blocks = list(stream_samples(log, report.join, 0))
    topic = log.create("samples", 1)
    topic.append(0, [Message(int(block.column("due")[-1]), b"", block.to_ipc()) for block in blocks])
    times = SampleBlock.concat(blocks).column("ts")
    models = pretrained(int(times[2 * len(times) // 5])) if pretrain else MODELS
    replay = {"models": list(models), "eval": "immediate", "score_from": int(times[len(times) // 2]), "seed": options.seed}
    replay |= {"batch_requests": 25, "bootstrap": 0, "hr_negatives": 0}
    layers = {"models": models, "replay": replay, "vectors": {"dim": report.vector_dim, "capacity": 2 * options.items}}
    config = resolve([Layer("benchmark", layers)])
    items = item_vectors(log, config)
    assert items is not None, "the config has vectors.dim"
    run = Replay(config, TopicSource(topic), build_entrants(config, blocks[0].schema, vectors=items.store), items=items)
    run.run()
    for entrant in run.entrants:
        if ccl := entrant.learner.describe().get("ccl"):
            print(f"seed {options.seed}, {len(times):,} pages: {ccl['steps']} steps, {ccl['time_share']:.2f} of the CPU time")
    return result_of(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--shared", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--requests", type=int, default=40_000, help="of both domains")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests, one seed: does it run")
    parser.add_argument("--pretrain", action="store_true", help="the first two fifths feed CCL alone")
    given = parser.parse_args()
    if given.quick:
        given.requests, given.seeds = given.requests // 10, 1
    for shared in given.shared:
        results = [stream_results(world(given.requests, shared, seed), given.pretrain) for seed in range(given.seeds)]
        pairs_table(
            f"shared = {shared}, {given.seeds} seeds",
            results,
            "semi late" if given.pretrain else "semi",
            list(results[0]["models"]),
        )


if __name__ == "__main__":
    main()
