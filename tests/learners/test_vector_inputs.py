"""Item vectors as inputs: the check-suite of SEMI with them, the rule for items without one, and who reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from learners.batch import CANDIDATES, Batch
from learners.checks import CHECKS, Case, random_block, replaced
from learners.learner import Scores
from learners.models import ModelContext
from learners.models.semi import Config, SEMILearner, build
from learners.samples import Ragged, SampleBlock, SampleSchema
from learners.vector_inputs import VectorInputs
from learners.vectors import VectorStore

SCHEMA = SampleSchema(generation="two", item_sequences=("video", "product"), has_query=False)
CCL = {"ccl": "on", "ccl_every": 1, "ccl_batch": 4, "ccl_capacity": 12, "ccl_min_sessions": (1, 1)}
DIM, N_ITEMS = 5, 80


def store_of(seed: int = 0, items: range = range(2, N_ITEMS, 2)) -> VectorStore:
    store = VectorStore(None, DIM, N_ITEMS)
    store.put(np.array(items), np.random.default_rng(seed).normal(size=(len(items), DIM)).astype(np.float32))
    return store


def semi(store: VectorStore | None, **options: Any) -> SEMILearner:
    learner = build(Config(hidden=(16,), **options), ModelContext(schema=SCHEMA, name="semi", vectors=store))
    assert isinstance(learner, SEMILearner)
    learner.name = "semi"
    return learner


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("model", ["bst", "cross_bst", "dien", "din", "semi", "youtube_dnn"])
def test_networks_with_vectors(model: str, check: Callable[[Case], None]) -> None:
    check(Case(model, {"hidden": [32]}, SCHEMA, vectors=DIM))


def test_a_vector_is_projected_and_an_item_without_one_is_learned() -> None:
    inputs = VectorInputs(store_of(), 3)
    items, learned = np.array([2, 3, 0, 4, 99, 2]), torch.randn(6, 3, requires_grad=True)
    out = inputs(items, learned)
    vectors, found = inputs.store.get(items)
    assert found.tolist() == [True, False, False, True, False, True]
    expected = torch.from_numpy(vectors) @ inputs.projection.weight.T + inputs.projection.bias
    for row, there in enumerate(found):
        torch.testing.assert_close(out[row], expected[row] if there else learned[row])
    (gradient,) = torch.autograd.grad(out.sum(), learned)
    assert gradient.sum(1).tolist() == [0.0, 3.0, 3.0, 0.0, 3.0, 0.0]


def test_the_share_of_items_without_a_vector_is_told_step_by_step() -> None:
    learner, block = semi(store_of()), random_block(SCHEMA, seed=1)
    learner.predict(block)
    _, stats = learner.predict_learn(block)
    items = np.concatenate([block.ragged(name).values for name in (CANDIDATES, "video.item", "product.item")])
    known = items[items != 0]
    assert stats["vectors.missing"] == pytest.approx((known % 2 == 1).mean())
    assert "vectors.missing" not in semi(None).predict_learn(block)[1]


def with_items(block: SampleBlock, column: str, item: int) -> SampleBlock:
    offsets = block.ragged(column).offsets
    return replaced(block, **{column.replace(".", "__"): Ragged(np.full(offsets[-1], item), offsets)})


@pytest.mark.parametrize("column", [CANDIDATES, "video.item", "product.item"])
def test_targets_and_histories_are_read_by_their_vectors(column: str) -> None:
    """Another vector of the only item there moves scores, where vectors are on; what an item without one has moves none."""

    def scores(item: int, **options: Any) -> tuple[Scores, Scores]:
        block = with_items(random_block(SCHEMA, seed=3), column, item)
        others = {name: 3 for name in (CANDIDATES, "video.item", "product.item") if name != column}
        for name, odd in others.items():
            block = with_items(block, name, odd)
        return semi(store_of(1), **options).predict(block), semi(store_of(2), **options).predict(block)

    one, other = scores(2)
    assert not np.array_equal(one, other)
    for one, other in (scores(5), scores(2, vectors="off")):
        np.testing.assert_array_equal(one, other)


def test_ccl_encodes_what_the_click_model_does() -> None:
    """CCL makes of its sessions what the click model's encoders make of theirs; dictionaries differ by vectors."""
    learner, block = semi(store_of(), **CCL), random_block(SCHEMA, seed=4)
    network = learner.network
    batch = Batch(block, torch.device("cpu"))
    encoded = network.inputs(batch, False)
    sessions = zip(SCHEMA.item_sequences, network.contrasted(), network.pair_sessions(block), strict=True)
    for name, contrasted, session in sessions:
        clicked = network.encoders[name](network.session(batch, encoded, name))
        torch.testing.assert_close(contrasted(session)[session.mask], clicked[session.mask], rtol=0, atol=0)
    dictionaries = []
    for seed in (1, 2):
        learner = semi(store_of(seed), **CCL)
        for each in range(3):
            learner.learn(random_block(SCHEMA, seed=each))
        dictionaries.append({n: np.array(a) for n, a in learner.state().items() if "dictionary.0" in n})
    assert any(not np.array_equal(array, dictionaries[1][name]) for name, array in dictionaries[0].items())


def test_ccl_trains_the_projection() -> None:
    """Before the click model sees anything; the momentum encoders' copies follow slowly, and are two."""
    learner = semi(store_of(), **CCL, ccl_pretrain_until=2**62)
    assert learner.network.inputs.vectors is not None
    assert learner.network.contrast is not None
    projection, ccl = learner.network.inputs.vectors.projection, learner.network.contrast.ccl
    before = projection.weight.detach().clone()
    for each in range(40):
        learner.learn(random_block(SCHEMA, seed=each))
    assert ccl.steps > 0
    assert not torch.equal(projection.weight, before)
    copies = [dict(key.encoder.named_parameters())["encoder.projection.weight"].detach() for key in ccl.keys]
    for copied in copies:
        moved, left = (copied - before).abs().max(), (projection.weight - before).abs().max()
        assert 0 < moved < left


def test_a_model_on_vectors_refuses_a_checkpoint_without() -> None:
    plain = {name: np.array(array) for name, array in semi(None).state().items()}
    with pytest.raises(ValueError, match=r"the checkpoint has no 'network.inputs.vectors.projection"):
        semi(store_of()).load_state(plain)
