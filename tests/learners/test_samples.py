"""Blocks: what they lend out is shared by all models of a run, so nobody can write to it."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from learners.block_decoding import decode_blocks
from learners.checks import SCHEMA, random_block
from learners.samples import SampleBlock, SampleError


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


def _encoded(n: int) -> list[bytes]:
    return [random_block(n_requests=size, seed=size).to_ipc() for size in range(1, n + 1)]


@pytest.mark.parametrize("n", [0, 1, 2, 9])
def test_blocks_decoded_at_once_are_those_of_one_by_one(n: int) -> None:
    encoded = _encoded(n)
    blocks = decode_blocks(encoded)
    assert [block.to_ipc() for block in blocks] == encoded
    assert all(block.schema == SCHEMA for block in blocks)


def test_empty_blocks_and_other_generations_are_decoded_at_once_too() -> None:
    block = random_block(n_requests=3)
    other = SampleBlock(block.batch, msgspec.structs.replace(block.schema, generation="other"))
    other = SampleBlock.from_columns(other.schema, {n: _column(block, n) for n in other.schema.arrow().names})
    blocks = decode_blocks([data.to_ipc() for data in (block, block.slice(0, 0), block, other)])
    assert [len(each) for each in blocks] == [3, 0, 3, 3]
    assert blocks[3].schema.generation == "other"


def _column(block: SampleBlock, name: str) -> Any:
    return block.ragged(name) if block.is_ragged(name) else block.column(name)


@pytest.mark.parametrize("damage", ["truncated", "nonsense"])
def test_a_damaged_block_among_others_is_refused(damage: str) -> None:
    first, second, third = _encoded(3)
    broken = second[:-40] if damage == "truncated" else b"nonsense"
    with pytest.raises(SampleError, match="not a block of samples"):
        decode_blocks([first, broken, third])
