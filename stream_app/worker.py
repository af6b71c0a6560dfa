"""The Kafka worker: faust brings membership, assignment and delivery; joining is :mod:`stream_app.live_join`'s.

Agents append raw records to the inboxes of their partitions, a batch in one write, and wait where an inbox is full. What they
drop (a partition that is not open here any more, or not yet) its joiner reads from Kafka by itself.

What faust-streaming 0.15 needs to be told or spared, measured or read in its code:

* ``topic_disable_leader``: its empty topic of leaders stalls fetches (1.75x).
* Static membership and a session of 10 s: a worker that was killed is back in 2 s, not in a minute.
* Topics of one user need one assignor for all: faust's choice without tables deals partitions round robin, topic after
  topic, and may give ``actions`` 1 to one worker and ``impressions`` 1 to another. Here it is Kafka's range assignor.
* It reads uncommitted records, which a replay does not see. Here it reads committed ones.
* Offsets that were acknowledged twice stop its commits (:func:`mend_commits`).
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, cast

import faust
from faust.transport.consumer import Consumer
from faust.transport.drivers import aiokafka as driver

from stream_app.inbox import DELIVERED
from stream_app.kafka_config import KafkaConfig, client_options
from stream_app.live_join import Joiners, Lease, WorkerOptions
from stream_app.topics import Record
from stream_app.worker_metrics import WorkerMetrics

__all__ = ["Delivery", "delivered_topics", "make_app", "mend_commits", "run_delivery"]

BATCH: Final = 500
BATCH_SECONDS: Final = 0.05
FULL_SECONDS: Final = 0.05
REVOKE_SECONDS: Final = 30.0
"""A step that has not ended by then ends the worker: the group waits for it."""
# Of faust's own client, which has no types.
_RANGE: Final = importlib.import_module("aiokafka.coordinator.assignors.range").RangePartitionAssignor
log = logging.getLogger(__name__)


class Delivery:
    """What the agents and the group's callbacks do; faust's side of the joiners.

    Args:
        joiners: where records and assignments go.
        topics: name in Kafka -> topic, of those that are delivered.
        metrics: told how many records came.
        lease: renewed by heartbeats.
    """

    def __init__(self, joiners: Joiners, topics: Mapping[str, str], metrics: WorkerMetrics, lease: Lease) -> None:
        self.joiners = joiners
        self.topics = topics
        self.lease = lease
        self.received: dict[tuple[str, int], int] = {}
        """(topic, partition) -> offset after the last record that came."""
        self.waiting: set[tuple[str, int]] = set()
        """Where an agent waits because the inbox is full."""
        self.partitions: frozenset[int] = frozenset()
        self._metrics = metrics

    async def take(self, events: Sequence[Any]) -> None:
        """Put a batch of one topic into the inboxes."""
        batches: dict[tuple[str, int], list[Record]] = defaultdict(list)
        new = tuple.__new__  # What Record does, without the call in between: this runs for every record.
        for event in events:
            message = event.message
            # faust has turned the milliseconds into seconds; rounding turns them back exactly.
            record = new(Record, (message.offset, round(message.timestamp * 1_000), message.key or b"", message.value or b""))
            batches[message.topic, message.partition].append(record)
        for (name, partition), records in batches.items():
            topic = self.topics[name]
            while self.joiners.full(topic, partition):
                self.waiting.add((topic, partition))
                await asyncio.sleep(FULL_SECONDS)
            self.waiting.discard((topic, partition))
            self.joiners.deliver(topic, partition, records)
            self.received[topic, partition] = records[-1].offset + 1
            self._metrics.delivered(topic, len(records))

    async def revoked(self, app: Any, revoked: Iterable[Any], **kwargs: Any) -> None:
        """Let go of partitions: the joiner finishes its step; the group waits for it."""
        partitions = {tp.partition for tp in revoked}
        if partitions:
            log.info("partitions revoked: %s", sorted(partitions))
            self.partitions -= partitions
            await asyncio.wait_for(asyncio.wrap_future(self.joiners.revoke(partitions)), REVOKE_SECONDS)

    async def assigned(self, app: Any, assigned: Iterable[Any], **kwargs: Any) -> None:
        """Take partitions over; they open in the joiner's thread."""
        partitions = frozenset(tp.partition for tp in assigned)
        generation = int(app.consumer_generation_id or 0)
        self.lease.renew(time.monotonic())
        log.info("partitions assigned: %s, generation %d", sorted(partitions), generation)
        self.received.clear()
        self.partitions = partitions
        opened = self.joiners.assign(partitions, generation)
        opened.add_done_callback(lambda done: done.exception())


