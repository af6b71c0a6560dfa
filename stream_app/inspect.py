"""What is in a log's folder or a run's, as one object; reads only, also while others write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from learners.checkpoint import checkpoints, latest, load
from stream_app.events import SAMPLES
from stream_app.inspect_topic import first_and_last, samples_of
from stream_app.item_vectors import described
from stream_app.joiner.store import Header, StateError
from stream_app.runs import CHECKPOINTS, METRICS, RESULT, RunFolder, is_run
from stream_app.state import RocksState
from stream_app.topics.embedded import EmbeddedTopic, open_log

JOINER = "joiner"

__all__ = ["JOINER", "inspect", "inspect_log", "inspect_run"]


def inspect(path: Path) -> dict[str, Any]:
    """Return what is in a folder.

    Raises:
        TopicError: it is neither a log nor a run.
    """
    return inspect_run(path) if is_run(path) else inspect_log(path)


def inspect_log(path: Path) -> dict[str, Any]:
    """Return a log's topics, samples, joiner and imports."""
    with open_log(path) as log:
        topics = {name: _topic(log.topic(name)) for name in log.topics()}
        samples = samples_of(log.topic(SAMPLES)) if SAMPLES in topics else None
    return {
        "kind": "log",
        "path": str(path),
        "topics": topics,
        "samples": samples,
        "joiner": [_joiner(folder) for folder in sorted((path / JOINER).glob("*"), key=lambda each: int(each.name))],
        "imports": [msgspec.json.decode(file.read_bytes()) for file in sorted((path / "imports").glob("*.json"))],
    }


def inspect_run(path: Path) -> dict[str, Any]:
    """Return a run's models, marks, figures and checkpoints."""
    root = path / CHECKPOINTS
    newest = latest(root)
    found: dict[str, Any] = {
        "kind": "run",
        "path": str(path),
        "log": None,
        "models": {},
        "checkpoints": [folder.name for folder in checkpoints(root)],
        "result": msgspec.json.decode((path / RESULT).read_bytes()) if (path / RESULT).is_file() else None,
        "windows": _last_windows(path / METRICS),
    }
    config = RunFolder.config_of(path)
    found |= {"log": config.log, "config": msgspec.to_builtins(config)}
    if newest is not None:
        checkpoint = load(newest)
        extra = checkpoint.extra
        found |= {name: extra[name] for name in ("generation", "requests", "ts")}
        found |= {"batches": checkpoint.step, "marks": checkpoint.marks}
        if vectors := checkpoint.arrays.get("vectors"):
            found["vectors"] = described(vectors)
        for name in config.replay.models:
            learned = extra["entrants"][name]["learned"]
            found["models"][name] = {
                "digest": checkpoint.digests[name],
                "impressions": learned,
                **extra["entrants"][name]["described"],
            }
    return found


def _topic(topic: EmbeddedTopic) -> dict[str, Any]:
    offsets = [(topic.start(partition), topic.end(partition)) for partition in range(topic.n_partitions)]
    times = [ts for partition, (start, end) in enumerate(offsets) for ts in first_and_last(topic, partition, start, end)]
    return {
        "partitions": topic.n_partitions,
        "records": sum(end - start for start, end in offsets),
        "bytes": sum(topic.disk_bytes(partition) for partition in range(topic.n_partitions)),
        "first_ts": min(times, default=None),
        "last_ts": max(times, default=None),
        "offsets": offsets,
    }


def _joiner(folder: Path) -> dict[str, Any]:
    partition = int(folder.name)
    try:
        with RocksState(folder, Header("", []), 0) as state:
            header = state.header
    except StateError as error:
        return {"partition": partition, "in_use": str(error)}
    return {
        "partition": partition,
        "seq": header.seq,
        "positions": [{"topic": p.topic, "partition": p.partition, "offset": p.offset} for p in header.positions],
        "counters": header.counters,
    }


def _last_windows(metrics: Path) -> dict[str, Any]:
    """Return the newest window of each model."""
    windows: dict[str, Any] = {}
    if metrics.is_file():
        for line in metrics.read_bytes().splitlines():
            window = msgspec.json.decode(line)
            windows[window["model"]] = window
    return windows
