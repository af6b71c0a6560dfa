"""One worker from its start to its end: connections, threads, watchdog, status."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from stream_app.durable_join import JoinReport
from stream_app.events import RAW_TOPICS
from stream_app.join import count_partitions
from stream_app.join_messages import Setup
from stream_app.join_process import JoinProcess, SharedLease
from stream_app.joiner.config import JoinConfig
from stream_app.kafka_config import KafkaConfig
from stream_app.topics.kafka import KafkaLog, open_kafka
from stream_app.watchdog import Look, Watchdog
from stream_app.worker import Delivery, delivered_topics, make_app, mend_commits, run_delivery
from stream_app.worker_metrics import WorkerMetrics
from stream_app.worker_options import WorkerOptions

__all__ = ["Status", "run_worker"]

LOOK_SECONDS: Final = 2.0
log = logging.getLogger(__name__)


class Status:
    """What a worker tells of itself, for people."""

    def __init__(self, report: JoinReport, partitions: list[int], lag: int | None, lag_seconds: float | None) -> None:
        self.report = report
        self.partitions = partitions
        self.lag = lag
        """Records in Kafka that are not applied; None while nobody knows."""
        self.lag_seconds = lag_seconds
        """Of event time."""


def run_worker(
    options: WorkerOptions,
    config: JoinConfig,
    kafka: KafkaConfig,
    *,
    stop: Callable[[], bool],
    on_status: Callable[[Status], None],
) -> JoinReport:
    """Join what is assigned to this worker until ``stop``; in the main thread.

    Args:
        options, config, kafka: the worker's, the joiner's, and where the cluster is.
        stop: asked often; true drains the step, leaves the group and returns.
        on_status: called every two seconds, by another thread.

    Raises:
        JoinProcessError: the joiners failed, with their message, or their process was killed.
        WorkerStalledError: something stands still.
        SnapshotError: snapshots cannot be kept there.
    """
    with open_kafka(kafka) as reads:
        return _Worker(options, config, kafka, reads).run(stop, on_status)


class _Worker:
    def __init__(self, options: WorkerOptions, config: JoinConfig, kafka: KafkaConfig, reads: KafkaLog) -> None:
        self._options = options
        self._config = config
        self._kafka = kafka
        self._reads = reads
        self._metrics = WorkerMetrics()
        self._ended = threading.Event()
        self._errors: list[BaseException] = []
        self._joiners = JoinProcess(Setup(options, config, kafka, count_partitions(reads)), self._metrics, self._fail)
        self._topics = reads.topics()
        delivered = delivered_topics(self._topics, kafka.topic_prefix)
        lease = SharedLease(options.session_seconds, self._joiners)
        self._delivery = Delivery(self._joiners, delivered, self._metrics, lease)

    def run(self, stop: Callable[[], bool], on_status: Callable[[Status], None]) -> JoinReport:
        mend_commits()
        if self._options.metrics_port is not None:
            self._metrics.serve(self._options.metrics_port)
        app = make_app(self._options, self._kafka, self._delivery)
        self._joiners.start()
        _collect_rarely()
        threading.Thread(target=self._await, args=(stop,), name="stop", daemon=True).start()
        threading.Thread(target=self._watch, args=(on_status,), name="watchdog", daemon=True).start()
        try:
            crash = run_delivery(app, self._ended, self._drain)
        finally:
            self._joiners.end()
        if self._errors:
            raise self._errors[0]
        if crash is not None:
            raise crash
        return self._joiners.report

    async def _drain(self) -> bool:
        """Let the step that is under way finish and close all partitions; false if that went wrong."""
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._joiners.stop()), self._options.session_seconds)
        except Exception as error:  # Errors of the joiners are among ours already.
            log.warning("the joiners did not close in good order: %s", error or type(error).__name__)
            return False
        return not self._errors

    def _fail(self, error: BaseException) -> None:
        self._errors.append(error)
        self._ended.set()

    def _await(self, stop: Callable[[], bool]) -> None:
        """End when asked to; apart from the looks, which a cluster that is away keeps waiting."""
        try:
            while not self._ended.wait(0.1):
                if stop():
                    self._ended.set()
        except BaseException as error:
            self._fail(error)

    def _watch(self, on_status: Callable[[Status], None]) -> None:
        watchdog = Watchdog(self._options.stall_seconds)
        try:
            while not self._ended.wait(LOOK_SECONDS):
                look = self._look()
                on_status(self._status(look))
                watchdog.check(look)
        except BaseException as error:
            self._fail(error)

    def _look(self) -> Look:
        joiners, delivery = self._joiners, self._delivery
        owned = joiners.positions()
        inputs = {(topic, p): at for (_, topic, p), (at, _) in owned.items()}
        ends = {(name, p): self._reads.topic(name).end(p) for name, p in inputs if name in RAW_TOPICS}
        received = {tp: at for tp, at in delivery.received.items() if tp not in delivery.waiting}
        return Look(ends, inputs, received, joiners.turned)

    def _status(self, look: Look) -> Status:
        joiners = self._joiners
        lags = {tp: max(0, end - look.positions[tp]) for tp, end in look.ends.items()}
        highs: dict[int, int] = {}
        for (partition, _, _), (_, high) in joiners.positions().items():
            if high >= 0:
                highs[partition] = min(high, highs.get(partition, high))
        self._metrics.look(joiners.report, lags, highs, joiners.held(), joiners.n_direct)
        late = time.time() - min(highs.values()) / 1_000 if highs else None
        return Status(joiners.report, sorted({p for p, _, _ in joiners.positions()}), sum(lags.values()), late)


def _collect_rarely() -> None:
    """Let the collector look for cycles less often: what a joiner keeps is thousands of live objects, and has none."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
