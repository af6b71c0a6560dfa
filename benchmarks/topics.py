"""Append and scan rates of the embedded log, beside RocksDB's plain ``put`` and scan of one record at a time.

Run: ``python benchmarks/topics.py [--records N] [--batch N] [--repeats N] [--json] [--kafka [HOST:PORT]]``. Rates are the
best of the repeats, which take turns; read the ratios, not the rates. ``--kafka``: topics of a cluster as well, beside loops of
kafka-python itself (``send`` and ``flush`` of a batch, ``poll``); without a broker one is started from Maven's jars.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from rocksdict import Options, Rdict

from stream_app.kafka_config import KafkaConfig
from stream_app.topics import Message, Record, Topic
from stream_app.topics.embedded import EmbeddedLog, open_log
from stream_app.topics.kafka import open_kafka
from stream_app.topics.memory import MemoryLog

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.integration.broker import Broker

Rates = dict[str, float]


def pages(n_records: int) -> list[Message]:
    """Return impressions of some 230 bytes, as JSON, keyed by user."""
    draw = random.Random(0)
    return [
        Message(
            1_700_000_000_000 + 3 * i,
            b"user-%d" % draw.randrange(100_000),
            json.dumps(
                {
                    "request_id": f"r{i}",
                    "user_id": f"user-{i % 1000}",
                    "ts": 1_700_000_000_000 + 3 * i,
                    "items": [{"item_id": f"item-{draw.randrange(10**6)}"} for _ in range(5)],
                }
            ).encode(),
        )
        for i in range(n_records)
    ]


def rate(n_records: int, work: Callable[[], object]) -> float:
    """Return records per second."""
    begin = time.perf_counter()
    work()
    return n_records / (time.perf_counter() - begin)


def append(topic: Topic, messages: list[Message], batch: int) -> None:
    for begin in range(0, len(messages), batch):
        topic.append(0, messages[begin : begin + batch])


def scan(topic: Topic, n_records: int) -> None:
    position = 0
    while records := topic.read(0, position, 10_000):
        position += len(records)
    assert position == n_records


def plain_rocksdb(folder: Path, messages: list[Message]) -> Rates:
    """Append with one ``put`` per record, and scan them back into Records."""
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    db = Rdict(str(folder), options)

    def put() -> None:
        for offset, message in enumerate(messages):
            head = message.ts.to_bytes(8, "big") + len(message.key).to_bytes(2, "big")
            db.put(offset.to_bytes(8, "big"), head + message.key + message.value)

    def scan_items() -> None:
        records = []
        items = cast(Iterator[tuple[bytes, bytes]], db.items())
        for key, value in items:
            end = 10 + int.from_bytes(value[8:10], "big")
            ts = int.from_bytes(value[:8], "big")
            records.append(Record(int.from_bytes(key, "big"), ts, value[10:end], value[end:]))
        assert len(records) == len(messages)

    rates = {"put": rate(len(messages), put), "plain scan": rate(len(messages), scan_items)}
    db.close()
    return rates


def embedded(folder: Path, messages: list[Message], batch: int) -> Rates:
    """Append in batches and one by one; scan as the writer, and as a follower of it."""
    n_records, n_singles = len(messages), len(messages) // 10
    with EmbeddedLog(folder) as log, open_log(folder) as follower:
        topic, singles = log.create("pages", 1), log.create("singles", 1)
        return {
            "append": rate(n_records, lambda: append(topic, messages, batch)),
            "append singly": rate(n_singles, lambda: append(singles, messages[:n_singles], 1)),
            "scan": rate(n_records, lambda: scan(topic, n_records)),
            "scan singles": rate(n_singles, lambda: scan(singles, n_singles)),
            "follow": rate(n_records, lambda: scan(follower.topic("pages"), n_records)),
        }


def memory(messages: list[Message], batch: int) -> Rates:
    """The same in memory: what the interface itself costs."""
    topic = MemoryLog().create("pages", 1)
    return {
        "append to memory": rate(len(messages), lambda: append(topic, messages, batch)),
        "scan of memory": rate(len(messages), lambda: scan(topic, len(messages))),
    }


def plain_kafka(server: str, name: str, messages: list[Message], batch: int) -> Rates:
    """Append with ``send`` and a ``flush`` per batch, and read by ``poll``, into Records."""
    producer = KafkaProducer(
        bootstrap_servers=server, acks="all", compression_type="lz4", linger_ms=5, batch_size=512 << 10, max_block_ms=30_000
    )
    tp = TopicPartition(name, 0)
    consumer = KafkaConsumer(
        bootstrap_servers=server, max_poll_records=8_192, max_partition_fetch_bytes=16 << 20, isolation_level="read_committed"
    )
    consumer.assign([tp])
    consumer.seek(tp, 0)

    def send() -> None:
        for begin in range(0, len(messages), batch):
            for message in messages[begin : begin + batch]:
                producer.send(name, value=message.value, key=message.key, partition=0, timestamp_ms=message.ts)
            producer.flush()

    def poll() -> None:
        left = len(messages)
        while left:
            records = [Record(r.offset, r.timestamp, r.key, r.value) for r in consumer.poll(1_000).get(tp, ())]
            left -= len(records)

    rates = {"send": rate(len(messages), send), "poll": rate(len(messages), poll)}
    producer.close()
    consumer.close()
    return rates


def kafka(server: str, messages: list[Message], batch: int) -> Rates:
    """Append in batches and scan, on a cluster; the same by its client."""
    prefix = f"bench-{secrets.token_hex(4)}-"
    with open_kafka(KafkaConfig(servers=(server,), topic_prefix=prefix)) as log:
        topic = log.create("pages", 1)
        log.create("plain", 1)
        rates = {
            "append to kafka": rate(len(messages), lambda: append(topic, messages, batch)),
            "scan of kafka": rate(len(messages), lambda: scan(topic, len(messages))),
        }
    return plain_kafka(server, f"{prefix}plain", messages, batch) | rates


def measure(n_records: int, batch: int, repeats: int, server: str | None) -> Rates:
    """Return the best rate of each kind of work, in records per second."""
    messages = pages(n_records)
    best: Rates = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            rates = plain_rocksdb(Path(folder) / "plain", messages)
            rates |= embedded(Path(folder) / "log", messages, batch) | memory(messages, batch)
        rates |= kafka(server, messages, batch) if server is not None else {}
        best = {name: max(value, best.get(name, 0.0)) for name, value in rates.items()}
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=1_000, help="records per append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kafka", nargs="?", const="", metavar="HOST:PORT")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="little data, to see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.records, arguments.repeats = 20_000, 1
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        if arguments.kafka == "":
            arguments.kafka = opened.enter_context(Broker(Path(folder) / "broker")).server
        best = measure(arguments.records, arguments.batch, arguments.repeats, arguments.kafka)
    ratios = {"append / put": best["append"] / best["put"], "scan / plain scan": best["scan"] / best["plain scan"]}
    if "send" in best:
        ratios |= {"kafka append / send": best["append to kafka"] / best["send"]}
        ratios |= {"kafka scan / poll": best["scan of kafka"] / best["poll"]}
    if arguments.json:
        print(json.dumps({"records_per_s": best, "ratios": ratios}))
        return
    for name, value in best.items():
        print(f"{name:<20}{value:>12,.0f} records/s")
    for name, value in ratios.items():
        print(f"{name:<20}{value:>12.2f} x")


if __name__ == "__main__":
    main()
