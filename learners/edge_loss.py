"""Softmax loss over edges with negatives that a whole batch shares (EGIN section 3.2).

    L_G = -log exp(e_a . e_p) / (exp(e_a . e_p) + sum_n exp(e_a . e_n)),      mean over the edges

With a temperature ``T`` and the logQ correction a logit is ``s / T - log p``, the correction after the temperature:

- ``none``: as in the paper.
- ``standard`` (Yi et al. 2019): of the positive and of the negatives.
- ``corrected`` (Khrylchenko et al., arXiv 2507.09331): of the negatives only; the positive is in the denominator with
  probability 1. Then the size of the draw no longer cancels, so the negatives' term is ``log(M p)``: the sum over them
  estimates, without bias, the sum over everything but the positive. Its gradient carries that paper's weight
  ``1 - P(positive)`` by itself.

A negative whose id is the positive's, or the anchor's where the two are of one type, is an accidental hit and left out.

Two forms of one value: :func:`edge_loss_plain` makes ``[E, M]`` logits in torch and leaves the gradient to autograd (any
device, and the oracle); :func:`edge_loss` on the CPU makes ``[N, A]`` logits of NumPy arrays, once per distinct negative and
anchor rather than per draw and edge: what an edge adds to its anchor's denominator is the positive alone, what it takes off are
its hits. Where they are most of the sum, so that taking them off would cost digits, the edge is summed anew.

Letters: ``E`` edges, ``A`` anchors that have edges, ``U`` distinct ids of a node type in the batch, ``M`` negatives, ``N``
distinct ones, ``D`` dim.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learners.blas import SGEMM
from learners.device import place
from learners.edge_kernels import grouped, room
from learners.graph.edges import Edges
from learners.threads import team

__all__ = ["LogQ", "Nodes", "Rows", "Scratch", "edge_loss", "edge_loss_plain"]

LogQ = Literal["none", "standard", "corrected"]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

NONE: Floats = np.zeros(0, np.float32)


class Nodes(NamedTuple):
    """Entities of one type in a batch, for :func:`edge_loss_plain`.

    - ``rows``: float32 embeddings ``[U, D]``.
    - ``ids``: int64 ``[U]``, NumPy.
    - ``log_p``: float32 ``[U]``, log probability of the id in one draw (``IdQueue.log_probability``); only for logQ.
    """

    rows: Tensor
    ids: Ints
    log_p: Floats | None = None


class Rows(NamedTuple):
    """The distinct ids of one node type in a batch, for :func:`edge_loss`, and what takes their gradients."""

    vectors: Floats
    """``[U, D]``."""
    bias: Floats
    """What is added to the product with a node as a second end, ``[U]``; none where nothing is."""
    places: Ints
    """Row of each node, int64 ``[N]``."""
    drawn: Ints
    """Rows that are negatives of edges to this type, int64 ``[M]``; an id may be there twice."""
    of_vectors: Floats
    """Gradient by the vectors, added to."""
    of_bias: Floats
    """Likewise by the biases."""
    log_p: Floats | None = None
    """Log probability of each id in one draw, ``[U]``; only for logQ."""


class Scratch:
    """Memory that one loss after another uses."""

    def __init__(self) -> None:
        self._floats = NONE

    def of(self, n: int) -> Floats:
        """Return ``n`` floats or more, from a cache line on: the bits of a product depend on where its factors lie."""
        if len(self._floats) < n:
            self._floats = torch.empty(n + n // 2).numpy()
        return self._floats


def edge_loss(
    edges: Edges,
    anchor: Rows,
    positive: Rows,
    scratch: Scratch,
    *,
    weight: float = 1.0,
    temperature: float = 1.0,
    log_q: LogQ = "none",
) -> float:
    """Return the mean loss of the edges, and add its gradients to those of both types.

    Args:
        edges: ``anchor`` are nodes of the first type, ``positive`` of the second; int64 ``[E]``.
        anchor: type of the first ends.
        positive: type of the second ends and of the negatives; the same object for i2i and q2q, and then a negative can be the
            anchor.
        scratch: of the caller's.
        weight: what the gradients are multiplied by.
        temperature: ``T > 0``.
        log_q: which correction; needs ``log_p`` of the positives' type.

    Returns:
        The loss; 0 where there are no edges or no negatives (the queue is empty in the first step).

    Raises:
        ValueError: the temperature is not positive, or a ``log_p`` that the correction needs is missing.
    """
    shifts = _shifts(positive.log_p, len(positive.drawn), temperature, log_q)
    if not edges.n_edges or not len(positive.drawn):
        return 0.0
    needed = room(edges.n_edges, len(anchor.vectors), len(positive.drawn), anchor.vectors.shape[1])
    with team():  # products of some hundred rows: on one thread
        loss: float = grouped(
            SGEMM,
            (anchor.vectors, positive.vectors, positive.bias),
            edges,
            (anchor.places, positive.places),
            positive.drawn,
            anchor is positive,
            shifts,
            np.float32(1 / temperature),
            np.float32(weight),
            (anchor.of_vectors, positive.of_vectors, positive.of_bias),
            scratch.of(needed),
        )
    return loss


def _shifts(log_p: Floats | None, n_drawn: int, temperature: float, log_q: LogQ) -> tuple[Floats, Floats]:
    """Return what is taken off the logits of the positives and of the negatives, ``[U]`` each or none."""
    _check(temperature, log_q)
    if log_q == "none":
        return NONE, NONE
    if log_p is None:
        raise ValueError(f"log_q {log_q!r} needs log_p of the negatives: IdQueue.log_probability(ids)")
    return (log_p, log_p) if log_q == "standard" else (NONE, _per_draw(log_p, n_drawn))


def _check(temperature: float, log_q: LogQ) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; the paper's loss has 1")
    if log_q not in get_args(LogQ):
        raise ValueError(f"log_q must be one of {get_args(LogQ)}, got {log_q!r}")


def _per_draw(log_p: Floats, n_drawn: int) -> Floats:
    """Return ``log(M p)``: how often an id is expected among the draws."""
    return log_p + np.float32(np.log(max(n_drawn, 1)))


def edge_loss_plain(
    edges: Edges,
    anchor: Nodes,
    positive: Nodes,
    negative: Nodes,
    *,
    one_type: bool,
    temperature: float = 1.0,
    log_q: LogQ = "none",
) -> Tensor:
    """Return what :func:`edge_loss` returns, a scalar, in plain torch.

    Args:
        edges: ``anchor`` indexes the rows of the anchors, ``positive`` those of the positives; int64 ``[E]``.
        anchor: nodes of the first ends, ``[U_a]``.
        positive: nodes of the second ends, ``[U_p]``; the same object for i2i and q2q.
        negative: drawn nodes of the positives' type, ``[M]``; an id may be there twice.
        one_type: anchors and positives are of one type, so a negative can be the anchor.
        temperature: ``T > 0``.
        log_q: which correction; needs ``log_p`` of the negatives and, for ``standard``, of the positives.

    Returns:
        The loss; 0, still with a graph, where there are no edges or no negatives.

    Raises:
        ValueError: as :func:`edge_loss`.
    """
    _check(temperature, log_q)
    if not edges.n_edges or not len(negative.ids):
        return (anchor.rows.sum() + positive.rows.sum() + negative.rows.sum()) * 0.0
    device = anchor.rows.device
    first, second = (place(end, device) for end in edges)
    starts, ends = anchor.rows[first], positive.rows[second]  # [E, D]
    of_positive = (starts * ends).sum(1) / temperature  # [E]
    of_negatives = starts @ negative.rows.T / temperature  # [E, M]
    if log_q != "none":
        if negative.log_p is None:
            raise ValueError(f"log_q {log_q!r} needs log_p of the negatives: IdQueue.log_probability(ids)")
        shift = negative.log_p if log_q == "standard" else _per_draw(negative.log_p, len(negative.ids))
        of_negatives = of_negatives - place(shift, device)
    if log_q == "standard":
        if positive.log_p is None:
            raise ValueError("log_q 'standard' needs log_p of the positives too: IdQueue.log_probability(ids)")
        of_positive = of_positive - place(positive.log_p[edges.positive], device)
    hits = positive.ids[edges.positive][:, None] == negative.ids
    if one_type:
        hits |= anchor.ids[edges.anchor][:, None] == negative.ids
    of_negatives = of_negatives.masked_fill(place(hits, device), -torch.inf)
    logits = torch.cat([of_positive[:, None], of_negatives], dim=1)  # [E, 1 + M]
    return (logits.logsumexp(1) - of_positive).mean()
