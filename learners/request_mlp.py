"""RequestMLP: an MLP over candidates that computes what several of them share once.

Legend: ``C`` candidates, ``R`` requests, ``U`` distinct rows of a part, ``W`` width of a hidden layer, ``k`` slots.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from learners import mlp_passes, products16
from learners.click_loss import ClickLoss
from learners.device import compiled
from learners.flat import Flat
from learners.mlp_entry import Plan, Weights
from learners.mlp_passes import Model
from learners.mlp_ranges import Hidden
from learners.room import Room
from learners.sim_extract import SimExtract, Slots
from learners.tables import Gathered
from learners.threads import Task

__all__ = ["Part", "RequestMLP", "SlotPart", "distinct"]

Floats = npt.NDArray[np.float32]

_CHECKS_EACH_STEP = os.environ.get("FRESHET_DEBUG") == "1"
"""Whether places are checked in each step, not only in a model's first: some microseconds per part."""


class Part(NamedTuple):
    """Columns of the candidates' input: ``rows[places]`` ``[C, d]``, or ``rows`` itself where there are no places."""

    rows: Tensor
    places: Tensor | None = None
    """int64 ``[C]``: worth it where rows are fewer than candidates."""
    n_rows: int | None = None
    """Places are below it; None says nothing of them. Rows from there on cost nothing."""

    def expanded(self) -> Tensor:
        """Return the columns, ``[C, d]``."""
        return self.rows if self.places is None else self.rows.index_select(0, self.places)


def distinct(gathered: Gathered) -> Part:
    """Return use 0 of a gather as a part: its distinct rows are the first of the gathered ones."""
    return Part(gathered.weight, gathered.places[0], gathered.n_first)


class SlotPart(NamedTuple):
    """Columns of the candidates' input: the embedding of the slots, ``[C, k dim]``."""

    embedding: SimExtract
    slots: Slots


