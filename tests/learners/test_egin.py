"""EGIN beyond the check-suite: its subgraph against brute force, its joint loss written out, its queues, every switch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners import checks
from learners.batch import Batch
from learners.checks import PLAIN_SCHEMA, SCHEMA, Case, random_block, replaced
from learners.graph.append import lengthened, where
from learners.graph.fresh import fresh_entries
from learners.graph.nodes import BatchNodes
from learners.graph.subgraph import GraphConfig, Subgraph, subgraph
from learners.models.egin import EGIN
from learners.network import NeuralLearner
from learners.samples import Ragged, SampleBlock

SWITCHES: dict[str, dict[str, Any]] = {
    "no graph": {"graph": False},
    "no queries": {"queries": False},
    "no slot positions": {"slot_positions": False},
    "shared table": {"graph_table": "shared"},
    "frozen inputs": {"graph_inputs": "frozen"},
    "similarities only": {"graph_inputs": "off"},
    "no node bias": {"node_bias": False},
    "standard logQ": {"log_q": "standard"},
    "corrected logQ": {"log_q": "corrected", "temperature": 0.5},
    "subsampled": {"subsample": 0.01},
    "all edges": {"edges": {"edges": "all", "q2q_rule": "session", "q2i_rule": "around"}},
    "capped, not own": {"edges": {"cap": 4, "own": False}},
    "tiny queue": {"queue": 7},
    "seldom ids have no row": {"admit_after": 3},
    "seldom ids have no row, shared table": {"admit_after": 3, "graph_table": "shared"},
    "rows by chance": {"admit_probability": 0.4},
    "rows expire": {"expire_after_ms": 60_000},
    "rows give way": {"max_rows": 400, "queue": 4_000},
}
HELD = (
    checks.check_training_and_serving_agree,
    checks.check_every_parameter_learns,
    checks.check_state_round_trip,
    checks.check_edge_cases,
    checks.check_labels_and_truth_are_unseen,
)


def egin(learner: Any) -> EGIN:
    assert isinstance(learner, NeuralLearner)
    assert isinstance(learner.network, EGIN)
    return learner.network


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_passes_the_checks(switch: str) -> None:
    admits = SWITCHES[switch].keys() & {"admit_after", "admit_probability"}
    for check in HELD:
        # A table that admits late has no rows yet where that check begins to look.
        if not (admits and check is checks.check_every_parameter_learns):
            check(Case("egin", SWITCHES[switch], SCHEMA))


def test_what_is_off_is_said() -> None:
    assert egin(Case("egin", {}, PLAIN_SCHEMA).build()).off()["q2q"] == "the log has no queries"
    assert egin(Case("egin", {"graph": False}).build()).off() == {"graph": "graph = false"}
    assert egin(Case("egin", {}).build()).off() == {}


@given(rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=6))
@settings(deadline=None, max_examples=50)
def test_lengthened_puts_each_row_behind_its_own(rows: list[tuple[int, int]]) -> None:
    history, extra = (np.concatenate([[0], np.cumsum([row[i] for row in rows])]).astype(np.int64) for i in (0, 1))
    longer = lengthened(history, extra)
    joined = longer.of(np.arange(history[-1]), 100 + np.arange(extra[-1]))
    expected = [
        [*range(history[row], history[row + 1]), *range(100 + extra[row], 100 + extra[row + 1])] for row in range(len(rows))
    ]
    assert [joined[longer.offsets[r] : longer.offsets[r + 1]].tolist() for r in range(len(rows))] == expected


def test_where_keeps_rows() -> None:
    chosen = where(np.array([True, False, True, True]), np.array([0, 1, 1, 4]))
    assert chosen.values.tolist() == [0, 2, 3]
    assert chosen.offsets.tolist() == [0, 1, 1, 3]


def named(graph: Subgraph) -> dict[str, set[tuple[str, int, str, int]]]:
    """Return the edges of each kind as (type, id, type, id)."""
    item = graph.items.ids.values
    query = graph.queries.ids.values if graph.queries is not None else np.zeros(0, np.int64)
    kinds = {
        "i2i": ("i", item, "i", item, graph.i2i),
        "q2q": ("q", query, "q", query, graph.q2q),
        "q2i": ("q", query, "i", item, graph.q2i),
        "i2q": ("i", item, "q", query, graph.i2q),
    }
    return {
        kind: {(a, int(x[i]), b, int(y[j])) for i, j in zip(edges.anchor, edges.positive, strict=True)}
        for kind, (a, x, b, y, edges) in kinds.items()
    }


def search(clicked: bool = True) -> SampleBlock:
    """One request: query 9 after query 8, clicks 1, 2, 3 before it, candidates 4 (clicked) and 5; all of one category."""
    block = random_block(SCHEMA, 1, max_history=0, max_candidates=1)
    ts = int(block.column("ts")[0])

    def row(*values: float, dtype: Any = np.int64) -> Ragged:
        return Ragged(np.array(values, dtype), np.array([0, len(values)]))

    two = {f"candidate_feature__{name}": row(0, 0, dtype=kind) for name, kind in (("price", np.float32), ("brand", np.int64))}
    return replaced(
        block,
        query=np.array([9]),
        query_category=np.array([[7, 0, 0, 0]]),
        click__item=row(1, 2, 3),
        click__category=row(7, 7, 7),
        click__ts=row(ts - 4_000_000, ts - 2_000, ts - 1_000),
        click__fresh=np.array([1], np.int32),
        query__id=row(8),
        query__category=Ragged(np.array([[7, 0, 0, 0]]), np.array([0, 1])),
        query__ts=row(ts - 3_000),
        query__fresh=np.array([0], np.int32),
        candidate__item=row(4, 5),
        candidate__category=row(7, 7),
        candidate__domain=row(0, 0),
        candidate__position=row(0, 1, dtype=np.int32),
        candidate__label=row(float(clicked), 0, dtype=np.float32),
        candidate__weight=row(1, 1, dtype=np.float32),
        candidate__truth=row(0, 0, dtype=np.float32),
        **two,
    )


def both(pairs: list[tuple[int, int]], a: str, b: str) -> set[tuple[str, int, str, int]]:
    return {(a, x, b, y) for x, y in pairs} | {(a, y, b, x) for x, y in pairs}


def graph_of(block: SampleBlock, **options: Any) -> dict[str, set[tuple[str, int, str, int]]]:
    config = GraphConfig(share_seed=0.0, **options)
    return named(subgraph(Batch(block, torch.device("cpu")), "click", config, 0, "egin", 0, queries=True))


def test_the_click_being_learned_is_a_fresh_node() -> None:
    edges = graph_of(search())
    assert edges["i2i"] == both([(3, 1), (3, 2), (4, 2), (4, 3)], "i", "i")
    assert edges["q2q"] == both([(8, 9)], "q", "q")
    assert edges["q2i"] == {("q", 9, "i", 4), ("q", 8, "i", 4), ("q", 8, "i", 3)}
    assert edges["i2q"] == {(b, y, a, x) for a, x, b, y in edges["q2i"]}


def test_what_was_not_clicked_is_no_node() -> None:
    edges = graph_of(search(clicked=False))
    assert edges["i2i"] == both([(3, 1), (3, 2)], "i", "i")
    assert edges["q2i"] == {("q", 8, "i", 3)}


def test_without_own_nodes_only_histories_have_edges() -> None:
    edges = graph_of(search(), own=False, edges="all")
    assert edges["i2i"] == both([(1, 2), (1, 3), (2, 3)], "i", "i")
    assert edges["q2q"] == set()
    assert edges["q2i"] == {("q", 8, "i", 2), ("q", 8, "i", 3)}


def test_fresh_clicks_enter_the_queue_after_the_loss() -> None:
    learner = Case("egin").build()
    network, block = egin(learner), random_block(SCHEMA, seed=3)
    first = learner.learn(block)
    assert first["queue.item.fill"] == 0.0
    assert first["loss.i2i"] == 0.0
    expected = fresh_entries(Batch(block, torch.device("cpu")), "click.item", "click.fresh")
    ids, offsets = block.ragged("click.item")
    by_hand = [i for r, n in enumerate(block.column("click.fresh")) for i in ids[offsets[r + 1] - n : offsets[r + 1]]]
    assert expected.tolist() == [i for i in by_hand if i]
    assert network.nodes["item"].queue.state()["ids"].tolist() == expected.tolist()
    assert learner.learn(random_block(SCHEMA, seed=4))["loss.i2i"] > 0.0


@pytest.mark.parametrize("graph_table", ["own", "shared"])
@pytest.mark.parametrize("options", [{"admit_after": 2}, {"admit_probability": 0.5}, {"expire_after_ms": 1_000}])
def test_nodes_are_the_ids_asked_for_whether_they_have_a_row_or_not(options: dict[str, Any], graph_table: str) -> None:
    learner = Case("egin", {**options, "graph_table": graph_table}).trained(6)
    nodes = egin(learner).nodes["item"]
    held, gone = nodes.queue.state()["ids"][:20], np.arange(10**9, 10**9 + 9)
    nodes.queue.push(np.tile(gone, 400))  # ids of rows that have left, or never came
    drawn = nodes.draw(learner.step)  # type: ignore[attr-defined]
    assert np.isin(drawn, gone).any()
    asked = (held, np.concatenate([gone, gone, [0]]), drawn)
    newest = int(random_block(SCHEMA, seed=9).column("ts").max()) + 10**6
    vectors = nodes.table.gather(*asked, learn=True, ts=newest)
    batch = nodes.nodes(vectors, np.arange(len(asked[1]) + len(asked[0])), newest)
    for use, ids in enumerate(asked):
        np.testing.assert_array_equal(batch.ids[vectors.places[use].numpy()], ids)
    np.testing.assert_array_equal(batch.ids[batch.drawn], drawn)
    np.testing.assert_array_equal(batch.ids[batch.places], np.concatenate([asked[1], asked[0]]))
    assert len(batch.vectors) == len(batch.ids)


LEARNED = {
    **{
        name: SWITCHES[name]
        for name in SWITCHES
        if name not in ("tiny queue", "rows by chance", "rows expire", "rows give way")
    },
    "shared, no bias, standard logQ": {"graph_table": "shared", "node_bias": False, "log_q": "standard", "temperature": 0.3},
    "shared, frozen": {"graph_table": "shared", "graph_inputs": "frozen"},
    "shared, off, corrected logQ": {"graph_table": "shared", "graph_inputs": "off", "log_q": "corrected", "alpha": 2.0},
    "no queries, no bias": {"queries": False, "node_bias": False, "log_q": "corrected", "temperature": 2.0},
    "place bias": {"place_bias": True},
}


@pytest.mark.parametrize("switch", LEARNED)
def test_a_step_learns_what_plain_torch_does(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tape and the compiled losses against autograd and the plain ones, whatever is switched; with requests that have no
    history, blocks without an edge, and the first step, whose queues are empty."""
    options = {"alpha": 0.5, "beta": 0.7, "gamma": 1.5, "hidden": (24, 8), **LEARNED[switch]}
    blocks = [random_block(SCHEMA, 40, seed=seed, n_items=60) for seed in range(4)]
    blocks += [random_block(SCHEMA, 9, seed=7, max_history=0, n_items=60), search(clicked=False)]
    ours, theirs = (Case("egin", options).build() for _ in range(2))
    assert egin(theirs).on_tape == ("place_bias" not in options)
    egin(theirs).on_tape = False
    for block in blocks:
        scores, stats = ours.predict_learn(block)
        with monkeypatch.context() as patch:
            patch.setattr(BatchNodes, "loss", lambda first, edges, second, weight: first.plain_loss(edges, second))
            expected, others = theirs.predict_learn(block)
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-6)
        assert stats.keys() == others.keys()
        for name, value in stats.items():
            assert value == pytest.approx(others[name], rel=1e-4, abs=1e-6), name
        state, other_state = ours.state(), theirs.state()
        assert state.keys() == other_state.keys()
        for name, array in state.items():
            if array.dtype != np.float32:
                np.testing.assert_array_equal(array, other_state[name], err_msg=name)
            elif not name.startswith("network."):  # Adam's moments are sums of gradients, Adagrad's of their squares
                scale = np.abs(other_state[name]).max(initial=1e-12)
                np.testing.assert_allclose(array / scale, other_state[name] / scale, atol=1e-3, err_msg=name)
    if options.get("graph", True):
        assert stats["loss.i2i"] >= 0
        assert ours.predict_learn(blocks[0])[1]["loss.i2i"] > 0


