"""The edge loss: a number by hand, and the compiled form against the plain one, value and gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learners.edge_loss import LogQ, Nodes, edge_loss, edge_loss_plain
from learners.graph import Edges

FORMS = pytest.mark.parametrize("form", [edge_loss, edge_loss_plain])


def nodes(rows: list[list[float]], ids: list[int], log_p: list[float] | None = None) -> Nodes:
    p = None if log_p is None else np.array(log_p, np.float32)
    return Nodes(torch.tensor(rows, requires_grad=True), np.array(ids, np.int64), p)


def edges(*pairs: tuple[int, int]) -> Edges:
    return Edges(np.array([a for a, _ in pairs], np.int64), np.array([b for _, b in pairs], np.int64))


@FORMS
def test_by_hand(form: Any) -> None:
    """One edge a=(1,0), p=(2,1), one negative n=(0,3): s_p = 2, s_n = 0."""
    items, negative = nodes([[1.0, 0.0], [2.0, 1.0]], [1, 2]), nodes([[0.0, 3.0]], [9])
    loss = form(edges((0, 1)), items, items, negative, one_type=True)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    torch.autograd.backward(loss)
    q = 1 / (1 + math.exp(2))  # probability of the negative
    assert items.rows.grad is not None
    assert negative.rows.grad is not None
    # dL/da = -q p + q n,  dL/dp = -q a,  dL/dn = q a
    np.testing.assert_allclose(items.rows.grad, [[-2 * q, 2 * q], [-q, 0]], rtol=1e-5)
    np.testing.assert_allclose(negative.rows.grad, [[q, 0]], rtol=1e-5)


@FORMS
def test_temperature_and_log_q_by_hand(form: Any) -> None:
    """Logits are s / T - log p: s_p = 2, s_n = (1, 3), T = 2, p(p) = .5, p(n) = (.25, .125)."""
    ends = nodes([[1.0], [2.0]], [1, 2], [math.log(0.1), math.log(0.5)])
    negative = nodes([[1.0], [3.0]], [8, 9], [math.log(0.25), math.log(0.125)])

    def loss(log_q: LogQ) -> float:
        loss: Tensor = form(edges((0, 1)), ends, ends, negative, one_type=True, temperature=2.0, log_q=log_q)
        return loss.item()

    e = math.exp
    assert loss("none") == pytest.approx(-math.log(e(1) / (e(1) + e(0.5) + e(1.5))))
    assert loss("standard") == pytest.approx(-math.log(e(1) / 0.5 / (e(1) / 0.5 + e(0.5) / 0.25 + e(1.5) / 0.125)))
    # two draws: each stands for 1 / (2 p) of the sum
    assert loss("corrected") == pytest.approx(-math.log(e(1) / (e(1) + e(0.5) / 0.5 + e(1.5) / 0.25)))


@FORMS
def test_accidental_hits_are_left_out(form: Any) -> None:
    items = nodes([[1.0], [2.0], [0.5]], [1, 2, 3])
    others = nodes([[1.0], [2.0], [2.0], [0.5], [4.0]], [1, 2, 2, 3, 7])
    loss = form(edges((0, 1)), items, items, others, one_type=True)  # 1 is the anchor, 2 the positive
    assert loss.item() == pytest.approx(math.log(e_sum(2, 0.5, 4)) - 2)
    torch.autograd.backward(loss)
    assert others.rows.grad is not None
    np.testing.assert_allclose(others.rows.grad[:3], 0, atol=1e-6)
    other_type = form(edges((0, 1)), items, items, others, one_type=False)  # the anchor's number means another thing
    assert other_type.item() == pytest.approx(math.log(e_sum(2, 1, 0.5, 4)) - 2)


def e_sum(*logits: float) -> float:
    return sum(math.exp(logit) for logit in logits)


@FORMS
def test_where_all_negatives_are_hits_nothing_is_lost(form: Any) -> None:
    items = nodes([[1.0], [2.0]], [1, 2])
    loss = form(edges((0, 1), (1, 0)), items, items, nodes([[1.0], [2.0]], [1, 2]), one_type=True)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    torch.autograd.backward(loss)
    assert items.rows.grad is not None
    np.testing.assert_allclose(items.rows.grad, 0, atol=1e-6)


def test_a_hit_that_drowns_the_rest_leaves_the_rest_exact() -> None:
    """The positive is also a negative with a logit of 60: e^60 taken off a float32 sum would leave nothing of the others."""
    items, others = nodes([[1.0], [60.0]], [1, 2]), nodes([[60.0], [59.0], [58.0]], [2, 8, 9])
    loss = edge_loss(edges((0, 1)), items, items, others, one_type=True)
    assert loss.item() == pytest.approx(math.log(e_sum(0, -1, -2)), rel=1e-5)
    torch.autograd.backward(loss)
    assert others.rows.grad is not None
    expected = np.exp([-1, -2]) / e_sum(0, -1, -2)
    np.testing.assert_allclose(others.rows.grad[:, 0], [0, *expected], rtol=1e-4, atol=1e-7)


@settings(max_examples=60)
@given(st.data())
def test_grouped_equals_plain_in_value_and_gradient(data: st.DataObject) -> None:
    n_ids = data.draw(st.integers(2, 12))
    one_type, log_q = data.draw(st.booleans()), data.draw(st.sampled_from(["none", "standard", "corrected"]))
    temperature, scale = data.draw(st.sampled_from([0.5, 1.0, 2.0])), data.draw(st.sampled_from([0.1, 1.0, 4.0]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n_edges, sizes = data.draw(st.integers(1, 40)), [data.draw(st.integers(2, 15)) for _ in range(3)]

    def draw(n: int) -> Nodes:
        rows = torch.from_numpy(rng.normal(0, scale, (n, 5)).astype(np.float32)).requires_grad_()
        return Nodes(rows, rng.integers(1, n_ids, n), np.log(rng.uniform(0.01, 1, n)).astype(np.float32))

    anchor, negative = draw(sizes[0]), draw(sizes[2])
    positive = anchor if one_type else draw(sizes[1])
    ends = Edges(rng.integers(0, len(anchor.ids), n_edges), rng.integers(0, len(positive.ids), n_edges))
    leaves = [anchor.rows, positive.rows, negative.rows] if not one_type else [anchor.rows, negative.rows]

    def value_and_gradients(form: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        loss = form(ends, anchor, positive, negative, one_type=one_type, temperature=temperature, log_q=log_q)
        return loss.detach(), torch.autograd.grad(loss * 3, leaves)

    loss, gradients = value_and_gradients(edge_loss)
    expected, expected_gradients = value_and_gradients(edge_loss_plain)
    atol = 1e-5 * max(1.0, scale**2 / temperature)  # both round their float32 logits, which grow with the rows
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=atol)
    for gradient, other in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, other, rtol=1e-4, atol=atol)


def test_corrected_log_q_estimates_the_full_softmax() -> None:
    """Over many draws from a skewed queue the mean gradient of the sampled loss is that of the softmax over everything."""
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.normal(0, 0.5, (12, 4)).astype(np.float32))
    p = np.array([0.4, 0.2] + [0.04] * 10)
    ends, n_draws = edges((0, 3)), 40_000
    full = torch.softmax(rows[0] @ rows[1:].T, 0)  # the anchor itself is never a negative
    drawn = rng.choice(12, n_draws, p=p)

    def mean_loss(log_q: LogQ) -> float:
        items = Nodes(rows, np.arange(1, 13))
        negative = Nodes(rows[drawn], drawn + 1, np.log(p[drawn]).astype(np.float32))
        return edge_loss(ends, items, items, negative, one_type=True, log_q=log_q).item()

    assert mean_loss("corrected") == pytest.approx(-math.log(float(full[2])), abs=0.02)
    assert abs(mean_loss("none") + math.log(float(full[2]))) > 1


def test_many_edges_weigh_as_one_mean() -> None:
    items, negative = nodes([[1.0], [2.0], [3.0]], [1, 2, 3]), nodes([[0.5]], [9])
    one = [edge_loss(edges(end), items, items, negative, one_type=True).item() for end in [(0, 1), (0, 2), (2, 0)]]
    assert edge_loss(edges((0, 1), (0, 2), (2, 0)), items, items, negative, one_type=True).item() == pytest.approx(np.mean(one))


def test_without_edges_or_negatives_the_loss_is_zero_and_backward_works() -> None:
    items, none = nodes([[1.0], [2.0]], [1, 2]), Nodes(torch.zeros(0, 1, requires_grad=True), np.zeros(0, np.int64))
    for loss in (
        edge_loss(edges(), items, items, nodes([[1.0]], [9]), one_type=True),
        edge_loss(edges((0, 1)), items, items, none, one_type=True),
    ):
        assert loss.item() == 0
        torch.autograd.backward(loss)
    assert items.rows.grad is not None
    assert not items.rows.grad.any()


def test_evaluation_without_gradient() -> None:
    items, negative = nodes([[1.0], [2.0]], [1, 2]), nodes([[0.5]], [9])
    with torch.no_grad():
        loss = edge_loss(edges((0, 1)), items, items, negative, one_type=True)
    assert loss.item() == pytest.approx(math.log(e_sum(2, 0.5)) - 2)
    assert not loss.requires_grad


def test_options_that_do_not_fit_are_refused_by_name() -> None:
    items, negative = nodes([[1.0], [2.0]], [1, 2]), nodes([[0.5]], [9])
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        edge_loss(edges((0, 1)), items, items, negative, one_type=True, temperature=0.0)
    with pytest.raises(ValueError, match="'corrected' needs log_p of the negatives"):
        edge_loss(edges((0, 1)), items, items, negative, one_type=True, log_q="corrected")
    with pytest.raises(ValueError, match="'standard' needs log_p of the positives"):
        edge_loss(edges((0, 1)), items, items, nodes([[0.5]], [9], [-1.0]), one_type=True, log_q="standard")
    bad: Any = "sometimes"
    with pytest.raises(ValueError, match="log_q must be one of"):
        edge_loss(edges((0, 1)), items, items, negative, one_type=True, log_q=bad)


@pytest.mark.cuda
def test_a_gpu_has_the_same_loss() -> None:
    items, negative = nodes([[1.0], [2.0]], [1, 2]), nodes([[0.5], [2.0]], [9, 2])
    there = [Nodes(part.rows.detach().cuda().requires_grad_(), part.ids) for part in (items, negative)]
    loss = edge_loss(edges((0, 1)), there[0], there[0], there[1], one_type=True)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(edge_loss(edges((0, 1)), items, items, negative, one_type=True).item())
    assert there[1].rows.grad is not None
