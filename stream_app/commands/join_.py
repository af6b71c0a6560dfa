"""``freshet join``."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from stream_app.config import Layer
    from stream_app.join import JoinReport
    from stream_app.topics import Log


@dataclass(frozen=True)
class Join:
    """Join impressions and actions into labelled samples (topic `samples`); goes on where an earlier join ended.

    Of a log in a folder with --log; of topics on a Kafka cluster, live, with --kafka: one worker of a group that shares the
    partitions, until Ctrl-C: freshet join --kafka localhost:9092 --state /var/lib/freshet --metrics-port 9108

    Example: freshet join --log shop
    """

    log: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of the log; this or --kafka is required."""
    follow: tyro.conf.FlagCreatePairsOff[bool] = False
    """Go on as the log grows, until Ctrl-C."""
    kafka: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    """Brokers of the cluster, with commas between them; all else about it is the table [kafka] of the config."""
    state: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("joiner")
    """With --kafka: this worker's own folder of state."""
    app: Annotated[str, tyro.conf.arg(metavar="NAME")] = "freshet"
    """With --kafka: name of the group of workers."""
    worker_id: Annotated[str | None, tyro.conf.arg(metavar="ID", help_behavior_hint="(default: the host's name)")] = None
    """With --kafka: unique in the group, the same after a restart."""
    snapshots: Annotated[str | None, tyro.conf.arg(metavar="URL", help_behavior_hint="")] = None
    """With --kafka: folder or URL (file:///, s3://) for copies of the state, so that a partition can go on elsewhere."""
    snapshot_seconds: float = 300.0
    """With --snapshots: how often."""
    stall_seconds: float = 120.0
    """With --kafka: a worker that has something to do and does nothing for so long ends itself."""
    rocksdb_mb: Annotated[
        int | None, tyro.conf.arg(metavar="MB", help_behavior_hint="(default: 128 with --kafka, 256 and 96 with --log)")
    ] = None
    """MB that RocksDB may use for the state and the log (with --kafka: the inboxes) of all partitions together."""
    cache_entries: int = 200_000
    """Users, pending requests, items and so on of a partition that stay in memory between commits, each; 1 at least."""
    metrics_port: Annotated[int | None, tyro.conf.arg(metavar="PORT", help_behavior_hint="")] = None
    """With --kafka: answer Prometheus there."""
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
        from stream_app.config import ConfigError

        if (self.log is None) == (self.kafka is None):
            raise ConfigError("freshet join: give one of --log DIR and --kafka HOST:PORT")
        return self._run_log(self.log) if self.log is not None else self._run_worker(self.kafka or "")

    def _run_log(self, folder: Path) -> int:
        from stream_app.config import resolve
        from stream_app.inspect import JOINER
        from stream_app.join import join_log
        from stream_app.log_config import log_layers, write_joined
        from stream_app.progress import Progress
        from stream_app.signals import PoliteStop
        from stream_app.topics.embedded import EmbeddedLog, open_log
        from stream_app.topics.rocks_memory import RocksMemory

        memory = None if self.rocksdb_mb is None else RocksMemory(self.rocksdb_mb)
        join = resolve(log_layers(folder) + self._layers()).join
        with open_log(folder) as log:
            total = raw_records(log)
        with EmbeddedLog(folder, memory=memory) as log, PoliteStop() as stop, Progress("join", "events", total) as progress:
            noted = False

            def on_progress(report: JoinReport) -> None:
                nonlocal noted
                if not noted:  # Only now is it known that the log takes these options.
                    write_joined(folder, join)
                    noted = True
                progress.update(report.events, f"{report.rows:,} requests")

            report = join_log(
                log,
                folder / JOINER,
                join,
                follow=self.follow,
                on_progress=on_progress,
                stop=stop,
                cache_entries=self.cache_entries,
                memory=memory,
            )
        print_report(report, self.json)
        return 128 + stop.signal if stop.signal is not None and not self.follow else 0

    def _run_worker(self, servers: str) -> int:
        import os
        import socket

        from msgspec.structs import replace

        from stream_app.config import resolve
        from stream_app.kafka_config import parse_servers
        from stream_app.progress import Progress
        from stream_app.signals import PoliteStop
        from stream_app.worker_options import WORKER_ROCKSDB_MB, WorkerOptions
        from stream_app.worker_run import Status, run_worker

        config = resolve(self._layers())
        options = WorkerOptions(
            app=self.app,
            worker_id=self.worker_id or socket.gethostname(),
            state_dir=self.state,
            snapshots=self.snapshots,
            snapshot_seconds=self.snapshot_seconds,
            stall_seconds=self.stall_seconds,
            rocksdb_mb=WORKER_ROCKSDB_MB if self.rocksdb_mb is None else self.rocksdb_mb,
            cache_entries=self.cache_entries,
            metrics_port=self.metrics_port,
        )
        kafka = replace(config.kafka, servers=parse_servers(servers))
        log_to_stderr()
        with PoliteStop() as stop, Progress("join", "events", plain_seconds=5.0) as progress:

            def on_status(status: Status) -> None:
                late = "" if status.lag_seconds is None else f", {status.lag_seconds:,.1f} s of event time"
                where = f"partitions {', '.join(map(str, status.partitions))}" if status.partitions else "no partitions"
                progress.update(status.report.events, f"{status.report.rows:,} rows, {status.lag:,} behind{late}, {where}")

            report = run_worker(options, config.join, kafka, stop=stop, on_status=on_status)
        print_report(report, self.json)
        sys.stdout.flush()
        os._exit(0)  # Threads of clients that wait for a broker that is away do not hold up an end in good order.

    def _layers(self) -> list[Layer]:
        from stream_app.config import read_layer, set_layer

        return ([read_layer(self.config)] if self.config else []) + [set_layer(assignment) for assignment in self.set]


def log_to_stderr() -> None:
    """Tell what the worker and faust have to say, on stderr; of the clients' libraries only what is wrong."""
    logging.basicConfig(format="freshet: %(levelname)s %(name)s: %(message)s", level=logging.ERROR, stream=sys.stderr)
    logging.getLogger("stream_app").setLevel(logging.INFO)


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
