"""Replay of a log against the same learner fed from memory, in one run, turn by turn; and its memory over a long stream.

    python benchmarks/replay.py --log DIR [--model egin] [--config FILE] [--requests N] [--turns 3]
    python benchmarks/replay.py --laps 60 [--minutes 65] [--config FILE]
    python benchmarks/replay.py --quick

Without --log a generated one is joined first. All sides score and learn every request (``immediate``). The replay also reads,
decodes and merges on another thread and counts its metrics on a third, which the learner fed from memory leaves out. From raw
events it joins them too, on the fly: in a process of its own ("raw"), and on the thread that reads ("raw in one process", as
on one core); all in all, the start of that process included, and from the first step on, which comes after the first request.
Ratios are of wall time, of CPU time of the thread that learns (what it does itself, and so what is left where other threads
find a free core) and of the process.

--laps replays the log's samples so often in a row, each lap later in time and with ids of its own: a long stream of new ids
whose tables meet their bound; --minutes ends it after so much time. Memory is anonymous memory, each minute; last comes the
line fitted to it by least squares over the second half of the time.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from learners.samples import Ragged, SampleBlock, SampleSchema
from stream_app.config import Layer, RunConfig, read_layer, resolve
from stream_app.entrants import build_entrants
from stream_app.inspect import JOINER
from stream_app.join import join_log
from stream_app.launch import set_threads, with_defaults
from stream_app.log_config import joined_layers, log_layers, write_joined, write_log_config
from stream_app.profile import Profile
from stream_app.replay import Replay, Step
from stream_app.sample_sources import JoinedSource, Source, open_source
from stream_app.samples_reader import Place, Range, SampleReader
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.topics import Log
from stream_app.topics.embedded import EmbeddedLog, open_log

IDS = ("user", "item", "request", "query", "id")
TIMES = ("ts", "due")
RAW, RAW_IN_ONE = "raw", "raw in one process"
FROM_FIRST_STEP = "{}, from the first step on"
"""A log may begin long before its first request; joining what lies there is the joiner's work alone."""


class Took(NamedTuple):
    """Seconds."""

    wall: float
    thread: float
    process: float


def timed(run: Callable[[], object]) -> Took:
    """Return what a call takes."""
    began = time.perf_counter(), time.thread_time(), time.process_time()
    run()
    return Took(*(now - then for now, then in zip(_clocks(), began, strict=True)))


def _clocks() -> tuple[float, float, float]:
    return time.perf_counter(), time.thread_time(), time.process_time()


