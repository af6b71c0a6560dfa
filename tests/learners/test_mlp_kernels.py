"""Row kernels of the MLP: the order of sums that is written down, the same bits with the compiler off, NaN stays NaN."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from learners.lanes import dot_plain, total_plain
from learners.mlp_kernels import enter, enter_backward, normalise, normalise_backward
from learners.norm_rows import EPS

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (1, 7, 8, 15, 16, 17, 80, 200, 201)
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
pytestmark = pytest.mark.filterwarnings("ignore:invalid value", "ignore:divide by zero", "ignore:overflow")


class Case(NamedTuple):
    """A block of candidates; ``k`` slots, of which some are empty, and rows that are no numbers."""

    z: Floats
    layer_bias: Floats
    shared: Floats
    taken: Ints
    slots: Floats
    bins: Ints
    positions: Ints
    n_bins: int
    first_position: int
    gain: Floats
    shift: Floats
    grad: Floats


def case(width: int, k: int, *, placed: bool = True, n: int = 21, odd: float | None = None) -> Case:
    random = np.random.default_rng((width, k, n))
    n_bins, n_positions = 5, 4
    filled = random.integers(0, k + 1, n)
    bins, positions = np.full((n, k), n_bins), np.zeros((n, k), np.int64)
    for c in range(n):
        bins[c, : filled[c]] = random.integers(0, n_bins, filled[c])
        positions[c, : filled[c]] = random.integers(1, n_positions, filled[c])

    def drawn(*shape: int) -> Floats:
        return random.standard_normal(shape, np.float32)

    z, grad = drawn(n, width), drawn(n, width)
    if odd is not None:
        z[2, width // 2] = z[n - 1, width - 1] = odd
    shared, index, slots = drawn(9, width), random.integers(0, 9, (n, 2)), drawn((n_bins + 1 + n_positions) * k, width)
    first_position = n_bins + 1 if placed else -1
    of_slots = slots, bins, positions, n_bins, first_position
    return Case(z, drawn(width), shared, index, *of_slots, drawn(width), drawn(width), grad)


class Passed(NamedTuple):
    z: Floats
    out: Floats
    inverse: Floats
    grad: Floats
    sums: Floats
    sum_of_all: Floats
    of_shared: Floats
    of_slots: Floats


def passed(given: Case) -> Passed:
    z, grad, out = given.z.copy(), given.grad.copy(), np.empty_like(given.z)
    width, inverse = z.shape[1], np.empty(len(z), np.float32)
    index, chosen = given.taken, (given.bins, given.positions, given.n_bins, given.first_position)
    enter(z, given.layer_bias, given.shared, index, given.slots, *chosen, given.gain, given.shift, out, inverse)
    sums, sum_of_all = np.ones((2, width), np.float32), np.ones(width, np.float32)
    of_shared, of_slots = np.ones_like(given.shared), np.ones_like(given.slots)
    enter_backward(grad, z, out, inverse, given.gain, sums, sum_of_all, index, *chosen, of_shared, of_slots)
    return Passed(z, out, inverse, grad, sums, sum_of_all, of_shared, of_slots)


def empty_slots(given: Case) -> Floats:
    """The bias and what the slots from each one on add where they are empty, ``[k + 1, W]``."""
    k, rows = given.bins.shape[1], [given.layer_bias]
    for slot in range(k - 1, -1, -1):
        row = rows[0] + given.slots[given.n_bins * k + slot]
        if given.first_position >= 0:
            row = row + given.slots[given.first_position * k + slot]
        rows.insert(0, row)
    return np.array(rows)


def taken(given: Case, c: int) -> tuple[list[int], int]:
    """Rows of ``slots`` that a candidate takes, and how many slots are filled."""
    k, rows = given.bins.shape[1], []
    filled = int((given.bins[c] != given.n_bins).sum())
    for slot in range(filled):
        rows.append(given.bins[c, slot] * k + slot)
        if given.first_position >= 0:
            rows.append((given.first_position + given.positions[c, slot]) * k + slot)
    return rows, filled


def written_down(given: Case) -> Passed:
    """The same in NumPy, a row at a time, in the order that is written down."""
    n, width = given.z.shape
    k, base, w = given.bins.shape[1], empty_slots(given), np.float32(width)
    z, out, inverse, grad = given.z.copy(), np.empty_like(given.z), np.empty(n, np.float32), given.grad.copy()
    found, of_base = np.zeros((2, width), np.float32), np.zeros((k + 1, width), np.float32)
    of_shared, of_slots = np.ones_like(given.shared), np.ones_like(given.slots)
    for c in range(n):
        rows, filled = taken(given, c)
        for row in (*given.shared[given.taken[c]], *given.slots[rows], base[filled]):
            z[c] += row
        z[c] -= total_plain(z[c]) / w
        inverse[c] = np.float32(1) / np.sqrt(dot_plain(z[c], z[c]) / w + EPS)
        z[c] *= inverse[c]
        moved = z[c] * given.gain + given.shift
        out[c] = np.where(moved < 0, np.float32(0), moved)
        g = np.where(out[c] > 0, grad[c], np.float32(0))
        found[0] += g * z[c]
        found[1] += g
        g = g * given.gain
        grad[c] = (g - total_plain(g) / w - z[c] * (dot_plain(g, z[c]) / w)) * inverse[c]
        for row in given.taken[c]:
            of_shared[row] += grad[c]
        for row in rows:
            of_slots[row] += grad[c]
        of_base[filled] += grad[c]
    for slot in range(k):
        of_base[slot] += of_base[slot - 1] if slot else np.float32(0)
        of_slots[given.n_bins * k + slot] += of_base[slot]
        if given.first_position >= 0:
            of_slots[given.first_position * k + slot] += of_base[slot]
    of_all = of_base[k] + (of_base[k - 1] if k else np.float32(0))
    return Passed(z, out, inverse, grad, found + np.float32(1), of_all + np.float32(1), of_shared, of_slots)


def assert_same(one: Passed, other: Passed) -> None:
    for name, a, b in zip(Passed._fields, one, other, strict=True):
        nan = np.isnan(a)
        assert np.array_equal(nan, np.isnan(b)), name
        assert np.array_equal(a[~nan].view(np.int32), b[~nan].view(np.int32)), name


@pytest.mark.parametrize("odd", [None, np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize(("k", "placed"), [(0, False), (3, True), (3, False)])
@pytest.mark.parametrize("width", WIDTHS)
def test_kernels_have_the_bits_that_are_written_down(width: int, k: int, placed: bool, odd: float | None) -> None:
    given = case(width, k, placed=placed, odd=odd)
    assert_same(passed(given), written_down(given))


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9, 128])
def test_any_number_of_candidates_fills_its_groups_and_pairs(n: int) -> None:
    given = case(41, 4, n=n)
    assert_same(passed(given), written_down(given))


def test_a_row_that_is_no_number_stays_so_and_leaves_the_others_alone() -> None:
    sound, given = case(80, 0), case(80, 0, odd=np.nan)
    one, other = passed(sound), passed(given)
    hit = np.isnan(given.z).any(1)
    assert np.isnan(other.out[hit]).all()
    assert np.isnan(other.grad[hit]).all()
    assert np.array_equal(one.out[~hit], other.out[~hit])
    assert np.array_equal(one.grad[~hit], other.grad[~hit])


def test_a_layer_without_shared_rows_is_the_same_without_them() -> None:
    given = case(80, 0)._replace(shared=np.zeros((0, 80), np.float32), taken=np.zeros((21, 0), np.int64))
    expected = passed(given)
    z, grad, out, inverse = given.z.copy(), given.grad.copy(), np.empty_like(given.z), np.empty(len(given.z), np.float32)
    normalise(z, given.layer_bias, given.gain, given.shift, out, inverse)
    sums, of_all = np.ones((2, 80), np.float32), np.ones(80, np.float32)
    normalise_backward(grad, z, out, inverse, given.gain, sums, of_all)
    assert_same(Passed(z, out, inverse, grad, sums, of_all, expected.of_shared, expected.of_slots), expected)


def digests() -> dict[str, str]:
    found = {}
    for width in WIDTHS:
        for k in (0, 3):
            digest = hashlib.sha256()
            for array in passed(case(width, k, odd=np.nan)):
                digest.update(np.where(np.isnan(array), np.float32(np.nan), array).tobytes())  # of NaN there are many
            found[f"{width} {k}"] = digest.hexdigest()
    return found


def test_with_the_compiler_off_the_bits_are_the_same() -> None:
    program = "import json; from tests.learners.test_mlp_kernels import digests; print(json.dumps(digests()))"
    other = "0" if os.environ.get("NUMBA_DISABLE_JIT") == "1" else "1"
    environment = os.environ | {"NUMBA_DISABLE_JIT": other}
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == digests()
