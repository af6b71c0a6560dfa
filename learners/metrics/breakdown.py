"""Figures of one model per cell (:mod:`learners.metrics.cells`), in one pass over the impressions for all dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.metrics.bootstrap import BUCKET_BINS
from learners.metrics.cells import CellIds, Cells
from learners.metrics.figures import entropy, histogram_auc
from learners.metrics.ranking import AUC, exact_auc
from learners.metrics.rows import BINS, MetricError, Rows
from negative_queues.kernels import kernel

CELL_FIGURES = ("auc", "gauc", "log_loss", "ne", "calibration", "impressions", "requests", "positives")
"""Figures of a cell, defined as those of a stream; a request's AUC is that of its candidates in the cell."""
LOSS, PREDICTED, IMPRESSIONS, REQUESTS, POSITIVES, AUC_SUM, AUC_IMPRESSIONS, N_COUNTS = range(8)
_PER_CELL_BIN = BINS // BUCKET_BINS

Floats = npt.NDArray[np.float64]

__all__ = ["CELL_FIGURES", "Breakdown"]


class Breakdown:
    """What figures per cell need of one model: 16.4 KB a cell."""

    def __init__(self) -> None:
        self.histogram = np.zeros((0, 2, BUCKET_BINS))  # weights of negatives, of positives
        self.counts = np.zeros((0, N_COUNTS))

    def add(self, rows: Rows, cells: CellIds) -> None:
        """Count requests that :func:`learners.metrics.score_rows` has checked, with the cells of the same rows."""
        if cells.requests.shape[1] != len(rows) or cells.candidates.shape[1] != len(rows.scores):
            raise MetricError(
                f"cells of {cells.requests.shape[1]} requests and {cells.candidates.shape[1]} candidates do not fit rows of "
                f"{len(rows)} and {len(rows.scores)}"
            )
        self._grow(1 + max(cells.requests.max(initial=-1), cells.candidates.max(initial=-1)))
        requests, candidates = np.ascontiguousarray(cells.requests), np.ascontiguousarray(cells.candidates)
        columns = rows.scores, rows.labels, rows.weights, rows.bins, rows.losses, rows.offsets
        _add(*columns, rows.ranking, requests, candidates, self.histogram, self.counts)

    def _grow(self, n: int) -> None:
        more = n - len(self.counts)
        if more > 0:
            self.histogram = np.concatenate([self.histogram, np.zeros((more, 2, BUCKET_BINS))])
            self.counts = np.concatenate([self.counts, np.zeros((more, N_COUNTS))])

    def merge(self, other: Breakdown, cells: Cells) -> None:
        """Add what ``other`` counted.

        Args:
            other: does not change.
            cells: the cell here of each of its cells, as :meth:`learners.metrics.SliceCells.merge` returns them.
        """
        here = cells[: len(other.counts)]
        self._grow(1 + int(here.max(initial=-1)))
        np.add.at(self.histogram, here, other.histogram)
        np.add.at(self.counts, here, other.counts)

    def figures(self, *cells: int) -> dict[str, float]:
        """Return the figures of some cells of one dimension taken together; NaN where one is not defined."""
        there = [cell for cell in cells if cell < len(self.counts)]
        histogram, counts = self.histogram[there].sum(axis=0), self.counts[there].sum(axis=0)
        negative, positive = histogram.sum(axis=1)
        weight = negative + positive
        log_loss = _ratio(counts[LOSS], weight)
        values = (
            histogram_auc(histogram),
            _ratio(counts[AUC_SUM], counts[AUC_IMPRESSIONS]),
            log_loss,
            _ratio(log_loss, entropy(_ratio(positive, weight))),
            _ratio(counts[PREDICTED], positive),
            *(float(counts[at]) for at in (IMPRESSIONS, REQUESTS, POSITIVES)),
        )
        return dict(zip(CELL_FIGURES, values, strict=True))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything that must survive, as named arrays (views; copy before the next :meth:`add`)."""
        return {"histogram": self.histogram, "counts": self.counts}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become exactly the breakdown that returned ``state``.

        Raises:
            MetricError: an array is missing, unknown or of another shape; nothing has changed then.
        """
        mine = self.state()
        found = {name: (array.dtype, array.shape[1:]) for name, array in state.items()}
        if found != {name: (array.dtype, array.shape[1:]) for name, array in mine.items()}:
            raise MetricError(f"the state of figures by slice does not fit this version: found {found}; start a new run")
        if len(state["histogram"]) != len(state["counts"]):
            raise MetricError(f"figures by slice: {len(state['histogram'])} histograms and {len(state['counts'])} counts")
        self.histogram, self.counts = np.array(state["histogram"]), np.array(state["counts"])


