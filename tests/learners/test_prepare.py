"""What is made of a block ahead of its step: equal to what the step would make, shared by models, told of by none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.batch import Batch
from learners.checks import PLAIN_SCHEMA, SCHEMA, Case, random_block
from learners.learner import Learner, State
from learners.models import BUILT_IN
from learners.samples import SampleSchema
from learners.tables import EmbeddingTable, TableConfig, distinct
from learners.tables.together import Together, asked_together

KEYS = st.lists(st.integers(0, 12), max_size=20)
DRAWING = {"edges": {"share_seed": 0.5, "cap": 6}, "subsample": 0.05}
OPTIONS = [
    ("egin", {}),
    ("egin", {"place_bias": True}),
    ("egin", DRAWING),
    ("egin", {"graph_table": "shared"}),
    *((kind, {}) for kind in BUILT_IN),
]


def keys(values: list[int]) -> np.ndarray:
    return np.array(values, np.int64)


@given(uses=st.lists(KEYS, min_size=1, max_size=4), more=st.lists(st.integers(0, 60), max_size=90))
@settings(deadline=None, max_examples=80)
def test_keys_deduped_ahead_and_more_equal_all_at_once(uses: list[list[int]], more: list[int]) -> None:
    ahead = distinct(*map(keys, uses))
    found, whole = ahead.with_more(keys(more)), distinct(*map(keys, [*uses, more]))
    in_order = list(dict.fromkeys([key for use in [*uses, more] for key in use]))
    assert found.keys.tolist() == whole.keys.tolist() == in_order
    for use, places, other in zip([*uses, more], found.places, whole.places, strict=True):
        assert places.tolist() == other.tolist() == [in_order.index(key) for key in use]
    assert ahead.keys.tolist() == in_order[: len(ahead.keys)]  # others use it too
    assert found.n_first == len(set(uses[0]))
    assert ahead.first().keys.tolist() == list(dict.fromkeys(uses[0]))


@given(batches=st.lists(st.tuples(KEYS, KEYS), min_size=1, max_size=5), rows=st.integers(12, 30))
@settings(deadline=None, max_examples=40)
def test_a_table_holds_the_same_by_either_look_up(batches: list[tuple[list[int], list[int]]], rows: int) -> None:
    """Found at once, admitted, and with rows that give way: gradients, counts and ages are those of one key after another."""
    config = TableConfig(dim=3, max_rows=max(rows, 24))
    one, two = EmbeddingTable("one/t", config), EmbeddingTable("two/t", config)
    for ts, (use, more) in enumerate(batches, 1):
        uses = keys(use) + 10 * ts, keys(more)
        left = one.gather(*uses, learn=True, ts=ts)
        right = two.look_up(distinct(uses[0]).with_more(uses[1]), learn=True, ts=ts)
        assert torch.equal(left.weight, right.weight)
        assert left.rows.tolist() == right.rows.tolist()
        for gathered in (left, right):
            torch.autograd.backward([gathered.of(at).square().sum() + gathered.of(at).sum() for at in range(2)])
        one.apply_gradients()
        two.apply_gradients()
        for name, array in one.state().items():
            assert np.array_equal(array, two.state()[name]), name


@pytest.mark.parametrize("schema", [SCHEMA, PLAIN_SCHEMA], ids=lambda schema: schema.generation)
@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=lambda each: each if isinstance(each, str) else ".".join(each))
@given(seeds=st.lists(st.integers(0, 999), min_size=1, max_size=3, unique=True))
@settings(deadline=None, max_examples=3)
def test_a_prepared_block_equals_an_unprepared_one(
    kind: str, options: dict[str, object], schema: SampleSchema, seeds: list[int]
) -> None:
    ahead, alone = (Case(kind, options, schema).build() for _ in range(2))
    other = Case("dnn", {}, schema).build()  # a model beside it, whose parts it finds
    for seed in sorted(seeds):
        block, own = (random_block(schema, seed=seed, n_items=80) for _ in range(2))
        other.prepare(block)
        ahead.prepare(block)
        scores, stats = ahead.predict_learn(block)
        expected, said = alone.predict_learn(own)
        assert np.array_equal(scores, expected)
        assert stats == said
    assert same(ahead.state(), alone.state())


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name], equal_nan=True) for name in left)


def test_what_was_prepared_is_found_and_then_let_go() -> None:
    block = random_block(seed=3)
    learner: Learner = Case("egin", {"edges": {"share_seed": 0.0}}).build()
    learner.prepare(block)
    made = []

    def make() -> int:
        made.append(1)
        return len(made)

    batch = Batch(block, torch.device("cpu"))
    assert batch.request_of() is batch.request_of()
    assert batch.distinct("candidate.item", "click.item") is batch.distinct("candidate.item", "click.item")
    assert [block.once("mine", make) for _ in range(3)] == [1, 1, 1]
    block.forget()
    assert block.once("mine", make) == 2


@given(
    uses=st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=4), min_size=1, max_size=3),
    seed=st.integers(0, 9),
    more=st.sampled_from([{}, {"optimiser": "adam"}, {"expire_after_ms": 5}, {"admit_after": 2}, {"keep": 0.9}]),
    times=st.lists(st.sampled_from([0, 1, 2, 90, 1 << 33]), min_size=2, max_size=5),
    mark=st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_tables_looked_up_together_learn_as_each_alone(
    uses: list[list[int]], seed: int, more: dict[str, Any], times: list[int], mark: bool
) -> None:
    config = TableConfig(dim=3, initial_scale=1.0, **more)
    ours, theirs = ([EmbeddingTable(f"t/{at}", config) for at in range(len(uses))] for _ in range(2))
    together = Together(ours)
    marks: list[int] = []
    grad = torch.randn(4, 3 * len(uses), generator=torch.Generator().manual_seed(seed))
    for batch, ts in enumerate(sorted(times)):
        asked = asked_together([keys(use) + batch // 2 for use in uses])
        weight = together.look_up(asked, learn=True, ts=ts)
        out = weight[torch.from_numpy(asked.places)].view(4, -1)
        each = [table.gather(keys(use) + batch // 2, learn=True, ts=ts).of(0) for table, use in zip(theirs, uses, strict=True)]
        expected = torch.cat(each, 1)
        assert torch.equal(out, expected)
        for made in (out, expected):
            torch.autograd.backward(made, grad)
        marks = [table.mark() for table in ours] if mark else marks
        together.apply_gradients()
        for at, (one, two) in enumerate(zip(ours, theirs, strict=True)):
            two.apply_gradients()
            assert same(one.state(), two.state())
            if mark:  # what was learned after the mark is in the delta, though it was looked up before
                rows = one.index.find(np.unique(keys(uses[at]) + batch // 2))
                assert set(one.index.keys[rows[rows > 0]]) <= set(one.delta_state(marks[at])["key"])
    unlearned = together.look_up(asked_together([keys([99] * 4)] * len(uses)))
    assert not unlearned.requires_grad
    with pytest.raises(RuntimeError, match="needs a look_up"):
        together.apply_gradients()
