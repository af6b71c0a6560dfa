"""The edge loss: numbers by hand, and the compiled form against the plain one, value and gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learners.edge_loss import LogQ, Nodes, Scratch, edge_loss_plain
from learners.exponentials import exponentials
from learners.graph import Edges
from learners.graph.nodes import BatchNodes, NodeOptions
from learners.tables import TableConfig
from learners.tape import Tape

FORMS = pytest.mark.parametrize("form", ["compiled", "plain"])
TABLE = TableConfig(dim=1)
LOG_Q: list[LogQ] = ["none", "standard", "corrected"]
Gradients = list[np.ndarray]


def nodes(
    rows: Any,
    drawn: list[int] | np.ndarray,
    bias: Any = None,
    log_p: Any = None,
    *,
    temperature: float = 1.0,
    log_q: LogQ = "none",
) -> BatchNodes:
    """Distinct nodes of one type with the numbers 1, 2, ..., of which ``drawn`` (rows) are negatives."""
    vectors = torch.tensor(rows, dtype=torch.float32, requires_grad=True)
    own = None if bias is None else torch.tensor(bias, dtype=torch.float32, requires_grad=True)[:, None]
    p = None if log_p is None else np.array(log_p, np.float32)
    options = NodeOptions(table=TABLE, own=True, bias=True, queue=9, n_negatives=1, temperature=temperature, log_q=log_q)
    ids = np.arange(1, len(vectors) + 1)
    leaf = None if own is None else own.detach().requires_grad_()
    return BatchNodes(vectors, leaf, ids, np.array(drawn, np.int64), p, np.arange(len(vectors)), options, Scratch())


def again(own: BatchNodes, scratch: Scratch | None = None) -> BatchNodes:
    """Return the same nodes with leaves that have no gradient yet."""
    vectors, bias = (None if leaf is None else leaf.detach().requires_grad_() for leaf in (own.vectors, own.bias))
    assert vectors is not None
    return BatchNodes(vectors, bias, own.ids, own.drawn, own.log_p, own.places, own.options, scratch or own.scratch)


def edges(*pairs: tuple[int, int]) -> Edges:
    return Edges(np.array([a for a, _ in pairs], np.int64), np.array([b for _, b in pairs], np.int64))


def leaves(*types: BatchNodes) -> list[Tensor]:
    distinct = list(dict.fromkeys(types))
    return [leaf for each in distinct for leaf in (each.vectors, each.bias) if leaf is not None]


def learned(form: str, ends: Edges, first: BatchNodes, second: BatchNodes, weight: float = 1.0) -> tuple[float, Gradients]:
    """Return the loss, and the weight times its gradients by vectors and biases of each type."""
    one_type = first is second
    first = again(first)
    second = first if one_type else again(second)
    if form == "compiled":
        loss = first.loss(ends, second, weight)
    else:
        plain = first.plain_loss(ends, second)
        torch.autograd.backward(plain * weight)
        loss = plain.item()
    grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves(first, second)]
    return float(loss), [grad.numpy() for grad in grads]


@FORMS
def test_by_hand(form: str) -> None:
    """One edge a=(1,0), p=(2,1), one negative n=(0,3): s_p = 2, s_n = 0."""
    items = nodes([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]], [2])
    loss, (of_items,) = learned(form, edges((0, 1)), items, items)
    assert loss == pytest.approx(math.log(1 + math.exp(-2)))
    q = 1 / (1 + math.exp(2))  # probability of the negative
    # dL/da = -q p + q n,  dL/dp = -q a,  dL/dn = q a
    np.testing.assert_allclose(of_items, [[-2 * q, 2 * q], [-q, 0.0], [q, 0.0]], rtol=1e-5)


@FORMS
def test_a_bias_is_of_the_second_end_alone(form: str) -> None:
    """The same, with biases 5, .5 and 1: s_p = 2.5, s_n = 1; that of the anchor says nothing."""
    items = nodes([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]], [2], [5.0, 0.5, 1.0])
    loss, (_, of_bias) = learned(form, edges((0, 1)), items, items)
    assert loss == pytest.approx(math.log(1 + math.exp(-1.5)))
    q = 1 / (1 + math.exp(1.5))
    np.testing.assert_allclose(of_bias, [[0.0], [-q], [q]], rtol=1e-5, atol=1e-8)


@FORMS
@pytest.mark.parametrize(("log_q", "p"), [("none", (1, 1, 1)), ("standard", (0.5, 0.25, 0.125)), ("corrected", (1, 0.5, 0.25))])
def test_temperature_and_log_q_by_hand(form: str, log_q: LogQ, p: tuple[float, float, float]) -> None:
    """Logits are s / T - log p: s_p = 2, s_n = (1, 3), T = 2, p(p) = .5, p(n) = (.25, .125); two draws, so that a corrected one
    stands for 1 / (2 p) of the sum."""
    log_p = np.log([0.1, 0.5, 0.25, 0.125])
    items = nodes([[1.0], [2.0], [1.0], [3.0]], [2, 3], log_p=log_p, temperature=2.0, log_q=log_q)
    terms = [math.exp(s) / by for s, by in zip((1, 0.5, 1.5), p, strict=True)]
    assert learned(form, edges((0, 1)), items, items)[0] == pytest.approx(-math.log(terms[0] / sum(terms)))


@FORMS
def test_accidental_hits_are_left_out(form: str) -> None:
    items = nodes([[1.0], [2.0], [0.5], [4.0]], [0, 1, 1, 2, 3])
    loss, _ = learned(form, edges((0, 1)), items, items)
    assert loss == pytest.approx(math.log(e_sum(2, 0.5, 4)) - 2)
    other = nodes([[1.0]], [])
    loss, (_, of_items) = learned(form, edges((0, 1)), other, items)  # the anchor's number means another thing
    assert loss == pytest.approx(math.log(e_sum(2, 1, 0.5, 4)) - 2)
    assert of_items[0, 0] == pytest.approx(math.exp(1) / e_sum(2, 1, 0.5, 4))


def e_sum(*logits: float) -> float:
    return sum(math.exp(logit) for logit in logits)


@FORMS
@pytest.mark.parametrize("drawn", [[0, 1], [0], [1, 1, 1]])
def test_where_all_negatives_are_hits_nothing_is_lost(form: str, drawn: list[int]) -> None:
    items = nodes([[1.0], [2.0]], drawn)
    loss, (of_items,) = learned(form, edges((0, 1), (1, 0)), items, items)
    assert loss == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(of_items, 0, atol=1e-6)


@FORMS
def test_a_hit_that_drowns_the_rest_leaves_the_rest_exact(form: str) -> None:
    """The positive is also a negative with a logit of 60: e^60 taken off a float32 sum would leave nothing of the others."""
    items = nodes([[1.0], [60.0], [59.0], [58.0]], [1, 2, 3])
    loss, (of_items,) = learned(form, edges((0, 1)), items, items)
    assert loss == pytest.approx(math.log(e_sum(0, -1, -2)), rel=1e-5)
    expected = np.exp([-1, -2]) / e_sum(0, -1, -2)
    np.testing.assert_allclose(of_items[2:, 0], expected, rtol=1e-4, atol=1e-7)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_compiled_equals_plain_in_value_and_gradient(data: st.DataObject) -> None:
    one_type, log_q = data.draw(st.booleans()), data.draw(st.sampled_from(LOG_Q))
    temperature, scale = data.draw(st.sampled_from([0.5, 1.0, 2.0])), data.draw(st.sampled_from([0.1, 1.0, 4.0]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n_edges, dim, biased = data.draw(st.integers(1, 40)), data.draw(st.sampled_from([1, 5, 16, 40])), data.draw(st.booleans())

    def draw(n: int, n_drawn: int) -> BatchNodes:
        bias, log_p = rng.normal(0, scale, n) if biased else None, np.log(rng.uniform(0.01, 1, n))
        rows, drawn = rng.normal(0, scale / dim**0.25, (n, dim)), rng.integers(0, n, n_drawn)
        return nodes(rows, drawn, bias, log_p, temperature=temperature, log_q=log_q)

    first = draw(data.draw(st.integers(2, 60)), data.draw(st.integers(1, 30)))
    second = first if one_type else draw(data.draw(st.integers(2, 15)), data.draw(st.integers(1, 30)))
    ends = Edges(*(rng.integers(0, len(each.ids), n_edges) for each in (first, second)))
    (loss, found), (expected, others) = (learned(form, ends, first, second, weight=3.0) for form in ("compiled", "plain"))
    atol = 1e-5 * max(1.0, scale**2 / temperature)  # both round their float32 logits, which grow with the rows
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=atol)
    for gradient, other in zip(found, others, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=3 * atol)


def test_losses_of_one_batch_add_their_gradients_on_a_tape_or_without_one() -> None:
    items, queries = nodes([[1.0], [2.0], [0.5]], [2], [0.1, 0.2, 0.3]), nodes([[0.3], [0.4]], [1], [0.0, 1.0])
    kinds = [(edges((0, 1)), items, items), (edges((0, 1), (1, 2)), queries, items), (edges((2, 0)), items, queries)]
    each = [learned("plain", *kind, weight=weight)[1] for kind, weight in zip(kinds, (2.0, 3.0, 5.0), strict=True)]
    of_items, of_item_bias = (each[0][i] + each[1][2 + i] + each[2][i] for i in (0, 1))
    of_queries, of_query_bias = (each[1][i] + each[2][2 + i] for i in (0, 1))
    expected = of_items, of_item_bias, of_queries, of_query_bias
    with Tape() as tape:
        learn_all(kinds)
        on_tape = [tape.take(leaf) for leaf in leaves(items, queries)]
    items, queries = again(items), again(queries)
    learn_all([(edges((0, 1)), items, items), (edges((0, 1), (1, 2)), queries, items), (edges((2, 0)), items, queries)])
    for found, leaf, other in zip(on_tape, leaves(items, queries), expected, strict=True):
        assert found is not None
        np.testing.assert_allclose(found, other, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(leaf.grad, found)


def learn_all(kinds: list[tuple[Edges, BatchNodes, BatchNodes]]) -> None:
    for (ends, first, second), weight in zip(kinds, (2.0, 3.0, 5.0), strict=True):
        first.loss(ends, second, weight)


def test_exponentials_are_those_of_float64_to_seven_digits() -> None:
    x = np.concatenate([np.linspace(-87, 0, 100_001), [-1e-8, 0.0]]).astype(np.float32)
    found = x.copy()
    exponentials(found, np.empty_like(found))
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=2e-7)
    assert found[-1] == 1
    ends = np.array([-88, -1e30, -np.inf, np.nan], np.float32)
    exponentials(ends, np.empty_like(ends))
    assert (ends[:3] < 2e-38).all()
    assert np.isnan(ends[3])


def test_corrected_log_q_estimates_the_full_softmax() -> None:
    """Over many draws from a skewed queue the mean gradient of the sampled loss is that of the softmax over everything."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 0.5, (12, 4)).astype(np.float32)
    p = np.array([0.4, 0.2] + [0.04] * 10)
    drawn = rng.choice(12, 40_000, p=p)
    full = torch.softmax(torch.from_numpy(rows[1:] @ rows[0]), 0)  # the anchor itself is never a negative

    def mean_loss(log_q: LogQ) -> float:
        items = nodes(rows, drawn, log_p=np.log(p), log_q=log_q)
        return learned("compiled", edges((0, 3)), items, items)[0]

    assert mean_loss("corrected") == pytest.approx(-math.log(float(full[2])), abs=0.02)
    assert abs(mean_loss("none") + math.log(float(full[2]))) > 1


