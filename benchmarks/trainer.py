"""The live trainer: fed by an embedded log or by Kafka against fed from memory; and the delay from an action to the weights.

    python benchmarks/trainer.py [--model egin] [--requests N] [--turns 3] [--kafka [HOST:PORT]] [--log DIR] [--threads N]
    python benchmarks/trainer.py --delay [--seconds 30] [--rate 50] [--kafka [HOST:PORT]]
    python benchmarks/trainer.py --quick

Throughput: all sides run the same loop (score, learn, count) over the same rows; fed from memory the steps are cut beforehand,
else a thread reads, decodes and cuts them meanwhile. Seconds of CPU are of the whole process; ``reading_cpu_s`` are those of
reading alone. Ratios are medians over the turns, each against memory in the same turn.
Delay: a stream with ``policy = correct`` and no lateness, joined by a process of its own (``freshet join --follow``, or
``freshet join --kafka``); each action is timed from its append to the end of the step that learned its correction.
``--kafka`` without a broker starts one from Maven's jars.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stream_app.config import Layer, RunConfig, resolve, to_toml
from stream_app.entrants import build_entrants
from stream_app.events import ACTIONS, IMPRESSIONS, SAMPLES, Action, Impression, ImpressionItem, hash_id, partition_of
from stream_app.inspect import JOINER
from stream_app.join import join_log
from stream_app.joiner.blocks import sample_schema
from stream_app.joiner.config import JoinConfig
from stream_app.kafka_config import KafkaConfig
from stream_app.launch import set_threads, with_defaults
from stream_app.live_reader import Lag, LiveBatch, LiveReader
from stream_app.log_config import joined_layers, write_joined
from stream_app.sample_sources import NO_END
from stream_app.samples_reader import Place
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.topics import Log, Message, Topic
from stream_app.topics.embedded import EmbeddedLog, open_log
from stream_app.topics.kafka import open_kafka
from stream_app.train import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.integration.broker import Broker


class Memory:
    """A feed whose steps were cut beforehand."""

    def __init__(self, batches: Sequence[LiveBatch]) -> None:
        self._left = deque(batches)
        self.ended = False

    def take(self, timeout: float) -> LiveBatch | None:
        """Return the next step."""
        self.ended = not self._left
        return None if self.ended else self._left.popleft()

    def lag(self) -> Lag:
        """Return how far behind the reading is."""
        return Lag(0, 0)

    def queue_fill(self) -> float:
        """Return which part of the queue is full."""
        return 1.0

    def queue_rows(self) -> int:
        """Return the rows that wait."""
        return len(self._left)


class Timed:
    """A reader whose rows are noted when they have been learned."""

    def __init__(self, reader: LiveReader, appended: dict[int, float]) -> None:
        self._reader, self._appended = reader, appended
        self._last: LiveBatch | None = None
        self.delays: list[float] = []
        self.ended = False

    def take(self, timeout: float) -> LiveBatch | None:
        """Return the next step."""
        now = time.perf_counter()  # The step before has just been learned.
        if self._last is not None:
            labels = self._last.block.ragged("candidate.label")
            positive = np.maximum.reduceat(labels.values, labels.offsets[:-1]) > 0
            for request in self._last.block.column("request")[positive].tolist():
                if request in self._appended:
                    self.delays.append(now - self._appended.pop(request))
        self._last = self._reader.take(timeout)
        return self._last

    def lag(self) -> Lag:
        """Return how far behind the reading is."""
        return self._reader.lag()

    def queue_fill(self) -> float:
        """Return which part of the queue is full."""
        return self._reader.queue_fill()

    def queue_rows(self) -> int:
        """Return the rows that wait."""
        return self._reader.queue_rows()


def trainer_of(config: RunConfig, topic: Topic) -> Trainer:
    schema = sample_schema(config.join, topic.n_partitions)
    entrants = [entrant for entrant in build_entrants(config, schema) if entrant.name in config.replay.models]
    return Trainer(config, schema, entrants, (Place(position=0, end=NO_END),) * topic.n_partitions)


def reader_of(config: RunConfig, topic: Topic, trainer: Trainer, drain: bool) -> LiveReader:
    return LiveReader(
        topic,
        sample_schema(config.join, topic.n_partitions),
        trainer.places,
        batch_requests=config.replay.batch_requests,
        wait_ms=config.train.wait_ms,
        queue_batches=config.train.queue_batches,
        drain=drain,
        prepare=trainer.preparation(),
    )


def fed_by(config: RunConfig, topic: Topic, feed: Memory | None) -> tuple[float, float]:
    """Return impressions per second of wall time and per second of CPU time."""
    trainer = trainer_of(config, topic)
    began, began_cpu = time.perf_counter(), time.process_time()
    if feed is not None:
        trainer.run(feed)
    else:
        with reader_of(config, topic, trainer, drain=True) as reader:
            trainer.run(reader)
    learned = trainer.entrants[0].learned
    return learned / (time.perf_counter() - began), learned / (time.process_time() - began_cpu)


def cut(config: RunConfig, topic: Topic) -> list[LiveBatch]:
    batches = []
    with reader_of(config, topic, trainer_of(config, topic), drain=True) as reader:
        while not reader.ended:
            if (batch := reader.take(1.0)) is not None:
                batches.append(batch)
    return batches


def reading_cpu(config: RunConfig, topic: Topic) -> float:
    """Return the seconds of CPU that reading, decoding and cutting take with nothing beside them."""
    cut(config, topic)  # connects
    began = time.process_time()
    cut(config, topic)
    return time.process_time() - began


def copied(source: Topic, log: Log) -> Topic:
    topic = log.create(SAMPLES, source.n_partitions)
    for p in range(source.n_partitions):
        position = 0
        while records := source.read(p, position, 100):
            topic.append(p, [Message(r.ts, r.key, r.value) for r in records])
            position = records[-1].offset + 1
    return topic


def throughput(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    path = options.log or folder / "log"
    if options.log is None:
        with EmbeddedLog(path) as log:
            join = run_simulate(SimulateOptions(requests=options.requests), log, path).join
            join_log(log, path / JOINER, join)
        write_joined(path, join)
    flags = {"models": (options.model,), "eval": "immediate", "threads": options.threads}
    config = with_defaults(resolve([*joined_layers(path), Layer("the benchmark", {"replay": flags})]))
    set_threads(config)
    with open_log(path) as log:
        topic = log.topic(SAMPLES)
        batches = cut(config, topic)
        fed_by(config, topic, Memory(batches[:20]))  # compiles
        sides: dict[str, Topic] = {"embedded": topic}
        if options.kafka:
            kafka = open_kafka(KafkaConfig(servers=(options.kafka,), topic_prefix=f"bench-{secrets.token_hex(4)}-"))
            sides["kafka"] = copied(topic, kafka)
        names = ["memory", *sides]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for turn in range(options.turns):
            # Each side comes first in turn: a machine that gets slower or faster favours none.
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                feed = Memory(batches) if name == "memory" else None
                found[name].append(fed_by(config, sides.get(name, topic), feed))
        reading = {name: reading_cpu(config, each) for name, each in sides.items()}
    result: dict[str, Any] = {"model": options.model, "threads": config.replay.threads, "requests": len(batches) * 100}
    for name, rates in found.items():
        result[name] = {
            "impressions_per_s": round(statistics.median(wall for wall, _ in rates)),
            "impressions_per_cpu_s": round(statistics.median(cpu for _, cpu in rates)),
            "ratio": round(statistics.median(w / m for (w, _), (m, _) in zip(rates, found["memory"], strict=True)), 3),
            "cpu_ratio": round(statistics.median(c / m for (_, c), (_, m) in zip(rates, found["memory"], strict=True)), 3),
        }
        if name in reading:
            result[name]["reading_cpu_s"] = round(reading[name], 3)
    return result


@contextmanager
def joining(words: Sequence[str]) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "stream_app.cli", "join", *words], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def produce(log: Log, rate: float, stop: threading.Event, appended: dict[int, float]) -> None:
    """Show a page and click on it 0.2 s later, ``rate`` times a second, over two partitions, at the time of the wall."""
    n, due = 0, deque[tuple[float, int]]()
    began = time.perf_counter()
    while not stop.is_set():
        now, ts = time.perf_counter(), int(time.time() * 1_000)
        while n < (now - began) * rate:
            user, request = f"u{n % 40}", f"r{n}"
            event = Impression(request, user, ts, [ImpressionItem(f"i{(n * 7 + k) % 200}") for k in range(10)])
            place = partition_of(user.encode(), 2)
            log.topic(IMPRESSIONS).append(place, [Message(ts, user.encode(), msgspec.json.encode(event))])
            due.append((now + 0.2, n))
            n += 1
        while due and due[0][0] <= now:
            _, m = due.popleft()
            user = f"u{m % 40}"
            click = Action(user, f"i{m * 7 % 200}", ts, "click", f"r{m}")
            appended[hash_id("request", f"r{m}")] = time.perf_counter()
            place = partition_of(user.encode(), 2)
            log.topic(ACTIONS).append(place, [Message(ts, user.encode(), msgspec.json.encode(click))])
        stop.wait(0.005)


def delay(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    join = JoinConfig(policy="correct", lateness_ms=0, correction_window_ms=60_000)
    path, file = folder / "log", folder / "join.toml"
    file.write_text("[join]\n" + to_toml(join).replace("\n[", "\n[join."))
    flags = {"models": (options.model,), "eval": "immediate", "threads": options.threads}
    layers = [Layer("the benchmark", {"join": msgspec.to_builtins(join), "replay": flags})]
    config = with_defaults(resolve(layers))
    set_threads(config)
    appended: dict[int, float] = {}
    stop = threading.Event()
    if options.kafka:
        prefix = f"delay-{secrets.token_hex(4)}-"
        raw: Log = open_kafka(KafkaConfig(servers=(options.kafka,), topic_prefix=prefix))
        samples: Log = open_kafka(KafkaConfig(servers=(options.kafka,), topic_prefix=prefix))
        words = ["--kafka", options.kafka, "--set", f"kafka.topic_prefix={prefix}", "--config", str(file)]
        words += ["--state", str(folder / "state")]
    else:
        raw = EmbeddedLog(path)
        words = ["--log", str(path), "--follow", "--config", str(file)]
    for name in (IMPRESSIONS, ACTIONS):
        raw.create(name, 2)
    if not options.kafka:
        samples = open_log(path)
    producer = threading.Thread(target=produce, args=(raw, options.rate, stop, appended))
    with joining(words):
        producer.start()
        while SAMPLES not in samples.topics():
            time.sleep(0.1)
        topic = samples.topic(SAMPLES)
        trainer = trainer_of(config, topic)
        until = time.perf_counter() + 10 + options.seconds
        with reader_of(config, topic, trainer, drain=False) as reader:
            timed = Timed(reader, appended)
            trainer.run(timed, stop=lambda: time.perf_counter() > until - options.seconds)  # compiles, catches up
            timed.delays.clear()
            trainer.run(timed, stop=lambda: time.perf_counter() > until)
        stop.set()
        producer.join()
    raw.close()
    samples.close()
    found = np.sort(timed.delays)
    return {
        "source": "kafka" if options.kafka else "embedded",
        "model": options.model,
        "actions_per_s": options.rate,
        "actions": len(found),
        "median_s": round(float(np.median(found)), 3),
        "p99_s": round(float(np.quantile(found, 0.99)), 3),
        "max_s": round(float(found[-1]), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--kafka", nargs="?", const="", metavar="HOST:PORT")
    parser.add_argument("--model", default="egin")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--delay", action="store_true")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.requests, options.turns, options.seconds = 3_000, 1, 5.0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        if options.kafka == "":
            options.kafka = opened.enter_context(Broker(Path(folder) / "broker")).server
        if options.quick or not options.delay:
            print(json.dumps(throughput(options, Path(folder)), indent=1))
        if options.quick or options.delay:
            (Path(folder) / "delay").mkdir()
            print(json.dumps(delay(options, Path(folder) / "delay"), indent=1))


if __name__ == "__main__":
    main()
