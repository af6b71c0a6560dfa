"""Memory that steps share."""

from __future__ import annotations

import numpy as np
import torch

from learners.request_mlp import Part, RequestMLP
from learners.room import Room


def test_arrays_do_not_overlap_begin_at_cache_lines_and_use_the_same_memory_again() -> None:
    room, shapes = Room(), [(2, 3), (0, 5), (17,), (4, 4, 4)]
    first = room.arrays(shapes)
    for number, array in enumerate(first):
        array[:] = number
    for number, (array, shape) in enumerate(zip(first, shapes, strict=True)):
        assert array.shape == shape
        assert array.flags.c_contiguous
        assert array.ctypes.data % 64 == 0 or not array.size
        assert (array == number).all()
    again = room.arrays(shapes)
    assert [each.ctypes.data for each in again] == [each.ctypes.data for each in first]
    larger = room.arrays([(1000, 10)])[0]
    larger[:] = 1.0
    assert larger.sum() == 10_000.0
    assert np.shares_memory(larger, room.arrays([(5,)])[0])


def test_a_step_keeps_nothing_of_the_room() -> None:
    torch.manual_seed(0)
    mlp, of = RequestMLP(3, 0, (5,)), torch.zeros(40, dtype=torch.int64)
    found = []
    for fill in (0.0, np.nan):
        rows = torch.ones(40, 3, requires_grad=True)
        logits, click = mlp.learn([Part(rows)], torch.zeros(1, 0), of, torch.ones(40), torch.ones(40))
        assert click is not None
        found.append(torch.autograd.grad(logits, [rows, *mlp.parameters()], click.gradient))
        assert mlp._model is not None
        mlp._model.room._flat[:] = fill
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()
