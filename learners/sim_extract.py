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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from learners.device import compiled, place
from learners.sim_kernels import EPSILON, SAME, extract_all, extract_range, normalised
from learners.slot_embedding import embedded
from learners.tables import Gathered
from learners.threads import team

__all__ = ["Side", "SimExtract", "Slots", "extract", "sim_extract", "sim_extract_torch"]

LEAST = 256
"""Requests of a thread, at least: to have another one begin and to meet it takes as long as a hundred of them."""
INITIAL_SCALE = 0.1  # of torch's default of 1, k slots would drown the other inputs: -.02 AUC on a news log

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
    if not compiled(target.device):
        found = sim_extract_torch(target, sequence, sequence_offsets, target_offsets, k=k, n_bins=n_bins, max_len=max_len)
        return found._replace(bins=torch.where(found.sims > 1 - SAME, n_bins + 1, found.bins)) if own_bin else found
    targets, entries = _side(target), _side(sequence)
    target_starts = np.arange(len(target) + 1) if target_offsets is None else target_offsets.numpy()
    offsets = sequence_offsets.numpy()
    return extract(targets, entries, offsets, target_starts, k=k, n_bins=n_bins, max_len=max_len, own_bin=own_bin)


def _side(rows: Tensor) -> Side:
    return Side(rows.detach().float().contiguous().numpy(), np.arange(len(rows)))


class Side(NamedTuple):
    """Embeddings by place: entry ``i`` is ``vectors[places[i]]``, of ``vectors [U, D]`` and ``places`` int64 ``[N]``."""

    vectors: Floats
    places: Ints


def extract(
    target: Side, sequence: Side, offsets: Ints, target_offsets: Ints, *, k: int, n_bins: int, max_len: int, own_bin: bool
) -> Slots:
    """Return what :func:`sim_extract` does, of distinct embeddings by place."""
    n = len(target.places)
    bins, positions, sims = np.empty((n, k), np.int64), np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    now, past, starts, ends = target.places, sequence.places, _frozen(target_offsets), _frozen(offsets)
    with team() as threads:
        ranges = threads.cut(len(offsets) - 1, LEAST)
        if len(ranges) == 1:
            sides = target.vectors, now, starts, sequence.vectors, past, ends
            extract_all(*sides, n_bins, max_len, own_bin, bins, positions, sims)
        else:
            unit = _unit(target.vectors)
            sides = unit, now, starts, unit if sequence.vectors is target.vectors else _unit(sequence.vectors), past, ends
            threads.run(
                [
                    partial(extract_range, *sides, n_bins, max_len, own_bin, rows.start, rows.stop, bins, positions, sims)
                    for rows in ranges
                ]
            )
    return Slots(torch.from_numpy(bins), torch.from_numpy(positions), torch.from_numpy(sims))


def _frozen(offsets: Ints) -> Ints:
    """Return a read-only view: one compiled kernel for a block's and for own offsets."""
    view = offsets.view()
    view.flags.writeable = False
    return view


def _unit(vectors: Floats) -> Floats:
    out = np.empty_like(vectors)
    normalised(vectors, out)
    return out


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
        unit = nn.functional.normalize(sequence.float(), dim=1, eps=EPSILON)
        entries = unit[source] if len(unit) else unit.new_zeros(n_rows, longest, target.shape[1])  # [R, L, D]
        queries = nn.functional.normalize(target.float(), dim=1, eps=EPSILON)
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

    def found(self, target: Gathered, now: int, sequence: Gathered, past: int, offsets: Ints, target_offsets: Ints) -> Slots:
        """Return :meth:`slots` of two uses of gathers; on the CPU without gathering them.

        Args:
            target: vectors of the targets.
            now: which use of theirs.
            sequence: vectors of the entries.
            past: which use of theirs.
            offsets: as of :func:`sim_extract`, like the next one.
            target_offsets: see above.
        """
        if not compiled(target.weight.device):
            starts = (place(np.array(each), target.weight.device) for each in (offsets, target_offsets))
            return self.slots(target.of(now), sequence.of(past), *starts)
        vectors = target.weight.detach().numpy()
        entries = vectors if sequence is target else sequence.weight.detach().numpy()
        targets, history = Side(vectors, target.places[now].numpy()), Side(entries, sequence.places[past].numpy())
        k, n_bins, max_len = self.k, self.n_bins, self.max_len
        return extract(targets, history, offsets, target_offsets, k=k, n_bins=n_bins, max_len=max_len, own_bin=True)

    def embed(self, slots: Slots) -> Tensor:
        """Return ``[C, k dim]`` for slots ``[C, k]``."""
        bins, positions = slots.bins, slots.positions
        if compiled(bins.device):
            return embedded(bins, positions, self.tables())
        rows = self.bin.weight[bins] + (self.position.weight[positions] if self.position is not None else 0)
        return rows.reshape(len(bins), self.width)
