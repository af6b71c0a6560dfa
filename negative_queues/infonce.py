"""InfoNCE over pools of negatives, with masks and the logQ correction.

    L = -log exp(q . k+ / T) / (exp(q . k+ / T) + sum_n exp(q . k_n / T)),      mean over the rows

(van den Oord et al. 2018; MoCo Eq. 1). A pool is the batch's other keys, a queue, a reservoir; the sum runs over all of them.

**logQ** is applied after the temperature, ``s = q . k / T - log Q``, and ``Q`` is the probability of one draw:

- ``none``.
- ``standard`` (Yi et al., RecSys 2019): taken off the positive and off the negatives.
- ``corrected`` (Khrylchenko et al., RecSys 2025, arXiv 2507.09331). The gradient of the full softmax,
  ``-(1 - P(+)) grad s+ + sum_{d != +} P(d) grad s_d``, has two parts, and only the second is estimated by drawing: the
  positive is there with probability 1. A draw that is not the positive is ``d`` with ``Q'(d) = Q(d) / (1 - Q(+))``, so over
  the ``n`` draws left ``(1 / n) sum_i exp(s_i) / Q'(d_i)`` estimates ``sum_{d != +} exp(s_d)`` without bias. With it

      L = -log exp(s+) / (exp(s+) + sum_i exp(s_i - log Q'(d_i) - log n)),

  whose gradient is ``(1 - P)(-grad s+ + sum_i w_i grad s_i)``, ``P`` the softmax of the positive and ``w`` that of the
  negatives among themselves. The paper's ``sg(1 - P) [-s+ + log sum_i exp(s_i - log Q'(d_i))]``, a weight with its gradient
  stopped before a loss without the positive in its denominator, has that same gradient. Here the value is the
  cross-entropy, comparable with the other two.

Letters: ``B`` rows, ``N`` negatives of a pool, ``D`` dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

__all__ = ["LogQ", "Negatives", "info_nce"]

LogQ = Literal["none", "standard", "corrected"]

_LEFT_OUT = -1.0e30  # finite: the log-sum of a pool in which all is left out has a gradient of 0, not NaN


class Negatives(NamedTuple):
    """A pool: ``keys`` ``[N, D]``; ``hits`` bool ``[B, N]``, what a row leaves out (None: nothing); ``log_q`` float ``[N]``."""

    keys: Tensor
    hits: Tensor | None = None
    log_q: Tensor | None = None


def info_nce(
    query: Tensor,
    positive: Tensor,
    pools: Sequence[Negatives],
    *,
    temperature: float,
    log_q: LogQ = "none",
    positive_log_q: Tensor | None = None,
) -> Tensor:
    """Return the mean loss, a scalar.

    Args:
        query: ``[B, D]``.
        positive: the key of each query, ``[B, D]``.
        pools: of negatives; a row that has none left has the loss 0.
        temperature: ``T``, above 0.
        log_q: which correction. All but ``none`` need the pools' ``log_q`` and ``positive_log_q``.
        positive_log_q: log probability of drawing each row's positive, ``[B]``.

    Raises:
        ValueError: the temperature is not positive, or a log probability that the correction needs is missing.

    >>> query, key = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    >>> queue = Negatives(torch.tensor([[0.0, 3.0], [1.0, 1.0]]))
    >>> round(float(info_nce(query, key, [queue], temperature=1.0)), 4)  # log(1 + e^-2 + e^-1)
    0.4076
    """
    _check(pools, temperature, log_q, positive_log_q)
    scaled = query / temperature
    own = (scaled * positive).sum(1)  # [B]
    shift = _row_shift(pools, log_q, positive_log_q, own)
    if log_q == "standard" and positive_log_q is not None:
        own = own - positive_log_q
    total = own
    for pool in pools:
        if len(pool.keys):
            total = torch.logaddexp(total, _log_sum(scaled, pool, log_q) + shift)
    return (total - own).mean() if len(own) else (query * 0.0).sum()


def _log_sum(scaled: Tensor, pool: Negatives, log_q: LogQ) -> Tensor:
    """Return the log of a pool's part of the denominator, ``[B]``."""
    scores = scaled @ pool.keys.T.to(scaled.dtype)  # [B, N]
    if log_q != "none" and pool.log_q is not None:
        scores = scores - pool.log_q
    if pool.hits is not None:
        scores = scores.masked_fill(pool.hits, _LEFT_OUT)
    return torch.logsumexp(scores, 1)


def _row_shift(pools: Sequence[Negatives], log_q: LogQ, positive_log_q: Tensor | None, own: Tensor) -> Tensor:
    """Return ``log(1 - Q(+)) - log n`` of each row, ``[B]``, for the corrected form; 0 for the others."""
    if log_q != "corrected" or positive_log_q is None:
        return torch.zeros_like(own)
    n = torch.zeros_like(own)
    for pool in pools:
        n = n + len(pool.keys) if pool.hits is None else n + (~pool.hits).sum(1)
    # An estimate can say that every draw is the positive; one that was not drawn so bounds it.
    others = (-torch.expm1(positive_log_q)).clamp(min=1e-6)
    return others.log() - n.clamp(min=1).log()


def _check(pools: Sequence[Negatives], temperature: float, log_q: str, positive_log_q: Tensor | None) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; MoCo has 0.07, CCL 0.7")
    if log_q not in get_args(LogQ):
        raise ValueError(f"log_q must be one of {get_args(LogQ)}, got {log_q!r}")
    if log_q != "none" and (positive_log_q is None or any(pool.log_q is None for pool in pools)):
        raise ValueError(f"log_q {log_q!r} needs positive_log_q and the log_q of every pool: see log_draw_probability")
