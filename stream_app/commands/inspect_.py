"""``freshet inspect``."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Inspect:
    """Tell what is in a log, on a cluster or in a run: topics, offsets, marks, sizes, tables, queues, figures, digests.

    Example: freshet inspect runs/first
    """

    folder: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """A log or a run. This or --kafka."""
    kafka: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    """A Kafka cluster."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """With --kafka: TOML whose table [kafka] says how to connect."""
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE", help_behavior_hint="(repeatable)")
    ] = ()
    """With --kafka: one option over the file, for example kafka.topic_prefix=shop."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object instead of tables."""

    def run(self) -> int:
        """Print it."""
        import msgspec
        from rich.console import Console

        found = self._found()
        if self.json:
            print(msgspec.json.encode(found).decode())
        else:
            (print_run if found["kind"] == "run" else print_log)(found, Console())
        return 0

    def _found(self) -> dict[str, Any]:
        from stream_app.config import ConfigError

        if (self.folder is None) == (self.kafka is None):
            raise ConfigError("give one of DIR (a log or a run) and --kafka HOST:PORT (a cluster)")
        if self.folder is not None:
            from stream_app.inspect import inspect

            return inspect(self.folder)
        from stream_app.commands.where import open_for_writing
        from stream_app.inspect_kafka import inspect_kafka
        from stream_app.topics.kafka import KafkaLog

        with open_for_writing(None, self.kafka, self.config, self.set) as log:
            assert isinstance(log, KafkaLog)
            return inspect_kafka(log)


def command() -> type[Inspect]:
    """Return the command."""
    return Inspect


def print_log(found: dict[str, Any], console: Console) -> None:
    """Print a log's tables."""
    rows = [
        (name, topic["partitions"], topic["records"], _size(topic["bytes"]), _utc(topic["first_ts"]), _utc(topic["last_ts"]))
        for name, topic in found["topics"].items()
    ]
    _print(console, ("topic", "partitions", "records", "size", "from", "to"), rows)
    for done in found["imports"]:
        files = ", ".join(done["files"]) or "no files"
        console.print(f"{done['kind']}: {files}{'' if done['report'] else ' (cut off: run it again to finish it)'}")
    if found["samples"] is not None:
        marks = ", ".join(f"{partition}: {seq:,}" for partition, seq in sorted(found["samples"]["marks"].items()))
        console.print(f"samples: last seq per partition {marks or 'none'}")
    counters: Counter[str] = Counter()
    for joiner in found["joiner"]:
        if "in_use" in joiner:
            console.print(f"joiner {joiner['partition']}: in use")
        counters.update(joiner.get("counters", {}))
    if counters:
        _print(console, ("joined so far", ""), sorted(counters.items()))


def print_run(found: dict[str, Any], console: Console) -> None:
    """Print a run's tables."""
    state = "finished" if found["result"] else "not finished"
    console.print(f"log {found['log']}, {state}, checkpoints: {', '.join(found['checkpoints']) or 'none'}")
    if "requests" not in found:
        return
    marks = ", ".join(f"{partition}: {seq:,}" for partition, seq in sorted(found["marks"]["learned"].items()))
    console.print(f"{found['requests']:,} requests learned up to {_utc(found['ts'])}; last seq per partition {marks}")
    if held := found.get("vectors"):
        console.print(
            f"item vectors: {held['items']:,} of {held['dim']} numbers, {held['fill']:.0%} of the store; "
            f"{held['evicted']:,} gave way, {held['refused']:,} had another length"
        )
    figures = {name: window["figures"] for name, window in found["windows"].items()}
    of_all = "over all" if found["result"] else "last window"
    if found["result"]:
        figures = found["result"]["models"]
    rows = [
        (name, *(_figure(figures.get(name, {}).get(figure)) for figure in ("auc", "gauc", "log_loss")), model["digest"][:16])
        for name, model in found["models"].items()
    ]
    _print(console, (f"model, {of_all}", "AUC", "gAUC", "log loss", "digest"), rows)
    sizes = [(name, part, value) for name, model in found["models"].items() for part, value in _sizes(model)]
    _print(console, ("model", "size of", ""), sizes)


def _sizes(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a model says of itself, one line per leaf."""
    return [(key, str(value)) for key, value in _leaves(model, "") if key != "digest"]


def _leaves(value: Any, name: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(name, f"{value:,}" if isinstance(value, int) else value)]
    dot = f"{name}." if name else ""
    return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{dot}{key}")]


def _print(console: Console, titles: tuple[str, ...], rows: list[Any]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    console.print(table)


def _utc(ts: int | None) -> str:
    return "" if ts is None else dt.datetime.fromtimestamp(ts / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _size(n_bytes: int | None) -> str:
    return "" if n_bytes is None else f"{n_bytes / 1e6:,.1f} MB"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
