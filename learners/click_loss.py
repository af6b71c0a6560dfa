"""The click loss: weighted mean cross entropy over the candidates of a batch (EGIN, L_CTR).

    L = sum_c w_c (log(1 + exp(z_c)) - y_c z_c) / C,      dL / dz_c = w_c (p_c - y_c) / C,      p_c = 1 / (1 + exp(-z_c))

One compiled pass on the CPU: there torch would take five operations, some of them with threads that have to meet.

Legend: ``C`` candidates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from learners.device import compiled
from negative_queues.kernels import kernel

__all__ = ["ClickLoss", "click_loss", "click_loss_plain", "cross_entropy", "of_click", "probabilities"]

Floats = npt.NDArray[np.float32]


def probabilities(logits: Tensor) -> Tensor:
    """Return ``p``, ``[C]``, of logits ``[C]`` without a graph: the same bits as :func:`click_loss`."""
    if not compiled(logits.device):
        return logits.sigmoid()
    scores = torch.empty(logits.shape)
    _probabilities(logits.contiguous().numpy(), scores.numpy())
    return scores


class ClickLoss(NamedTuple):
    """Scores and the click loss of a batch."""

    scores: Tensor
    """``p``, ``[C]``."""
    loss: float
    """0 where there are no candidates."""
    gradient: Tensor
    """Of the loss by the logits, ``[C]``."""


def click_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> ClickLoss:
    """Return scores, loss and gradient.

    Args:
        logits: ``z``, float32 ``[C]``, without a graph.
        labels: ``y``, float32 ``[C]``.
        weights: ``w``, float32 ``[C]``; 1 unless a label policy says otherwise.
    """
    if not compiled(logits.device):
        return click_loss_plain(logits, labels, weights)
    scores, gradient = torch.empty(logits.shape), torch.empty(logits.shape)
    given = logits.contiguous().numpy(), labels.numpy(), weights.numpy()
    return ClickLoss(scores, _click_loss(*given, scores.numpy(), gradient.numpy()), gradient)


def click_loss_plain(logits: Tensor, labels: Tensor, weights: Tensor) -> ClickLoss:
    """Return what :func:`click_loss` returns, in torch."""
    n, scores = max(logits.numel(), 1), logits.sigmoid()
    loss = binary_cross_entropy_with_logits(logits, labels, weight=weights, reduction="sum") / n
    return ClickLoss(scores, float(loss), (scores - labels) * weights / n)


@kernel(forceinline=True)
def _probability(logit: np.float32) -> Any:
    return np.float32(1) / (np.float32(1) + np.exp(-logit))


@kernel(forceinline=True)
def of_click(logit: np.float32, label: np.float32, weight: np.float32, n: int) -> tuple[np.float32, np.float32]:
    """Return ``p`` and ``w (p - y) / n`` of a candidate. For kernels."""
    p = _probability(logit)
    return p, (p - label) * weight / np.float32(n)


@kernel(forceinline=True)
def cross_entropy(logit: np.float32, label: np.float32, weight: np.float32) -> float:
    """Return ``w (log(1 + exp(z)) - y z)`` of a candidate. For kernels."""
    above = logit if logit > 0 else logit * np.float32(0)  # max(logit, 0), and NaN stays NaN
    return float(weight * (above - logit * label + np.log1p(np.exp(-abs(logit)))))


@kernel
def _probabilities(logits: Floats, scores: Floats) -> None:
    for c in range(len(logits)):
        scores[c] = _probability(logits[c])


@kernel
def _click_loss(logits: Floats, labels: Floats, weights: Floats, scores: Floats, gradient: Floats) -> float:
    total, n = 0.0, max(len(logits), 1)
    for c in range(len(logits)):
        scores[c], gradient[c] = of_click(logits[c], labels[c], weights[c], n)
        total += cross_entropy(logits[c], labels[c], weights[c])
    return total / n
