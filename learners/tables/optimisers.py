"""The optimisers of a table: which columns a row has beside its vector, and a step over distinct rows.

Compiled kernels serve the CPU, their torch twins any device. :func:`sum_repeated` goes before a step when a gradient comes per
use of a key instead of per key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

from learners.tables.adam import adam, adam_torch
from learners.tables.config import TableConfig
from learners.tables.sgd import sgd, sgd_torch
from learners.tables.update import rowwise_adagrad, rowwise_adagrad_torch

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]
BLOCK = 4096
"""Rows whose summed gradients are made and used while they are in cache."""


def columns(config: TableConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape per row of what the optimiser keeps."""
    if config.optimiser == "adam":
        return {"mean": (config.dim,), "square": (config.dim,), "updates": ()}
    return {"accumulated": ()} if config.optimiser == "adagrad" else {}


def first_value(config: TableConfig) -> float:
    """Return what the columns of a new row hold."""
    return config.initial_accumulated if config.optimiser == "adagrad" else 0.0


def step(config: TableConfig, weight: torch.Tensor, kept: Mapping[str, torch.Tensor], rows: Rows, grad: torch.Tensor) -> None:
    """Take one step on distinct rows with the kernel of the device.

    Args:
        config: which optimiser, and its options.
        weight: ``[capacity, D]``, changed in place.
        kept: the optimiser's columns, changed in place.
        rows: int32 ``[U]``, distinct above 0; those below 1 are passed over.
        grad: ``[U, D]``.
    """
    if weight.device.type == "cpu":
        arrays = [weight.numpy(), *(column.numpy() for column in kept.values()), rows, grad.contiguous().numpy()]
        kernel: Any = {"adagrad": rowwise_adagrad, "adam": adam, "sgd": sgd}[config.optimiser]
        kernel(*arrays, *_options(config))
    else:
        step_torch(config, weight, kept, torch.from_numpy(rows).to(weight.device), grad)


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


def sum_repeated(n_unique: int, inverse: Places, grad: Floats) -> Iterator[tuple[slice, Floats]]:
    """Yield (places, summed gradient ``[<= BLOCK, D]``) over the ``n_unique`` places of :meth:`RowIndex.dedupe`.

    The gradient of each place is summed in the order of its uses, so the sum does not depend on blocks or threads. The array is
    used again by the next block.

    Args:
        n_unique: places.
        inverse: the place of each use, ``[N]``.
        grad: per use, ``[N, D]``.
    """
    heads, following = np.full(n_unique, -1), np.empty(len(inverse), np.int64)
    _chain(inverse, heads, following)
    total = np.empty((min(BLOCK, n_unique), grad.shape[1]), np.float32)
    for start in range(0, n_unique, BLOCK):
        places = slice(start, min(start + BLOCK, n_unique))
        _sum(heads[places], following, grad, total)
        yield places, total[: places.stop - start]


@numba.njit(cache=True, nogil=True)
def _chain(inverse: Places, heads: Places, following: Places) -> None:
    """Link the uses of each place in their order: walked from the last, each goes in front."""
    for i in range(len(inverse) - 1, -1, -1):
        following[i] = heads[inverse[i]]
        heads[inverse[i]] = i


@numba.njit(cache=True, nogil=True)
def _sum(heads: Places, following: Places, grad: Floats, total: Floats) -> None:
    for u in range(len(heads)):
        use = heads[u]
        for d in range(grad.shape[1]):
            total[u, d] = grad[use, d]
        use = following[use]
        while use >= 0:
            for d in range(grad.shape[1]):
                total[u, d] += grad[use, d]
            use = following[use]