def anonymous_mb() -> float:
    """Return the process's anonymous memory, in 10^6 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("RssAnon"))


class Laps:
    """The same blocks again and again, later each time and with other ids, as one partition.

    Args:
        blocks: in the order of their due times.
        laps: how often.
    """

    n_partitions, name = 1, "laps"

    def __init__(self, blocks: list[SampleBlock], laps: int) -> None:
        self._blocks, self._laps = blocks, laps
        first, last = (int(block.column("due")[at]) for block, at in ((blocks[0], 0), (blocks[-1], -1)))
        self._span, self._rows = last - first + 1_000, sum(map(len, blocks))
        self._starts = np.cumsum([0, *map(len, blocks)]).tolist()

    def last_ts(self) -> int | None:
        """Return when the last lap ends."""
        return int(self._blocks[-1].column("due")[-1]) + self._span * (self._laps - 1)

    def schema(self) -> SampleSchema:
        """Return the schema of the blocks."""
        return self._blocks[0].schema

    def places(self, start: int | None = None) -> tuple[Place, ...]:
        """Return the beginning."""
        return (Place(position=0, end=self._laps * len(self._blocks)),)

    def blocks(self, partition: int, position: int, end: int) -> Iterator[tuple[int, SampleBlock]]:
        """Yield (number, block), made as they are asked for."""
        for number in range(position, end):
            lap, at = divmod(number, len(self._blocks))
            yield number, self._shifted(self._blocks[at], lap, self._starts[at])

    def _shifted(self, block: SampleBlock, lap: int, start: int) -> SampleBlock:
        columns = {}
        for name in block.batch.schema.names:
            last = name.rpartition(".")[2]
            whole = block.ragged(name) if block.is_ragged(name) else None
            values = block.column(name) if whole is None else whole.values
            if last in TIMES:
                values = values + lap * self._span
            elif last in IDS:
                values = np.where(values == 0, 0, values + lap)
            elif name == "seq":
                values = np.arange(len(block)) + lap * self._rows + start
            elif name == "partition":
                values = np.zeros_like(values)
            columns[name] = values if whole is None else Ragged(values, whole.offsets)
        return SampleBlock.from_columns(block.schema, columns)


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


def bare(config: RunConfig, source: Source, blocks: list[SampleBlock]) -> Took:
    """Return what the learner alone takes."""
    (entrant, *_) = build_entrants(config, source.schema())

    def learn() -> None:
        for block in blocks:
            entrant.learner.predict_learn(SampleBlock(block.batch, block.schema))  # a block keeps what was made of it

    return timed(learn)


def replayed(config: RunConfig, source: Source, n_batches: int, profile: Profile) -> tuple[Took, Took]:
    """Return what a replay takes, its reading, decoding and metrics included: all of it, and from its first step on."""
    entrants = [e for e in build_entrants(config, source.schema()) if e.name in config.replay.models]
    replay = Replay(config, source, entrants, profile=profile)
    first: list[tuple[float, float, float]] = []

    def on_step(step: Step) -> None:
        if not first:
            first.append(_clocks())

    began = _clocks()
    replay.run(on_step, stop=lambda: replay.batches >= n_batches)
    ended = _clocks()
    whole, rest = (Took(*(now - then for now, then in zip(ended, since, strict=True))) for since in (began, first[0]))
    return whole, Took(*(seconds * n_batches / (n_batches - 1) for seconds in rest))


def in_one_process(log: Log, config: RunConfig) -> JoinedSource:
    """Return a source that no other process can read."""
    source = JoinedSource(log, config.join)
    source.address = None
    return source


def long_stream(config: RunConfig, blocks: list[SampleBlock], laps: int, minutes: float) -> None:
    """Replay the laps, or so much of them as the time is enough for; print memory each minute and its slope."""
    source, began = Laps(blocks, laps), time.monotonic()
    seen: list[tuple[float, int, float]] = []  # minute, impressions, MB
    per_request = sum(block.n_candidates for block in blocks) / sum(map(len, blocks))
    entrants = [e for e in build_entrants(config, source.schema()) if e.name in config.replay.models]
    replay = Replay(config, source, entrants, profile=Profile())
    print("minute  impressions  anonymous MB", flush=True)

    def minute() -> float:
        return (time.monotonic() - began) / 60

    def on_step(step: Step) -> None:
        if not seen or minute() - seen[-1][0] >= 1:
            seen.append((minute(), round(step.requests * per_request), anonymous_mb()))
            print("{:6.1f} {:12,d} {:13,.1f}".format(*seen[-1]), flush=True)

    n_steps = laps * len(blocks)
    took = timed(lambda: replay.run(on_step, lambda: replay.batches >= n_steps or minute() >= minutes))
    print(f"{took.wall / 60:6.1f} {replay.batches:,} steps, {anonymous_mb():,.1f} MB; CPU {took.process:,.0f} s")
    half = [(at, impressions / 1e6, mb) for at, impressions, mb in seen if at >= seen[-1][0] / 2]
    if len(half) > 2:
        at, millions, mb = np.array(half).T
        by_hour, by_million = (float(np.polyfit(x, mb, 1)[0]) for x in (at / 60, millions))
        lowest, highest = float(mb.min()), float(mb.max())
        print(f"second half: {lowest:,.1f} to {highest:,.1f} MB, {by_hour:+,.2f} MB per hour, {by_million:+.4f} per million")


def compare(
    config: RunConfig, folder: Path, requests: int, turns: int, raw: bool
) -> tuple[dict[str, list[Took]], int, Profile]:
    """Return what each side took per turn, the impressions, and where the time of the replays from samples went."""
    with open_log(folder) as log:
        source = open_source(log, config.join, Profile())
        blocks = in_memory(source, config, requests)
        bare(config, source, blocks[:20])  # compiles
        profile = Profile()
        sides: dict[str, Callable[[], tuple[Took, ...]]] = {
            "memory": lambda: (bare(config, source, blocks),),
            "samples": lambda: replayed(config, open_source(log, config.join, profile), len(blocks), profile)[:1],
        }
        if raw:
            sides[RAW] = lambda: replayed(config, JoinedSource(log, config.join), len(blocks), Profile())
            sides[RAW_IN_ONE] = lambda: replayed(config, in_one_process(log, config), len(blocks), Profile())
        names = {side: (side, FROM_FIRST_STEP.format(side)) for side in sides}
        took: dict[str, list[Took]] = {side: [] for side in sides}
        for turn in range(turns):
            for side in [*sides][turn % len(sides) :] + [*sides][: turn % len(sides)]:
                for name, each in zip(names[side], sides[side](), strict=False):
                    took.setdefault(name, []).append(each)
    return took, sum(block.n_candidates for block in blocks), profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--model", default="egin")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--laps", type=int, default=0, help="a long stream of so many laps instead, and its memory")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end the long stream after so many")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--profile", action="store_true", help="where the time of the replays from samples went")
    parser.add_argument("--no-raw", action="store_true", help="leave the replays from raw events out")
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
        set_threads(config)
        if options.laps:
            with open_log(folder) as log:
                blocks = in_memory(open_source(log, config.join, Profile()), config, requests)
            long_stream(config, blocks, options.laps, options.minutes)
            return
        took, n_impressions, profile = compare(config, folder, requests, options.turns, not options.no_raw)
    result = {
        "model": options.model,
        "options": msgspec.to_builtins(config.models[options.model]),
        "threads": config.replay.threads,
        "impressions": n_impressions,
        "impressions_per_s": {side: n_impressions / statistics.median(t.wall for t in each) for side, each in took.items()},
        "ratios": {side: ratios(took["memory"], took[side]) for side in took if side != "memory"},
        "anonymous_mb": round(anonymous_mb()),
    }
    if options.json:
        print(json.dumps(result))
    else:
        show(result, options.turns)
    if options.profile:
        for stage, seconds, calls in profile.rows():
            print(f"  {stage:<32}{seconds:8.2f} s {calls:>8,} calls")


def ratios(alone: list[Took], other: list[Took]) -> dict[str, list[float]]:
    """Return the ratios of each turn by each clock."""
    return {clock: [getattr(a, clock) / getattr(o, clock) for a, o in zip(alone, other, strict=True)] for clock in Took._fields}


def show(result: dict[str, Any], turns: int) -> None:
    """Print a result."""
    print(f"{result['model']}, {result['threads']} threads, {result['impressions']:,} impressions, median of {turns} turns")
    for side, rate in result["impressions_per_s"].items():
        print(f"{side:<42}{rate:>12,.0f} impressions/s")
    for side, by_clock in result["ratios"].items():
        for clock, each in by_clock.items():
            print(
                f"from {side:<41} by {clock:<8}{statistics.median(each):6.2f}   (turns: {', '.join(f'{r:.2f}' for r in each)})"
            )
    print(f"anonymous memory at the end {result['anonymous_mb']:,} MB")


if __name__ == "__main__":
    main()
