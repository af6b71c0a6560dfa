"""What a table keeps of its rows beside the index: vectors, and what the optimiser needs.

On the CPU the columns are NumPy arrays that tensors share, so that kernels take them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from learners.device import compiled, place
from learners.tables import optimisers
from learners.tables.config import TableConfig
from learners.tables.storage import lengthened, zeros

Rows = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

__all__ = ["Columns"]


class Columns:
    """Columns of a table; ``weight`` is the first.

    Args:
        config: dim and optimiser.
        device: where they live.
    """

    def __init__(self, config: TableConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.shapes = {"weight": (config.dim,), **optimisers.columns(config)}
        self.on_cpu = compiled(device)
        self.arrays: list[Floats] = []
        """The same as arrays, in their order; only on the CPU."""
        self._tensors: dict[str, torch.Tensor] = {}
        self._compiled: Callable[..., None] = optimisers.compiled(config)

    @property
    def weight(self) -> torch.Tensor:
        """Vectors, ``[capacity, D]``."""
        return self._tensors["weight"]

    def items(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield names and columns."""
        yield from self._tensors.items()

    def clear(self) -> None:
        """Hold nothing."""
        self._tensors, self.arrays = {}, []

    def lengthen(self, used: int, reserved: int) -> None:
        """Have room for ``used`` rows. On the CPU columns are as long as the index, which reserves rows; a device other than
        that reserves nothing, so there they double."""
        if self.on_cpu and self.arrays and len(self.arrays[0]) == reserved:
            return
        capacity = reserved if self.on_cpu else min(self.config.max_rows, 1 << max(10, used.bit_length()))
        for name, shape in self.shapes.items():
            old = self._tensors.get(name)
            if old is None:
                # NumPy's zeros take no memory before they are written to; torch's do
                self._tensors[name] = torch.from_numpy(zeros((capacity, *shape), np.float32)).to(self.device)
            elif len(old) < capacity and self.on_cpu:
                self._tensors[name] = torch.from_numpy(lengthened(old.numpy(), used, capacity))
            elif len(old) < capacity:
                self._tensors[name] = torch.cat([old, old.new_zeros(capacity - len(old), *shape)])
        self.arrays = [tensor.numpy() for tensor in self._tensors.values()] if self.on_cpu else []

    def begin(self, rows: Rows, vectors: torch.Tensor) -> None:
        """Let new rows begin with ``vectors [U, D]`` and an optimiser that has seen nothing."""
        first = optimisers.first_value(self.config)
        if self.on_cpu:
            for name, array in zip(self.shapes, self.arrays, strict=True):
                array[rows] = vectors.numpy() if name == "weight" else first
            return
        at = place(rows, self.device).long()
        for name, column in self._tensors.items():
            column[at] = vectors if name == "weight" else first

    def begin_last(self, n: int, new: int) -> None:
        """Let the last ``new`` of ``n`` rows, which have their vectors, begin with an optimiser that has seen nothing; CPU."""
        for array in self.arrays[1:]:
            array[n - new : n] = optimisers.first_value(self.config)

    def step(self, rows: Rows, grad: torch.Tensor) -> None:
        """Take one step of the optimiser; arguments as of :func:`learners.tables.optimisers.compiled`."""
        if self.on_cpu:
            self._compiled(*self.arrays, rows, grad.contiguous().numpy())
        else:
            kept = {name: column for name, column in self._tensors.items() if name != "weight"}
            optimisers.step_torch(self.config, self.weight, kept, place(rows, self.device), grad)

    def put(self, rows: slice | Rows, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write rows of all columns."""
        at = rows if isinstance(rows, slice) else place(rows, self.device).long()
        for name, column in self._tensors.items():
            column[at] = torch.from_numpy(np.array(values[name])).to(self.device)
