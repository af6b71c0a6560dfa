"""Where a verb reads or writes: a log's folder, or a Kafka cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stream_app.config import Layer
    from stream_app.topics import Log

__all__ = ["check_one_place", "kafka_layer", "open_for_writing"]


def check_one_place(log: Path | None, kafka: str | None) -> None:
    """Refuse a verb that was told of no place, or of two.

    Raises:
        ConfigError: it was.
    """
    from stream_app.config import ConfigError

    if (log is None) == (kafka is None):
        given = "both are given" if log is not None else "neither is given"
        raise ConfigError(f"give one of --log DIR (a folder) and --kafka HOST:PORT (a cluster); {given}")


def kafka_layer(kafka: str) -> Layer:
    """Return the layer that ``--kafka HOST:PORT,...`` lays over a config.

    Raises:
        KafkaConfigError: that is no HOST:PORT.
    """
    from stream_app.config import Layer
    from stream_app.kafka_config import parse_servers

    return Layer("--kafka", {"kafka": {"servers": list(parse_servers(kafka))}})


def open_for_writing(log: Path | None, kafka: str | None, config: Path | None, sets: Sequence[str]) -> Log:
    """Open the one place that a verb was told of; for a cluster, ``[kafka]`` of the config says how.

    Raises:
        ConfigError: none or two places, or a bad config.
        TopicError: it cannot be opened.
    """
    from stream_app.config import read_layer, resolve, set_layer

    check_one_place(log, kafka)
    if log is not None:
        from stream_app.topics.embedded import EmbeddedLog

        return EmbeddedLog(log)
    assert kafka is not None
    from stream_app.topics.kafka import open_kafka

    layers = [read_layer(config)] if config is not None else []
    return open_kafka(resolve([*layers, *map(set_layer, sets), kafka_layer(kafka)]).kafka)
