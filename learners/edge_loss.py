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

Two forms of one value: :func:`edge_loss_plain` makes ``[E, M]`` logits and leaves the gradient to autograd (any device, and the
oracle); the compiled one behind :func:`edge_loss` on the CPU makes ``[A, M]`` logits, once per anchor rather than per edge:
what an edge adds to its anchor's denominator is the positive alone, what it takes off are its hits. Where they are most of the
sum, so that taking them off would cost digits, the edge is summed anew.

Letters: ``E`` edges, ``A`` anchors that have edges, ``U`` rows of a node type in the batch, ``M`` negatives, ``D`` dim.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from learners.blas import SGEMM
from learners.edge_kernels import grouped
from learners.graph import Edges
from learners.graph.edges import frozen
from learners.threads import team

__all__ = ["LogQ", "Nodes", "edge_loss", "edge_loss_plain"]

LogQ = Literal["none", "standard", "corrected"]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

NO_IDS: Ints = np.zeros(0, np.int64)


class Nodes(NamedTuple):
    """Entities of one type in a batch.

    - ``rows``: float32 embeddings ``[U, D]``.
    - ``ids``: int64 ``[U]``, NumPy.
    - ``log_p``: float32 ``[U]``, log probability of the id in one draw (``IdQueue.log_probability``); only for logQ.
    """

    rows: Tensor
    ids: Ints
    log_p: Floats | None = None


def edge_loss(
    edges: Edges,
    anchor: Nodes,
    positive: Nodes,
    negative: Nodes,
    *,
    one_type: bool,
    temperature: float = 1.0,
    log_q: LogQ = "none",
) -> Tensor:
    """Return the mean loss of the edges, a scalar.

    Args:
        edges: ``anchor`` indexes the rows of the anchors, ``positive`` those of the positives; int64 ``[E]``.
        anchor: nodes of the first ends, ``[U_a]``.
        positive: nodes of the second ends, ``[U_p]``; the same object for i2i and q2q.
        negative: drawn nodes of the positives' type, ``[M]``; an id may be there twice.
        one_type: anchors and positives are of one type, so a negative can be the anchor.
        temperature: ``T > 0``.
        log_q: which correction; needs ``log_p`` of the negatives and, for ``standard``, of the positives.

    Returns:
        The loss; 0, still with a graph, where there are no edges or no negatives (the queue is empty in the first step).

    Raises:
        ValueError: the temperature is not positive, or a ``log_p`` that the correction needs is missing.
    """
    shifts = _shifts(positive, negative, temperature, log_q)
    if not edges.n_edges or not len(negative.ids):
        return (anchor.rows.sum() + positive.rows.sum() + negative.rows.sum()) * 0.0
    if anchor.rows.device.type != "cpu":
        return _plain(edges, anchor, positive, negative, one_type, temperature, shifts)
    ends = _Ends(*edges, anchor.ids if one_type else None, positive.ids, negative.ids)
    return cast(Tensor, _GroupedLoss.apply(anchor.rows, positive.rows, negative.rows, ends, shifts, temperature))


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
    """Return what :func:`edge_loss` returns, in plain torch; at least one edge and one negative."""
    shifts = _shifts(positive, negative, temperature, log_q)
    return _plain(edges, anchor, positive, negative, one_type, temperature, shifts)


class _Shifts(NamedTuple):
    """What is taken off the logits of the positives ``[U_p]`` and of the negatives ``[M]``."""

    positive: Floats
    negative: Floats


def _shifts(positive: Nodes, negative: Nodes, temperature: float, log_q: LogQ) -> _Shifts:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; the paper's loss has 1")
    if log_q not in get_args(LogQ):
        raise ValueError(f"log_q must be one of {get_args(LogQ)}, got {log_q!r}")
    zeros = np.zeros(len(positive.ids), np.float32)
    if log_q == "none":
        return _Shifts(zeros, np.zeros(len(negative.ids), np.float32))
    if negative.log_p is None:
        raise ValueError(f"log_q {log_q!r} needs log_p of the negatives: IdQueue.log_probability(ids)")
    if log_q == "corrected":
        draws = np.float32(np.log(max(len(negative.ids), 1)))
        return _Shifts(zeros, negative.log_p + draws)
    if positive.log_p is None:
        raise ValueError("log_q 'standard' needs log_p of the positives too: IdQueue.log_probability(ids)")
    return _Shifts(positive.log_p, negative.log_p)


def _plain(
    edges: Edges, anchor: Nodes, positive: Nodes, negative: Nodes, one_type: bool, temperature: float, shifts: _Shifts
) -> Tensor:
    device = anchor.rows.device
    first, second = (torch.from_numpy(end).to(device) for end in edges)
    shift_p, shift_n = (torch.from_numpy(shift).to(device) for shift in shifts)
    starts, ends = anchor.rows[first], positive.rows[second]  # [E, D]
    of_positive = (starts * ends).sum(1) / temperature - shift_p[second]  # [E]
    of_negatives = starts @ negative.rows.T / temperature - shift_n  # [E, M]
    hits = positive.ids[edges.positive][:, None] == negative.ids
    if one_type:
        hits |= anchor.ids[edges.anchor][:, None] == negative.ids
    of_negatives = of_negatives.masked_fill(torch.from_numpy(hits).to(device), -torch.inf)
    logits = torch.cat([of_positive[:, None], of_negatives], dim=1)  # [E, 1 + M]
    return (logits.logsumexp(1) - of_positive).mean()


class _Ends(NamedTuple):
    """The edges ``[E]`` and the ids by which hits are found; no anchor ids where an anchor cannot be a negative."""

    anchor: Ints
    positive: Ints
    anchor_ids: Ints | None
    positive_ids: Ints
    negative_ids: Ints


def _rows(tensor: Tensor) -> Floats:
    rows: Floats = tensor.detach().contiguous().numpy()
    return rows


class _GroupedLoss(torch.autograd.Function):
    """Value and gradients in one pass: the loss is a scalar, so going backward only scales what forward found."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, positive: Tensor, negative: Tensor, ends: _Ends, shifts: _Shifts, temperature: float
    ) -> Tensor:
        sides = _rows(anchor), _rows(positive), _rows(negative)
        gradients = np.zeros_like(sides[0]), np.zeros_like(sides[1]), np.zeros_like(sides[2])
        order = np.argsort(ends.negative_ids, kind="stable")
        anchor_ids = NO_IDS if ends.anchor_ids is None else ends.anchor_ids
        ids = frozen(anchor_ids), frozen(ends.positive_ids), frozen(ends.negative_ids)
        with team():  # products of some hundred rows: on one thread
            loss = grouped(
                SGEMM, sides, (frozen(ends.anchor), frozen(ends.positive)), ids, order, (shifts.positive, shifts.negative),
                np.float32(1 / temperature), gradients,
            )  # fmt: skip
        ctx.gradients = [torch.from_numpy(gradient) for gradient in gradients]
        return anchor.new_tensor(loss)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * grads[0] for gradient in ctx.gradients), None, None, None
