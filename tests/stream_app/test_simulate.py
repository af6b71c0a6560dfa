"""The generator: a log that is what its options say, whatever the chunks, and whose truth is true."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from learners.samples import SampleBlock
from stream_app.events import ACTIONS, IMPRESSIONS, ITEMS, Action, Impression, Item
from stream_app.importers.source import SourceError
from stream_app.join import stream_samples
from stream_app.simulate.clicks import Clicker, Clicks
from stream_app.simulate.draws import Purpose, uniforms
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.pages import Pages, make_pages
from stream_app.simulate.run import Simulation, run_simulate
from stream_app.simulate.world import World
from stream_app.topics.memory import MemoryLog

SMALL = SimulateOptions(requests=900, users=40, queries=30, items=120, categories=6, dim=4, seed=3, partitions=2, concurrency=5)


def events_of(options: SimulateOptions, chunk: int = 4_096, limit: int | None = None) -> dict[type, list[Any]]:
    found: dict[type, list[Any]] = defaultdict(list)
    for part in Simulation(options, chunk).chunks(limit):
        for event in part.events:
            found[type(event)].append(event)
    return found


def drawn(options: SimulateOptions, chunk: int = 4_096) -> tuple[World, Pages, Clicks]:
    """Return all requests and clicks of a simulation as arrays."""
    world = World(options)
    clicker = Clicker(world)
    starts = range(0, options.requests, chunk)
    pages = [make_pages(world, first, min(chunk, options.requests - first)) for first in starts]
    clicks = [clicker.click(page) for page in pages]
    return world, Pages(*map(np.concatenate, zip(*pages, strict=True))), Clicks(*map(np.concatenate, zip(*clicks, strict=True)))


@pytest.fixture(scope="module")
def large() -> tuple[World, Pages, Clicks]:
    return drawn(SimulateOptions(requests=20_000, users=300, items=600, seed=11))


@given(chunk=st.integers(1, 950), drift=st.sampled_from([0.0, 300.0]))
@settings(max_examples=10)
def test_chunks_change_nothing(chunk: int, drift: float) -> None:
    options = msgspec.structs.replace(SMALL, drift=drift)
    assert events_of(options, chunk) == events_of(options)


def test_another_seed_is_another_log() -> None:
    first, second = (events_of(msgspec.structs.replace(SMALL, seed=seed)) for seed in (1, 2))
    assert first[Impression] != second[Impression]


def test_a_limit_is_a_prefix() -> None:
    whole, part = events_of(SMALL), events_of(SMALL, limit=100)
    assert part[Impression] == whole[Impression][:100]
    assert len(part[Action]) < len(whole[Action])


@given(first=st.integers(0, 50), n_rows=st.integers(0, 20), width=st.integers(1, 9))
def test_a_draw_depends_on_its_place_only(first: int, n_rows: int, width: int) -> None:
    table = uniforms(5, Purpose.CLICK, 0, 80, width)
    assert np.array_equal(uniforms(5, Purpose.CLICK, first, n_rows, width), table[first : first + n_rows])
    assert len(np.unique(table)) == table.size
    assert not np.isin(table, uniforms(5, Purpose.DELAY, 0, 80, width)).any()
    assert not np.isin(table, uniforms(6, Purpose.CLICK, 0, 80, width)).any()


def test_everything_refers_to_something() -> None:
    events = events_of(SMALL)
    items = {item.item_id: item for item in events[Item]}
    assert len(items) == len(events[Item]) == SMALL.items
    assert len({item.category for item in items.values()}) == SMALL.categories
    pages = {page.request_id: page for page in events[Impression]}
    assert len(pages) == SMALL.requests
    for page in pages.values():
        shown = [item.item_id for item in page.items]
        assert len(set(shown)) == len(shown) == SMALL.candidates
        assert [item.position for item in page.items] == list(range(SMALL.candidates))
        for item in page.items:
            assert item.category == items[item.item_id].category
            assert items[item.item_id].ts <= page.ts
            assert item.truth is not None
            assert 0 < item.truth < 1
        assert (page.query is None) == (page.query_category == [])
    for click in events[Action]:
        assert click.request_id is not None
        page = pages[click.request_id]
        assert click.user_id == page.user_id
        assert click.item_id in {item.item_id for item in page.items}
        assert page.ts < click.ts < page.ts + SMALL.label_window_ms


def test_time_does_not_run_backwards() -> None:
    events = events_of(SMALL)
    for kind in (Item, Impression, Action):
        times = [event.ts for event in events[kind]]
        assert times == sorted(times)
    span_s = (events[Impression][-1].ts - events[Impression][0].ts) / 1_000
    assert span_s == pytest.approx(SMALL.requests / SMALL.rate, rel=0.01)


def test_items_arrive_evenly_and_are_shown_only_then() -> None:
    options = msgspec.structs.replace(SMALL, new_items=0.5)
    events = events_of(options)
    arrivals = np.array([item.ts for item in events[Item]]) - options.start_ts
    late = arrivals[arrivals > 0]
    assert len(late) == pytest.approx(60, abs=1)
    halves = np.histogram(late, bins=2, range=(0, options.requests / options.rate * 1_000))[0]
    assert halves[0] == pytest.approx(halves[1], abs=3)
    newest = {item.item_id for item in events[Item][-20:]}
    assert any(item.item_id in newest for page in events[Impression][-200:] for item in page.items)


def test_click_rates_are_the_truth(large: tuple[World, Pages, Clicks]) -> None:
    _, _, clicks = large
    truth, clicked = clicks.truth.ravel(), clicks.clicked.ravel()
    edges = np.quantile(truth, np.linspace(0, 1, 21))
    bucket = np.digitize(truth, edges[1:-1])
    for k in range(20):
        p = truth[bucket == k]
        deviation = (clicked[bucket == k].sum() - p.sum()) / np.sqrt((p * (1 - p)).sum())
        assert abs(deviation) < 4.5


def test_truth_is_the_formula() -> None:
    """Written again for single candidates, with the clicked-last rule by brute force over the clicks that were made."""
    options = msgspec.structs.replace(SMALL, noise=0.1, drift=200.0, quality=0.5, click_delay_ms=60_000.0)
    world, pages, clicks = drawn(options)
    n_again = 0
    made: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row in range(options.requests):
        user, ts = int(pages.user[row]), int(pages.ts[row])
        before = [(at, category) for at, category in made[user] if at < ts]
        newest = max((at for at, _ in before), default=None)
        last = {category for at, category in before if at == newest}
        angle = options.drift * row / options.rate / 86_400
        u = np.cos(angle) * world.interest[0, 0, user] + np.sin(angle) * world.interest[0, 1, user]
        u = u / np.linalg.norm(u)
        for rank, item in enumerate(pages.items[row].tolist()):
            category = int(world.item_category[item])
            if len(last) < 2:  # two clicks in one ms, of different categories: either may count
                z = options.bias + options.affinity * float(u @ world.item_vector[item]) + float(world.item_quality[item])
                z += options.match * (category == pages.query_category[row]) - options.position * np.log1p(rank)
                z += options.repeat * (category in last)
                n_again += category in last
                assert clicks.truth[row, rank] == pytest.approx(0.9 / (1 + np.exp(-z)) + 0.1 * options.noise_rate, abs=2e-6)
            if clicks.clicked[row, rank]:
                made[user].append((ts + int(clicks.delay_ms[row, rank]), category))
    assert n_again > 200


def test_no_drift_is_stationary(large: tuple[World, Pages, Clicks]) -> None:
    """Per user, the share of clicks by category in the first half predicts the second as well as chance allows."""
    still = agreement(*large)
    turned = agreement(
        *drawn(SimulateOptions(requests=20_000, users=300, items=600, seed=11, drift=np.pi / 2 / (20_000 / 0.35 / 86_400)))
    )
    assert still > 0.75
    assert turned < still - 0.2


def agreement(world: World, pages: Pages, clicks: Clicks) -> float:
    """Return the mean correlation over users of clicks per category, first fifth against last fifth of the log."""
    n = len(pages.user)
    shares = np.zeros((2, world.options.users, world.options.categories))
    for side, rows in enumerate((slice(0, n // 5), slice(n - n // 5, n))):
        users = np.broadcast_to(pages.user[rows, None], pages.items[rows].shape)[clicks.clicked[rows]]
        np.add.at(shares[side], (users, world.item_category[pages.items[rows]][clicks.clicked[rows]]), 1)
    active = (shares.sum(axis=2) >= 20).all(axis=0)
    assert active.sum() > 20
    return float(np.mean([np.corrcoef(shares[0, user], shares[1, user])[0, 1] for user in np.flatnonzero(active)]))


def test_histories_tell_much_and_popularity_little(large: tuple[World, Pages, Clicks]) -> None:
    """Scored online with counts: what a sequence model can learn from lies in the user's clicks by category."""
    world, pages, clicks = large
    options = world.options
    by_item, by_user = np.ones((2, options.items)), np.ones((2, options.users, options.categories))
    by_item[1] *= 5
    by_user[1] *= 5
    popular, personal = np.empty(clicks.truth.shape), np.empty(clicks.truth.shape)
    for row, items in enumerate(pages.items):
        place = (int(pages.user[row]), world.item_category[items])
        popular[row], personal[row] = by_item[0, items] / by_item[1, items], by_user[0][place] / by_user[1][place]
        by_item[0, items] += clicks.clicked[row]
        by_item[1, items] += 1
        np.add.at(by_user[0], place, clicks.clicked[row])
        np.add.at(by_user[1], place, 1)
    half = len(pages.user) // 2
    labels = clicks.clicked[half:].ravel()
    best, of_history, of_items = (roc_auc_score(labels, s[half:].ravel()) for s in (clicks.truth, personal, popular))
    assert best > of_history + 0.03
    assert of_history > of_items + 0.12
    assert of_items > 0.52


