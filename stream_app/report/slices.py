"""Figures by slice, as JSON: for the result, for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from learners.metrics import Breakdown, Cell, as_json

SHOWN_VALUES = 12
"""Values of a feature that are shown, those with most impressions; the others are one slice."""
OTHER = "other"

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
    there = [number for number in numbers if impressions[number] > 0]
    has_other = any(cells[number].value == OTHER for number in numbers)
    if not has_other:
        return {cells[number].value: [number] for number in there}
    own = sorted((n for n in there if cells[n].value != OTHER), key=lambda n: -impressions[n])
    shown = {cells[number].value: [number] for number in own[:SHOWN_VALUES]}
    rest = own[SHOWN_VALUES:] + [n for n in there if cells[n].value == OTHER]
    return shown | ({OTHER: rest} if rest else {})


def _of_models(numbers: Sequence[int], models: Mapping[str, Breakdown], best: str) -> dict[str, Any]:
    figures = {name: as_json(model.figures(*numbers)) for name, model in models.items()}
    reached = figures.pop(best, None)
    return {"models": figures} | ({} if reached is None else {"best": reached})
