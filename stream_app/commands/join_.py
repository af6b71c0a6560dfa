"""``freshet join``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from stream_app.join import JoinReport
    from stream_app.topics import Log


@dataclass(frozen=True)
class Join:
    """Join a log's impressions and actions into labelled samples (topic `samples`); goes on where an earlier join ended.

    Example: freshet join --log shop
    """

    log: Annotated[Path, tyro.conf.arg(metavar="DIR", help_behavior_hint="(required)")]
    """Folder of the log."""
    follow: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on as the log grows, until Ctrl-C."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """TOML over the log's own freshet.toml."""
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE", help_behavior_hint="(repeatable)")
    ] = ()
    """One option over all files, for example join.label_window_ms=60000."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object instead of a table."""

    def run(self) -> int:
        """Join; print what was done."""
        from stream_app.config import read_layer, resolve, set_layer
        from stream_app.inspect import JOINER
        from stream_app.join import join_log
        from stream_app.log_config import log_layers, write_joined
        from stream_app.progress import Progress
        from stream_app.signals import PoliteStop
        from stream_app.topics.embedded import EmbeddedLog, open_log

        layers = log_layers(self.log) + ([read_layer(self.config)] if self.config else []) + [set_layer(s) for s in self.set]
        join = resolve(layers).join
        with open_log(self.log) as log:
            total = raw_records(log)
        with EmbeddedLog(self.log) as log, PoliteStop() as stop, Progress("join", "events", total) as progress:
            noted = False

            def on_progress(report: JoinReport) -> None:
                nonlocal noted
                if not noted:  # Only now is it known that the log takes these options.
                    write_joined(self.log, join)
                    noted = True
                progress.update(report.events, f"{report.rows:,} requests")

            report = join_log(log, self.log / JOINER, join, follow=self.follow, on_progress=on_progress, stop=stop)
        print_report(report, self.json)
        return 128 + stop.signal if stop.signal is not None and not self.follow else 0


def raw_records(log: Log) -> int:
    """Return how many records the raw topics hold."""
    from stream_app.events import RAW_TOPICS

    held = 0
    for name, n_partitions in log.topics().items():
        if name in RAW_TOPICS:
            topic = log.topic(name)
            held += sum(topic.end(partition) - topic.start(partition) for partition in range(n_partitions))
    return held


def print_report(report: JoinReport, as_json: bool) -> None:
    """Print what a join did."""
    import msgspec

    values = msgspec.to_builtins(report) | {"dead_letters": report.dead_letters}
    if as_json:
        print(msgspec.json.encode(values).decode())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", "now", "since the beginning", box=None, pad_edge=False)
    table.add_row("events", f"{report.events:,}", "")
    table.add_row("samples (requests)", f"{report.rows:,}", f"{report.counters.get('rows', 0):,}")
    table.add_row("waiting for the log to go on", f"{report.pending:,}", "")
    for name, n in sorted(report.counters.items()):
        if name != "rows":
            table.add_row(name.replace("_", " ").replace(".", ": "), "", f"{n:,}")
    Console().print(table)


def command() -> type[Join]:
    """Return the command."""
    return Join
