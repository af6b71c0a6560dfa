"""The generator with two domains and with item vectors."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from learners.samples import SampleBlock
from stream_app.config import resolve
from stream_app.events import Action, Impression, Item
from stream_app.join import stream_samples
from stream_app.log_config import log_layers, write_log_config
from stream_app.simulate.clicks import Clicker
from stream_app.simulate.options import DOMAINS, SimulateOptions
from stream_app.simulate.pages import make_pages
from stream_app.simulate.run import Simulation, run_simulate
from stream_app.simulate.world import World
from stream_app.topics.memory import MemoryLog

ONE = SimulateOptions(requests=900, users=40, queries=30, items=120, categories=6, dim=4, seed=3, partitions=2, concurrency=5)
TWO = msgspec.structs.replace(ONE, domains=2, vector_dim=8, video_share=0.5)


def events_of(options: SimulateOptions, chunk: int = 4_096) -> dict[type, list[Any]]:
    found: dict[type, list[Any]] = defaultdict(list)
    for part in Simulation(options, chunk).chunks(None):
        for event in part.events:
            found[type(event)].append(event)
    return found


def test_one_domain_is_bit_for_bit_what_it_was() -> None:
    """The digest is of the generator before it knew domains."""
    digest = hashlib.sha256()
    for drift in (0.0, 300.0):
        for part in Simulation(msgspec.structs.replace(ONE, drift=drift)).chunks(None):
            for event in part.events:
                digest.update(type(event).__name__.encode() + msgspec.json.encode(event))
    assert digest.hexdigest() == "63a6ff73044f372dac2ff651bafe276777e67a941420ac71e6dcba1c592b8149"


@pytest.mark.parametrize("chunk", [1, 37, 512])
def test_chunks_change_nothing_with_two_domains(chunk: int) -> None:
    options = msgspec.structs.replace(TWO, short_watches=0.2)
    assert events_of(options, chunk) == events_of(options)


def test_a_page_is_of_one_domain() -> None:
    events = events_of(TWO)
    items = {item.item_id: item for item in events[Item]}
    assert len(items) == len(events[Item]) == 2 * TWO.items
    pages = {page.request_id: page for page in events[Impression]}
    assert {page.domain for page in pages.values()} == set(DOMAINS)
    for page in pages.values():
        assert len({shown.item_id for shown in page.items}) == TWO.candidates
        for shown in page.items:
            assert shown.domain == items[shown.item_id].domain == page.domain
            assert items[shown.item_id].ts <= page.ts
    for action in events[Action]:
        assert pages[action.request_id].domain == action.domain == items[action.item_id].domain


def test_late_users_come_to_videos_over_the_run() -> None:
    options = msgspec.structs.replace(TWO, requests=4_000, video_late=1.0)
    pages = events_of(options)[Impression]
    first: dict[str, int] = {}
    for at, page in enumerate(pages):
        if page.domain == "video":
            first.setdefault(page.user_id, at)
    assert np.quantile(list(first.values()), 0.25) > 500
    early = sum(page.domain == "video" for page in pages[:1_000])
    assert early < sum(page.domain == "video" for page in pages[-1_000:]) / 2


def test_pages_of_videos_alone_change_no_click() -> None:
    whole, part = (events_of(msgspec.structs.replace(TWO, pages_of=pages)) for pages in ("both", "video"))
    assert part[Impression] == [page for page in whole[Impression] if page.domain == "video"]
    assert [(a.user_id, a.item_id, a.ts) for a in part[Action]] == [(a.user_id, a.item_id, a.ts) for a in whole[Action]]
    assert {a.domain for a in part[Action] if a.request_id is None} == {"product"}
    assert {a.domain for a in part[Action] if a.request_id is not None} == {"video"}


def test_truth_is_calibrated_in_each_domain() -> None:
    options = msgspec.structs.replace(TWO, requests=8_000, users=200)
    world = World(options)
    pages = make_pages(world, 0, options.requests)
    clicks = Clicker(world).click(pages)
    for domain in range(2):
        truth, clicked = (a[pages.domain == domain].ravel() for a in (clicks.truth, clicks.clicked))
        bucket = np.digitize(truth, np.quantile(truth, np.linspace(0, 1, 11))[1:-1])
        for k in range(10):
            p = truth[bucket == k]
            assert abs(clicked[bucket == k].sum() - p.sum()) < 4.5 * np.sqrt((p * (1 - p)).sum())


def agreement(shared: float) -> float:
    """Return the mean cosine of users' interests in the two domains."""
    world = World(SimulateOptions(requests=10, users=2_000, categories=20, domains=2, shared=shared))
    video, product = world.interest[:, 0]
    return float((video * product).sum(axis=1).mean())