def test_many_edges_weigh_as_one_mean() -> None:
    items = nodes([[1.0], [2.0], [3.0], [0.5]], [3])
    one = [learned("compiled", edges(end), items, items)[0] for end in [(0, 1), (0, 2), (2, 0)]]
    assert learned("compiled", edges((0, 1), (0, 2), (2, 0)), items, items)[0] == pytest.approx(np.mean(one))


@FORMS
def test_without_edges_or_negatives_the_loss_is_zero_and_nothing_learns(form: str) -> None:
    for ends, drawn in ((edges(), [1]), (edges((0, 1)), [])):
        items = nodes([[1.0], [2.0]], drawn, [0.5, 0.5])
        loss, gradients = learned(form, ends, items, items)
        assert loss == 0
        assert not any(gradient.any() for gradient in gradients)


def test_no_bit_depends_on_what_was_learned_before() -> None:
    """The scratch that losses share holds what an earlier, larger one left."""
    rng = np.random.default_rng(1)
    large, small = (nodes(rng.normal(0, 1, (n, 5)), rng.integers(0, n, 20), rng.normal(0, 1, n)) for n in (90, 7))
    ends = edges((0, 1), (2, 0), (6, 3))
    fresh = learned("compiled", ends, small, small)
    learned("compiled", Edges(rng.integers(0, 90, 300), rng.integers(0, 90, 300)), large, large)
    small = again(small, large.scratch)
    later = learned("compiled", ends, small, small)
    assert fresh[0] == later[0]
    assert all(map(np.array_equal, fresh[1], later[1]))


