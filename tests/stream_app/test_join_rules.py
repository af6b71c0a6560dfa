"""Sequences by domain, and labels and histories by the value of an action: what the docs promise, case by case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from learners.samples import SampleBlock
from stream_app.config import ConfigError, Layer, resolve
from stream_app.events import SAMPLES, hash_id
from stream_app.join import join_log, stream_samples
from stream_app.joiner.blocks import generation_of
from stream_app.joiner.config import ItemSequence, JoinConfig
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.topics import Message
from stream_app.topics.memory import MemoryLog

NOW = 1_700_000_000_000
BY_DOMAIN = JoinConfig(
    label_window_ms=1_000,
    lateness_ms=0,
    item_sequences={"video": ItemSequence(domains=("video", "clip")), "shop": ItemSequence(domains=("shop",))},
)
BY_VALUE = JoinConfig(
    label_kinds=("click", "watch"),
    label_min_value={"watch": 0.5},
    label_window_ms=1_000,
    correction_window_ms=1_000,
    correction_weight=0.5,
    lateness_ms=0,
    item_sequences={
        "all": ItemSequence(kinds=("click", "watch")),
        "long": ItemSequence(kinds=("watch",), min_value={"watch": 0.9}),
    },
)
Events = dict[str, Any]
Joined = tuple[list[dict[str, Any]], dict[str, int]]


def page(request: str, ts: int, *items: Any, **changes: Any) -> Events:
    shown = [{"item_id": item} if isinstance(item, str) else item for item in items]
    return {"request_id": request, "user_id": "u", "ts": NOW + ts, "items": shown} | changes


def action(item: str, ts: int, kind: str = "click", **changes: Any) -> Events:
    return {"user_id": "u", "item_id": item, "ts": NOW + ts, "kind": kind} | changes


def metadata(item: str, ts: int, **changes: Any) -> Events:
    return {"item_id": item, "ts": NOW + ts} | changes


LAST = page("last", 100_000, "z")
"""A request long after the events of a test: its histories hold them all."""


@pytest.fixture
def join(tmp_path: Path) -> Callable[..., Joined]:
    """Join events; return the rows, and what the joiner counted."""

    def made(config: JoinConfig, *pages: Events, actions: list[Events], items: list[Events] | None = None) -> Joined:
        log = MemoryLog()
        for topic, events in (("impressions", pages), ("actions", actions), ("items", items or [])):
            log.create(topic, 1).append(0, [Message(event["ts"], b"u", msgspec.json.encode(event)) for event in events])
        counters = join_log(log, tmp_path, config).counters
        blocks = [SampleBlock.from_ipc(record.value) for record in log.topic(SAMPLES).read(0, 0)]
        return [row for block in blocks for row in block.batch.to_pylist()], counters

    return made


def ids(*items: str) -> list[int]:
    return [hash_id("item", item) for item in items]


# -- sequences by domain


def test_one_kind_in_two_domains_feeds_two_sequences(join: Callable[..., Joined]) -> None:
    actions = [action("a", 1, domain="video"), action("b", 2, domain="shop"), action("c", 3, domain="clip")]
    actions += [action("d", 4, domain="news"), action("e", 5), action("f", 6, "buy", domain="shop")]
    rows, counters = join(BY_DOMAIN, LAST, actions=actions)
    assert rows[-1]["video.item"] == ids("a", "c")
    assert rows[-1]["video.ts"] == [NOW + 1, NOW + 3]
    assert rows[-1]["shop.item"] == ids("b")
    assert counters["no_domain_actions"] == 1  # e; that d's domain feeds nothing is no want of one


DOMAINS: dict[str, tuple[str | None, str | None, str | None, str | None, str]] = {
    # own, metadata, candidate, page -> counts
    "own": ("shop", "video", "video", "video", "shop"),
    "metadata": (None, "shop", "video", "video", "shop"),
    "candidate": (None, None, "shop", "video", "shop"),
    "page": (None, None, None, "shop", "shop"),
    "none": (None, None, None, None, ""),
}


@pytest.mark.parametrize("case", DOMAINS)
def test_the_domain_of_an_action_is_its_own_its_items_its_candidates_its_pages(case: str, join: Callable[..., Joined]) -> None:
    own, by_metadata, candidate, of_page, expected = DOMAINS[case]
    pages = [page("r", 10, {"item_id": "a", "domain": candidate}, domain=of_page), LAST]
    items = [metadata("a", 5, domain=by_metadata), metadata("a", 500, domain="video")]  # the second is too new to count
    rows, counters = join(BY_DOMAIN, *pages, actions=[action("a", 20, domain=own)], items=items)
    assert {name: rows[-1][f"{name}.item"] for name in ("video", "shop")} == {
        "video": [],
        "shop": ids("a") if expected == "shop" else [],
    }
    assert counters["no_domain_actions"] == (not expected)


def test_the_page_says_nothing_of_an_item_that_it_did_not_show(join: Callable[..., Joined]) -> None:
    pages = [page("r", 10, "a", domain="shop"), LAST]
    rows, counters = join(BY_DOMAIN, *pages, actions=[action("b", 20, request_id="r")])
    assert rows[-1]["shop.item"] == []
    assert counters["no_domain_actions"] == counters["orphan_actions"] == 1


def test_domains_by_metadata_make_the_sequences_that_kinds_made() -> None:
    """The generator's log, its two kinds turned into one, its actions without a domain: items alone tell it."""
    by_kind, by_domain = MemoryLog(), MemoryLog()
    options = SimulateOptions(requests=400, users=20, domains=2, partitions=1)
    config = run_simulate(options, by_kind, None).join
    for name, n_partitions in by_kind.topics().items():
        topic = by_domain.create(name, n_partitions)
        for record in by_kind.topic(name).read(0, 0, max_records=1 << 20):
            event = msgspec.json.decode(record.value)
            if name == "actions":
                event |= {"kind": "click", "domain": None}
            topic.append(0, [Message(record.ts, record.key, msgspec.json.encode(event))])
    sequences = {name: ItemSequence(domains=(name,)) for name in ("video", "product")}
    other = msgspec.structs.replace(config, label_kinds=("click",), item_sequences=sequences)
    expected, rows = (
        [row for block in stream_samples(log, options, 0) for row in block.batch.to_pylist()]
        for log, options in ((by_kind, config), (by_domain, other))
    )
    assert repr(rows) == repr(expected)
    assert sum(len(row["video.item"]) > 0 and len(row["product.item"]) > 0 for row in rows) > 20


