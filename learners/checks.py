"""The check-suite that every model runs, by capability; for models from outside too.

    from learners.checks import CHECKS, Case
    for check in CHECKS:
        check(Case("mymodel", options={}))

Each check raises AssertionError with what is wrong. They hold promises 5 and 6: a score changes with nothing but its own
candidate and request, serving and training agree, scoring changes nothing, every parameter learns, edge cases work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from learners.learner import Learner, State
from learners.models import ModelContext, build
from learners.network import NeuralLearner
from learners.samples import QUERY, Ragged, SampleBlock, SampleSchema
from learners.vectors import VectorStore

TOLERANCE = 2e-5
SCHEMA = SampleSchema(
    generation="checks",
    item_sequences=("click",),
    request_floats=("hour", "hidden"),
    request_ids=("device",),
    candidate_floats=("price",),
    candidate_ids=("brand",),
    has_truth=True,
)
PLAIN_SCHEMA = SampleSchema(generation="plain", has_query=False, has_category=False)


class Case(msgspec.Struct, frozen=True):
    """One model with options, on one schema."""

    kind: str
    options: Mapping[str, Any] = {}
    schema: SampleSchema = SCHEMA
    vectors: int = 0
    """Length of pre-extracted item vectors; every other item has one. 0 is none."""

    def build(self, seed: int = 0, ignored: tuple[str, ...] = (), device: str = "cpu") -> Learner:
        """Build a fresh learner."""
        store = _vectors(self.vectors) if self.vectors else None
        context = ModelContext(
            schema=self.schema, name=self.kind, seed=seed, device=device, ignored_features=ignored, vectors=store
        )
        return build(self.kind, self.options, context)

    def trained(self, n_blocks: int = 4) -> Learner:
        """Build a learner that has learned a few blocks."""
        learner = self.build()
        for seed in range(n_blocks):
            learner.learn(random_block(self.schema, seed=seed))
        return learner


def _vectors(dim: int, n_items: int = 80) -> VectorStore:
    items = np.arange(2, n_items + 1, 2)
    store = VectorStore(None, dim, n_items)
    store.put(items, np.random.default_rng(78).normal(size=(len(items), dim)).astype(np.float32))
    return store


def random_block(
    schema: SampleSchema = SCHEMA,
    n_requests: int = 24,
    *,
    seed: int = 0,
    max_history: int = 12,
    max_candidates: int = 6,
    n_items: int = 40,
) -> SampleBlock:
    """Return a block of random requests over few ids, empty histories among them; items below a tenth are clicked."""
    rng = np.random.default_rng([seed, 77])
    lengths = {
        name: rng.integers(0, high + 1, n_requests)
        for name, high in ((QUERY, max_history), *((name, max_history) for name in schema.item_sequences))
    }
    lengths["candidate"] = rng.integers(1, max_candidates + 1, n_requests)
    ts = 1_700_000_000_000 + seed * 60_000 + np.sort(rng.integers(0, 60_000, n_requests))
    items = rng.integers(1, n_items + 1, int(lengths["candidate"].sum()))
    columns: dict[str, npt.NDArray[Any] | Ragged] = {}
    for field in schema.arrow():
        group, _, part = field.name.partition(".")
        is_list = pa.types.is_list(field.type)
        row = lengths.get("candidate" if group == "candidate_feature" else group, ts)
        n = int(row.sum()) if is_list else n_requests
        values = _values(field, n, rng)
        if part == "fresh":
            values = rng.integers(0, row + 1).astype(np.int32)
        if part == "ts":
            values = _times(ts, row, rng)
        if field.name in ("ts", "due"):
            values = ts
        if field.name == "seq":
            values = np.arange(n) + seed * n
        if field.name == "candidate.item":
            values = items
        if field.name == "candidate.label":
            values = ((items % 10 == 0) ^ (rng.random(n) < 0.05)).astype(np.float32)
        if field.name == "candidate.weight":
            values = np.ones(n, np.float32)
        columns[field.name] = Ragged(values, _offsets(row)) if is_list else values
    return SampleBlock.from_columns(schema, columns)


def _values(field: pa.Field, n: int, rng: np.random.Generator) -> npt.NDArray[Any]:
    kind = field.type.value_type if pa.types.is_list(field.type) else field.type
    if pa.types.is_fixed_size_list(kind):
        return rng.integers(0, 6, (n, kind.list_size))
    if pa.types.is_floating(kind):
        values = rng.normal(3.0, 2.0, n).astype(np.float32)
        values[rng.random(n) < 0.1] = np.nan
        return values
    if field.name == "partition":
        return np.zeros(n, np.int32)
    if field.name == "candidate.position":
        return rng.integers(-1, 8, n).astype(np.int32)
    return rng.integers(0 if "category" in field.name or "feature" in field.name else 1, 12, n)


def _times(ts: npt.NDArray[Any], lengths: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    rows = [np.sort(now - rng.integers(1, 7_200_000, n)) for now, n in zip(ts, lengths, strict=True)]
    return np.concatenate(rows).astype(np.int64)


def _offsets(lengths: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def replaced(block: SampleBlock, **changes: npt.NDArray[Any] | Ragged) -> SampleBlock:
    """Return the block with columns replaced; ``__`` in a keyword stands for the dot of the column's name."""
    columns: dict[str, npt.NDArray[Any] | Ragged] = {}
    for field in block.schema.arrow():
        is_list = pa.types.is_list(field.type)
        columns[field.name] = block.ragged(field.name) if is_list else block.column(field.name)
    columns.update({name.replace("__", "."): values for name, values in changes.items()})
    return SampleBlock.from_columns(block.schema, columns)