@FORMS
def test_options_that_do_not_fit_are_refused_by_name(form: str) -> None:
    def refused(match: str, log_p: Any = None, **options: Any) -> None:
        items = nodes([[1.0], [2.0], [0.5]], [2], log_p=log_p, **options)
        with pytest.raises(ValueError, match=match):
            learned(form, edges((0, 1)), items, items)

    refused("temperature must be above 0, got 0", temperature=0.0)
    refused("'corrected' needs log_p of the negatives", log_q="corrected")
    refused("log_q must be one of", log_q="sometimes")


def test_plain_standard_log_q_needs_that_of_the_positives() -> None:
    items = Nodes(torch.tensor([[1.0], [2.0]]), np.array([1, 2]))
    negative = Nodes(torch.tensor([[0.5]]), np.array([9]), np.array([-1.0], np.float32))
    with pytest.raises(ValueError, match="'standard' needs log_p of the positives"):
        edge_loss_plain(edges((0, 1)), items, items, negative, one_type=True, log_q="standard")


@pytest.mark.cuda
def test_a_gpu_has_the_same_loss() -> None:
    items = nodes([[1.0], [2.0], [0.5]], [2, 1], [0.1, 0.2, 0.3])
    there = nodes([[1.0], [2.0], [0.5]], [2, 1], [0.1, 0.2, 0.3])
    assert there.bias is not None
    there.vectors, there.bias = there.vectors.detach().cuda().requires_grad_(), there.bias.detach().cuda().requires_grad_()
    loss = there.loss(edges((0, 1)), there, 1.0)
    assert isinstance(loss, Tensor)
    torch.autograd.backward(loss)
    expected, (of_items, of_bias) = learned("compiled", edges((0, 1)), items, items)
    assert loss.item() == pytest.approx(expected)
    np.testing.assert_allclose(there.vectors.grad.cpu(), of_items, rtol=1e-5)  # type: ignore[union-attr]
    np.testing.assert_allclose(there.bias.grad.cpu(), of_bias, rtol=1e-5, atol=1e-7)  # type: ignore[union-attr]
