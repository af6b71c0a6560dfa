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

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from learners.graph import Edges
from learners.graph.edges import frozen
from learners.threads import team
from negative_queues.draws import mix64

__all__ = ["LogQ", "Nodes", "edge_loss", "edge_loss_plain"]

LogQ = Literal["none", "standard", "corrected"]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_LOWEST = -3.0e38  # the maximum over no logits: finite, so that differences with it are not NaN


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
    with team():  # products of some hundred rows: on one thread
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


class _GroupedLoss(torch.autograd.Function):
    """Value and gradients in one pass: the loss is a scalar, so going backward only scales what forward found."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, positive: Tensor, negative: Tensor, ends: _Ends, shifts: _Shifts, temperature: float
    ) -> Tensor:
        used, group = _groups(frozen(ends.anchor), len(anchor))  # [A], [E]
        starts = anchor[torch.from_numpy(used)]  # [A, D]
        logits = torch.addmm(torch.from_numpy(shifts.negative), starts, negative.T, beta=-1, alpha=1 / temperature)  # [A, M]
        order = np.argsort(ends.negative_ids, kind="stable")
        index = _index(frozen(ends.negative_ids), order)
        if ends.anchor_ids is not None:
            _mask(logits.numpy(), frozen(ends.anchor_ids[used]), frozen(ends.negative_ids), order, index)
        top = logits.amax(1, keepdim=True).clamp(min=_LOWEST)  # [A, 1]
        terms = (logits - top).exp_()  # [A, M]
        share = np.zeros(len(used), np.float32)  # [A]: what a term of the anchor weighs, over its edges
        singles = np.zeros(logits.shape, np.float32)  # [A, M]: the same where edges differ, term by term
        grad_starts, grad_positive = torch.zeros_like(starts), torch.zeros_like(positive)
        total = _edges(
            group,
            frozen(ends.positive),
            starts.numpy(),
            positive.detach().contiguous().numpy(),
            shifts.positive,
            np.float32(1 / temperature),
            logits.numpy(),
            top[:, 0].numpy(),
            terms.numpy(),
            terms.sum(1).numpy(),
            frozen(ends.positive_ids),
            frozen(ends.negative_ids),
            order,
            index,
            share,
            singles,
            grad_starts.numpy(),
            grad_positive.numpy(),
        )
        weights = terms.mul_(torch.from_numpy(share)[:, None]).add_(torch.from_numpy(singles))
        scale = 1 / (temperature * len(group))
        grad_anchor = torch.zeros_like(anchor)
        grad_anchor[torch.from_numpy(used)] = grad_starts.addmm_(weights, negative).mul_(scale)
        ctx.save_for_backward(grad_anchor, grad_positive.mul_(scale), (weights.T @ starts).mul_(scale))
        return anchor.new_tensor(total / len(group))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * grads[0] for gradient in ctx.saved_tensors), None, None, None


@numba.njit(cache=True, nogil=True)
def _groups(anchor: Ints, n_rows: int) -> tuple[Ints, Ints]:
    """Return the rows that are an anchor, in order, ``[A]``, and the place of every edge's anchor among them, ``[E]``."""
    place = np.zeros(n_rows, np.int64)
    for row in anchor:
        place[row] = 1
    used = np.flatnonzero(place)
    for group in range(len(used)):
        place[used[group]] = group
    return used, place[anchor]


@numba.njit(cache=True, nogil=True)
def _index(negative_ids: Ints, order: Ints) -> Ints:
    """Return a hash from id to 1 + its first place in the order that sorts the negatives, ``[M]``; 0 is free."""
    size = 4
    while size < 4 * len(negative_ids):
        size *= 2
    index = np.zeros(size, np.int64)
    for place in range(len(order)):
        value = negative_ids[order[place]]
        if place and negative_ids[order[place - 1]] == value:
            continue
        slot = np.int64(mix64(np.uint64(value))) & (size - 1)
        while index[slot]:
            slot = (slot + 1) & (size - 1)
        index[slot] = place + 1
    return index


@numba.njit(cache=True, nogil=True)
def _find(value: int, negative_ids: Ints, order: Ints, index: Ints) -> int:
    """Return the first place of ``value`` in the order of the negatives, or M."""
    slot = np.int64(mix64(np.uint64(value))) & (len(index) - 1)
    while index[slot]:
        if negative_ids[order[index[slot] - 1]] == value:
            return int(index[slot] - 1)
        slot = (slot + 1) & (len(index) - 1)
    return len(order)


@numba.njit(cache=True, nogil=True)
def _mask(logits: Floats, anchor_ids: Ints, negative_ids: Ints, order: Ints, index: Ints) -> None:
    """Leave out the negatives that are the anchor."""
    for group in range(len(anchor_ids)):
        place = _find(anchor_ids[group], negative_ids, order, index)
        while place < len(order) and negative_ids[order[place]] == anchor_ids[group]:
            logits[group, order[place]] = -np.inf
            place += 1


@numba.njit(cache=True, nogil=True)
def _edges(
    group: Ints,
    positive: Ints,
    starts: Floats,
    rows: Floats,
    shift: Floats,
    scale: np.float32,
    logits: Floats,
    top: Floats,
    terms: Floats,
    sums: Floats,
    positive_ids: Ints,
    negative_ids: Ints,
    order: Ints,
    index: Ints,
    share: Floats,
    singles: Floats,
    grad_starts: Floats,
    grad_rows: Floats,
) -> float:
    """Add every edge's loss, its gradient by the positive logit to both ends, and its weight of the anchor's terms.

    ``terms [A, M]`` are ``exp(logits - top)`` and ``sums [A]`` their sums: all that an edge needs of its negatives.
    """
    total = 0.0
    for edge in range(len(group)):
        a, p = group[edge], positive[edge]
        logit = np.float32(0)
        for d in range(starts.shape[1]):
            logit += starts[a, d] * rows[p, d]
        logit = logit * scale - shift[p]
        first = last = _find(positive_ids[p], negative_ids, order, index)
        hits = np.float32(0)
        while last < len(order) and negative_ids[order[last]] == positive_ids[p]:
            hits += terms[a, order[last]]
            last += 1
        if hits <= np.float32(0.5) * sums[a]:
            high = max(top[a], logit)
            weight = np.exp(top[a] - high)
            denominator = np.exp(logit - high) + (sums[a] - hits) * weight
            share[a] += weight / denominator
            for place in range(first, last):
                singles[a, order[place]] -= terms[a, order[place]] * weight / denominator
        else:
            high, denominator = _single(logit, positive_ids[p], logits[a], negative_ids, singles[a])
        total += high - logit + np.log(denominator)
        pull = np.exp(logit - high) / denominator - np.float32(1)
        for d in range(starts.shape[1]):
            grad_starts[a, d] += pull * rows[p, d]
            grad_rows[p, d] += pull * starts[a, d]
    return total


@numba.njit(cache=True, nogil=True)
def _single(
    logit: np.float32, positive_id: int, logits: Floats, negative_ids: Ints, weights: Floats
) -> tuple[np.float32, np.float32]:
    """Return maximum and denominator of an edge whose positive is among the negatives, left out there; add its weights."""
    high = logit
    for n in range(len(logits)):
        if negative_ids[n] != positive_id:
            high = max(high, logits[n])
    denominator = np.exp(logit - high)
    for n in range(len(logits)):
        if negative_ids[n] != positive_id:
            denominator += np.exp(logits[n] - high)
    for n in range(len(logits)):
        if negative_ids[n] != positive_id:
            weights[n] += np.exp(logits[n] - high) / denominator
    return high, denominator
