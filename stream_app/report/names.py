"""What ids were called: samples carry hashes, a page should say names.

Names are read from the raw topics at the end of a run, and only those that its page shows: the requests that it looks at by
their time, the values of slices among the first records of the run's range. What is not found there keeps its hash. A log in
Kafka is not read.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from stream_app.events import ACTIONS, IMPRESSIONS, ITEMS, Action, Impression, Item, hash_id
from stream_app.topics import Record, Topic, TopicError

DIGITS: Final = 10
"""Hexadecimal digits of a hash that stand for an id in a page's data."""
MOST_RECORDS: Final = 2_000
"""Records of a topic that are read for the values of slices."""
_NEXT_TO: Final = 16
"""Records read at the time of a request or of an entry of its history."""
_TYPES: Final[dict[str, type[Any]]] = {IMPRESSIONS: Impression, ACTIONS: Action, ITEMS: Item}
_HASH: Final = re.compile(r"[0-9a-f]{16}")

__all__ = ["DIGITS", "named", "read_names"]


def read_names(data: Mapping[str, Any], log: Path) -> dict[str, str]:
    """Return the names of ids in what :func:`stream_app.report.snapshot.snapshot` returned: digits -> name, where found.

    Args:
        data: the snapshot.
        log: folder of the log; where there is none, nothing is found.
    """
    if not log.is_dir():
        return {}
    from stream_app.topics.embedded import EmbeddedLog  # late: `freshet report` reads no log

    try:
        with EmbeddedLog(log, read_only=True) as opened:
            topics = {name: opened.topic(name) for name in _TYPES if name in opened.topics()}
            search = _Search(data)
            for example in data["examples"]:
                search.look_at(example, topics)
            search.scan(topics, data["from"] or 0)
            return search.found
    except TopicError as error:
        print(f"freshet: the page shows hashes for ids, as the log cannot be read: {error}", file=sys.stderr, flush=True)
        return {}


def named(data: dict[str, Any]) -> dict[str, Any]:
    """Return a snapshot with the names that it holds in the place of hashes, where it has any."""
    names: Mapping[str, str] = data.get("names") or {}
    return {**data, **{key: _named(data[key], names) for key in ("slices", "examples", "models")}} if names else data


def _named(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return names.get(value[:DIGITS], value) if len(value) in (DIGITS, 16) else value
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if isinstance(value, dict):
        return {_named(key, names): _named(each, names) for key, each in value.items()}
    return value


class _Search:
    """Which hashes are looked for, and what was found."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.found: dict[str, str] = {}
        slices = {value for values in data["slices"].values() for value in values if _HASH.fullmatch(value)}
        likenesses = [each for model in data["models"].values() for each in model["embeddings"].values()]
        categories = {category for each in likenesses for category in each["categories"]}
        self._slices = {value[:DIGITS] for value in slices} | categories
        self._wanted = set(self._slices)
        for example in data["examples"]:
            shown, sequences = example["candidates"], example["sequences"].values()
            self._wanted |= {example["user"], example["query"], *shown["item"], *shown["category"]}
            self._wanted |= {each for entries in sequences for each in entries["ids"]}
        self._hashes: dict[tuple[str, str], str] = {}

    def look_at(self, example: Mapping[str, Any], topics: Mapping[str, Topic]) -> None:
        """Read the page of a request, and its user's history at the times of its entries."""
        impressions = topics.get(IMPRESSIONS)
        if impressions is None:
            return
        for partition in range(impressions.n_partitions):
            for page in _at(impressions, IMPRESSIONS, partition, example["ts"]):
                if self._digits("request", page.request_id) == example["request"]:
                    self._take(page)
                    self._look_back(example, topics, partition)
                    return

    def _look_back(self, example: Mapping[str, Any], topics: Mapping[str, Topic], partition: int) -> None:
        for name, entries in example["sequences"].items():
            topic = IMPRESSIONS if name == "query" else ACTIONS
            if topic not in topics or partition >= topics[topic].n_partitions:
                continue
            for age, wanted in zip(entries["age_s"], entries["ids"], strict=True):
                if wanted not in self.found:
                    for event in _at(topics[topic], topic, partition, example["ts"] - 1_000 * age - 999):
                        self._take(event)
                        if wanted in self.found:
                            break

    def scan(self, topics: Mapping[str, Topic], first_ts: int) -> None:
        """Read the first records of the range until all values of slices are found."""
        for name in (ITEMS, IMPRESSIONS):
            topic = topics.get(name)
            if topic is None:
                continue
            share = -(-MOST_RECORDS // topic.n_partitions)
            for partition in range(topic.n_partitions):
                first = topic.start(partition) if name == ITEMS else topic.position_at(partition, first_ts)
                for event in _decoded(topic.read(partition, first, share), name):
                    if self._slices <= self.found.keys():
                        return
                    self._take(event)

    def _take(self, event: Any) -> None:
        """Take the names that an event holds."""
        if isinstance(event, Action):
            self._name("item", event.item_id)
            return
        if isinstance(event, Item):
            self._name("category", event.category)
            self._features(event.features)
            return
        self._name("user", event.user_id)
        self._name("query", event.query)
        self._name("domain", event.domain)
        self._features(event.features)
        for item in event.items:
            self._name("item", item.item_id)
            self._name("category", item.category)
            self._name("domain", item.domain)
            self._features(item.features)

    def _features(self, features: Mapping[str, Any] | None) -> None:
        for name, value in (features or {}).items():
            self._name(f"feature.{name}", str(value))  # as the join reads ids that are numbers

    def _name(self, namespace: str, identifier: str | None) -> None:
        if identifier and (digits := self._digits(namespace, identifier)) in self._wanted:
            self.found[digits] = identifier

    def _digits(self, namespace: str, identifier: str) -> str:
        key = namespace, identifier
        if key not in self._hashes:
            self._hashes[key] = f"{hash_id(namespace, identifier) & 0xFFFFFFFFFFFFFFFF:016x}"[:DIGITS]
        return self._hashes[key]


def _at(topic: Topic, name: str, partition: int, ts: int) -> Iterator[Any]:
    return _decoded(topic.read(partition, topic.position_at(partition, ts), _NEXT_TO), name)


def _decoded(records: list[Record], topic: str) -> Iterator[Any]:
    for record in records:
        with contextlib.suppress(msgspec.DecodeError):  # the joiner made a dead letter of it; it names nothing
            yield msgspec.json.decode(record.value, type=_TYPES[topic])
