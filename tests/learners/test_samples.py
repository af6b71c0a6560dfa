"""Blocks: what they lend out is shared by all models of a run, so nobody can write to it."""

from __future__ import annotations

import numpy as np
import pytest

from learners.checks import random_block


@pytest.mark.parametrize("sliced", [False, True], ids=["whole", "sliced"])
def test_what_a_block_lends_out_is_read_only(sliced: bool) -> None:
    block = random_block(n_requests=7)
    block = block.slice(2, 6) if sliced else block
    names = block.batch.schema.names
    lent = [array for name in names if block.is_ragged(name) for array in block.ragged(name)]
    lent += [block.column(name) for name in names if not block.is_ragged(name)]
    assert len(lent) > len(names)
    for array in lent:
        before = array.copy()
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        np.testing.assert_array_equal(array, before)