class RequestMLP(nn.Module):
    """MLP over (candidate, request) inputs whose first layer treats what candidates share once.

    Each hidden layer is ``ReLU(LayerNorm(.))``: normalisation within one candidate, so no score depends on another one, and it
    keeps up with a stream whose embeddings move fast. ``h_1 = W_c x_c + (W_r x_r)[request of c] + b`` equals a layer over the
    concatenation, at a tenth of the work for the request's part when ten candidates share it; likewise for columns that are
    rows of few distinct items, or of the tables of slot embeddings (:class:`SlotPart`).

    Args:
        candidate_dim: width of the candidate's input.
        request_dim: width of the request's input; may be 0.
        hidden: widths of the hidden layers, one at least.
        products: in what the layers multiply candidates, on the way up and back: see :mod:`learners.mlp_products` and
            :meth:`plain`. Weights, sums, normalisation and the last layer are float32 with both.
    """

    def __init__(
        self,
        candidate_dim: int,
        request_dim: int,
        hidden: Sequence[int] = (200, 80),
        products: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        self.products = products
        self.candidate = nn.Linear(candidate_dim, hidden[0])
        self.request = nn.Linear(request_dim, hidden[0], bias=False) if request_dim else None
        _as_one_layer(self.candidate, self.request)
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise(hidden):
            layers += [nn.LayerNorm(wide), nn.ReLU(), nn.Linear(wide, narrow)]
        self.rest = nn.Sequential(*layers, nn.LayerNorm(hidden[-1]), nn.ReLU(), nn.Linear(hidden[-1], 1))
        self._model: Model | None = None
        """As the compiled passes take it, made when first asked for and whenever the parameters have got other memory."""

    def forward(self, candidate: Sequence[Part | SlotPart], request: Tensor, request_of: Tensor) -> Tensor:
        """Return logits ``[C]``: compiled on the CPU, :meth:`plain` elsewhere.

        Args:
            candidate: columns of the candidates, together of ``candidate_dim``.
            request: ``[R, Dr]``.
            request_of: request of each candidate, int64 ``[C]``.

        Raises:
            ValueError: on the CPU, elsewhere torch says so: they are not as wide as the weights; or a place is not below the
                part's rows, looked at in the first call, and in each with ``FRESHET_DEBUG=1``.
        """
        if not compiled(request_of.device):
            return self.plain(candidate, request, request_of)
        return mlp_passes.logits(*self._entered(candidate, request, request_of))

    def learn(
        self,
        candidate: Sequence[Part | SlotPart],
        request: Tensor,
        request_of: Tensor,
        labels: Tensor,
        weights: Tensor,
        meanwhile: Task | None = None,
    ) -> tuple[Tensor, ClickLoss | None]:
        """Return logits, and the click loss, where it went back with it.

        A candidate goes back as soon as its logit is there, while what the layers made of it is in cache. Autograd's backward
        hands out what that found if it is given this very gradient; with any other it computes anew.

        Args:
            candidate: as :meth:`forward`, like the next two.
            request: see above.
            request_of: see above.
            labels: ``y``, float32 ``[C]``.
            weights: ``w``, float32 ``[C]``.
            meanwhile: what the caller's thread may do while another one works on this; on the CPU it is called once.
        """
        if not compiled(request_of.device):
            return self.plain(candidate, request, request_of), None
        model, plan, tensors = self._entered(candidate, request, request_of)
        return mlp_passes.learned(model, plan, tensors, labels, weights, meanwhile)

    def _entered(
        self, candidate: Sequence[Part | SlotPart], request: Tensor, request_of: Tensor
    ) -> tuple[Model, Plan, list[Tensor]]:
        """Return what the compiled passes take."""
        if self._model is None or _CHECKS_EACH_STEP:
            _check_places(candidate, request, request_of)
        if self._model is None or not self._model.flat.holds():
            self._model = self._as_one()
        self._check_widths(candidate, request)
        plan, tensors = _plan(candidate, request if self.request is not None else None, request_of)
        return self._model, plan, tensors

    def _as_one(self) -> Model:
        """Lay the parameters side by side."""
        first = [self.candidate, *([] if self.request is None else [self.request])]
        weights: list[list[nn.Parameter]] = [[parameter] for layer in first for parameter in layer.parameters()]
        layers = list(self.rest.parameters())
        widths, flat = np.array([len(gain) for gain in layers[::4]]), Flat([*weights, layers])
        none = np.zeros((len(self.candidate.bias), 0), np.float32)
        product16 = products16.address() if self.products == "bfloat16" else None

        def views(array: Floats) -> Weights:
            first, bias, *rest = flat.views(array)
            request = rest[0] if self.request is not None else none
            return Weights(first, request, bias, Hidden(array[flat.places[-len(layers)].start :], widths, product16))

        return Model(flat, views(flat.values), views(flat.gradient), views, Room())

    def __getstate__(self) -> dict[str, Any]:
        """A copy lays its parameters side by side itself."""
        return {**self.__dict__, "_model": None}

    def _check_widths(self, candidate: Sequence[Part | SlotPart], request: Tensor) -> None:
        """Refuse inputs that are not as wide as the weights: slices of these would be cut short without a word."""
        width = sum(part.embedding.width if isinstance(part, SlotPart) else part.rows.shape[1] for part in candidate)
        if width != self.candidate.in_features:
            raise ValueError(f"RequestMLP was made for candidates of width {self.candidate.in_features}, these have {width}")
        if self.request is not None and request.shape[1] != self.request.in_features:
            raise ValueError(
                f"RequestMLP was made for requests of width {self.request.in_features}, these have {request.shape[1]}"
            )

    def plain(self, candidate: Sequence[Part | SlotPart], request: Tensor, request_of: Tensor) -> Tensor:
        """Return what :meth:`forward` returns, layer by layer in torch over the whole input.

        In bfloat16 all linear layers but the last are torch's own under autocast, what they contribute of shared rows included;
        what comes out of them, and their gradients, is rounded to bfloat16, too, which the compiled passes do not.
        """
        columns = [part.expanded() if isinstance(part, Part) else part.embedding.embed(part.slots) for part in candidate]
        out = self._multiplied(self.candidate, torch.cat(columns, 1))
        if self.request is not None:
            out = out + self._multiplied(self.request, request).index_select(0, request_of)
        *layers, last = self.rest
        for layer in layers:
            out = self._multiplied(layer, out) if isinstance(layer, nn.Linear) else layer(out)
        return cast(Tensor, last(out)).squeeze(1)

    def _multiplied(self, layer: nn.Linear, x: Tensor) -> Tensor:
        if self.products == "float32":
            return cast(Tensor, layer(x))
        with torch.autocast(x.device.type, torch.bfloat16):
            return cast(Tensor, layer(x)).to(x.dtype)


def _as_one_layer(candidate: nn.Linear, request: nn.Linear | None) -> None:
    """Initialise both halves as one layer over the concatenation would be (the bound falls with the full fan-in)."""
    fan_in = candidate.in_features + (request.in_features if request is not None else 0)
    bound = fan_in**-0.5
    for layer in (candidate, request):
        if layer is not None:
            nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.uniform_(candidate.bias, -bound, bound)


def _check_places(candidate: Sequence[Part | SlotPart], request: Tensor, request_of: Tensor) -> None:
    """Refuse places without a row: the kernels would read and write beyond the arrays."""
    found: list[tuple[str, Tensor, int]] = [("request_of", request_of, len(request))]
    for i, part in enumerate(candidate):
        if isinstance(part, Part) and part.places is not None:
            n_rows = len(part.rows) if part.n_rows is None else part.n_rows
            if n_rows > len(part.rows):
                raise ValueError(f"part {i} of the candidates has {len(part.rows)} rows, and n_rows = {n_rows}")
            found.append((f"part {i} of the candidates", part.places, n_rows))
    for name, places, n_rows in found:
        wrong = places[(places < 0) | (places >= n_rows)]
        if len(wrong):
            raise ValueError(f"{name}: place {int(wrong[0])} has no row; there are {n_rows}, counted from 0")


def _plan(candidate: Sequence[Part | SlotPart], request: Tensor | None, request_of: Tensor) -> tuple[Plan, list[Tensor]]:
    """Return the plan and its tensors: dense columns, shared rows, the request's, tables of bins and positions."""
    dense: list[slice] = []
    shared: list[slice] = []
    of_dense: list[Tensor] = []
    of_shared: list[Tensor] = []
    tables: list[Tensor] = []
    index: list[Tensor] = []
    n_rows: list[int] = []
    slots, n_bins, at = None, 0, 0
    bins = positions = np.zeros((request_of.numel(), 0), np.int64)
    for part in candidate:
        if isinstance(part, SlotPart):
            if slots is not None:
                raise ValueError("RequestMLP takes one SlotPart among a candidate's columns; embed the others")
            slots = slice(at, at + part.embedding.width)
            bins, positions = part.slots.bins.numpy(), part.slots.positions.numpy()
            n_bins = part.embedding.n_bins
            tables = part.embedding.tables()
            at = slots.stop
            continue
        rows, places, n = part
        height, width = rows.shape
        if places is not None:
            shared.append(slice(at, at + width))
            of_shared.append(rows)
            index.append(places)
            n_rows.append(height if n is None else n)
        elif width:
            if dense and dense[-1].stop == at:
                dense[-1] = slice(dense[-1].start, at + width)
            else:
                dense.append(slice(at, at + width))
            of_dense.append(rows)
        at += width
    if request is not None:
        of_shared.append(request)
        index.append(request_of)
        n_rows.append(len(request))
    taken = np.empty((request_of.numel(), len(index)), np.int64)
    first = 0
    for j, (n, places) in enumerate(zip(n_rows, index, strict=True)):
        np.add(places.numpy(), first, out=taken[:, j])
        first += n
    widths = [rows.shape[1] for rows in of_dense]
    plan = Plan(dense, widths, shared, request is not None, n_rows, slots, taken, bins, positions, n_bins)
    return plan, [*of_dense, *of_shared, *tables]