# -- labels and histories by value


def test_a_watch_labels_from_its_share_on(join: Callable[..., Joined]) -> None:
    shown = page("r", 10, "a", "b", "c", "d", "e")
    watched = [("a", 0.49999), ("b", 0.5), ("c", 1), ("e", None)]
    actions = [action(item, 20, "watch", value=value) for item, value in watched] + [action("d", 30, value=0.1)]
    rows, counters = join(BY_VALUE, shown, LAST, actions=actions)
    assert rows[0]["candidate.label"] == [0, 1, 1, 1, 0]  # a click needs no value
    assert rows[0]["candidate.weight"] == [1] * 5
    assert rows[-1]["all.item"] == ids("a", "b", "c", "e", "d")  # a history without a threshold takes all
    assert rows[-1]["long.item"] == ids("c")
    assert {name: counters[name] for name in ("labels", "low_value_actions", "no_value_actions", "orphan_actions")} == {
        "labels": 3,
        "low_value_actions": 1,
        "no_value_actions": 1,
        "orphan_actions": 0,
    }


def test_a_correction_comes_with_the_first_value_that_reaches_the_threshold_and_once(join: Callable[..., Joined]) -> None:
    config = msgspec.structs.replace(BY_VALUE, policy="correct")
    actions = [action("a", ts, "watch", value=value) for ts, value in ((20, 0.2), (30, 0.7), (40, 0.9))]
    rows, counters = join(config, page("r", 10, "a", "b"), LAST, actions=actions)
    first, correction, last = rows
    assert (first["candidate.label"], first["candidate.weight"], first["due"]) == ([0, 0], [1, 1], NOW + 10)
    assert (correction["candidate.item"], correction["candidate.label"]) == (ids("a"), [1])
    assert (correction["candidate.weight"], correction["due"]) == ([0.5], NOW + 30)
    assert last["candidate.label"] == [0]
    assert (counters["corrections"], counters["labels"], counters["low_value_actions"]) == (1, 1, 1)