def _same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name], equal_nan=True) for name in left)


def _copy(state: State) -> State:
    return {name: np.array(array) for name, array in state.items()}


def check_predict_changes_nothing(case: Case) -> None:
    """Scoring leaves the state alone, and says the same again."""
    learner, block = case.trained(), random_block(case.schema, seed=9)
    before = _copy(learner.state())
    first, second = learner.predict(block), learner.predict(block)
    assert np.array_equal(first, second), "predict is not deterministic"
    assert _same(before, learner.state()), "predict changed the state"
    assert first.shape == (block.n_candidates,), f"scores have shape {first.shape}"
    assert first.dtype == np.float32, f"scores are {first.dtype}"
    assert ((first >= 0) & (first <= 1)).all(), "scores are no probabilities"


def check_training_and_serving_agree(case: Case) -> None:
    """The scores of a learning step are those that serving would have given before it."""
    learner, block = case.trained(), random_block(case.schema, seed=9, n_items=80)
    served = learner.predict(block)
    np.testing.assert_allclose(learner.predict_learn(block)[0], served, atol=TOLERANCE, err_msg="forward passes differ")


def check_batch_size_is_invisible(case: Case) -> None:
    """A request scores alone as it does among others."""
    learner, block = case.trained(), random_block(case.schema, seed=9, n_items=80)
    alone = np.concatenate([learner.predict(block.slice(row, row + 1)) for row in range(len(block))])
    np.testing.assert_allclose(alone, learner.predict(block), atol=TOLERANCE, err_msg="a score depends on its batch")


def check_other_candidates_are_irrelevant(case: Case) -> None:
    """A candidate's score stays when the other candidates of its request change (DIN's first public code leaked here)."""
    learner, block = case.trained(), random_block(case.schema, seed=9)
    items = block.ragged("candidate.item")
    first = items.offsets[:-1]
    changed = np.full_like(items.values, 1_000_003)
    changed[first] = items.values[first]
    scores = learner.predict(replaced(block, candidate__item=Ragged(changed, items.offsets)))
    np.testing.assert_allclose(scores[first], learner.predict(block)[first], atol=TOLERANCE, err_msg="candidates leak")


def check_preparing_changes_nothing(case: Case) -> None:
    """A block that was prepared ahead, on another thread, gives the same bits as one that was not; preparing learns nothing."""
    ahead, alone = case.trained(), case.trained()
    for seed in range(10, 13):
        block, own = (random_block(case.schema, seed=seed, n_items=80) for _ in range(2))
        before = _copy(ahead.state())
        thread = threading.Thread(target=ahead.prepare, args=(block,))
        thread.start()
        thread.join()
        assert _same(before, ahead.state()), "prepare changed the state"
        assert np.array_equal(ahead.predict(block), alone.predict(own)), "scores differ"
        assert np.array_equal(ahead.predict_learn(block)[0], alone.predict_learn(own)[0]), "scores of learning differ"
    assert _same(ahead.state(), alone.state()), "what was learned differs"


def check_labels_and_truth_are_unseen(case: Case) -> None:
    """Labels and weights do not reach a score; truth reaches nothing."""
    learner, block = case.trained(), random_block(case.schema, seed=9)
    labels = block.ragged("candidate.label")
    flipped = replaced(block, candidate__label=Ragged(1 - labels.values, labels.offsets))
    assert np.array_equal(learner.predict(flipped), learner.predict(block)), "a score depends on its label"
    if case.schema.has_truth:
        other = case.trained()
        other.learn(replaced(block, candidate__truth=Ragged(np.zeros_like(labels.values), labels.offsets)))
        learner.learn(block)
        assert _same(learner.state(), other.state()), "the model saw the truth"


def check_ignored_features_are_unseen(case: Case) -> None:
    """What only the evaluation may see reaches neither a score nor the state."""
    if "hidden" not in case.schema.request_floats:
        return
    one, two = case.build(ignored=("hidden",)), case.build(ignored=("hidden",))
    block = random_block(case.schema)
    one.learn(block)
    two.learn(replaced(block, request_feature__hidden=np.full(len(block), 7.0, np.float32)))
    assert _same(one.state(), two.state()), "an ignored feature was seen"


