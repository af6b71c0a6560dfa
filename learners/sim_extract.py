"""SimExtract: how alike a target is to a sequence, as k binned similarities with their places (EGIN section 3.3).

Cosine of the target with every entry of its request's sequence, the k largest of them, each turned into a bin of equal width
and a position; then ``binning(sim) + positional(i)`` per slot, the slots concatenated.

Choices where the paper is silent:

- Bins: ``n_bins`` of width ``w = 2 / n_bins`` over [-1, 1], bin ``b`` is ``[-1 + b w, -1 + (b + 1) w)``; 1.0 is in the last.
- The module gives an entry that is the target itself (cosine 1 up to rounding) a bin of its own, ``n_bins + 1``: whether the
  user already had this very item says more than any likeness, and "equal" would else share a bin with "much alike".
- The position is the distance from the newest entry, 1 for the newest, ``max_len`` and beyond share the last: histories are
  cut at their old end, so an index counted from there would mean another age in every request.
- Slots are in the order of similarity, ties go to the newer entry. A sequence shorter than k leaves slots with bin ``n_bins``,
  position 0 and similarity 0: rows of their own in both tables, so nothing is masked and an empty history has an embedding.
- Top-k and binning pass no gradient: the embeddings compared must learn from the graph loss or from a table that the click loss
  trains. The tables of bins and positions learn from the click loss.

Letters: ``R`` requests, ``C`` targets (candidates, or one per request), ``N`` entries over all requests, ``D`` dim of what is
compared, ``d`` dim of a slot's embedding, ``k`` slots.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from learners.threads import team

__all__ = ["SimExtract", "Slots", "sim_extract", "sim_extract_torch"]

LEAST = 32
"""Requests of a thread, at least."""
SAME = 1e-5  # what rounding leaves between a vector and itself
INITIAL_SCALE = 0.1  # of torch's default of 1, k slots would drown the other inputs: -.02 AUC on a news log
_EPSILON = 1e-12  # a zero vector has similarity 0 with everything, as in F.normalize

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Slots(NamedTuple):
    """The k most similar entries per target, ``[C, k]`` each; none of them carries a gradient."""

    bins: Tensor
    """int64, 0 to ``n_bins``; ``n_bins`` is an empty slot."""
    positions: Tensor
    """int64, 1 (newest entry) to ``max_len``; 0 is an empty slot."""
    sims: Tensor
    """float32 cosine, not increasing along a row; 0 is an empty slot."""


def sim_extract(
    target: Tensor,
    sequence: Tensor,
    sequence_offsets: Tensor,
    target_offsets: Tensor | None = None,
    *,
    k: int = 10,
    n_bins: int = 20,
    max_len: int = 100,
    own_bin: bool = False,
) -> Slots:
    """Return the slots of every target: compiled on the CPU, :func:`sim_extract_torch` elsewhere.

    Args:
        target: embeddings ``[C, D]``.
        sequence: embeddings ``[N, D]``, oldest first within a request.
        sequence_offsets: int64 ``[R + 1]``: the entries of request ``r``.
        target_offsets: int64 ``[R + 1]``: the targets of request ``r``; None for one target per request, ``C = R``.
        k: slots.
        n_bins: bins of similarity.
        max_len: last position; entries further back share it.
        own_bin: whether what is the target itself is in bin ``n_bins + 1``.
    """
    if target.device.type != "cpu":
        found = sim_extract_torch(target, sequence, sequence_offsets, target_offsets, k=k, n_bins=n_bins, max_len=max_len)
        return found._replace(bins=torch.where(found.sims > 1 - SAME, n_bins + 1, found.bins)) if own_bin else found
    n_targets = len(target)
    bins = np.empty((n_targets, k), np.int64)
    positions = np.empty((n_targets, k), np.int64)
    sims = np.empty((n_targets, k), np.float32)
    starts = sequence_offsets.numpy()
    target_starts = np.arange(n_targets + 1) if target_offsets is None else target_offsets.numpy()
    given = _rows(target), _frozen(target_starts), _rows(sequence), _frozen(starts), n_bins, max_len, own_bin
    with team() as threads:
        ranges = threads.cut(len(starts) - 1, LEAST)
        threads.run([partial(_extract, *given, rows.start, rows.stop, bins, positions, sims) for rows in ranges])
    return Slots(torch.from_numpy(bins), torch.from_numpy(positions), torch.from_numpy(sims))


def _rows(embeddings: Tensor) -> Floats:
    view = embeddings.detach().to(torch.float32).contiguous().numpy().view()
    view.flags.writeable = False
    return view


def _frozen(offsets: npt.NDArray[np.int64]) -> Ints:
    view = np.ascontiguousarray(offsets, dtype=np.int64).view()
    view.flags.writeable = False
    return view


@numba.njit(cache=True, nogil=True)
def _inverse_norm(rows: Floats, row: int) -> np.float32:
    total = np.float32(0)
    for d in range(rows.shape[1]):
        total += rows[row, d] * rows[row, d]
    return np.float32(1 / max(np.sqrt(total), np.float32(_EPSILON)))


@numba.njit(cache=True, nogil=True)
def _extract(
    target: Floats,
    target_offsets: Ints,
    sequence: Floats,
    offsets: Ints,
    n_bins: int,
    max_len: int,
    own_bin: bool,
    first: int,
    last: int,
    bins: Ints,
    positions: Ints,
    sims: Floats,
) -> None:
    n_dims = target.shape[1]
    longest = 0
    for row in range(first, last):
        longest = max(longest, offsets[row + 1] - offsets[row])
    # One request's entries, newest first, transposed: the inner loop runs over entries, so it vectorises without changing the
    # order of any sum, and equal entries get equal similarities to the last bit.
    entries = np.empty((n_dims, longest), np.float32)
    cosine = np.empty(longest, np.float32)
    for row in range(first, last):
        length = offsets[row + 1] - offsets[row]
        for back in range(length):
            source = offsets[row + 1] - 1 - back
            scale = _inverse_norm(sequence, source)
            for d in range(n_dims):
                entries[d, back] = sequence[source, d] * scale
        for candidate in range(target_offsets[row], target_offsets[row + 1]):
            scale = _inverse_norm(target, candidate)
            cosine[:length] = 0
            for d in range(n_dims):
                weight = target[candidate, d] * scale
                for back in range(length):
                    cosine[back] += weight * entries[d, back]
            _top_k(cosine[:length], n_bins, max_len, own_bin, bins[candidate], positions[candidate], sims[candidate])


@numba.njit(cache=True, nogil=True)
def _top_k(cosine: Floats, n_bins: int, max_len: int, own_bin: bool, bins: Ints, positions: Ints, sims: Floats) -> None:
    """Insert newest first and only what is greater, so a tie keeps the newer; a NaN is not greater and takes no slot."""
    k, filled = len(sims), 0
    for back in range(len(cosine)):
        value = cosine[back]
        if filled < k and value == value:
            slot = filled
            filled += 1
        elif filled == k and value > sims[k - 1]:
            slot = k - 1
        else:
            continue
        while slot > 0 and value > sims[slot - 1]:
            sims[slot], positions[slot] = sims[slot - 1], positions[slot - 1]
            slot -= 1
        sims[slot] = value
        positions[slot] = min(back + 1, max_len)
    half = np.float32(n_bins) * np.float32(0.5)
    for slot in range(filled):
        value = np.float32(min(max(sims[slot], np.float32(-1)), np.float32(1)))  # rounding passes 1 by an ulp or two
        sims[slot] = value
        number = np.int64((value + np.float32(1)) * half)
        bins[slot] = number if number < n_bins else n_bins - 1
        if own_bin and value > np.float32(1 - SAME):
            bins[slot] = n_bins + 1
    bins[filled:], positions[filled:], sims[filled:] = n_bins, 0, 0


def sim_extract_torch(
    target: Tensor,
    sequence: Tensor,
    sequence_offsets: Tensor,
    target_offsets: Tensor | None = None,
    *,
    k: int = 10,
    n_bins: int = 20,
    max_len: int = 100,
) -> Slots:
    """Return the slots of every target in padded torch: the same as :func:`sim_extract`, up to rounding of the cosine."""
    with torch.no_grad():
        device = target.device
        lengths = sequence_offsets.diff()  # [R]
        n_rows, longest = len(lengths), max(int(lengths.max()) if len(lengths) else 0, k)
        counts = torch.ones_like(lengths) if target_offsets is None else target_offsets.diff()
        row = torch.repeat_interleave(torch.arange(n_rows, device=device), counts)  # [C]
        back = torch.arange(longest, device=device)
        is_entry = back < lengths[:, None]  # [R, L], newest first
        source = (sequence_offsets[1:, None] - 1 - back).clamp(min=0)
        unit = nn.functional.normalize(sequence.float(), dim=1, eps=_EPSILON)
        entries = unit[source] if len(unit) else unit.new_zeros(n_rows, longest, target.shape[1])  # [R, L, D]
        queries = nn.functional.normalize(target.float(), dim=1, eps=_EPSILON)
        cosine = torch.einsum("cd,cld->cl", queries, entries[row]).clamp(-1, 1)  # [C, L]
        valid = is_entry[row] & ~cosine.isnan()
        order = cosine.masked_fill(~valid, -2).sort(dim=1, descending=True, stable=True).indices[:, :k]
        valid, cosine = valid.gather(1, order), cosine.gather(1, order)
        sims = cosine.where(valid, torch.zeros_like(cosine))
        bins = ((sims + 1) * (n_bins / 2)).long().clamp(max=n_bins - 1)
        bins = bins.masked_fill(~valid, n_bins)
        positions = (order + 1).clamp(max=max_len).masked_fill(~valid, 0)
        return Slots(bins, positions, sims)


class SimExtract(nn.Module):
    """Embeds the slots of :func:`sim_extract`: ``[C, k dim]``, per slot ``bin.weight[bin] + position.weight[position]``.

    Rows of ``bin.weight``: ``n_bins`` bins, the empty slot, the target itself.

    Args:
        k: slots; the paper retrieves 10.
        n_bins: bins of similarity; the paper does not say how many.
        max_len: positions told apart; 100 in the paper's industrial data.
        dim: of the bin and position embeddings; 10 in the paper.
        positions: whether positions are embedded (the paper's ablation "w/o pos_emb" is False).

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, k: int = 10, n_bins: int = 20, max_len: int = 100, dim: int = 10, *, positions: bool = True) -> None:
        super().__init__()
        for name, value in {"k": k, "n_bins": n_bins, "max_len": max_len, "dim": dim}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.k, self.n_bins, self.max_len = k, n_bins, max_len
        self.bin = nn.Embedding(n_bins + 2, dim)
        self.position = nn.Embedding(max_len + 1, dim) if positions else None
        for table in (self.bin, self.position):
            if table is not None:
                nn.init.normal_(table.weight, std=INITIAL_SCALE)

    @property
    def width(self) -> int:
        """Features per target: ``k dim``."""
        return self.k * self.bin.embedding_dim

    def tables(self) -> list[Tensor]:
        """Return the embeddings of bins and, where there are any, of positions."""
        return [self.bin.weight] + ([] if self.position is None else [self.position.weight])

    def forward(
        self, target: Tensor, sequence: Tensor, sequence_offsets: Tensor, target_offsets: Tensor | None = None
    ) -> Tensor:
        """Return ``[C, k dim]``; arguments as for :func:`sim_extract`."""
        return self.embed(self.slots(target, sequence, sequence_offsets, target_offsets))

    def slots(self, target: Tensor, sequence: Tensor, sequence_offsets: Tensor, target_offsets: Tensor | None = None) -> Slots:
        """Return what :meth:`embed` embeds: with it a model can use the similarities as features too."""
        sides = target, sequence, sequence_offsets, target_offsets
        return sim_extract(*sides, k=self.k, n_bins=self.n_bins, max_len=self.max_len, own_bin=True)

    def embed(self, slots: Slots) -> Tensor:
        """Return ``[C, k dim]`` for slots ``[C, k]``."""
        bins, positions = slots.bins, slots.positions
        if self.position is None:
            embedded = self.bin.weight.index_select(0, bins.flatten())
        elif bins.device.type == "cpu":
            embedded = cast(Tensor, _EmbedSlots.apply(self.bin.weight, self.position.weight, bins, positions))
        else:
            embedded = self.bin.weight[bins] + self.position.weight[positions]
        return embedded.reshape(len(bins), self.width)


