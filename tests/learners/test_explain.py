"""What a model looks at, against what it computes; what vectors know of categories, against all pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from learners.attention import matrices
from learners.batch import CANDIDATES, Batch
from learners.checks import PLAIN_SCHEMA, Case, random_block
from learners.embeddings import likeness, tables_likeness
from learners.explain import Explanation, Look, explain
from learners.graph.subgraph import subgraph
from learners.models.din import DIN
from learners.models.egin import EGIN
from learners.network import NeuralLearner
from learners.samples import SampleBlock


def one_request(n_clicks: int = 6) -> SampleBlock:
    block = random_block(n_requests=60, max_history=20, seed=9)
    clicks, queries = block.ragged("click.item").lengths, block.ragged("query.id").lengths
    row = int(np.flatnonzero((clicks >= n_clicks) & (queries >= 3))[0])
    return block.slice(row, row + 1)


def look(found: Explanation, name: str) -> Look:
    return next(each for each in found.looks if each.name == name)


@pytest.mark.parametrize("options", [{}, {"graph_table": "shared"}, {"top_k": 3}])
def test_egin_says_cosines_picks_and_edges(options: dict[str, object]) -> None:
    learner = Case("egin", options).trained()
    block = one_request()
    before = {name: array.copy() for name, array in learner.state().items()}
    found = explain(learner, block)
    assert np.array_equal(found.scores, learner.predict(block))
    assert isinstance(learner, NeuralLearner)
    network = learner.network
    assert isinstance(network, EGIN)
    table = network.nodes["item"].own or network.inputs.tables["item"]
    targets = table.gather(block.ragged(CANDIDATES).values).of(0)
    past = table.gather(block.ragged("click.item").values).of(0)
    cosines = torch.nn.functional.cosine_similarity(targets[:, None], past[None], dim=2).numpy()
    i2i = look(found, "i2i")
    assert i2i.values == pytest.approx(cosines, abs=1e-5)
    for row, picked in zip(cosines, i2i.picked, strict=True):
        assert len(picked) == min(network.config.top_k, len(past))
        left_out = np.delete(row, picked)
        assert min(row[picked]) >= max(left_out, default=-1.0) - 1e-5
        assert (np.diff(row[picked]) <= 1e-5).all()
    assert look(found, "q2q").values.shape == (1, len(block.ragged("query.id").values))
    assert look(found, "q2i").values.shape == (1, len(past))
    graph = subgraph(
        Batch(block, learner.device), network.sequence, network.config.edges, 0, "egin", learner.step, queries=True
    )
    kinds = [link.kind for link in found.links]
    assert kinds.count("i2i") * 2 == graph.i2i.n_edges > 0
    assert kinds.count("q2i") == graph.q2i.n_edges
    assert all(np.array_equal(array, learner.state()[name]) for name, array in before.items())


def test_egin_without_a_graph_or_queries_says_what_is_left() -> None:
    assert explain(Case("egin", {"graph": False}).trained(), one_request()).links == []
    block = random_block(PLAIN_SCHEMA, n_requests=1, seed=3)
    assert [each.name for each in explain(Case("egin", {}, PLAIN_SCHEMA).trained(), block).looks] == ["i2i"]


def test_dins_weights_give_its_interest_back() -> None:
    learner = Case("din").trained()
    block = one_request()
    found = look(explain(learner, block), "attention.click")
    assert isinstance(learner, NeuralLearner)
    network = learner.network
    assert isinstance(network, DIN)
    batch = Batch(block, learner.device)
    with torch.no_grad():
        tables = network.inputs.tables
        sides = [
            torch.cat([tables["item"].gather(batch.ids(item)).of(0), tables["category"].gather(batch.ids(category)).of(0)], 1)
            for item, category in ((CANDIDATES, "candidate.category"), ("click.item", "click.category"))
        ]
        offsets = batch.ragged(CANDIDATES).offsets, batch.ragged("click.item").offsets
        interest = network.attention["click"](matrices(*sides), *offsets)[:, : sides[0].shape[1]]
    assert torch.from_numpy(found.values) @ sides[1] == pytest.approx(interest.numpy(), abs=1e-4)


def test_an_empty_history_and_other_models_have_scores_alone() -> None:
    block = random_block(n_requests=20, max_history=0).slice(0, 1)
    for kind in ("egin", "din"):
        found = explain(Case(kind).trained(), block)
        assert all(each.values.size == 0 for each in found.looks if each.sequence == "click")
    assert explain(Case("popularity").trained(), one_request()).looks == []
    with pytest.raises(ValueError, match="one request is explained at a time, the block has 20"):
        explain(Case("popularity").build(), random_block(n_requests=20))


def test_a_learner_may_explain_itself() -> None:
    popularity = type(Case("popularity").build())

    class Own(popularity):  # type: ignore[misc, valid-type]
        def explain(self, block: SampleBlock) -> Explanation:
            return Explanation(self.predict(block), [Look("mine", "click", np.zeros((1, 1), np.float32), [])], [])

    learner = Case("popularity").build()
    learner.__class__ = Own
    assert [each.name for each in explain(learner, one_request()).looks] == ["mine"]


def test_likeness_is_the_mean_over_all_pairs() -> None:
    draw = np.random.default_rng(0)
    vectors, categories = draw.normal(size=(40, 5)).astype(np.float32), draw.integers(1, 5, 40)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    within = [float(unit[a] @ unit[b]) for a, b in combinations(range(40), 2) if categories[a] == categories[b]]
    between = [float(unit[a] @ unit[b]) for a, b in combinations(range(40), 2) if categories[a] != categories[b]]
    found = likeness(vectors, categories)
    assert (found.pairs_within, found.pairs_between) == (len(within), len(between))
    assert found.within == pytest.approx(np.mean(within), abs=1e-5)
    assert found.between == pytest.approx(np.mean(between), abs=1e-5)
    assert np.diag(found.matrix) == pytest.approx(1.0, abs=1e-5)
    assert (np.diff(np.flatnonzero(np.diff(found.matrix_categories))) > 0).all()  # each category in one piece
    assert len(set(found.matrix_categories.tolist())) == 4


def test_only_what_was_learned_often_is_compared() -> None:
    learner = Case("egin").trained(30)
    items = np.arange(1, 200)
    found = tables_likeness(learner, items, items % 3 + 1)
    assert set(found) == {"item", "graph.item"}
    assert 10 < found["item"].items <= 40  # the ids that the blocks have
    assert tables_likeness(Case("popularity").trained(), items, items) == {}