def test_the_log_joins_to_its_own_clicks() -> None:
    log = MemoryLog()
    report = run_simulate(SMALL, log, None)
    assert report.events == {IMPRESSIONS: 900, ACTIONS: report.actions, ITEMS: 120}
    blocks = [block for partition in range(2) for block in stream_samples(log, report.join, partition)]
    block = SampleBlock.concat(blocks)
    clicked = {(a.request_id, a.item_id) for a in events_of(SMALL)[Action]}
    assert len(block) == 900
    assert block.ragged("candidate.label").values.sum() == len(clicked) == report.actions
    assert block.has("candidate.truth")
    assert (block.ragged("candidate.category").values != 0).all()
    assert (block.ragged("click.category").values != 0).all()
    assert (block.column("due") - block.column("ts") == SMALL.label_window_ms).all()


def test_again_into_the_same_log(tmp_path: Path) -> None:
    log = MemoryLog()
    first = run_simulate(SMALL, log, tmp_path, limit=200)
    assert not first.was_done
    assert run_simulate(SMALL, log, tmp_path, limit=200).was_done
    with pytest.raises(SourceError, match="already holds events"):
        run_simulate(msgspec.structs.replace(SMALL, seed=9), log, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"query_share": 0.0},
        {"query_share": 1.0},
        {"categories": 1},
        {"candidates": 1},
        {"new_items": 0.0},
        {"repeat": 0.0},
        {"items": 24, "new_items": 0.0},
    ],
)
def test_extremes(change: dict[str, Any]) -> None:
    options = msgspec.structs.replace(SMALL, requests=200, **change)
    pages = events_of(options)[Impression]
    assert len(pages) == 200
    assert all(len({item.item_id for item in page.items}) == options.candidates for page in pages)
    assert {page.query is None for page in pages} == (
        {options.query_share == 0} if options.query_share in (0, 1) else {True, False}
    )
    assert Simulation(options).join_config().query_length == (50 if options.query_share else 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"items": 20}, "items = 20: 16 are there from the start"), ({"queries": 3}, "queries = 3: at least one per category")],
)
def test_options_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        msgspec.structs.replace(SMALL, **change)