class _EmbedSlots(torch.autograd.Function):
    """``bin[bins] + position[positions]`` without the two gathered tensors, and their gradients in one pass over the slots."""

    @staticmethod
    def forward(ctx: Any, bin_weight: Tensor, position_weight: Tensor, bins: Tensor, positions: Tensor) -> Tensor:
        ctx.save_for_backward(bins, positions)
        ctx.sizes = len(bin_weight), len(position_weight)
        out = np.empty((bins.numel(), bin_weight.shape[1]), np.float32)
        indices = bins.reshape(-1).numpy(), positions.reshape(-1).numpy()
        _gather(bin_weight.detach().numpy(), position_weight.detach().numpy(), *indices, out)
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        bins, positions = ctx.saved_tensors
        gradient = grads[0].contiguous().numpy()  # [C k, d]
        sums = [np.zeros((size, gradient.shape[1]), np.float32) for size in ctx.sizes]
        _scatter(gradient, bins.reshape(-1).numpy(), positions.reshape(-1).numpy(), *sums)
        return torch.from_numpy(sums[0]), torch.from_numpy(sums[1]), None, None


@numba.njit(cache=True, nogil=True)
def _gather(bin_weight: Floats, position_weight: Floats, bins: Ints, positions: Ints, out: Floats) -> None:
    for slot in range(len(bins)):
        for d in range(out.shape[1]):
            out[slot, d] = bin_weight[bins[slot], d] + position_weight[positions[slot], d]


@numba.njit(cache=True, nogil=True)
def _scatter(gradient: Floats, bins: Ints, positions: Ints, bin_sums: Floats, position_sums: Floats) -> None:
    for slot in range(len(bins)):
        for d in range(gradient.shape[1]):
            bin_sums[bins[slot], d] += gradient[slot, d]
            position_sums[positions[slot], d] += gradient[slot, d]