def test_shared_is_how_much_interests_agree() -> None:
    assert agreement(1.0) == pytest.approx(1.0)
    assert 0.3 < agreement(0.5) < 0.8
    assert agreement(0.9) > agreement(0.5) + 0.1
    world = World(SimulateOptions(requests=10, users=2_000, categories=20, domains=2, shared=0.0))
    video, product = world.interest[:, 0]
    others = (video * np.roll(product, 1, axis=0)).sum(axis=1).mean()  # of different users: all like what most topics have
    assert agreement(0.0) == pytest.approx(others, abs=0.05)


def told(noise: float) -> list[float]:
    """Return by domain how much of the items' latent interests a linear map reads from their vectors (R2, held out)."""
    world = World(SimulateOptions(requests=10, items=1_000, domains=2, vector_dim=16, vector_noise=noise))
    shares, vectors = [], world.vectors()
    for domain in range(2):
        rows = world.item_domain == domain
        x, y = vectors[rows], world.item_vector[rows]
        weights = np.linalg.lstsq(x[::2], y[::2], rcond=None)[0]
        shares.append(float(1 - ((y[1::2] - x[1::2] @ weights) ** 2).sum() / (y[1::2] ** 2).sum()))
    return shares


def test_vectors_tell_interests_through_noise() -> None:
    assert min(told(0.0)) > 0.999
    assert all(0.5 < share < 0.95 for share in told(0.5))
    assert max(told(20.0)) < 0.2


def test_short_watches_change_no_sample() -> None:
    """Of the joined rows: they label nothing, are no history, and whole watches are those of a run without short ones."""
    rows = {}
    for short in (0.0, 0.3):
        log, options = MemoryLog(), msgspec.structs.replace(TWO, short_watches=short)
        config = run_simulate(options, log, None).join
        blocks = [block for partition in range(2) for block in stream_samples(log, config, partition)]
        rows[short] = [row for block in blocks for row in block.batch.to_pylist()]
    assert repr(rows[0.3]) == repr(rows[0.0])
    assert sum(sum(row["candidate.label"]) for row in rows[0.0]) > 500

    events = events_of(msgspec.structs.replace(TWO, short_watches=0.3))[Action]
    plain = events_of(TWO)[Action]
    watched = [event.value for event in events if event.kind == "watch"]
    assert all(event.value is None for event in plain + [event for event in events if event.kind == "click"])
    assert sum(value >= 0.5 for value in watched) == sum(event.kind == "watch" for event in plain)
    assert sum(value < 0.5 for value in watched) > 500


def test_two_domains_join_to_a_sequence_each(tmp_path: Path) -> None:
    log = MemoryLog()
    report = run_simulate(TWO, log, None)
    assert report.vector_dim == 8
    assert tuple(report.join.item_sequences) == DOMAINS
    block = SampleBlock.concat([b for partition in range(2) for b in stream_samples(log, report.join, partition)])
    assert len(block) == TWO.requests
    assert block.ragged("candidate.label").values.sum() == report.actions
    videos, products = (set(block.ragged(f"{name}.item").values.tolist()) for name in DOMAINS)
    assert len(videos) > 50
    assert len(products) > 50
    assert not videos & products
    write_log_config(tmp_path, report.join, vector_dim=report.vector_dim)
    config = resolve(log_layers(tmp_path))
    assert (config.vectors.dim, config.join.vector_dim, config.join) == (8, 8, report.join)
