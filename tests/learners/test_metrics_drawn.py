"""HR@3 among drawn negatives: which lists are drawn, what a list looks like, the figure against counting by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.checks import random_block, replaced
from learners.metrics import DrawnHits, MetricError
from learners.metrics import drawn as module
from learners.samples import Ragged, SampleBlock, SampleSchema

SCHEMA = SampleSchema(
    generation="drawn",
    item_sequences=("video", "product"),
    has_query=False,
    candidate_floats=("price",),
    candidate_ids=("brand",),
)
NEGATIVES = 5


def domains_of(items: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return 1 + items % 2


def blocks(n: int, seed: int = 0, requests: int = 8) -> Iterator[SampleBlock]:
    for at in range(n):
        block = random_block(SCHEMA, requests, seed=seed * 1000 + at, n_items=60)
        items, offsets = block.ragged("candidate.item")
        prices = (items * 0.5 + at).astype(np.float32)
        yield replaced(
            block,
            request=np.arange(requests) + 1 + at * requests,
            candidate__domain=Ragged(domains_of(items), offsets),
            candidate__category=Ragged(items + 7, offsets),
            candidate_feature__price=Ragged(prices, offsets),
        )


def listed(hits: DrawnHits, block: SampleBlock, mask: npt.NDArray[np.bool_] | None = None) -> list[SampleBlock]:
    return [trial.slice(row, row + 1) for trial in hits.trials(block, mask) for row in range(len(trial))]


@settings(max_examples=25)
@given(st.integers(0, 500))
def test_lists_hold_what_came_before_and_nothing_that_the_user_has_seen(seed: int) -> None:
    hits, shown, newest = DrawnHits(SCHEMA, NEGATIVES, ["a"]), set[int](), dict[int, float]()
    for block in blocks(5, seed):
        items, offsets = block.ragged("candidate.item")
        labels, positions = block.ragged("candidate.label").values, block.ragged("candidate.position").values
        found = {}
        for one in listed(hits, block):
            drawn = one.ragged("candidate.item").values
            request = int(one.column("request")[0])
            found[request, int(drawn[0])] = drawn[1:].tolist()
            assert one.ragged("candidate.label").values.tolist() == [1.0] + [0.0] * NEGATIVES
            assert len(set(one.ragged("candidate.position").values.tolist())) == 1
            assert one.ragged("candidate.category").values[1:].tolist() == (drawn[1:] + 7).tolist()
            assert one.ragged("candidate_feature.price").values[1:].tolist() == [newest[item] for item in drawn[1:].tolist()]
        for row in range(len(block)):
            own = slice(offsets[row], offsets[row + 1])
            positives = {int(i) for i, label in zip(items[own], labels[own], strict=True) if label > 0 and i}
            histories = {int(i) for n in ("video", "product") for i in _row(block.ragged(f"{n}.item"), row)}
            for place in np.flatnonzero(labels[own] > 0) + offsets[row]:
                item = int(items[place])
                if not item:
                    continue
                may = {i for i in shown - positives - histories if domains_of(np.array(i)) == domains_of(items[place])}
                negatives = found.pop((int(block.column("request")[row]), item), None)
                if len(may) < NEGATIVES:
                    assert negatives is None
                elif negatives is not None:  # by chance the draws may miss one of a few that there are
                    assert len(set(negatives)) == NEGATIVES
                    assert set(negatives) <= may
        assert not found
        assert positions.size
        hits.admit(block)
        shown |= {int(i) for i in items if i}
        newest |= dict(zip(items.tolist(), block.ragged("candidate_feature.price").values.tolist(), strict=True))


def _row(ragged: Ragged, row: int) -> list[int]:
    return [int(i) for i in ragged.values[ragged.offsets[row] : ragged.offsets[row + 1]]]


def test_the_figure_is_the_share_of_positives_among_the_best_three() -> None:
    hits, hit, counted = DrawnHits(SCHEMA, NEGATIVES, ["a", "b"]), 0, 0
    rng = np.random.default_rng(0)
    for block in blocks(12):
        for trial in hits.trials(block):
            scores = rng.random(trial.n_candidates).astype(np.float32)
            hits.count("a", scores, trial)
            hits.count("b", np.where(trial.ragged("candidate.label").values > 0, 1, 0).astype(np.float32), trial)
            for row in scores.reshape(-1, NEGATIVES + 1):
                hit += int((row[1:] > row[0]).sum() < 3)
                counted += 1
        hits.admit(block)
    assert counted > 30
    assert hits.figures()["a"] == {"hr@3": hit / counted, "positives": counted}
    assert hits.figures()["b"]["hr@3"] == 1.0


def test_scores_that_are_all_alike_get_what_chance_gives() -> None:
    hits = DrawnHits(SCHEMA, NEGATIVES, ["a"])
    for block in blocks(4):
        for trial in hits.trials(block):
            hits.count("a", np.full(trial.n_candidates, 0.5, np.float32), trial)
        hits.admit(block)
    assert hits.figures()["a"]["hr@3"] == pytest.approx(3 / (NEGATIVES + 1))


def test_every_item_of_the_domain_is_drawn_as_often() -> None:
    hits = DrawnHits(SCHEMA, NEGATIVES, ["a"])
    for block in blocks(8):
        hits.admit(block)
    counts = np.zeros(200)
    block = random_block(SCHEMA, 1, seed=3, max_history=0, max_candidates=1)
    block = replaced(
        block,
        candidate__label=Ragged(np.ones(1, np.float32), np.array([0, 1])),
        candidate__item=_one(2),
        candidate__domain=_one(1),
    )
    for request in range(1, 1500):
        for one in listed(hits, replaced(block, request=np.array([request]))):
            counts[one.ragged("candidate.item").values[1:]] += 1
    drawn = counts[counts > 0]
    assert counts[2] == 0
    assert len(drawn) >= 20
    expected = drawn.mean()
    assert abs(drawn - expected).max() < 5 * np.sqrt(expected)


def _one(value: int) -> Ragged:
    return Ragged(np.array([value]), np.array([0, 1]))


def test_only_asked_requests_and_the_share_of_them() -> None:
    every, some = DrawnHits(SCHEMA, 2, ["a"]), DrawnHits(SCHEMA, 2, ["a"], share=0.3)
    nothing, n_every, n_some = np.zeros(8, np.bool_), 0, 0
    for block in blocks(40):
        assert listed(every, block, nothing) == []
        whole, part = ({_name(one) for one in listed(hits, block)} for hits in (every, some))
        assert part <= whole
        n_every, n_some = n_every + len(whole), n_some + len(part)
        every.admit(block)
        some.admit(block)
    assert 0.15 < n_some / n_every < 0.45


def _name(one: SampleBlock) -> tuple[int, ...]:
    return (int(one.column("request")[0]), *one.ragged("candidate.item").values.tolist())


def test_a_restart_goes_on_with_the_same_lists_and_sums() -> None:
    whole, given = DrawnHits(SCHEMA, NEGATIVES, ["a"]), list(blocks(10))
    first = DrawnHits(SCHEMA, NEGATIVES, ["a"])
    second = DrawnHits(SCHEMA, NEGATIVES, ["a"])
    for at, block in enumerate(given):
        if at == 5:
            second.load_state({name: np.array(array) for name, array in first.state().items()})
        part = first if at < 5 else second
        lists = [list(hits.trials(block)) for hits in (whole, part)]
        assert [one.batch for one in lists[0]] == [one.batch for one in lists[1]]
        for hits, trials in zip((whole, part), lists, strict=True):
            for trial in trials:
                hits.count("a", (trial.ragged("candidate_feature.price").values / 1000).astype(np.float32), trial)
            hits.admit(block)
    assert second.figures() == whole.figures()
    assert all(np.array_equal(array, second.state()[name]) for name, array in whole.state().items())
    with pytest.raises(MetricError, match="other models or samples"):
        DrawnHits(SCHEMA, NEGATIVES, ["a", "b"]).load_state(whole.state())


def test_the_pool_is_bounded_and_keeps_a_uniform_sample() -> None:
    hits = DrawnHits(SCHEMA, NEGATIVES, ["a"])
    block = random_block(SCHEMA, 1, seed=3, max_candidates=1)
    n, lot = 0, 20_000
    offsets = np.array([0, lot])
    columns = {
        name.replace(".", "__"): Ragged(np.zeros(lot, block.ragged(name).values.dtype), offsets)
        for name in block.batch.schema.names
        if name.startswith("candidate")
    }
    while n < 1.5 * module.POOL:
        hits.admit(replaced(block, **{**columns, "candidate__item": Ragged(np.arange(n + 1, n + lot + 1), offsets)}))
        n += lot
    state = hits.state()
    assert len(state["pool.item"]) == module.POOL
    assert (np.diff(state["pool.rank"].astype(np.float64)) >= 0).all()
    halves = (state["pool.item"] <= n // 2).mean()
    assert abs(halves - 0.5) < 0.01
