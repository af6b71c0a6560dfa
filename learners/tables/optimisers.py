"""The optimisers of a table: which columns a row has beside its vector, and a step over distinct rows.

Compiled kernels serve the CPU, their torch twins any device. :func:`learners.gather.add_at` goes before a step when a gradient
comes per use of a key instead of per key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from learners.tables.adam import adam, adam_torch
from learners.tables.config import TableConfig
from learners.tables.sgd import sgd, sgd_torch
from learners.tables.update import rowwise_adagrad, rowwise_adagrad_torch


def columns(config: TableConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape per row of what the optimiser keeps."""
    if config.optimiser == "adam":
        return {"mean": (config.dim,), "square": (config.dim,), "updates": ()}
    return {"accumulated": ()} if config.optimiser == "adagrad" else {}


def first_value(config: TableConfig) -> float:
    """Return what the columns of a new row hold."""
    return config.initial_accumulated if config.optimiser == "adagrad" else 0.0


def compiled(config: TableConfig) -> Callable[..., None]:
    """Return the step of the CPU over distinct rows.

    It takes the weight ``[capacity, D]`` and the optimiser's columns, which it changes in place, the rows, int32 ``[U]``,
    distinct above 0 (those below 1 are passed over), and the gradient ``[U, D]``.
    """
    kernel: Any = {"adagrad": rowwise_adagrad, "adam": adam, "sgd": sgd}[config.optimiser]
    options = _options(config)
    return lambda *arrays: kernel(*arrays, *options)


def step_torch(
    config: TableConfig, weight: torch.Tensor, kept: Mapping[str, torch.Tensor], rows: torch.Tensor, grad: torch.Tensor
) -> None:
    """Take the same step in torch; ``rows [U]`` are on the device of ``weight``."""
    twin: Any = {"adagrad": rowwise_adagrad_torch, "adam": adam_torch, "sgd": sgd_torch}[config.optimiser]
    twin(weight, *kept.values(), rows, grad, *_options(config))


def _options(config: TableConfig) -> tuple[float, ...]:
    return {
        "adagrad": (config.rate, config.eps, config.keep),
        "adam": (config.rate, config.eps, *config.betas),
        "sgd": (config.rate,),
    }[config.optimiser]
