"""The Kafka worker: faust brings membership, assignment and delivery; joining is :mod:`stream_app.join_thread`'s.

Agents append raw records to the inboxes of their partitions, all that was fetched of a partition in one write. Of partitions
whose inbox is full nothing is taken from the client, which then fetches no more of them. What agents drop (a partition that is
not open here any more, or not yet) its joiner reads from Kafka by itself.

What faust-streaming 0.15 needs to be told or spared, measured or read in its code:

* What was fetched of a partition goes through it as one message (:func:`_consumer_class`): each message costs it 60 us,
  whatever it holds. Offsets inside such a message are gaps to it, which it may commit past.
* ``topic_disable_leader``: its empty topic of leaders stalls fetches (1.75x). So does a partition at its end, beside others
  that are behind: a fetch that finds nothing waits 1.5 s, and fetches of other partitions wait for it. Here it is 0.1 s.
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
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, cast

import faust
from faust.transport.consumer import Consumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from stream_app.inbox import DELIVERED
from stream_app.kafka_config import KafkaConfig, client_options
from stream_app.lease import Lease
from stream_app.live_join import Joiners
from stream_app.topics import Record, TopicError
from stream_app.worker_metrics import WorkerMetrics
from stream_app.worker_options import WorkerOptions

__all__ = ["Delivery", "batch_message", "delivered_topics", "make_app", "mend_commits", "run_delivery"]

FETCH_BYTES: Final = 1 << 20
"""Of a partition at once: what an agent takes as one batch, unless a single record is larger."""
FETCH_WAIT_MS: Final = 100
FULL_SECONDS: Final = 0.05
REVOKE_SECONDS: Final = 30.0
"""A step that has not ended by then ends the worker: the group waits for it."""
# Of faust's own client, which has no types.
_RANGE: Final = importlib.import_module("aiokafka.coordinator.assignors.range").RangePartitionAssignor
_CANNOT_CONNECT: Final = importlib.import_module("aiokafka.errors").KafkaConnectionError
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
        """What is not taken because the inbox is full."""
        self.partitions: frozenset[int] = frozenset()
        self._open: frozenset[int] = frozenset()
        self._metrics = metrics

    def with_room(self, wanted: Iterable[TP]) -> set[TP]:
        """Return those partitions of which more may be taken; those whose inbox is full are :attr:`waiting`."""
        opened = {tp for tp in wanted if tp.partition in self._open}
        full = {tp for tp in opened if self.joiners.full(self.topics[tp.topic], tp.partition)}
        self.waiting = {(self.topics[tp.topic], tp.partition) for tp in full}
        return opened - full

    def take(self, name: str, partition: int, records: Sequence[Record]) -> None:
        """Put records of one topic partition into its inbox."""
        topic = self.topics[name]
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
            self._open &= self.partitions

    async def assigned(self, app: Any, assigned: Iterable[Any], **kwargs: Any) -> None:
        """Take partitions over; they open in the joiner's thread, and records of them are not asked for before."""
        partitions = frozenset(tp.partition for tp in assigned)
        generation = int(app.consumer_generation_id or 0)
        self.lease.renew(time.monotonic())
        log.info("partitions assigned: %s, generation %d", sorted(partitions), generation)
        self.received.clear()
        self.partitions = partitions
        opened = self.joiners.assign(partitions, generation)
        opened.add_done_callback(partial(self._opened, partitions))

    def _opened(self, partitions: frozenset[int], done: Future[None]) -> None:
        if done.exception() is None:  # Else the worker ends.
            self._open = partitions & self.partitions


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
        broker_max_poll_interval=86_400.0,  # Inboxes may be full for long; the watchdog judges, not the broker.
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=FETCH_BYTES,
        stream_wait_empty=False,
        web_enabled=False,
        datadir=str(options.state_dir / "faust"),
    )
    cast(Any, app.transport).Consumer = _consumer_class(delivery)
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
        async for event in stream.events():
            delivery.take(event.message.topic, event.message.partition, event.message.value)

    return fill_inbox


def _consumer_class(delivery: Delivery) -> type[driver.Consumer]:
    class Thread(driver.AIOKafkaConsumerThread):
        def _create_worker_consumer(self, transport: Any) -> Any:
            consumer = super()._create_worker_consumer(transport)
            consumer._isolation_level = "read_committed"
            consumer._partition_assignment_strategy = [_RANGE]
            consumer._fetch_max_wait_ms = FETCH_WAIT_MS
            return consumer

        async def on_start(self) -> None:
            await super().on_start()
            coordinator = self._ensure_consumer()._coordinator
            beat = coordinator._do_heartbeat

            async def renew() -> bool:
                sent = time.monotonic()
                answered = bool(await beat())
                if answered:
                    delivery.lease.renew(sent)
                return answered

            coordinator._do_heartbeat = renew

    class BatchConsumer(driver.Consumer):
        def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
            return Thread(self, loop=self.loop, beacon=self.beacon)

        async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
            wanted = active_partitions or set()
            taken = delivery.with_room(wanted)
            if not taken:
                await asyncio.sleep(FULL_SECONDS)
                return {}
            fetched = await super()._getmany(taken, timeout if len(taken) == len(wanted) else FULL_SECONDS)
            return {tp: [records] for tp, records in fetched.items()}

        def _to_message(self, tp: TP, records: Sequence[Any]) -> ConsumerMessage:
            return batch_message(tp, records, self.app.consumer_generation_id)

    return BatchConsumer


def batch_message(tp: TP, records: Sequence[Any], generation: int) -> ConsumerMessage:
    """Return what was fetched of a partition as one message: at the last offset, its value the list of records.

    Args:
        tp: which.
        records: the client's; at least one.
        generation: of the group.
    """
    new = tuple.__new__  # What Record does, without the call in between: this runs for every record.
    value = [new(Record, (each.offset, each.timestamp, each.key or b"", each.value or b"")) for each in records]
    last = records[-1]
    # The codec of raw bytes lets the list through.
    return ConsumerMessage(
        topic=tp.topic,
        partition=tp.partition,
        offset=last.offset,
        timestamp=last.timestamp / 1_000,
        timestamp_type=last.timestamp_type,
        headers=None,
        key=None,
        value=cast(Any, value),
        checksum=None,
        tp=tp,
        generation_id=generation,
    )


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

    Raises:
        TopicError: the cluster went away before the app had started.
    """

    async def run() -> BaseException | None:
        try:
            await app.start()
        except _CANNOT_CONNECT as error:
            raise TopicError(f"{error}: the cluster has gone. Is a broker up there? Check kafka.servers") from error
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
