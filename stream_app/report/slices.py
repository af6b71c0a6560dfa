"""Figures by slice, as JSON: for the result, for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from learners.metrics import VALUES, Breakdown, Cell, as_json

SHOWN_VALUES = 12
"""Values of a feature that are shown, those with most impressions; the others are one slice."""
OTHER = "other"
BINS = 8
"""Bins of about equal impressions that a float feature with more values is shown in."""

__all__ = ["SHOWN_VALUES", "slices_json"]


def slices_json(cells: Sequence[Cell], models: Mapping[str, Breakdown], best: str) -> dict[str, dict[str, Any]]:
    """Return ``{DIMENSION: {VALUE: {"models": {NAME: {...}}, "best"?: {...}}}}``; slices without impressions are left out.

    Args:
        cells: by number, as :class:`learners.metrics.SliceCells` numbers them.
        models: in the order of the run; all were fed with the same requests.
        best: name of the one that knows the true probabilities, if it is among them.
    """
    if not models:
        return {}
    first = next(iter(models.values()))
    dimensions: dict[str, list[int]] = {}
    for number, cell in enumerate(cells):
        dimensions.setdefault(cell.dimension, []).append(number)
    found: dict[str, dict[str, Any]] = {}
    for dimension, numbers in dimensions.items():
        parts = _parts(numbers, cells, first)
        if parts:
            found[dimension] = {value: _of_models(group, models, best) for value, group in parts.items()}
    return found


def _parts(numbers: Sequence[int], cells: Sequence[Cell], counted: Breakdown) -> dict[str, list[int]]:
    """Return the shown slices of a dimension: its own order where there are few, else by impressions, the rest as one."""
    impressions = {number: counted.figures(number)["impressions"] for number in numbers}
    landmarks = [number for number in numbers if cells[number].landmark is not None]
    if landmarks:
        missing = {cells[n].value: [n] for n in numbers if cells[n].landmark is None and impressions[n] > 0}
        return _bins(landmarks, cells, impressions) | missing
    there = [number for number in numbers if impressions[number] > 0]
    has_other = any(cells[number].value == OTHER for number in numbers)
    if not has_other:
        return {cells[number].value: [number] for number in there}
    own = sorted((n for n in there if cells[n].value != OTHER), key=lambda n: -impressions[n])
    shown = {cells[number].value: [number] for number in own[:SHOWN_VALUES]}
    rest = own[SHOWN_VALUES:] + [n for n in there if cells[n].value == OTHER]
    return shown | ({OTHER: rest} if rest else {})


def _bins(numbers: Sequence[int], cells: Sequence[Cell], impressions: Mapping[int, float]) -> dict[str, list[int]]:
    """Return the values of a float feature in their order, or bins of them where there are many."""
    at = {number: float(cells[number].landmark or 0.0) for number in numbers}
    order = sorted(numbers, key=at.__getitem__)
    there = [number for number in order if impressions[number] > 0]
    if len(there) <= SHOWN_VALUES and len(numbers) < VALUES:
        return {cells[number].value: [number] for number in there}
    total = sum(impressions.values())
    before = np.cumsum([0.0, *(impressions[number] for number in order[:-1])])
    # A cell belongs to the bin in which its middle lies; one that is larger than a bin leaves neighbours empty.
    middle = before + [impressions[number] / 2 for number in order]
    bins = np.minimum(middle * BINS / max(total, 1.0), BINS - 1).astype(int).tolist()
    groups = [[n for n, b in zip(order, bins, strict=True) if b == each] for each in sorted(set(bins))]
    if len(numbers) < VALUES:  # every value is a landmark: a bin ends where its values do
        return {_range(at[group[0]], at[group[-1]]): group for group in groups}
    bounds = [f"{(at[low[-1]] + at[high[0]]) / 2:.4g}" for low, high in pairwise(groups)]
    named = (
        [f"up to {bounds[0]}", *(f"{low} to {high}" for low, high in pairwise(bounds)), f"over {bounds[-1]}"]
        if bounds
        else ["all"]
    )
    return {f"{name}": group for name, group in zip(named, groups, strict=True)}


def _range(first: float, last: float) -> str:
    return f"{first:.6g}" if first == last else f"{first:.6g} to {last:.6g}"


def _of_models(numbers: Sequence[int], models: Mapping[str, Breakdown], best: str) -> dict[str, Any]:
    figures = {name: as_json(model.figures(*numbers)) for name, model in models.items()}
    reached = figures.pop(best, None)
    return {"models": figures} | ({} if reached is None else {"best": reached})
