"""The README's example of a log of one's own works as it is printed."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from stream_app.events import ACTIONS, IMPRESSIONS, Action, Impression
from stream_app.importers.mapping import read_mapping
from stream_app.importers.run import run_import
from stream_app.topics.memory import MemoryLog

README = Path(__file__).resolve().parent.parent / "README.md"


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def log(tmp_path: Path) -> MemoryLog:
    """The README's rows, imported with the README's mapping."""
    clicks, mapping = tmp_path / "clicks.csv", tmp_path / "mapping.toml"
    clicks.write_text(block("csv"))
    mapping.write_text(block("toml"))
    log = MemoryLog()
    run_import("rows", [clicks], log, None, read_mapping(mapping))
    return log


def values(log: MemoryLog, name: str) -> list[bytes]:
    topic = log.topic(name)
    return [record.value for partition in range(topic.n_partitions) for record in topic.read(partition, topic.start(partition))]


def test_pages(log: MemoryLog) -> None:
    pages = sorted(
        (msgspec.json.decode(value, type=Impression) for value in values(log, IMPRESSIONS)), key=lambda page: page.ts
    )
    assert [(page.request_id, page.user_id, page.ts) for page in pages] == [
        ("p1", "v17", 1_700_000_000_000),
        ("p2", "v23", 1_700_000_007_000),
    ]
    assert [[(item.item_id, item.category, item.features) for item in page.items] for page in pages] == [
        [("red-shoe", "shoes", {"price": 49.9}), ("blue-shoe", "shoes", {"price": 39.9})],
        [("red-shoe", "shoes", {"price": 49.9})],
    ]


def test_the_click(log: MemoryLog) -> None:
    (click,) = (msgspec.json.decode(value, type=Action) for value in values(log, ACTIONS))
    assert (click.user_id, click.item_id, click.kind, click.request_id) == ("v17", "blue-shoe", "click", "p1")
