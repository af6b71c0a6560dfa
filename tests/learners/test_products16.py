"""Products in bfloat16: what kernels compute against NumPy, bit for bit; what is rounded, and in which order sums are."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners import products16
from learners.halves import by_pairs, by_row, by_row_and_pairs, padded, rounded_plain, row_words, turned
from learners.products16 import panel_plain, product16

_numba: Any = numba  # its config has no types
Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.int32]
ROOT = Path(__file__).resolve().parents[2]
SIZES = st.one_of(st.integers(0, 40), st.sampled_from([79, 80, 81, 128, 200]))


def lacking() -> str:
    """Return why nothing is multiplied here; empty where it is."""
    try:
        products16.check()
    except ValueError as error:
        return str(error)
    return ""


needs_instruction = pytest.mark.skipif(bool(lacking()), reason=lacking() or "it is there")


def drawn(rng: np.random.Generator, *shape: int) -> Floats:
    """Numbers of all sizes, zeros among them."""
    numbers = rng.standard_normal(shape) * 2.0 ** rng.integers(-8, 8, shape)
    return np.where(rng.random(shape) < 0.1, 0, numbers).astype(np.float32)


def room(n: int) -> Words:
    return np.full(n, 7, np.int32)


def in_pairs(x: Floats) -> Words:
    words = room((len(x) + 1) // 2 * padded(x.shape[1]))
    by_pairs(x, words)
    return words


def product(a: Floats, b: Floats, out: Floats | None = None, *, turn: bool = False) -> Floats:
    """Return ``a b``, or what is added to ``out``; ``a`` by row or, to be turned, by pairs."""
    (m, k), n = a.shape, b.shape[1]
    found = np.full((m, n), 7, np.float32) if out is None else out.copy()
    if turn:
        words, steps = in_pairs(np.ascontiguousarray(a.T)), (1, padded(m))
    else:
        words, steps = room(m * row_words(k)), (row_words(k), 1)
        by_row(a, words)
    product16(products16.address(), words, *steps, in_pairs(b), padded(n), (k + 1) // 2, found, out is not None)
    return found


def product_plain(a: Floats, b: Floats, out: Floats | None = None) -> Floats:
    """The same by the twin, whose words are made here."""
    (m, k), n = a.shape, b.shape[1]
    found = np.zeros((m, n), np.float32) if out is None else out.copy()
    w = max(m, n, 1)
    pairs = np.zeros((2, (k + 1) // 2 * 2, w), np.uint16)
    pairs[0, :k, :m], pairs[1, :k, :n] = rounded_plain(a).T, rounded_plain(b)
    of_a, of_b = (half.reshape(-1, 2, w).transpose(0, 2, 1).copy().view(np.int32).reshape(-1) for half in pairs)
    flat = found.reshape(-1)
    panel_plain(of_a, (1, w, w, n), of_b, 0, (k + 1) // 2, flat, m, n, int(out is not None))
    return flat.reshape(m, n)


def rounded(x: Floats) -> Floats:
    return (rounded_plain(x).astype(np.uint32) << 16).view(np.float32)


def bits(x: Floats) -> npt.NDArray[np.uint32]:
    """All that is no number is one."""
    return np.where(np.isnan(x), np.float32(np.nan), x).view(np.uint32)


@needs_instruction
@given(m=SIZES, n=SIZES, k=SIZES, add=st.booleans(), turn=st.booleans(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_a_product_has_the_bits_of_its_twin(m: int, n: int, k: int, add: bool, turn: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = drawn(rng, m, k), drawn(rng, k, n)
    out = drawn(rng, m, n) if add else None
    found = product(a, b, out, turn=turn)
    assert np.array_equal(bits(found), bits(product_plain(a, b, out)))
    a64, b64 = rounded(a).astype(np.float64), rounded(b).astype(np.float64)
    start = np.zeros((m, n)) if out is None else out.astype(np.float64)
    largest = abs(start) + abs(a64) @ abs(b64)
    assert (abs(found - (start + a64 @ b64)) <= (k + 2) * 2.0**-24 * largest).all()


@needs_instruction
@given(m=st.integers(1, 12), n=st.integers(1, 100), k=st.integers(1, 9), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_extremes_have_the_bits_of_the_twin(m: int, n: int, k: int, seed: int) -> None:
    """Infinite numbers and none, and such that there is nothing below."""
    rng = np.random.default_rng(seed)
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40, -1e-40, 2.0**-126, 2.0**-64, 3e38, -3e38, 1.0], np.float32)
    a, b, out = (rng.choice(odd, shape) for shape in ((m, k), (k, n), (m, n)))
    assert np.array_equal(bits(product(a, b, out)), bits(product_plain(a, b, out)))


@needs_instruction
def test_the_second_of_a_pair_is_added_first_and_each_is_rounded() -> None:
    big, one = 2.0**24, 1.0
    a, b = np.array([[-big, big]], np.float32), np.array([[1], [1]], np.float32)
    assert product(a, b, np.array([[one]], np.float32)) == 0  # (1 + 2^24) - 2^24: the other way round it were 1
    assert product(np.array([[one, one]], np.float32), b, np.array([[big]], np.float32)) == big  # both at once: 2^24 + 2


@needs_instruction
def test_a_row_has_the_same_bits_whatever_is_beside_it() -> None:
    rng = np.random.default_rng(0)
    a, b = drawn(rng, 43, 31), drawn(rng, 31, 90)
    whole = product(a, b)
    for first in (0, 1, 5, 8, 42):
        for end in (first + 1, 43):
            assert np.array_equal(product(a[first:end], b), whole[first:end])
    for columns in (slice(0, 1), slice(3, 90), slice(17, 60)):
        assert np.array_equal(product(a, np.ascontiguousarray(b[:, columns])), whole[:, columns])


@needs_instruction
def test_nothing_is_written_beyond_the_product() -> None:
    rng = np.random.default_rng(1)
    around = np.full(11 * 37 + 200, 7, np.float32)
    a, b = drawn(rng, 11, 6), drawn(rng, 6, 37)
    words = room(11 * row_words(6))
    by_row(a, words)
    product16(products16.address(), words, row_words(6), 1, in_pairs(b), padded(37), 3, around[100:-100].reshape(11, 37), False)
    assert (around[:100] == 7).all()
    assert (around[-100:] == 7).all()


@needs_instruction
@given(m=SIZES, n=SIZES, odd=st.sampled_from([None, np.nan, np.inf, -0.0, 1e-40, 3.4e38]), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=80)
def test_numbers_are_rounded_as_torch_rounds_them(m: int, n: int, odd: float | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = drawn(rng, m, n)
    x[rng.random((m, n)) < 0.2] = np.float32(1) + np.float32(2.0**-8) * rng.integers(0, 3)  # halfway
    if odd is not None:
        x[rng.random((m, n)) < 0.2] = odd
    expected = torch.from_numpy(x).bfloat16().float().numpy()
    expected = np.where(abs(expected) < 2.0**-126, np.copysign(np.float32(0), expected), expected)
    rows, pairs, other_rows, other_pairs = (room(m * n + 17 * (m + n) + 17) for _ in range(4))
    by_row(x, rows)
    by_pairs(x, pairs)
    by_row_and_pairs(x, other_rows, other_pairs)
    assert np.array_equal(rows, other_rows)
    assert np.array_equal(pairs, other_pairs)

    by_rows = numbers(rows[: m * row_words(n)]).reshape(m, padded(n))
    assert np.array_equal(bits(by_rows[:, :n]), bits(expected))
    assert not by_rows[:, n:].any()
    in_twos = from_pairs(pairs, m, n)
    assert np.array_equal(bits(in_twos[:m, :n]), bits(expected))
    assert not in_twos[m:, :n].any()
    assert not in_twos[:, n:].any()
    words, scratch = room((n + 1) // 2 * padded(m)), room(m * row_words(n))
    turned(x, scratch, words)
    assert np.array_equal(bits(from_pairs(words, n, m)[:n, :m]), bits(np.ascontiguousarray(expected.T)))


def numbers(words: Words) -> Floats:
    return (words.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def from_pairs(words: Words, k: int, n: int) -> Floats:
    """Return the rows that are in pairs, with what pads them."""
    pairs, width = (k + 1) // 2, padded(n)
    return numbers(words[: pairs * width]).reshape(pairs, width, 2).transpose(0, 2, 1).reshape(2 * pairs, width)


def digest() -> str:
    """Of products of many sizes."""
    found = hashlib.sha256()
    for m, n, k in ((1, 1, 1), (7, 95, 13), (9, 33, 2), (13, 16, 40)):
        rng = np.random.default_rng(m)
        a, b = drawn(rng, m, k), drawn(rng, k, n)
        for turn in (False, True):
            found.update(product(a, b, turn=turn).tobytes())
    return found.hexdigest()


@needs_instruction
def test_with_the_compiler_off_the_bits_are_the_same() -> None:
    program = "from tests.learners.test_products16 import digest; print(digest())"
    environment = os.environ | {"NUMBA_DISABLE_JIT": "0" if _numba.config.DISABLE_JIT else "1"}
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest()


@pytest.mark.skipif(not lacking(), reason="the processor has the instruction: the compiled kernels ran")
def test_without_the_instruction_all_of_this_holds_with_the_compiler_off() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", "not compiler_off"]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]
