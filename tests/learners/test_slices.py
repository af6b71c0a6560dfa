"""Figures by slice against brute force: which cell a row is in, what the figures of a cell are, what cuts and kills change."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from learners.checks import PLAIN_SCHEMA, SCHEMA, random_block, replaced
from learners.metrics import Breakdown, Cell, MetricError, SliceCells, SliceOptions, score_rows
from learners.metrics.cells import COLD_ITEM, COLD_USER, VALUES
from learners.metrics.seen import MOST, SeenCounts
from learners.samples import Ragged, SampleBlock

OPTIONS = SliceOptions(features=("device", "brand", "price"))


def scores_of(block: SampleBlock) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Far apart in logits, so that the bins of a histogram lose nothing."""
    draw = np.random.default_rng(int(block.column("seq")[0]))
    return np.asarray(1 / (1 + np.exp(-draw.integers(-12, 6, block.n_candidates) / 2)), np.float32)


def counted(blocks: list[SampleBlock], options: SliceOptions = OPTIONS) -> tuple[SliceCells, Breakdown]:
    cells, breakdown = SliceCells(blocks[0].schema, options), Breakdown()
    for block in blocks:
        add(cells, breakdown, block)
    return cells, breakdown


def add(cells: SliceCells, breakdown: Breakdown, block: SampleBlock) -> None:
    labels = block.ragged("candidate.label")
    rows = score_rows(scores_of(block), labels.values, labels.offsets, block.column("user"), block.column("ts"))
    breakdown.add(rows, cells.assign(block))


def slowly(blocks: list[SampleBlock]) -> dict[Cell, list[tuple[int, float, float]]]:
    """Return (request, score, label) of every row per cell, one row at a time."""
    found: dict[Cell, list[tuple[int, float, float]]] = defaultdict(list)
    shown: Counter[int] = Counter()
    asked: Counter[int] = Counter()
    number = 0
    for block in blocks:
        scores = scores_of(block)
        candidates, history = block.ragged("candidate.item"), block.ragged("click.item")
        for r in range(len(block)):
            number += 1
            rows = range(int(candidates.offsets[r]), int(candidates.offsets[r + 1]))
            query = int(block.column("query")[r])
            hour = int(block.column("ts")[r]) // 3_600_000 % 24
            before = asked[query]
            level = ("new", "1 to 9 before", "10 to 99 before", "100 or more")[(before >= 1) + (before >= 10) + (before >= 100)]
            of_request = [
                Cell("user", "known" if history.lengths[r] >= COLD_USER else "cold"),
                Cell("hour", f"{hour:02}"),
                Cell("query", level),
            ]
            for i in rows:
                item, position = int(candidates.values[i]), int(block.ragged("candidate.position").values[i])
                of_row = [*of_request, Cell("item", "known" if shown[item] >= COLD_ITEM else "cold")]
                if position >= 0:
                    of_row.append(Cell("position", str(position)))
                label = float(block.ragged("candidate.label").values[i])
                for cell in of_row:
                    found[cell].append((number, float(scores[i]), label))
            shown.update(candidates.values[rows.start : rows.stop].tolist())
            asked[query] += 1
    return found


