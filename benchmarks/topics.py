"""Append and scan rates of the embedded log, beside RocksDB's plain ``put`` and scan of one record at a time.

Run: ``python benchmarks/topics.py [--records N] [--batch N] [--repeats N] [--json]``. Rates are the best of the repeats, which
take turns; read the ratios, not the rates.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from rocksdict import Options, Rdict

from stream_app.topics import Message, Record, Topic
from stream_app.topics.embedded import EmbeddedLog, open_log
from stream_app.topics.memory import MemoryLog

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


def measure(n_records: int, batch: int, repeats: int) -> Rates:
    """Return the best rate of each kind of work, in records per second."""
    messages = pages(n_records)
    best: Rates = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            rates = plain_rocksdb(Path(folder) / "plain", messages)
            rates |= embedded(Path(folder) / "log", messages, batch) | memory(messages, batch)
        best = {name: max(value, best.get(name, 0.0)) for name, value in rates.items()}
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=1_000, help="records per append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="little data, to see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.records, arguments.repeats = 20_000, 1
    best = measure(arguments.records, arguments.batch, arguments.repeats)
    ratios = {"append / put": best["append"] / best["put"], "scan / plain scan": best["scan"] / best["plain scan"]}
    if arguments.json:
        print(json.dumps({"records_per_s": best, "ratios": ratios}))
        return
    for name, value in best.items():
        print(f"{name:<18}{value:>12,.0f} records/s")
    for name, value in ratios.items():
        print(f"{name:<18}{value:>12.1f} x")


if __name__ == "__main__":
    main()
