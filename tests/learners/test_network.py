"""The hand-made parts of a step against torch: Adam, and the click loss with its gradient; a learner's state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from learners.adam import DenseAdam
from learners.checks import Case, random_block
from learners.click_loss import click_loss, click_loss_plain, probabilities
from learners.rates import Rates
from negative_queues import LossNotFiniteError


@given(seed=st.integers(0, 100), rate=st.sampled_from([1e-3, 0.1]), steps=st.integers(1, 30))
@settings(deadline=None, max_examples=20)
def test_adam_is_torchs(seed: int, rate: float, steps: int) -> None:
    torch.manual_seed(seed)
    ours = [nn.Parameter(torch.randn(3, 5)), nn.Parameter(torch.randn(1)), nn.Parameter(torch.randn(2))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    one, other = DenseAdam(ours, rate), torch.optim.Adam(theirs, lr=rate)
    for step in range(steps):
        one.zero_grad()
        other.zero_grad()
        for mine, yours in zip(ours[: 2 + step % 2], theirs, strict=False):
            mine.grad = torch.randn(mine.shape)
            yours.grad = mine.grad.clone()
        one.step()
        other.step()
    for mine, yours in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, yours, atol=1e-6, rtol=1e-5)
        for part, tensor in other.state.get(yours, {}).items():
            torch.testing.assert_close(one.state[mine][part], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("spread", [1.0, 100.0])  # the latter overflows exp
def test_click_loss_has_the_gradient_that_autograd_finds(spread: float) -> None:
    torch.manual_seed(3)
    labels, weights = torch.randint(0, 2, (203,)).float(), torch.rand(203)
    logits = (spread * torch.randn(203)).requires_grad_()
    scores, loss, gradient = click_loss(logits.detach(), labels, weights)
    expected = binary_cross_entropy_with_logits(logits, labels, weight=weights)
    torch.testing.assert_close(loss, float(expected.detach()))
    torch.testing.assert_close(scores, logits.detach().sigmoid())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0], atol=1e-8, rtol=1e-5)
    assert torch.equal(scores, probabilities(logits.detach()))
    for ours, torchs in zip((scores, loss, gradient), click_loss_plain(logits.detach(), labels, weights), strict=True):
        torch.testing.assert_close(ours, torchs)


def test_click_loss_of_no_candidates_is_0_and_of_nan_is_nan() -> None:
    none = torch.empty(0)
    assert click_loss(none, none, none)[1] == 0.0
    nan = torch.tensor([0.0, float("nan")])
    scores, loss, gradient = click_loss(nan, torch.zeros(2), torch.ones(2))
    assert np.isnan(loss)
    assert scores.isnan().tolist() == gradient.isnan().tolist() == [False, True]


@pytest.mark.parametrize("kind", ["dnn", "din"])  # by a tape, by autograd
def test_a_learner_that_has_learned_becomes_one_that_has_not(kind: str) -> None:
    fresh, learned = Case(kind).build(), Case(kind).trained(2)
    learned.load_state({name: np.array(array) for name, array in fresh.state().items()})
    for seed in (7, 8):
        for learner in (fresh, learned):
            learner.learn(random_block(seed=seed))
    theirs, ours = fresh.state(), learned.state()
    assert theirs.keys() == ours.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(array, ours[name], err_msg=name)


@pytest.mark.parametrize("kind", ["dnn", "egin", "bst"])  # by a tape, by autograd
def test_a_click_loss_that_is_no_number_moves_nothing(kind: str) -> None:
    learner, block = Case(kind).trained(2), random_block(seed=1)
    for parameter in learner.network.parameters():  # type: ignore[attr-defined]
        parameter.data.view(-1)[:1] = torch.nan
    before = {name: np.array(array) for name, array in learner.state().items()}
    with pytest.raises(LossNotFiniteError, match=r"loss\.click is nan"):
        learner.learn(block)
    after = learner.state()
    held = [name for name in before if name.rpartition(".")[2] in ("weight", "accumulated", "mean", "square")]
    held += [name for name in before if name.startswith(("network.", "adam."))] + ["step"]
    assert any(name.startswith("table.") and not np.isnan(before[name]).any() for name in held)
    for name in held:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


@pytest.mark.parametrize("half_life_ms", [0.0, -1.0, float("nan")])
def test_a_half_life_is_above_0(half_life_ms: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Rates("m", 20.0, 100, half_life_ms)
    with pytest.raises(ValueError, match="dnn: half_life_ms"):
        Case("dnn", {"half_life_ms": half_life_ms}).build()