def test_cells_and_figures_are_those_of_brute_force() -> None:
    blocks = [random_block(seed=seed, n_requests=150) for seed in range(5)]
    cells, breakdown = counted(blocks)
    expected = slowly(blocks)
    assert {cell.value for cell in expected if cell.dimension in ("item", "user")} == {"cold", "known"}
    assert {cell.value for cell in expected if cell.dimension == "query"} >= {"new", "1 to 9 before", "10 to 99 before"}
    for number, cell in enumerate(cells.cells):
        if cell.dimension not in ("item", "user", "position", "hour", "query"):
            continue
        rows, figures = expected.get(cell, []), breakdown.figures(number)
        assert figures["impressions"] == len(rows)
        if not rows:
            assert math.isnan(figures["auc"])
            continue
        requests, scores, labels = (np.array(part) for part in zip(*rows, strict=True))
        assert figures["positives"] == labels.sum()
        assert figures["requests"] == len(set(requests.tolist()))
        assert figures["log_loss"] == pytest.approx(log_loss(labels, scores, labels=[0, 1]), rel=1e-5)
        if 0 < labels.sum() < len(labels):
            assert figures["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
            assert figures["calibration"] == pytest.approx(scores.sum() / labels.sum(), rel=1e-5)
            rate = labels.mean()
            entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
            assert figures["ne"] == pytest.approx(figures["log_loss"] / entropy)
        assert_grouped_auc(figures["gauc"], requests, scores, labels)


def assert_grouped_auc(found: float, requests: Any, scores: Any, labels: Any) -> None:
    summed = weight = 0.0
    for request in np.unique(requests):
        mine = requests == request
        if 0 < labels[mine].sum() < mine.sum():
            summed += mine.sum() * roc_auc_score(labels[mine], scores[mine])
            weight += mine.sum()
    assert math.isnan(found) if weight == 0 else found == pytest.approx(summed / weight)


@pytest.mark.parametrize("feature", ["device", "brand"])
def test_values_of_ids_cut_the_stream(feature: str) -> None:
    blocks = [random_block(seed=seed) for seed in range(3)]
    cells, breakdown = counted(blocks)
    column = "request_feature.device" if feature == "device" else "candidate_feature.brand"
    values: Counter[str] = Counter()
    for block in blocks:
        raw = block.ragged(column).values if block.is_ragged(column) else block.column(column)
        times = block.ragged("candidate.item").lengths if not block.is_ragged(column) else np.ones(len(raw), np.int64)
        for value, n in zip(raw.tolist(), times.tolist(), strict=True):
            values["missing" if value == 0 else f"{value:016x}"] += n
    found = {c.value: breakdown.figures(i)["impressions"] for i, c in enumerate(cells.cells) if c.dimension == feature}
    assert found.pop("other") == 0
    assert found == values
    assert "missing" in found


def test_floats_belong_to_the_nearest_of_the_first_values() -> None:
    blocks = [random_block(seed=seed, n_requests=200) for seed in range(2)]  # prices are random floats
    cells, breakdown = counted(blocks)
    prices = np.concatenate([block.ragged("candidate_feature.price").values for block in blocks])
    known = prices[~np.isnan(prices)].tolist()
    landmarks = list(dict.fromkeys(known))[:VALUES]
    expected = Counter(min(landmarks, key=lambda landmark: (abs(landmark - price), landmark)) for price in known)
    mine = {i: cell for i, cell in enumerate(cells.cells) if cell.dimension == "price"}
    found = {c.landmark: breakdown.figures(i)["impressions"] for i, c in mine.items() if c.landmark is not None}
    assert found == expected
    missing = [breakdown.figures(i)["impressions"] for i, c in mine.items() if c.value == "missing"]
    assert missing == [np.isnan(prices).sum()]


def test_more_ids_than_there_are_cells_share_one() -> None:
    block = random_block(n_requests=300, n_items=2_000)
    ids = np.arange(block.n_candidates) % (2 * VALUES) + 1
    brand = Ragged(ids.astype(np.int64), block.ragged("candidate_feature.brand").offsets)
    cells, breakdown = counted([replaced(block, candidate_feature__brand=brand)])
    found = {c.value: breakdown.figures(i)["impressions"] for i, c in enumerate(cells.cells) if c.dimension == "brand"}
    assert len(found) == VALUES + 1
    assert found["other"] == (ids > VALUES).sum()


def figures_by_cell(cells: SliceCells, breakdown: Breakdown) -> dict[Cell, dict[str, float]]:
    return {cell: breakdown.figures(number) for number, cell in enumerate(cells.cells)}


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(1, 119), max_size=4, unique=True))
def test_how_the_stream_is_cut_into_blocks_changes_no_cell(cuts: list[int]) -> None:
    block = random_block(n_requests=120, n_items=5)
    names = SliceCells(SCHEMA, OPTIONS)
    whole = names.assign(block)
    bounds = [0, *sorted(cuts), 120]
    teller = SliceCells(SCHEMA, OPTIONS)
    parts = [teller.assign(block.slice(a, b)) for a, b in itertools.pairwise(bounds)]
    for at, whole_ids in enumerate(whole):
        ids = np.concatenate([part[at] for part in parts], axis=1)
        # Values may have other numbers, but never another name.
        assert [teller.cells[i] for i in ids[ids >= 0]] == [names.cells[i] for i in whole_ids[whole_ids >= 0]]
        assert np.array_equal(ids < 0, whole_ids < 0)


def test_a_stop_and_another_start_change_no_bit() -> None:
    blocks = [random_block(seed=seed) for seed in range(6)]
    cells, breakdown = counted(blocks)
    half, half_figures = counted(blocks[:3])
    again, again_figures = SliceCells(SCHEMA, OPTIONS), Breakdown()
    again.load_state({name: array.copy() for name, array in half.state().items()})
    again_figures.load_state({name: array.copy() for name, array in half_figures.state().items()})
    for block in blocks[3:]:
        add(again, again_figures, block)
    assert again.cells == cells.cells
    for of_one, of_other in ((again.state(), cells.state()), (again_figures.state(), breakdown.state())):
        assert all(np.array_equal(of_one[name], of_other[name]) for name in of_other)


