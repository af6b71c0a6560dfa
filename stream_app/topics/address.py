"""By what another process opens the same log."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from stream_app.kafka_config import KafkaConfig

from . import Log

__all__ = ["Address", "Addressed", "ClusterAddress", "FolderAddress", "address_of", "open_address"]


class FolderAddress(msgspec.Struct, frozen=True, tag="folder"):
    """Of an embedded log."""

    path: str
    """Absolute."""


class ClusterAddress(msgspec.Struct, frozen=True, tag="cluster"):
    """Of a Kafka cluster; holds no password, see :class:`KafkaConfig`."""

    kafka: KafkaConfig


Address = FolderAddress | ClusterAddress


@runtime_checkable
class Addressed(Protocol):
    """A log that other processes can open."""

    def address(self) -> Address:
        """Return by what."""


def address_of(log: Log) -> Address | None:
    """Return the address of a log; None where it lies in this process's memory."""
    return log.address() if isinstance(log, Addressed) else None


def open_address(address: Address) -> Log:
    """Open a log for reading.

    Raises:
        TopicError: it is not there (any more), or nothing answers.
    """
    if isinstance(address, FolderAddress):
        from .embedded import open_log

        return open_log(Path(address.path))
    from .kafka import open_kafka

    return open_kafka(address.kafka)
