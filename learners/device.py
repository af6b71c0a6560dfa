"""Where an operation runs: in compiled kernels on the CPU, in torch's own operations on any other device.

Each operation has both forms. What a GPU learns can therefore be checked without one: under :func:`plain` whole models go
their way on the CPU (``tests/learners/test_models_plain.py``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import torch

__all__ = ["compiled", "place", "plain"]

_kernels = True


def compiled(device: torch.device) -> bool:
    """Whether kernels take what lies on a device."""
    return device.type == "cpu" and _kernels


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Have what is built and run within take torch's operations on the CPU too, as on a GPU; for one thread at a time."""
    global _kernels
    before, _kernels = _kernels, False
    try:
        yield
    finally:
        _kernels = before


def place(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return an array of a step as a tensor on a device: on the CPU the array itself, on a GPU a copy by way of page-locked
    memory, for whose transfer nobody waits here. torch keeps that memory for the next one: nothing large goes this way."""
    here = torch.from_numpy(array)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here.to(device)