def check_edge_cases(case: Case) -> None:
    """One request, one candidate, no history at all, missing ids, no request: all score and learn, finitely."""
    learner = case.trained()
    block = random_block(case.schema, seed=9)
    items = block.ragged("candidate.item")
    cases = {
        "one request": block.slice(0, 1),
        "one candidate": random_block(case.schema, 1, seed=5, max_candidates=1),
        "no history": random_block(case.schema, seed=6, max_history=0),
        "missing ids": replaced(block, candidate__item=Ragged(np.zeros_like(items.values), items.offsets)),
        "no request": block.slice(0, 0),
    }
    for name, small in cases.items():
        scores, stats = learner.predict_learn(small)
        assert len(scores) == small.n_candidates, f"{name}: {len(scores)} scores"
        assert np.isfinite(scores).all(), f"{name}: scores are not finite"
        assert all(np.isfinite(value) for value in stats.values()), f"{name}: {stats}"
    for name, array in learner.state().items():
        assert np.isfinite(array).all(), f"{name} is not finite after edge cases"


def check_state_round_trip(case: Case) -> None:
    """A learner that loads a state goes on bit for bit as the one that saved it."""
    learner, block = case.trained(), random_block(case.schema, seed=9, n_items=80)
    saved = _copy(learner.state())
    other = case.build(seed=0)
    other.load_state(saved)
    assert _same(saved, other.state()), "state -> load_state -> state differs"
    for seed in (10, 11):
        block = random_block(case.schema, seed=seed, n_items=80)
        assert np.array_equal(learner.predict_learn(block)[0], other.predict_learn(block)[0]), "scores differ after loading"
    assert _same(learner.state(), other.state()), "learning differs after loading"


def check_same_seed_same_bits(case: Case) -> None:
    """Two learners of one seed that see the same blocks are equal, bit for bit."""
    assert _same(case.trained().state(), case.trained().state()), "learning is not deterministic"


def check_learns(case: Case) -> None:
    """Seeing blocks where some items are clicked, the model ends up with these above the others."""
    learner = case.build()
    if not learner.tells_items_apart:
        return
    for seed in range(60):
        learner.learn(random_block(case.schema, seed=seed))
    block = random_block(case.schema, n_requests=200, seed=99)
    scores, clicked = learner.predict(block), block.ragged("candidate.item").values % 10 == 0
    assert scores[clicked].mean() > scores[~clicked].mean() + 0.05, "clicked items do not score higher"


def check_every_parameter_learns(case: Case) -> None:
    """Every parameter is registered, gets a gradient and moves; every table's rows move."""
    learner = case.build()
    if not isinstance(learner, NeuralLearner):
        return
    _assert_registered(learner.network)
    learner.learn(random_block(case.schema, 64, seed=0))
    before = _copy(learner.state())
    for seed in range(1, 6):
        learner.learn(random_block(case.schema, 64, seed=seed))
    after = learner.state()
    means = {name: after.get(f"adam.{name}.exp_avg") for name, _ in learner.network.named_parameters()}
    without = [name for name, mean in means.items() if mean is None or not np.abs(mean).any()]
    assert not without, f"no gradient reaches {without}"
    still = [n for n in before if n.endswith(".weight") and np.array_equal(before[n], after[n][: len(before[n])])]
    assert not still, f"never moved: {still}"


def check_a_tape_is_autograd(case: Case) -> None:
    """What a network learns by its tape in a step is what it learns by autograd, within rounding.

    Each step begins alike: where a unit of a layer is at zero within rounding, two learners go ways of their own.
    """
    learners = case.build(), case.build()
    for learner in learners:
        if not isinstance(learner, NeuralLearner) or not learner.network.on_tape:
            return
    by_autograd: Any = learners[1]
    by_autograd.network.on_tape = False
    for seed in range(6):
        block = random_block(case.schema, 64, seed=seed)
        one, other = (learner.predict_learn(block) for learner in learners)
        np.testing.assert_allclose(one[0], other[0], atol=1e-6, rtol=1e-5)
        assert one[1].keys() == other[1].keys()
        states = [learner.state() for learner in learners]
        assert states[0].keys() == states[1].keys()
        for name, array in states[0].items():
            np.testing.assert_allclose(array, states[1][name], atol=1e-5, rtol=1e-4, err_msg=name)
        by_autograd.load_state(_copy(states[0]))


def _assert_registered(network: nn.Module) -> None:
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            hidden = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            if not name.startswith("_"):
                bad = [v for v in hidden if isinstance(v, nn.Module) or (isinstance(v, torch.Tensor) and v.requires_grad)]
                assert not bad, f"{path}.{name} holds parameters that torch does not know"


CHECKS: tuple[Callable[[Case], None], ...] = tuple(
    value for name, value in sorted(globals().items()) if name.startswith("check_")
)