def test_merged_figures_are_the_sums_of_both() -> None:
    # Values come in another order in each, so that their numbers differ.
    one, other = [random_block(seed=0)], [random_block(seed=1)]
    cells, breakdown = counted(one)
    more, more_breakdown = counted(other)
    expected: dict[Cell, float] = defaultdict(float)
    for c, b in ((cells, breakdown), (more, more_breakdown)):
        for cell, figures in figures_by_cell(c, b).items():
            if cell.dimension != "price":  # more values than cells
                expected[cell] += figures["impressions"]
    breakdown.merge(more_breakdown, cells.merge(more))
    merged = figures_by_cell(cells, breakdown)
    assert {cell: merged[cell]["impressions"] for cell in expected} == expected


def test_other_dimensions_are_refused() -> None:
    cells, breakdown = counted([random_block()])
    with pytest.raises(MetricError, match="saved with other dimensions"):
        SliceCells(SCHEMA, SliceOptions(standard=False)).load_state(cells.state())
    with pytest.raises(MetricError, match="other dimensions cannot be merged"):
        SliceCells(SCHEMA).merge(cells)
    with pytest.raises(MetricError, match="does not fit this version"):
        breakdown.load_state({"counts": breakdown.counts})


def test_an_unknown_feature_names_those_that_there_are() -> None:
    with pytest.raises(MetricError, match=r"slice by 'colour': .* hour, hidden, device, price, brand"):
        SliceCells(SCHEMA, SliceOptions(features=("colour",)))
    with pytest.raises(MetricError, match="they have none"):
        SliceCells(PLAIN_SCHEMA, SliceOptions(features=("colour",)))


def test_a_feature_with_the_name_of_a_dimension_has_one_of_its_own() -> None:
    cells = SliceCells(SCHEMA, SliceOptions(features=("hour",)))
    assert {cell.dimension for cell in cells.cells} >= {"hour", "feature hour"}


def test_without_standard_slices_there_are_only_those_asked_for() -> None:
    cells, _ = counted([random_block()], SliceOptions(standard=False, features=("brand",)))
    assert {cell.dimension for cell in cells.cells} == {"brand"}


def test_far_positions_share_cells() -> None:
    block = random_block(n_requests=1, max_candidates=1)
    cells = SliceCells(SCHEMA)
    found = []
    for position in (0, 9, 10, 19, 20, 500, -1):
        there = replaced(block, candidate__position=Ragged(np.array([position], np.int32), np.array([0, 1])))
        number = int(cells.assign(there).candidates[1, 0])
        found.append(cells.cells[number].value if number >= 0 else None)
    assert found == ["0", "9", "10 to 19", "10 to 19", "20 on", "20 on", None]


def test_kept_cells_are_those_of_the_kept_rows() -> None:
    block = random_block(n_requests=30)
    rows = np.random.default_rng(0).random(block.n_candidates) < 0.4
    offsets = block.ragged("candidate.item").offsets
    whole = SliceCells(SCHEMA, OPTIONS).assign(block)
    kept = whole.kept(rows, offsets)
    some = [bool(rows[a:b].any()) for a, b in itertools.pairwise(offsets)]
    assert np.array_equal(kept.candidates, whole.candidates[:, rows])
    assert np.array_equal(kept.requests, whole.requests[:, some])
    assert whole.kept(None, offsets) is whole


@settings(max_examples=20)
@given(ids=st.lists(st.integers(0, 60), max_size=300), size=st.integers(1, 9))
def test_counts_are_never_too_small_and_exact_with_room(ids: list[int], size: int) -> None:
    exact, tight = SeenCounts(16), SeenCounts(3)
    seen: Counter[int] = Counter()
    for at in range(0, len(ids), size):
        part = np.array(ids[at : at + size], np.int64)
        one_request = np.array([0, len(part)])
        expected = [0 if each == 0 else min(seen[each], MOST) for each in part.tolist()]
        assert exact.count(part, one_request).tolist() == expected
        assert (tight.count(part, one_request) >= expected).all()
        seen.update(part.tolist())


def test_counts_stop_at_most_and_merge() -> None:
    one, other = SeenCounts(10), SeenCounts(10)
    ids, each_alone = np.full(200, 7, np.int64), np.arange(201)
    one.count(ids, each_alone)
    other.count(ids, each_alone)
    one.merge(other)
    assert one.count(np.array([7]), np.array([0, 1])).tolist() == [MOST]
    with pytest.raises(ValueError, match="cannot be merged"):
        one.merge(SeenCounts(11))


@pytest.mark.parametrize(
    "wrong", [lambda cells, block: cells.assign(block.slice(0, 3)), lambda cells, block: cells.assign(block)]
)
def test_cells_of_other_rows_are_refused(wrong: Callable[[SliceCells, SampleBlock], Any]) -> None:
    block = random_block(n_requests=8)
    short = block.slice(0, 5)
    labels = short.ragged("candidate.label")
    rows = score_rows(scores_of(short), labels.values, labels.offsets, short.column("user"), short.column("ts"))
    with pytest.raises(MetricError, match="do not fit rows of"):
        Breakdown().add(rows, wrong(SliceCells(SCHEMA), block))