def test_joint_loss_written_out() -> None:
    """Eq. 1: L_CTR + alpha L_i2i + beta L_q2q + gamma L_q2i, each edge loss by its definition, from the tables' own vectors."""
    options = {"alpha": 2.0, "beta": 3.0, "gamma": 5.0, "node_bias": False, "n_negatives": 6, "edges": {"share_seed": 0.0}}
    learner = Case("egin", options).trained(3)
    network, block = egin(learner), search()
    drawn = {kind: nodes.draw(learner.step) for kind, nodes in network.nodes.items()}  # type: ignore[attr-defined]
    vectors = {kind: nodes.own for kind, nodes in network.nodes.items()}

    def vector(kind: str, key: int) -> np.ndarray:
        table = vectors[kind]
        assert table is not None
        return np.asarray(table.gather(np.array([key])).of(0)[0], np.float64)

    def loss(edges: set[tuple[str, int, str, int]]) -> float:
        kind = {"i": "item", "q": "query"}
        losses = []
        for a, x, b, y in sorted(edges):
            anchor, positive = vector(kind[a], x), vector(kind[b], y)
            hits = {y} | ({x} if a == b else set())
            others = [anchor @ vector(kind[b], int(n)) for n in drawn[kind[b]] if int(n) not in hits]
            score = anchor @ positive
            losses.append(-score + np.log(np.exp(score) + np.exp(others).sum()))
        return float(np.mean(losses)) if losses else 0.0

    edges = graph_of(block)
    expected = {kind: loss(edges[kind]) for kind in edges}
    label = block.ragged("candidate.label").values
    score = learner.predict(block).astype(np.float64)
    click = float(np.mean(-(label * np.log(score) + (1 - label) * np.log(1 - score))))
    stats = learner.learn(block)
    assert stats["loss.click"] == pytest.approx(click, rel=1e-4)
    assert stats["loss.i2i"] == pytest.approx(expected["i2i"], rel=1e-4)
    assert stats["loss.q2q"] == pytest.approx(expected["q2q"], rel=1e-4)
    assert stats["loss.q2i"] == pytest.approx((expected["q2i"] + expected["i2q"]) / 2, rel=1e-4)
    assert network.loss_weights() == {"i2i": 2.0, "q2q": 3.0, "q2i": 5.0}
