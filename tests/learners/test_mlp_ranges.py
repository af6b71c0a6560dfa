"""A range of candidates learns the click loss; what it says of it is the same however candidates are cut into ranges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from learners.blas import SGEMM
from learners.click_loss import click_loss, probabilities
from learners.mlp_hidden import Hidden, packed_size
from learners.mlp_ranges import BLOCK, First, Floats, Loss, Sums, learn, score

C, V, WIDTHS = 2 * BLOCK + 40, 6, np.array([24, 9])


def layers(random: np.random.Generator) -> tuple[First, Hidden]:
    def drawn(*shape: int) -> Floats:
        return random.standard_normal(shape, np.float32)

    none, width = np.zeros((C, 0), np.int64), int(WIDTHS[0])
    taken = random.integers(0, 12, (C, 2))
    first = First(drawn(C, V), drawn(width, V), drawn(width), drawn(12, width), taken, drawn(0, width), none, none, 0, -1)
    return first, Hidden(drawn(packed_size(WIDTHS, len(WIDTHS))), WIDTHS)


def learned(cuts: list[int], *, told: bool = True) -> tuple[Floats, Loss, Floats, list[Sums]]:
    """Logits, the loss, the gradient of the dense columns and the sums of each range."""
    random = np.random.default_rng(0)
    first, hidden = layers(random)
    labels, weights = (random.random(C) < 0.2).astype(np.float32), random.random(C, np.float32)
    loss = Loss(np.empty(C, np.float32), labels, weights)
    if told:
        loss = loss._replace(scores=np.empty(C, np.float32), losses=np.empty(-(-C // BLOCK)))
    logits, of_x, sums = np.empty(C, np.float32), np.empty((C, V), np.float32), []
    for start, end in zip(cuts, [*cuts[1:], C], strict=True):
        shapes = hidden.packed.shape, first.bias.shape, first.w.shape, first.both.shape, first.contribution.shape
        sums.append(Sums(*(np.empty(shape, np.float32) for shape in shapes)))
        learn(SGEMM, first, hidden, logits, loss, first.w, of_x, sums[-1], start, end)
    alone = np.empty(C, np.float32)
    score(SGEMM, first, hidden, alone, 0, C)
    assert np.array_equal(alone, logits)
    return logits, loss, of_x, sums


@pytest.mark.parametrize("cuts", [[0], [0, BLOCK], [0, BLOCK, 2 * BLOCK]])
def test_scores_gradient_and_loss_are_those_of_the_click_loss(cuts: list[int]) -> None:
    logits, loss, of_x, sums = learned(cuts)
    given = (torch.from_numpy(array) for array in (logits, loss.labels, loss.weights))
    scores, mean, gradient = click_loss(*given)
    assert np.array_equal(loss.scores, scores.numpy())
    assert np.array_equal(loss.scores, probabilities(torch.from_numpy(logits)).numpy())
    assert np.array_equal(loss.gradient, gradient.numpy())
    assert loss.losses.sum() / C == pytest.approx(mean, rel=1e-12)
    _, whole, of_x_at_once, sums_at_once = learned([0])
    assert np.array_equal(loss.losses, whole.losses)
    assert np.array_equal(of_x, of_x_at_once)
    for one, parts in zip(sums_at_once[0], zip(*sums, strict=True), strict=True):
        np.testing.assert_allclose(np.sum(parts, axis=0), one, rtol=1e-4, atol=1e-5)


def test_who_does_not_ask_for_scores_learns_the_same() -> None:
    logits, loss, of_x, sums = learned([0], told=False)
    other_logits, other_loss, other_of_x, other_sums = learned([0])
    assert len(loss.scores) == len(loss.losses) == 0
    assert np.array_equal(logits, other_logits)
    assert np.array_equal(loss.gradient, other_loss.gradient)
    assert np.array_equal(of_x, other_of_x)
    for one, other in zip(sums[0], other_sums[0], strict=True):
        assert np.array_equal(one, other)
