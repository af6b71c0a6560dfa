"""What a worker shows of itself to Prometheus. Names end in their unit; labels are few.

====================================== ========= ====================== ==================================================
metric                                 kind      labels                 what
====================================== ========= ====================== ==================================================
freshet_worker_events_total            counter   topic                  raw records delivered by faust
freshet_worker_direct_records          gauge                            raw records that joiners read from Kafka themselves
freshet_worker_joined_total            counter                          raw records applied by joiners
freshet_worker_rows_total              counter                          rows published
freshet_worker_counts                  gauge     name                   the joiners' counters since the state's beginning:
                                                                        late_actions, orphan_actions, duplicate_actions, ...
freshet_worker_dead_letters            gauge     reason                 dead letters since the state's beginning
freshet_worker_lag_records             gauge     topic, partition       records in Kafka that are not applied yet
freshet_worker_lag_seconds             gauge     partition              wall clock minus event time of the joiner
freshet_worker_pending                 gauge                            steps that wait for event time to pass
freshet_worker_inbox_records           gauge     topic, partition       delivered records that wait for the joiner
freshet_worker_partitions              gauge                            partitions owned
freshet_worker_publish_seconds         histogram                        from a batch's rows to their acknowledgement
freshet_worker_commit_seconds          histogram                        the state's write
freshet_worker_snapshot_age_seconds    gauge     partition              since the newest snapshot by this worker
====================================== ========= ====================== ==================================================
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from stream_app.durable_join import JoinReport

__all__ = ["WorkerMetrics"]

_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class WorkerMetrics:
    """Counters and gauges of one worker; may be told by several threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self._events = Counter("freshet_worker_events", "Raw records delivered by faust", ["topic"], registry=registry)
        self._direct = Gauge(
            "freshet_worker_direct_records", "Raw records that joiners read from Kafka themselves", registry=registry
        )
        self._joined = Counter("freshet_worker_joined", "Raw records applied by joiners", registry=registry)
        self._rows = Counter("freshet_worker_rows", "Rows published", registry=registry)
        self._counts = Gauge(
            "freshet_worker_counts", "The joiners' counters since the state's beginning", ["name"], registry=registry
        )
        self._letters = Gauge(
            "freshet_worker_dead_letters", "Dead letters since the state's beginning", ["reason"], registry=registry
        )
        self._lag = Gauge(
            "freshet_worker_lag_records", "Records that are not applied yet", ["topic", "partition"], registry=registry
        )
        self._late = Gauge(
            "freshet_worker_lag_seconds", "Wall clock minus event time of the joiner", ["partition"], registry=registry
        )
        self._pending = Gauge("freshet_worker_pending", "Steps that wait for event time to pass", registry=registry)
        self._inbox = Gauge(
            "freshet_worker_inbox_records", "Delivered records that wait", ["topic", "partition"], registry=registry
        )
        self._partitions = Gauge("freshet_worker_partitions", "Partitions owned", registry=registry)
        self._publish = Histogram(
            "freshet_worker_publish_seconds", "Publishing of a batch", buckets=_BUCKETS, registry=registry
        )
        self._commit = Histogram("freshet_worker_commit_seconds", "The state's write", buckets=_BUCKETS, registry=registry)
        self._age = Gauge("freshet_worker_snapshot_age_seconds", "Since the newest snapshot", ["partition"], registry=registry)

    def serve(self, port: int) -> int:
        """Answer Prometheus on a port of all interfaces (0: any free one); return the port."""
        server, _ = start_http_server(port, registry=self.registry)
        return int(server.server_port)

    def delivered(self, topic: str, n: int) -> None:
        """Count delivered records."""
        self._events.labels(topic).inc(n)

    def joined(self, events: int, rows: int, report: JoinReport) -> None:
        """Take what a joiner's turn has done."""
        if events or rows:
            self._joined.inc(events)
            self._rows.inc(rows)
            self._pending.set(report.pending)

    def step(self, publish_seconds: float, commit_seconds: float) -> None:
        """Take how long a batch's writes took."""
        self._publish.observe(publish_seconds)
        self._commit.observe(commit_seconds)

    def snapshot(self, partition: int) -> None:
        """A snapshot was stored."""
        taken = time.time()
        self._age.labels(str(partition)).set_function(lambda: time.time() - taken)

    def look(
        self,
        report: JoinReport,
        lags: Mapping[tuple[str, int], int],
        highs_ms: Mapping[int, int],
        held: Mapping[tuple[str, int], int],
        n_direct: int,
    ) -> None:
        """Take a look round: counters, lags, event times by partition, inboxes."""
        for name, n in report.counters.items():
            if not name.startswith("dead_letters."):
                self._counts.labels(name).set(n)
        for reason, n in report.dead_letters.items():
            self._letters.labels(reason).set(n)
        for gauge, values in ((self._lag, lags), (self._inbox, held)):
            gauge.clear()
            for (topic, partition), n in values.items():
                gauge.labels(topic, str(partition)).set(n)
        self._late.clear()
        for partition, high in highs_ms.items():
            self._late.labels(str(partition)).set(time.time() - high / 1_000)
        self._pending.set(report.pending)
        self._partitions.set(report.n_partitions)
        self._direct.set(n_direct)
