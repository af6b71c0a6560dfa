"""Draws: the published sequence, keys that tell everything apart, uniform numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from negative_queues import draw_below, draw_key, draw_uniform, fold
from negative_queues.draws import bits


def test_bits_are_splitmix64() -> None:
    """First outputs for the seed 1234567, as published with the reference implementation (Vigna, prng.di.unimi.it)."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [int(bits(np.uint64(1234567), index)) for index in range(5)] == expected


def test_keys_differ_in_every_part() -> None:
    parts = itertools.product((0, 1, -1, 2**64 - 2), ("egin", "din"), ("negatives.item", "negatives.query"), range(20))
    keys = [int(draw_key(*part)) for part in parts]
    assert len(set(keys)) == len(keys) == 4 * 2 * 2 * 20
    assert draw_key(1, "ab", "c", 0) != draw_key(1, "a", "bc", 0)
    assert len({int(fold(draw_key(1, "a", "b", 0), row)) for row in range(10_000)}) == 10_000


def test_a_key_is_the_same_in_every_process() -> None:
    """A replay tomorrow, elsewhere: no salted hash, no platform integers."""
    assert int(draw_key(1, "egin", "negatives.item", 5)) == 4472305024561871485
    assert draw_below(draw_key(1, "egin", "negatives.item", 5), 4, 1_000_000).tolist() == [961971, 675535, 855334, 128346]


def test_draw_below_is_uniform_and_in_range() -> None:
    drawn = draw_below(draw_key(3, "egin", "test", 0), 70_000, 7)
    counts = np.bincount(drawn, minlength=7)
    assert len(counts) == 7
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 6 + 5 * np.sqrt(12)
    assert draw_below(draw_key(3, "egin", "test", 0), 5, 1).tolist() == [0] * 5
    wide = draw_below(draw_key(3, "egin", "test", 1), 10_000, 2**32 - 1)
    assert wide.min() >= 0
    assert wide.max() < 2**32 - 1
    assert abs(wide.mean() / 2**31 - 1) < 0.03


def test_draw_uniform_is_uniform() -> None:
    drawn = np.sort(draw_uniform(draw_key(3, "egin", "test", 2), 10_000))
    assert drawn[0] >= 0
    assert drawn[-1] < 1
    distance = np.abs(drawn - np.arange(10_000) / 10_000).max()  # Kolmogorov-Smirnov; 1.95 / sqrt(n) is the 0.1% point
    assert distance < 1.95 / 100


def test_neighbouring_steps_are_independent() -> None:
    drawn = np.stack([draw_uniform(draw_key(3, "egin", "test", step), 2_000) for step in range(2)])
    assert abs(np.corrcoef(*drawn)[0, 1]) < 5 / np.sqrt(2_000)


def test_a_bound_out_of_range_is_refused() -> None:
    for bound in (0, 2**32):
        with pytest.raises(ValueError, match=f"bound must be 1 to .*, got {bound}"):
            draw_below(draw_key(0, "a", "b", 0), 1, bound)
