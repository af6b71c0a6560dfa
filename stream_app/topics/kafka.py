"""Topics of an Apache Kafka cluster (brokers 3.6 or newer), through kafka-python. No other module imports it.

What differs from the other kinds, and cannot be otherwise:

* A record's ``ts`` is at least 0, and retention counts from the wall clock, not from the newest record.
* Without a fence an append that fails may have left some of its records; with one, an append is a transaction.
* A transaction's marker takes an offset, so offsets have gaps. :meth:`KafkaTopic.end` is the offset after the last record that
  can be read, whatever markers come after it, so that ``read(end - 1)`` gives the last record here too.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.admin import OffsetSpec as Spec
from kafka.future import Future
from kafka.net.compat import KafkaNetClient
from kafka.protocol.consumer import IsolationLevel
from kafka.structs import OffsetAndMetadata

from stream_app.kafka_config import KafkaConfig, client_options

from . import TopicError
from .address import ClusterAddress
from .checks import check_same_partitions, check_shape, unknown_topic
from .kafka_topic import KafkaTopic
from .kafka_writer import Failures, FencedError, KafkaWriter
from .patience import Patience

__all__ = ["FencedError", "KafkaLog", "KafkaTopic", "open_kafka"]

_FETCH_BYTES: Final = 16 << 20
_FETCH_WAIT_MS: Final = 50
"""How long a broker holds a fetch at the end of a partition: a seek may have to wait for its answer."""
_POLL_RECORDS: Final = 8_192
_BATCH_BYTES: Final = 512 << 10
_MAX_TRANSACTION_MS: Final = 900_000  # what a broker allows for by default
_LONG_MAX: Final = (1 << 63) - 1
_FAILURES: Final = Failures(
    any=(kafka_errors.KafkaError,),
    fenced=(kafka_errors.ProducerFencedError, kafka_errors.InvalidProducerEpochError),
    too_large=(kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError),
)

log = logging.getLogger(__name__)
# The client tells every step of a reconnection as an error; what matters of it, patience says once.
if (client_log := logging.getLogger("kafka")).level == logging.NOTSET:
    client_log.setLevel(logging.CRITICAL)


def open_kafka(config: KafkaConfig, *, fence: str | None = None) -> KafkaLog:
    """Connect to a cluster.

    Args:
        config: how; at least one server.
        fence: a transactional id. Whoever opens a log with the same one later fences this log: its appends then raise
            :class:`FencedError` and leave nothing. Each append is one transaction (some 30 ms).

    Raises:
        KafkaConfigError: the config is not complete.
        TopicError: nothing answers there, or it refuses us.
    """
    return KafkaLog(config, fence)


class KafkaLog:
    """A set of topics on a cluster; may be used by several threads. See :class:`stream_app.topics.Log`."""

    def __init__(self, config: KafkaConfig, fence: str | None = None) -> None:
        self.config = config
        self.fence = fence
        self.where = f"Kafka at {','.join(config.servers)}"
        self.patience = Patience(self.where, config.outage_ms / 1_000, _passes)
        self.options = client_options(config)
        self._closed = False
        self._lock = threading.Lock()
        self._topics: dict[str, KafkaTopic] = {}
        self._probe: Any = None
        _reach(config)
        try:
            self.admin = KafkaAdminClient(**self.options)
            self.writer = KafkaWriter(self.where, self._producer, fence, config.outage_ms / 1_000, _FAILURES)
        except kafka_errors.KafkaError as error:
            raise TopicError(
                f"{self.where}: cannot connect ({error}). Check that a broker listens there and advertises an address that "
                f"this machine can reach, and kafka.security ({config.security!r})"
            ) from error

    def address(self) -> ClusterAddress:
        """Return by what another process connects to it."""
        return ClusterAddress(self.config)

    def topics(self) -> dict[str, int]:
        """Return the names of the topics that exist, without the prefix, with their partition counts."""
        self.check_open()
        prefix = self.config.topic_prefix
        found = self.patience.insist("list topics", lambda: self.admin.describe_topics(None))
        counts = {each["name"]: len(each["partitions"]) for each in found if not each["is_internal"]}
        return {name.removeprefix(prefix): n for name, n in sorted(counts.items()) if name.startswith(prefix) and n}

    def create(self, name: str, n_partitions: int, retention_ms: int | None = None) -> KafkaTopic:
        """Create a topic, or return the one that exists with this shape, as :meth:`stream_app.topics.Log.create`.

        It takes records of ``max_block_bytes`` and any time stamp, keeps all or ``retention_ms`` by the wall clock, and has
        the replication of the config; from 3 copies on, an append waits for 2 of them.
        """
        check_shape(name, n_partitions, retention_ms)
        existing = self.topics().get(name)
        if existing is None:
            self._create(name, n_partitions, retention_ms)
            existing = self.topics().get(name, n_partitions)
        elif retention_ms is not None:
            self.alter(name, {"retention.ms": str(retention_ms)})
        check_same_partitions(name, n_partitions, existing)
        return self._opened(name, existing)

    def _create(self, name: str, n_partitions: int, retention_ms: int | None) -> None:
        config = self.config
        settings = {
            "cleanup.policy": "delete",
            "retention.ms": str(-1 if retention_ms is None else retention_ms),
            "retention.bytes": "-1",
            "max.message.bytes": str(config.max_block_bytes + (64 << 10)),
            "message.timestamp.type": "CreateTime",
            # The joiner judges clocks, and keeps what it refuses; a broker that refuses would lose the whole batch.
            "message.timestamp.after.max.ms": str(_LONG_MAX),
            "message.timestamp.before.max.ms": str(_LONG_MAX),
        }
        if config.replication_factor >= 3:
            settings["min.insync.replicas"] = "2"
        shape = {"num_partitions": n_partitions, "replication_factor": config.replication_factor, "configs": settings}
        full = config.topic_prefix + name
        try:
            self.patience.insist(
                f"create topic {full!r}", lambda: self.admin.create_topics({full: shape}, wait_for_metadata=True)
            )
        except kafka_errors.TopicAlreadyExistsError:
            log.debug("%s: somebody else has just created %s", self.where, full)
            self.admin.wait_for_topics([full])
        except kafka_errors.KafkaError as error:
            raise TopicError(f"{self.where}: cannot create topic {full!r}: {error}") from error

    def topic(self, name: str) -> KafkaTopic:
        """Return a topic that exists.

        Raises:
            TopicError: it does not; the message names those that do.
        """
        self.check_open()
        if name in self._topics:
            return self._topics[name]
        topics = self.topics()
        if name not in topics:
            raise unknown_topic(name, self.where, topics)
        return self._opened(name, topics[name])

    def _opened(self, name: str, n_partitions: int) -> KafkaTopic:
        with self._lock:
            return self._topics.setdefault(name, KafkaTopic(self, name, n_partitions))

    def commit(self, group: str, positions: Mapping[tuple[str, int], int]) -> None:
        """Tell the cluster how far a group has come: (topic, partition) -> next offset.

        Advisory, for other people's lag monitors: positions live in the manifests of checkpoints and in the joiner's state,
        and nothing of ours goes on from a commit. The group must have no members.

        Raises:
            TopicError: the cluster refuses.
        """
        self.check_open()
        offsets = {self.tp(name, p): OffsetAndMetadata(offset, "", -1) for (name, p), offset in positions.items()}
        done = self._asked(f"commit group {group!r}", lambda: self.admin.alter_group_offsets(group, offsets))
        refused = {error.__name__ for error in done.values() if error is not kafka_errors.NoError}
        if refused:
            raise TopicError(f"{self.where}: group {group!r} takes no commit: {', '.join(sorted(refused))}; is it in use?")

    def committed(self, group: str) -> dict[tuple[str, int], int]:
        """Return what a group has committed: (topic, partition) -> next offset; empty where it has not."""
        self.check_open()
        prefix = self.config.topic_prefix
        found = self._asked(f"read group {group!r}", lambda: self.admin.list_group_offsets({group: None}))
        return {
            (tp.topic.removeprefix(prefix), tp.partition): each.offset
            for tp, each in found.get(group, {}).items()
            if tp.topic.startswith(prefix) and each.offset >= 0
        }

    def settings(self, name: str) -> dict[str, str]:
        """Return the settings of a topic that exists, under Kafka's names."""
        resource = ConfigResource(ConfigResourceType.TOPIC, self.config.topic_prefix + name)
        found = self._asked(
            f"read the settings of topic {name!r}", lambda: self.admin.describe_configs([resource], config_filter="all")
        )
        configs = found["topic"][self.config.topic_prefix + name]
        return {key: str(each["value"]) for key, each in configs.items()}

    def alter(self, name: str, settings: Mapping[str, str]) -> None:
        """Change settings of a topic."""
        resource = ConfigResource(ConfigResourceType.TOPIC, self.config.topic_prefix + name, dict(settings))
        self._asked(f"change topic {name!r}", lambda: self.admin.alter_configs([resource]))

    def cluster(self) -> dict[str, Any]:
        """Return what the cluster says of itself: ``brokers``, ``version`` of Kafka, ``features``."""
        found = self._asked("describe the cluster", self.admin.describe_cluster)
        features = self._asked("list features", self.admin.describe_features)
        version = ".".join(map(str, self.admin._manager.broker_version))
        return {"brokers": found["brokers"], "version": version, "features": features}

    def sizes(self) -> dict[str, int]:
        """Return topic -> bytes of one copy of all its partitions on the brokers' disks; without those not allowed to see."""
        prefix = self.config.topic_prefix
        found: dict[tuple[str, int], int] = {}
        for broker in self._asked("ask for sizes", self.admin.describe_log_dirs):
            for folder in broker["log_dirs"]:
                for topic in folder["topics"]:
                    for each in topic["partitions"]:
                        place = topic["name"], each["partition_index"]
                        found[place] = max(found.get(place, 0), each["partition_size"])
        sizes: dict[str, int] = {}
        for (name, _), n_bytes in found.items():
            if name.startswith(prefix):
                sizes[name.removeprefix(prefix)] = sizes.get(name.removeprefix(prefix), 0) + n_bytes
        return sizes

    def delete_before(self, name: str, partition: int, offset: int) -> None:
        """Delete the records before an offset."""
        tp = self.tp(name, partition)
        self._asked(f"trim topic {name!r}", lambda: self.admin.delete_records({tp: offset}))

    def _asked(self, what: str, ask: Callable[[], Any]) -> Any:
        try:
            return self.patience.insist(what, ask)
        except kafka_errors.KafkaError as error:
            raise TopicError(f"{self.where}: cannot {what}: {error}") from error

    def tp(self, name: str, partition: int) -> Any:
        """Return Kafka's name of a partition."""
        return TopicPartition(self.config.topic_prefix + name, partition)

    def offset(self, name: str, partition: int, spec: int) -> int:
        """Return an offset by Kafka's ``OffsetSpec`` or time stamp, for readers of committed records; -1 if there is none."""
        return int(self._listed(name, partition, spec).offset)

    def newest_ts(self, name: str, partition: int) -> int:
        """Return the highest time stamp in a partition, that of markers among them; -1 if it is empty."""
        return int(self._listed(name, partition, Spec.MAX_TIMESTAMP).timestamp)

    def _listed(self, name: str, partition: int, spec: int) -> Any:
        self.check_open()
        tp = self.tp(name, partition)
        return self._asked(
            f"ask for offsets of topic {name!r} partition {partition}",
            lambda: self.admin.list_partition_offsets({tp: spec}, isolation_level=IsolationLevel.READ_COMMITTED),
        )[tp]

    def bounds(self, name: str, partition: int) -> tuple[int, int]:
        """Return the first offset held, and the one after all that are committed."""
        return self.offset(name, partition, Spec.EARLIEST), self.offset(name, partition, Spec.LATEST)

    def await_committed(self, name: str, partition: int, offset: int) -> None:
        """Wait until readers see a record: a transaction is committed some milliseconds before its marker is written."""
        since = self.patience.now()
        while self.offset(name, partition, Spec.LATEST) <= offset:
            self.patience.check(f"commit to topic {name!r} partition {partition}", since)
            time.sleep(0.001)

    def scan(self, name: str, partition: int, begin: int, end: int) -> Iterator[list[Any]]:
        """Yield the records with ``begin <= offset < end`` in pieces, apart from any reader: for looking around."""
        tp = self.tp(name, partition)
        with self._lock:
            if self._probe is None:
                self._probe = self.consumer()
            probe = self._probe
            probe.assign([tp])
            probe.seek(tp, begin)
            since = self.patience.now()
            while (at := probe.position(tp, timeout_ms=1_000)) < end:
                polled, lost = self.poll(probe, 1_000)
                if lost:  # Deleted since the caller looked.
                    return
                found = [record for record in polled.get(tp, ()) if record.offset < end]
                if probe.position(tp, timeout_ms=1_000) > at:
                    since = self.patience.now()
                self.patience.check(f"read topic {name!r} partition {partition}", since)
                yield found

    def consumer(self) -> Any:
        """Return a consumer without assignment."""
        return KafkaConsumer(
            **self.options,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_partition_fetch_bytes=_FETCH_BYTES,
            fetch_max_wait_ms=_FETCH_WAIT_MS,
            max_poll_records=_POLL_RECORDS,
            allow_auto_create_topics=False,
        )

    def _producer(self) -> Any:
        config = self.config
        compression = None if config.compression == "none" else config.compression
        options = dict(self.options)
        if self.fence is not None:
            # Longer than an outage, or the cluster takes a transaction back that its producer is still to finish.
            options["transactional_id"] = config.topic_prefix + self.fence
            options["transaction_timeout_ms"] = min(config.outage_ms + 60_000, _MAX_TRANSACTION_MS)
        return KafkaProducer(
            **options,
            kafka_client=_steady_client,
            acks="all",
            enable_idempotence=True,
            linger_ms=5,  # flush sends at once what is complete; this keeps the first record from going alone
            batch_size=_BATCH_BYTES,
            compression_type=compression,
            max_request_size=config.max_block_bytes + (64 << 10),
            delivery_timeout_ms=max(config.outage_ms, config.request_timeout_ms + 5),
            max_block_ms=config.outage_ms,
            allow_auto_create_topics=False,
        )

    def poll(self, consumer: Any, timeout_ms: int) -> tuple[dict[Any, list[Any]], list[Any]]:
        """Return what a consumer has fetched, and partitions whose position is not held.

        Raises:
            TopicError: the cluster refuses, and will go on refusing.
        """
        try:
            return consumer.poll(timeout_ms), []
        except kafka_errors.OffsetOutOfRangeError as error:
            return {}, list(error.args[0])
        except kafka_errors.KafkaError as error:
            if not _passes(error):
                raise TopicError(f"{self.where}: cannot read: {error}") from error
            return {}, []

    def check_open(self) -> None:
        """Refuse use after :meth:`close`."""
        if self._closed:
            raise TopicError(f"the log on {self.where} is closed; open a new one")

    def close(self) -> None:
        """Close the connections; using a topic afterwards is an error."""
        if self._closed:
            return
        self._closed = True
        self.writer.close()
        for topic in self._topics.values():
            topic.reader.close()
        if self._probe is not None:
            self._probe.close(autocommit=False)
        self.admin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _steady_client(**options: Any) -> Any:
    """Return a client to which a connection that is refused is not ready, and one that is silent is lost: no errors.

    The sender of kafka-python 3.0.12 drops the request of a transaction when connecting fails, and then waits for its answer
    for ever; told "not ready" it looks for the coordinator again and repeats the request. A request of a transaction that was
    not answered in time breaks its producer for good, though the connection is closed as after a disconnection.
    """
    client: Any = KafkaNetClient(**options)
    await_ready, send_request = client.await_ready, client.send

    def ready(node_id: Any, timeout_ms: float = 30_000) -> bool:
        try:
            return bool(await_ready(node_id, timeout_ms=timeout_ms))
        except kafka_errors.KafkaError as error:
            if not _passes(error):
                raise
            time.sleep(0.1)
            return False

    def send(node_id: Any, request: Any, **kwargs: Any) -> Any:
        answer, told = send_request(node_id, request, **kwargs), Future()

        def fail(error: BaseException) -> None:
            silent = isinstance(error, kafka_errors.RequestTimedOutError)
            told.failure(kafka_errors.KafkaConnectionError(str(error)) if silent else error)

        answer.add_callback(told.success)
        answer.add_errback(fail)
        return told

    client.await_ready, client.send = ready, send
    return client


def _passes(error: BaseException) -> bool:
    """Whether an error of the client may pass by itself: the broker is away, or busy with an election."""
    if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
        return False
    # A partition is led by broker -1 while none of those that have it is back.
    return isinstance(error, kafka_errors.KafkaError) and bool(
        error.retriable or isinstance(error, kafka_errors.UnknownBrokerIdError)
    )


def _reach(config: KafkaConfig) -> None:
    """Refuse servers where nothing listens, at once: the client would try for long, and leave sockets open.

    Raises:
        TopicError: none of them takes a connection.
    """
    found = []
    for server in config.servers:
        host, _, port = server.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=config.request_timeout_ms / 1_000).close()
        except OSError as error:
            found.append(f"{server}: {error.strerror or error}")
        else:
            return
    raise TopicError(
        f"Kafka at {','.join(config.servers)}: cannot connect ({'; '.join(found)}). Is a broker up there? Check kafka.servers"
    )
