"""Appending to topics of Kafka: an idempotent producer, or a transactional one that a newer one fences."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import TopicError

__all__ = ["Failures", "FencedError", "KafkaWriter"]

log = logging.getLogger(__name__)

Errors = tuple[type[Exception], ...]


class FencedError(TopicError):
    """Another process has opened the log with the same fence since: this one must not write any more."""


class Failures(NamedTuple):
    """Errors of the client, by what they mean."""

    any: Errors
    fenced: Errors
    too_large: Errors


class KafkaWriter:
    """Appends, each durable in all replicas in sync when it returns; may be used by several threads.

    Args:
        where: name of the cluster, for messages.
        producer: makes a producer.
        fence: its transactional id; None for appends without transactions.
        outage_s: how long an append waits for a cluster that is away.
        failures: what the producer raises.
    """

    def __init__(self, where: str, producer: Callable[[], Any], fence: str | None, outage_s: float, failures: Failures) -> None:
        self._where = where
        self._make = producer
        self._fence = fence
        self._outage_s = outage_s
        self._failures = failures
        self._lock = threading.Lock()
        self._producer: Any = None
        self._broken: TopicError | None = None
        if fence is not None:
            self._producer = producer()
            self._producer.init_transactions()

    def append(self, tp: Any, ts: Sequence[int], keys: Sequence[bytes], values: Sequence[bytes]) -> int:
        """Append records; return the offset of the last one, -1 where the cluster had them and does not say.

        Raises:
            FencedError: somebody else has the fence.
            TopicError: the cluster refused, or was away for too long.
        """
        if self._fence is None:
            return self._append(self._opened(), tp, ts, keys, values)
        with self._lock:
            if self._broken is not None:
                raise self._broken
            try:
                return self._transact(tp, ts, keys, values)
            except TopicError as error:
                self._broken = error
                raise

    def close(self) -> None:
        """Close the connections; nothing is waited for, since an append has waited itself."""
        with self._lock:
            if self._producer is not None:
                self._abandon(self._producer)
                self._producer = None

    def _abandon(self, producer: Any) -> None:
        """Close a producer; what it still has was not promised to anybody."""
        try:
            producer.close(timeout=1)
        except self._failures.any as error:
            log.debug("%s: a producer was closed with records in it: %s", self._where, error)

    def _opened(self) -> Any:
        with self._lock:
            if self._producer is None:
                self._producer = self._make()
            return self._producer

    def _append(self, producer: Any, tp: Any, ts: Sequence[int], keys: Sequence[bytes], values: Sequence[bytes]) -> int:
        try:
            return self._send(producer, tp, ts, keys, values)
        except self._failures.any as error:
            with self._lock:  # After a batch was given up its sequence has a gap: only a new producer can go on.
                if self._producer is producer:
                    self._producer = None
            self._abandon(producer)
            raise self._failed(tp, error, "some of the records may be there") from error

    def _transact(self, tp: Any, ts: Sequence[int], keys: Sequence[bytes], values: Sequence[bytes]) -> int:
        producer = self._producer
        try:
            producer.begin_transaction()
            last = self._send(producer, tp, ts, keys, values)
            producer.commit_transaction()
        except self._failures.fenced as error:
            raise FencedError(
                f"{self._where}: another process has taken over as {self._fence!r}; this one must not write to topic "
                f"{tp.topic!r} any more: nothing was appended. Stop it; if both should run, give them different names"
            ) from error
        except self._failures.any as error:
            raise self._failed(tp, error, "none of the records can be read; open the log again to go on") from error
        return last

    def _send(self, producer: Any, tp: Any, ts: Sequence[int], keys: Sequence[bytes], values: Sequence[bytes]) -> int:
        send = producer.send
        futures = [
            send(tp.topic, value=value, key=key, partition=tp.partition, timestamp_ms=when)
            for when, key, value in zip(ts, keys, values, strict=True)
        ]
        producer.flush(timeout=self._outage_s)
        for future in futures:
            if not future.succeeded():
                future.get(timeout=1)  # raises why
        return int(futures[-1].get(timeout=1).offset)

    def _failed(self, tp: Any, error: Exception, left: str) -> TopicError:
        what = f"{self._where}: cannot append to topic {tp.topic!r} partition {tp.partition}: {error}"
        if isinstance(error, self._failures.too_large):
            return TopicError(f"{what}. Set the topic's max.message.bytes to kafka.max_block_bytes or more (freshet doctor)")
        return TopicError(f"{what}; {left}")
