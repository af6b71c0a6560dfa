"""What Prometheus is told of a training run; docs/metrics.md says what each name means."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from stream_app.train_status import Status

UPDATE_SECONDS = 1.0
STEP_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
PREFIX = "freshet_trainer_"

__all__ = ["TrainMetrics", "TrainMetricsError"]


class TrainMetricsError(ValueError):
    """Metrics cannot be offered as asked."""


class TrainMetrics:
    """Offers a run's state over HTTP while entered.

    Args:
        port: to listen on, on all addresses; 0 takes a free one.

    Raises:
        TrainMetricsError: the package is not there, or the port is taken.
    """

    def __init__(self, port: int) -> None:
        try:
            import prometheus_client as prometheus
        except ImportError as error:
            raise TrainMetricsError(
                "--metrics-port needs the package prometheus-client: pip install 'freshet[kafka]', or leave the flag out"
            ) from error
        self.registry = prometheus.CollectorRegistry()
        self._updated = 0.0
        self._counted: dict[str, int] = {}
        self._checkpoint: str | None = None

        def gauge(name: str, text: str, *labels: str) -> prometheus.Gauge:
            return prometheus.Gauge(PREFIX + name, text, labels, registry=self.registry)

        self._impressions = prometheus.Counter(
            PREFIX + "impressions", "Impressions learned by this process", ("model",), registry=self.registry
        )
        self._rows = prometheus.Counter(PREFIX + "rows", "Requests learned by this process", registry=self.registry)
        self._steps = prometheus.Histogram(
            PREFIX + "step_seconds", "Scoring and learning one step", buckets=STEP_BUCKETS, registry=self.registry
        )
        self._lag_blocks = gauge("lag_blocks", "Blocks of samples that were not read yet")
        self._lag_rows = gauge("lag_rows", "Rows that were read and not learned yet")
        self._lag_seconds = gauge("lag_event_seconds", "Event time between the newest row there and the newest one learned")
        self._delay = gauge("delay_seconds", "Wall time since the newest row that was learned was due")
        self._queue = gauge("queue_fill_ratio", "Part of the queue of steps read ahead that is full")
        self._age = gauge("checkpoint_age_seconds", "Age of the newest checkpoint")
        self._took = gauge("checkpoint_seconds", "Time the newest checkpoint took")
        self._bytes = gauge("checkpoint_bytes", "Size of the newest checkpoint")
        self._auc = gauge("window_auc", "AUC of the last window", "model")
        self._log_loss = gauge("window_log_loss", "Log loss of the last window", "model")
        self._stats = gauge("loss", "Parts of the loss in the last step", "model", "part")
        self._tables = gauge("table_rows", "Rows of an embedding table", "model", "table")
        try:
            self._server, self._thread = prometheus.start_http_server(port, registry=self.registry)
        except OSError as error:
            raise TrainMetricsError(f"--metrics-port {port}: {error.strerror}; give a free port, 0 picks one") from error

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_port)

    def step(self, seconds: float) -> None:
        """Count a step."""
        self._steps.observe(seconds)

    def update(self, status: Status) -> None:
        """Take a status in, once a second; may be called at any rate."""
        now = time.monotonic()
        if now - self._updated < UPDATE_SECONDS:
            return
        self._updated = now
        self._count("rows", self._rows, status.requests)
        self._lag_blocks.set(status.lag.blocks)
        self._lag_rows.set(status.queue_rows)
        self._lag_seconds.set(status.lag_seconds)
        if status.ts:
            self._delay.set(status.delay_seconds)
        self._queue.set(status.queue_fill)
        if (age := status.checkpoint.age()) is not None:
            self._age.set(age)
            self._took.set(status.checkpoint.seconds)
            self._bytes.set(status.checkpoint.n_bytes)
        for entrant in status.entrants:
            self._count(f"impressions {entrant.name}", self._impressions.labels(entrant.name), entrant.learned)
            for name, value in entrant.stats.items():
                if name.startswith("loss."):
                    self._stats.labels(entrant.name, name.removeprefix("loss.")).set(value)
        self._update_windows(status)
        self._update_tables(status)

    def _update_windows(self, status: Status) -> None:
        for model, window in status.windows.items():
            for gauge, figure in ((self._auc, "auc"), (self._log_loss, "log_loss")):
                if (value := window["figures"].get(figure)) is not None:
                    gauge.labels(model).set(value)

    def _update_tables(self, status: Status) -> None:
        """Tables are told at each checkpoint: describing a model is not free."""
        if self._checkpoint == status.checkpoint.name:
            return
        self._checkpoint = status.checkpoint.name
        for entrant in status.entrants:
            for table, sizes in entrant.learner.describe().get("tables", {}).items():
                self._tables.labels(entrant.name, table).set(sizes["rows"])

    def _count(self, key: str, counter: Any, total: int) -> None:
        """Advance a counter to a total of the run; what earlier processes counted is not counted again."""
        counter.inc(max(0, total - self._counted.get(key, total)))
        self._counted[key] = total

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