def make_app(options: WorkerOptions, kafka: KafkaConfig, delivery: Delivery) -> faust.App:
    """Return the faust app of a worker: an agent per topic."""
    options.state_dir.mkdir(parents=True, exist_ok=True)
    app = faust.App(
        options.app,
        broker=[f"aiokafka://{server}" for server in kafka.servers],
        broker_credentials=_credentials(kafka),
        topic_disable_leader=True,
        topic_allow_declare=False,
        consumer_group_instance_id=f"{options.app}-{options.worker_id}",
        broker_session_timeout=options.session_seconds,
        broker_heartbeat_interval=options.session_seconds / 5,
        broker_request_timeout=90.0,
        broker_max_poll_interval=86_400.0,  # An agent may wait long for room; the watchdog judges, not the broker.
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=16 << 20,
        stream_wait_empty=False,
        web_enabled=False,
        datadir=str(options.state_dir / "faust"),
    )
    cast(Any, app.transport).Consumer = _consumer_class(delivery.lease)
    for name in delivery.topics:
        topic = app.topic(name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")
        app.agent(topic, name=f"inbox of {name}", concurrency=1)(_agent(delivery))
    cast(Any, app.on_partitions_revoked).connect(delivery.revoked, weak=False)
    cast(Any, app.on_partitions_assigned).connect(delivery.assigned, weak=False)
    return app


def _credentials(kafka: KafkaConfig) -> Any:
    """Return what faust is told of TLS and SASL; None for neither."""
    context = None
    if kafka.security in ("ssl", "sasl_ssl"):
        context = ssl.create_default_context(cafile=kafka.ca_file)
        context.check_hostname = kafka.check_hostname
        if kafka.cert_file is not None:
            context.load_cert_chain(kafka.cert_file, kafka.key_file)
    if kafka.security.startswith("sasl"):
        told = client_options(kafka)
        return faust.SASLCredentials(
            username=told["sasl_plain_username"],
            password=told["sasl_plain_password"],
            mechanism=kafka.mechanism,
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context)


def _agent(delivery: Delivery) -> Callable[[Any], Any]:
    async def fill_inbox(stream: Any) -> None:
        async for events in stream.take_events(BATCH, within=BATCH_SECONDS):
            await delivery.take(events)

    return fill_inbox


def _consumer_class(lease: Lease) -> type[driver.Consumer]:
    class Thread(driver.AIOKafkaConsumerThread):
        def _create_worker_consumer(self, transport: Any) -> Any:
            consumer = super()._create_worker_consumer(transport)
            consumer._isolation_level = "read_committed"
            consumer._partition_assignment_strategy = [_RANGE]
            return consumer

        async def on_start(self) -> None:
            await super().on_start()
            coordinator = self._ensure_consumer()._coordinator
            beat = coordinator._do_heartbeat

            async def renew() -> bool:
                sent = time.monotonic()
                answered = bool(await beat())
                if answered:
                    lease.renew(sent)
                return answered

            coordinator._do_heartbeat = renew

    class LeasedConsumer(driver.Consumer):
        def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
            return Thread(self, loop=self.loop, beacon=self.beacon)

    return LeasedConsumer


def mend_commits() -> None:
    """Let faust's commits go on where an offset was acknowledged twice or lies in a gap, too.

    After a crash its recovery counts some offsets as gaps that are then acknowledged as well; its search for neighbours stops
    at the doubles, and each commit moves on by one (faust-streaming #596). Once only, for the whole process.
    """
    original = Consumer._new_offset
    if original.__name__ == _new_offset_without_doubles.__name__:
        return

    def new_offset(self: Any, tp: Any) -> int | None:
        return _new_offset_without_doubles(original, self, tp)

    new_offset.__name__ = _new_offset_without_doubles.__name__
    cast(Any, Consumer)._new_offset = new_offset


def _new_offset_without_doubles(original: Callable[[Any, Any], int | None], consumer: Any, tp: Any) -> int | None:
    acked, gaps = consumer._acked[tp], consumer._gap[tp]
    if acked:
        offsets = set(acked)
        for gap in list(gaps.overlap(0, max(acked))):
            offsets.update(range(gap.begin, gap.end))
            gaps.remove(gap)
        acked[:] = sorted(offsets)
    return original(consumer, tp)


def run_delivery(
    app: faust.App, stop: threading.Event, drain: Callable[[], Awaitable[bool]] | None = None
) -> BaseException | None:
    """Run a faust app until ``stop`` is set or it crashes; return what it crashed of. In the main thread.

    Args:
        app: of :func:`make_app`.
        stop: asked often.
        drain: lets go of all partitions, before the group is left; false: the seat in the group is kept, and the partitions
            wait for a session's time for this worker to come back.
    """

    async def run() -> BaseException | None:
        await app.start()
        try:
            while not stop.is_set() and not app.should_stop:
                await asyncio.sleep(0.1)
        finally:
            crash = app.crash_reason if app.crashed else None
            if drain is not None and await drain() and crash is None:
                _give_up_seat(app)
            await app.stop()
        return crash

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


def _give_up_seat(app: faust.App) -> None:
    """Leave the group when the consumer stops: its client does so only where membership is not static."""
    thread = cast(Any, app.consumer)._thread
    coordinator = getattr(thread._consumer, "_coordinator", None)
    if coordinator is not None:
        coordinator._group_instance_id = None


def delivered_topics(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Return name in Kafka -> topic of those topics that faust delivers."""
    return {prefix + name: name for name in DELIVERED if name in set(names)}
