"""Target attention against DIN's equation, written per pair, and against torch over all pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learners import attention_lanes, attention_passes
from learners.attention import Columns, TargetAttention, matrices
from learners.attention_plan import PAIRS, plan_in, planned
from learners.checks import PLAIN_SCHEMA, SCHEMA, Case, check_a_tape_is_autograd, random_block
from learners.models.din import DIN
from learners.network import NeuralLearner
from learners.tape import Tape

LENGTHS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=6)
LONG = [10, 0, 200, 7, 3] * 6, [20, 9, 30, 0, 1] * 6
_numba: Any = numba  # its config has no types
Offsets = np.typing.NDArray[np.int64]


def offsets(lengths: Sequence[int]) -> Offsets:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def columns(left: Offsets, right: Offsets, widths: Sequence[int], n_rows: int = 9) -> list[Columns]:
    """Return random columns whose targets and entries are rows of the same matrices."""
    found = []
    for width in widths:
        rows = torch.randn(n_rows, width, requires_grad=True)
        found.append(Columns(rows, rows, *(torch.randint(n_rows, (int(side[-1]),)) for side in (left, right))))
    return found


def compare(attention: TargetAttention, given_columns: list[Columns], left: Offsets, right: Offsets) -> Tensor:
    """Assert that what the compiled passes return, and all gradients, are those of :meth:`TargetAttention.plain`."""
    inputs = [*dict.fromkeys(side for part in given_columns for side in part[:2]), *attention.parameters()]
    out, plain = (form(given_columns, left, right) for form in (attention, attention.plain))
    torch.testing.assert_close(out, plain, atol=1e-5, rtol=1e-4)
    weights = torch.randn(out.shape)
    fast, slow = (torch.autograd.grad((form * weights).sum(), inputs) for form in (out, plain))
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5 * max([1.0, *other.abs().flatten().tolist()]), rtol=1e-3)
    return out


@given(lengths=LENGTHS, seed=st.integers(0, 50))
@settings(deadline=None, max_examples=30)
def test_it_is_din_written_out(lengths: list[tuple[int, int]], seed: int) -> None:
    torch.manual_seed(seed)
    attention = TargetAttention(4, 6)
    left, right = offsets([a for a, _ in lengths]), offsets([b for _, b in lengths])
    target, history = torch.randn(int(left[-1]), 4), torch.randn(int(right[-1]), 4)
    target.requires_grad_()
    history.requires_grad_()
    out = compare(attention, matrices(target, history), left, right)
    for row in range(len(lengths)):
        for c in range(left[row], left[row + 1]):
            expected = torch.zeros(4)
            for h in range(right[row], right[row + 1]):
                hidden = attention.query(target[c]) + attention.key(history[h]) + attention.product(target[c] * history[h])
                expected = expected + attention.out(attention.activation(hidden)) * history[h]
            torch.testing.assert_close(out[c], torch.cat([expected, expected * target[c]]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "made anew"])
@given(lengths=LENGTHS, widths=st.sampled_from([(4,), (16,), (3, 5), (16, 16), (8, 20)]), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=20)
def test_rows_by_place_go_back_to_the_rows(
    kept: bool, lengths: list[tuple[int, int]], widths: tuple[int, ...], seed: int
) -> None:
    torch.manual_seed(seed)
    left, right = offsets([a for a, _ in lengths]), offsets([b for _, b in lengths])
    with pytest.MonkeyPatch.context() as patched:
        if not kept:
            patched.setattr(attention_passes, "KEPT", 0)
        compare(TargetAttention(sum(widths), 36), columns(left, right, widths), left, right)


@pytest.mark.parametrize(
    "lengths", [([1], [1]), ([1], [0]), ([0], [3]), ([3, 2], [0, 0]), ([0, 0], [0, 0]), ([1, 1, 1], [0, 5, 0])], ids=str
)
def test_one_candidate_and_empty_sides(lengths: tuple[list[int], list[int]]) -> None:
    torch.manual_seed(0)
    left, right = map(offsets, lengths)
    out = compare(TargetAttention(16, 36), columns(left, right, (16,)), left, right)
    for row, length in enumerate(lengths[1]):
        assert bool(out[left[row] : left[row + 1]].any()) == (length > 0 and lengths[0][row] > 0)


@pytest.fixture(params=[1, 2, 7, 40])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("kept", [1 << 20, 0])
def test_several_runs_of_pairs_and_ranges_are_plain_too(threads: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(attention_passes, "LEAST", 1)
    monkeypatch.setattr(attention_passes, "KEPT", kept)
    attention = TargetAttention(8, 6)
    left, right = map(offsets, LONG)
    assert np.dot(np.diff(left), np.diff(right)) > 4 * PAIRS
    sides = columns(left, right, (4, 4))
    first = compare(attention, sides, left, right)
    inputs = [*(part.targets for part in sides), *attention.parameters()]
    found = [torch.autograd.grad(attention(sides, left, right).square().mean(), inputs) for _ in range(5)]
    for again in found[1:]:  # the same bits, whoever takes which range
        assert all(torch.equal(one, other) for one, other in zip(again, found[0], strict=True))
    with torch.no_grad():
        assert torch.equal(attention(sides, left, right), first)


def test_a_tape_finds_what_autograd_finds(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    monkeypatch.setattr(attention_passes, "LEAST", 1)
    attention = TargetAttention(20, 36)
    left, right = map(offsets, LONG)
    sides, names = columns(left, right, (16, 4)), [name for name, _ in attention.named_parameters()]
    inputs = [*(part.targets for part in sides), *attention.parameters()]
    out = attention(sides, left, right)
    pull = torch.randn(out.shape[1], out.shape[0]).t()  # not contiguous
    expected = torch.autograd.grad((out * pull).sum(), inputs)
    with Tape() as tape:
        again = attention(sides, left, right)
        assert torch.equal(again, out)
        tape.give(again, pull.numpy())
        tape.back()
        found = [tape.take(part.targets) for part in sides]
    (flat,) = tape.flats
    by_name = dict(zip([id(p) for p in flat.parameters], flat.views(flat.gradient), strict=True))
    found += [by_name[id(parameter)] for parameter in attention.parameters()]
    assert len(names) == len(found) - len(sides)
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        torch.testing.assert_close(torch.from_numpy(one), other, atol=1e-3, rtol=1e-3)


def test_nobody_asked_for_it_and_it_moves_nothing() -> None:
    left, right = offsets([2]), offsets([3])
    with Tape() as tape:
        TargetAttention(4, 6)(columns(left, right, (4,)), left, right)
        tape.back()
    assert not tape.flats


def test_a_pass_goes_back_once() -> None:
    left, right = offsets([2]), offsets([3])
    out = TargetAttention(4, 6)(columns(left, right, (4,)), left, right).sum()
    out.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="an attention pass goes back once"):
        out.backward()


def test_columns_of_another_width_are_refused() -> None:
    left, right = offsets([2]), offsets([3])
    attention = TargetAttention(4, 6)
    for widths in ((3,), (4, 1)):
        with pytest.raises(ValueError, match="made for targets of width 4, these columns have"):
            attention(columns(left, right, widths), left, right)


@given(lengths=LENGTHS, parts=st.integers(1, 9), least=st.integers(1, 20))
@settings(deadline=None, max_examples=100)
def test_ranges_are_all_requests_with_their_pairs(lengths: list[tuple[int, int]], parts: int, least: int) -> None:
    left, right = offsets([a for a, _ in lengths]), offsets([b for _, b in lengths])
    numbers = planned(left, right, 4, 6, 100, parts, least, 50, True)
    plan = plan_in(numbers, len(lengths))
    before, bounds = np.concatenate([[0], np.cumsum(np.diff(left) * np.diff(right))]), plan.bounds
    assert bounds[0].tolist() == [0, 0]
    assert bounds[-1, 0] == len(lengths)
    assert (np.diff(bounds[:, 0]) >= 0).all()
    assert len(bounds) <= max(parts, 1) + 1
    np.testing.assert_array_equal(bounds[:, 1], before[bounds[:, 0]])
    for met, own, other in ((plan.met[0], left, right), (plan.met[1], right, left)):
        np.testing.assert_array_equal(np.diff(met), np.where(np.diff(other) > 0, np.diff(own), 0))
    starts, sizes = plan.layout[:, 0], plan.layout[:, 1] * plan.layout[:, 2]
    assert (starts[:-1] + sizes[:-1] <= starts[1:]).all(), "parts do not overlap"
    assert starts[-1] + sizes[-1] <= numbers[1]
    assert numbers[0] == len(bounds) - 1
    assert not (starts % 16).any()


SHAPES: dict[str, tuple[str, ...]] = {
    "copy": ("n", "n"),
    "add": ("n", "n", "n"),
    "multiply": ("C n", "C n", "C n"),
    "multiply_pairs": ("P n", "C n", "H n"),
    "add_pairs": ("P n", "C n", "H n"),
    "combine": ("C n", "H n", "P"),
    "cross": ("C n", "C n", "C n", "C n", "C n", "C n"),
    "unweigh": ("P n", "C n", "H n", "n", "n", "n", "P", ""),
    "divide": ("C n", "H n", "P n", "C n", "H n", "C n", "P"),
    "weighed": ("n", "n", ""),
}
"""Of the arguments of each operation, of one request."""


def kernel(name: str) -> Callable[..., Any]:
    """Return a function that calls an operation: they are for kernels alone."""
    operation = getattr(attention_lanes, name)

    def call(*given: Any) -> Any:
        return operation(*given)

    compiled: Callable[..., Any] = numba.njit(call)
    return compiled


@pytest.mark.parametrize("name", SHAPES)
def test_an_operation_is_its_plain_twin_bit_for_bit(name: str) -> None:
    call, plain = kernel(name), getattr(attention_lanes, f"{name}_plain")
    rng = np.random.default_rng(0)
    for n in (0, 1, 3, 4, 7, 16, 19, 36, 53):
        for n_targets, n_entries in ((0, 0), (1, 1), (3, 0), (0, 2), (3, 5)):
            size = {"n": n, "C": n_targets, "H": n_entries, "P": n_targets * n_entries}
            given_arrays = [
                rng.standard_normal([size[each] for each in shape.split()]).astype(np.float32) if shape else np.float32(0.25)
                for shape in SHAPES[name]
            ]
            ours, theirs = ([np.copy(each) if np.ndim(each) else each for each in given_arrays] for _ in range(2))
            returned = call(*ours), plain(*theirs)
            assert returned[0] == returned[1]
            for one, other in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(one, other)


def test_an_operation_takes_rows_of_wider_ones() -> None:
    call, rng = kernel("multiply"), np.random.default_rng(0)
    x, out = rng.standard_normal((5, 40)).astype(np.float32), np.zeros((5, 40), np.float32)
    call(out[:, 20:], x[:, :20], x[:, 20:])
    np.testing.assert_array_equal(out[:, 20:], x[:, :20] * x[:, 20:])
    assert not out[:, :20].any()


@pytest.mark.parametrize("schema", [SCHEMA, PLAIN_SCHEMA], ids=["categories", "items"])
def test_din_on_a_tape_learns_what_plain_torch_learns(schema: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several sequences, empty histories among them; with categories and without."""
    case = Case("din", {}, schema)
    check_a_tape_is_autograd(case)
    ours, theirs = case.build(), case.build()
    assert isinstance(ours, NeuralLearner)
    assert isinstance(theirs, NeuralLearner)
    assert isinstance(theirs.network, DIN)
    assert ours.network.on_tape
    theirs.network.on_tape = False
    for unit in theirs.network.attention.values():
        monkeypatch.setattr(unit, "forward", unit.plain)
    for seed in range(6):
        block = random_block(schema, 64, seed=seed)
        one, other = (learner.predict_learn(block)[0] for learner in (ours, theirs))
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(_numba.config.DISABLE_JIT, reason="arrays have no layout with the compiler off")
def test_an_operation_refuses_other_arrays_when_a_kernel_is_compiled() -> None:
    rows, row = np.ones((3, 8), np.float32), np.ones(8, np.float32)
    with pytest.raises(numba.TypingError, match="2 dimensions of float32 in one piece are wanted"):
        kernel("multiply")(rows, rows, rows.astype(np.float64))
    with pytest.raises(numba.TypingError, match="1 dimensions of float32 in one piece are wanted"):
        kernel("add")(row, row, np.ones(16, np.float32)[::2])
    with pytest.raises(numba.TypingError, match="a float32 is wanted"):
        kernel("weighed")(row, row, 0.25)