def test_what_is_below_the_threshold_is_no_orphan_and_teaches_a_query_nothing(join: Callable[..., Joined]) -> None:
    pages = [page("r", 10, {"item_id": "a", "category": "x"}, query="q"), page("s", 50_000, "b", query="q")]
    low, high = (action("a", 20, "watch", value=value, query="q", category="x") for value in (0.1, 0.6))
    rows, counters = join(BY_VALUE, *pages, actions=[low, action("nowhere", 30, "watch", value=0.1)])
    assert rows[1]["query_category"] == [0] * 4
    assert (counters["orphan_actions"], counters["low_value_actions"]) == (0, 2)
    rows = [row for block in stream_samples(_log(pages, [high]), BY_VALUE, 0) for row in block.batch.to_pylist()]
    assert rows[1]["query_category"] == [hash_id("category", "x"), 0, 0, 0]


def _log(pages: list[Events], actions: list[Events]) -> MemoryLog:
    log = MemoryLog()
    for topic, events in (("impressions", pages), ("actions", actions)):
        log.create(topic, 1).append(0, [Message(event["ts"], b"u", msgspec.json.encode(event)) for event in events])
    return log


def test_a_value_that_is_no_number_is_a_dead_letter(join: Callable[..., Joined]) -> None:
    rows, counters = join(
        BY_VALUE, LAST, actions=[action("a", 20, "watch", value="half"), action("a", 30, "watch", value=True)]
    )
    assert counters["dead_letters.schema"] == 2
    assert rows[-1]["all.item"] == []


# -- options


def test_options_make_another_generation() -> None:
    configs = [JoinConfig(), BY_DOMAIN, BY_VALUE]
    sequence = BY_DOMAIN.item_sequences["shop"]
    for change in ({"domains": ("news",)}, {"domains": ()}, {"min_value": {"click": 0.0}}):
        changed = BY_DOMAIN.item_sequences | {"shop": msgspec.structs.replace(sequence, **change)}
        configs.append(msgspec.structs.replace(BY_DOMAIN, item_sequences=changed))
    configs += [msgspec.structs.replace(BY_VALUE, label_min_value=least) for least in ({}, {"watch": 0.6}, {"click": 0.5})]
    assert len({generation_of(config, 1) for config in configs}) == len(configs)


WRONG = {
    "a threshold for another kind": (
        {"label_min_value": {"watch": 0.5}},
        r"label_min_value.watch .* label_kinds = \['click'\]",
    ),
    "no number": ({"label_min_value": {"click": float("nan")}}, "label_min_value.click = nan must be a finite number"),
    "a share as text": ({"label_min_value": {"click": "half"}}, r"label_min_value\.\* = 'half': expected `float`"),
    "a kind that feeds it not": (
        {"item_sequences": {"video": {"kinds": ["watch"], "min_value": {"wach": 0.5}}}},
        r"min_value.wach .* kinds = \['watch'\]",
    ),
    "a name, no list": ({"item_sequences": {"video": {"domains": "video"}}}, "domains = 'video': expected `array`"),
    "an empty name": ({"item_sequences": {"video": {"domains": [""]}}}, "leave domains out to take all"),
    "a misspelt key": ({"item_sequences": {"video": {"domain": ["video"]}}}, "did you mean 'domains'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_refused_with_the_way_out(name: str) -> None:
    join, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        resolve([Layer("shop.toml", {"join": join})])


def test_a_config_that_uses_no_later_option_makes_the_samples_of_earlier_versions() -> None:
    """Their names as a version without domains and values gave them: a run goes on with samples that it began with."""
    two = {"click": ItemSequence(), "buy": ItemSequence(kinds=("buy",))}
    assert generation_of(JoinConfig(), 4) == "6074bbe23439095556bf7588b649e8d3"
    assert generation_of(JoinConfig(label_window_ms=1_000, item_sequences=two), 4) == "dbb83a280c4067ed6def1b32eaa58ab7"
