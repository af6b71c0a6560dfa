"""Options of one embedding table."""

from __future__ import annotations

from typing import Literal

import msgspec


class TableConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of one table."""

    dim: int = 16
    optimiser: Literal["adagrad", "adam", "sgd"] = "adagrad"
    """Row-wise Adagrad, lazy Adam, or plain descent; see :mod:`learners.tables.optimisers`."""
    rate: float = 0.1
    """Learning rate of the optimiser."""
    keep: float = 1.0
    """Share of a row's accumulator that stays at each update; 1 is Adagrad, a little less follows a changing stream."""
    eps: float = 1e-8
    initial_accumulated: float = 0.0
    """What a new row's accumulator starts from; above 0 damps its first steps."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay of the two moments."""
    initial_scale: float = 0.01
    """A new vector is uniform in [-scale, scale)."""
    max_rows: int = 10_000_000
    """Bound on memory; see :class:`learners.tables.index.RowIndex`."""
    evict: Literal["oldest", "rarest"] = "oldest"
    """Who gives way at the bound: rows not seen for longest, or learned in the fewest batches (then not seen for longest)."""
    expire_after_ms: int | None = None
    """Rows not seen for so long in event time are removed; looked for when an eighth of that time has passed, and a row that
    comes back in that very batch stays."""
    admit_after: int = 1
    """A key gets a row once it was seen so often, as a count sketch counts it (never too late, rarely too early)."""
    admit_probability: float = 1.0
    """A new key gets a row with this probability, drawn anew in every batch that it is in."""
    sketch_cells: int = 1 << 18
    """Cells in each of the four rows of the sketch of ``admit_after``, two bytes each; a power of two."""


def check(name: str, config: TableConfig) -> None:
    """Refuse options that no table can have.

    Raises:
        ValueError: the message names the table, the option and the way out.
    """
    rules = (
        (config.dim >= 1, f"dim = {config.dim} must be at least 1"),
        (config.admit_after >= 1, f"admit_after = {config.admit_after} must be at least 1, which admits at first sight"),
        (config.admit_after < 1 << 15, f"admit_after = {config.admit_after} must be below {1 << 15}"),
        (
            0 < config.admit_probability <= 1,
            f"admit_probability = {config.admit_probability} must be in (0, 1]; 1 admits all",
        ),
        (
            config.admit_after == 1 or config.admit_probability == 1,
            "admit_after and admit_probability are two ways to admit; set one",
        ),
        (
            config.expire_after_ms is None or config.expire_after_ms >= 1,
            f"expire_after_ms = {config.expire_after_ms} must be at least 1 ms, or left out",
        ),
        (
            config.sketch_cells >= 16 and config.sketch_cells & (config.sketch_cells - 1) == 0,
            f"sketch_cells = {config.sketch_cells} must be a power of two, 16 or more",
        ),
        (
            all(0 <= beta < 1 for beta in config.betas),
            f"betas = {config.betas} must be in [0, 1)",
        ),
    )
    for holds, message in rules:
        if not holds:
            raise ValueError(f"table {name!r}: {message}")
