"""``freshet doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from stream_app.doctor import Finding

STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True)
class Doctor:
    """Check a Kafka cluster before Freshet uses it: topics, partitions, keys, clocks, sizes, retention. Changes nothing.

    Exit code 1 if a check fails. Example: freshet doctor --kafka localhost:9092
    """

    kafka: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = None
    """Of the cluster; else kafka.servers of the config."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """TOML with [kafka] and [join]."""
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="KEY=VALUE", help_behavior_hint="(repeatable)")
    ] = ()
    """One option over the file, for example kafka.topic_prefix=shop."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object instead of a table."""

    def run(self) -> int:
        """Print the findings; 1 if one of them is a failure."""
        import msgspec

        findings = self._findings()
        if self.json:
            print(msgspec.json.encode({"findings": findings}).decode())
        else:
            print_findings(findings)
        return int(any(finding.status == "fail" for finding in findings))

    def _findings(self) -> list[Finding]:
        from stream_app.commands.where import kafka_layer
        from stream_app.config import read_layer, resolve, set_layer
        from stream_app.doctor import Finding, examine
        from stream_app.topics import TopicError
        from stream_app.topics.kafka import open_kafka

        layers = [read_layer(self.config)] if self.config is not None else []
        layers += [set_layer(assignment) for assignment in self.set]
        if self.kafka is not None:
            layers.append(kafka_layer(self.kafka))
        config = resolve(layers)
        try:
            with open_kafka(config.kafka) as log:
                return examine(log, config.join)
        except TopicError as error:
            return [Finding("broker", "fail", str(error), "start the cluster, or correct [kafka]")]


def command() -> type[Doctor]:
    """Return the command."""
    return Doctor


def print_findings(findings: list[Finding]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("check", "", "found", "what to do"):
        table.add_column(title, overflow="fold")
    for each in findings:
        table.add_row(each.check, f"[{STYLES[each.status]}]{each.status}[/]", each.found, each.todo)
    Console().print(table)
