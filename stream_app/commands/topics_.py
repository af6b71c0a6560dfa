"""``freshet topics``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Topics:
    """Make the topics of a Kafka cluster that are not there yet, with the settings that they need; changes none that is.

    Example: freshet topics --kafka localhost:9092 --partitions 8 --replication 3 --retention-days 14
    """

    kafka: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    """Of the cluster; else kafka.servers of the config."""
    partitions: Annotated[int, tyro.conf.arg(metavar="N")] = 4
    """Of each topic, as many as there will ever be workers: those that are joined share the number, and it stays."""
    replication: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: the cluster's)")] = None
    """Copies of each partition."""
    retention_days: Annotated[float, tyro.conf.arg(metavar="X", help_behavior_hint="(default: all is kept)")] = 0.0
    """How long records of impressions, actions and samples are kept. Items, users and marks are kept for good: a join
    needs them all."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """TOML with [kafka]."""
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE", help_behavior_hint="(repeatable)")
    ] = ()
    """One option over the file, for example kafka.topic_prefix=shop."""

    def run(self) -> int:
        """Make them; say what is there."""
        from stream_app.commands.where import kafka_layer
        from stream_app.config import read_layer, resolve, set_layer
        from stream_app.events import ACTIONS, DEAD_LETTERS, IMPRESSIONS, ITEMS, MARKS, SAMPLES, USERS
        from stream_app.topics.kafka import open_kafka

        layers = [read_layer(self.config)] if self.config is not None else []
        layers += [set_layer(assignment) for assignment in self.set]
        if self.kafka is not None:
            layers.append(kafka_layer(self.kafka))
        if self.replication is not None:
            layers.append(set_layer(f"kafka.replication_factor={self.replication}"))
        retention = int(self.retention_days * DAY_MS) or None
        with open_kafka(resolve(layers).kafka) as log:
            there = log.topics()
            for name in (IMPRESSIONS, ACTIONS, ITEMS, USERS, SAMPLES, MARKS, DEAD_LETTERS):
                if name in there:
                    print(f"{name}: is there, {there[name]} partitions")
                    continue
                log.create(name, self.partitions, retention if name in (IMPRESSIONS, ACTIONS, SAMPLES) else None)
                print(f"{name}: made, {self.partitions} partitions")
        print("next: freshet doctor checks what was there before")
        return 0


def command() -> type[Topics]:
    """Return the command."""
    return Topics