def _ratio(over: float, under: float) -> float:
    return float(over) / float(under) if under > 0 else math.nan


@kernel
def _add(
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    weights: Floats,
    bins: npt.NDArray[np.int16],
    losses: Floats,
    offsets: npt.NDArray[np.int64],
    ranking: Floats,
    request_cells: Cells,
    candidate_cells: Cells,
    histogram: Floats,
    counts: Floats,
) -> None:
    last = np.full(len(counts), -1)  # request in which a cell was met last
    rows_of, positives_of = np.empty(len(counts), np.int64), np.empty(len(counts), np.int64)  # of that request
    met = np.empty(len(counts), np.int64)
    group_scores, group_labels = np.empty(16, np.float32), np.empty(16, np.uint8)
    for r in range(len(offsets) - 1):
        first, stop = offsets[r], offsets[r + 1]
        for d in range(len(request_cells)):
            cell = request_cells[d, r]
            if cell < 0:
                continue
            _add_rows(cell, first, stop, scores, labels, weights, bins, losses, histogram, counts)
            counts[cell, REQUESTS] += 1
            if not np.isnan(ranking[r, AUC]):
                counts[cell, AUC_SUM] += (stop - first) * ranking[r, AUC]
                counts[cell, AUC_IMPRESSIONS] += stop - first
        if len(candidate_cells) and stop - first > len(group_scores):
            group_scores, group_labels = np.empty(2 * (stop - first), np.float32), np.empty(2 * (stop - first), np.uint8)
        for d in range(len(candidate_cells)):
            n_met, start = 0, first
            while start < stop:  # Neighbours are often of one cell.
                cell, after = candidate_cells[d, start], start + 1
                while after < stop and candidate_cells[d, after] == cell:
                    after += 1
                if cell >= 0:
                    if last[cell] != r:
                        last[cell], rows_of[cell], positives_of[cell] = r, 0, 0
                        met[n_met] = cell
                        n_met += 1
                    rows_of[cell] += after - start
                    positives_of[cell] += _add_rows(
                        cell, start, after, scores, labels, weights, bins, losses, histogram, counts
                    )
                start = after
            for m in range(n_met):
                cell = met[m]
                n = rows_of[cell]
                counts[cell, REQUESTS] += 1
                if 0 < positives_of[cell] < n:
                    # A request that lies in one cell as a whole has the AUC that is known already.
                    auc = ranking[r, AUC]
                    if n < stop - first:
                        kept = 0
                        for i in range(first, stop):
                            if candidate_cells[d, i] == cell:
                                group_scores[kept], group_labels[kept] = scores[i], labels[i]
                                kept += 1
                        auc = exact_auc(group_scores[:n], group_labels[:n])
                    counts[cell, AUC_SUM] += n * auc
                    counts[cell, AUC_IMPRESSIONS] += n


@kernel(inline="always")
def _add_rows(
    cell: int,
    first: int,
    stop: int,
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    weights: Floats,
    bins: npt.NDArray[np.int16],
    losses: Floats,
    histogram: Floats,
    counts: Floats,
) -> int:
    """Add neighbouring rows to a cell, one after the other; return how many are positive."""
    loss, predicted, positives = counts[cell, LOSS], counts[cell, PREDICTED], 0
    for i in range(first, stop):
        histogram[cell, labels[i], bins[i] // _PER_CELL_BIN] += weights[i]
        loss += weights[i] * losses[i]
        predicted += weights[i] * scores[i]
        positives += labels[i]
    counts[cell, LOSS], counts[cell, PREDICTED] = loss, predicted
    counts[cell, IMPRESSIONS] += stop - first
    counts[cell, POSITIVES] += positives
    return positives
