"""The hand-made parts of a step against torch: Adam, and the click loss with its gradient."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from learners.adam import DenseAdam
from learners.batch import Batch
from learners.checks import random_block, replaced
from learners.network import _click_loss
from learners.samples import Ragged


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


def test_click_loss_has_the_gradient_that_autograd_finds() -> None:
    block = random_block(seed=3)
    weights = torch.rand(block.n_candidates)
    own = Ragged(weights.numpy(), block.ragged("candidate.item").offsets)
    batch = Batch(replaced(block, candidate__weight=own), torch.device("cpu"))
    logits = torch.randn(batch.n_candidates, requires_grad=True)
    loss, gradient = _click_loss(logits.detach(), logits.detach().sigmoid(), batch)
    expected = binary_cross_entropy_with_logits(logits, batch.labels, weight=weights)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])
