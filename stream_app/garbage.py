"""Python's search for cycles, held back while millions of objects pass that have none."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

RARE: Final = (10_000, 10, 10)
"""Objects of the youngest generation, and searches of each for one of the next; Python's own are 700, 10, 10."""

__all__ = ["no_garbage_collection", "rare_garbage_collection"]


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Spare what follows the search for cycles, in the whole process: a tenth of a join, a quarter of an import."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def rare_garbage_collection() -> Iterator[None]:
    """Have the search for cycles come a fourteenth as often, in the whole process.

    Blocks that are read ahead are objects enough to set it off every few steps, and the thread that it comes in has the
    interpreter meanwhile: a quarter of a millisecond for the youngest, some for the next generation.
    """
    before = gc.get_threshold()
    if 0 < before[0] < RARE[0]:  # who has it off, or rarer still, keeps that
        gc.set_threshold(*RARE)
    try:
        yield
    finally:
        gc.set_threshold(*before)
