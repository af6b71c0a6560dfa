"""The compiled MLP and the crossed histories against the same thing in plain torch: values and all gradients."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from learners import mlp_entry, mlp_passes, mlp_ranges, mlp_slots, request_mlp
from learners.batch import Batch
from learners.blas import SGEMM
from learners.checks import random_block
from learners.click_loss import click_loss
from learners.crossed import crossed, crossed_plain
from learners.request_mlp import Part, RequestMLP, SlotPart, distinct
from learners.sim_extract import SimExtract
from learners.tables import EmbeddingTable, TableConfig
from learners.threads import Team

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 2, max(out.numel(), 1))[: out.numel()].view_as(out)
    return [g for g in torch.autograd.grad((out * weights).sum(), inputs, allow_unused=True) if g is not None]


def click_gradients(out: Tensor, inputs: list[Tensor], labels: Tensor, weights: Tensor) -> list[Tensor]:
    loss = binary_cross_entropy_with_logits(out, labels.to(out), weight=weights.to(out), reduction="sum") / max(len(out), 1)
    return [g for g in torch.autograd.grad(loss, inputs, allow_unused=True) if g is not None]


def assert_equal(fast: list[Tensor], plain: list[Tensor], exact: list[Tensor] | None = None) -> None:
    """Compare to rounding; where ``exact`` is what float64 makes of it, at most a few times as far from it as plain torch is:
    the normalisation of a few nearly equal values multiplies what was rounded before."""
    assert len(fast) == len(plain) > 0
    for each in zip(fast, plain, plain if exact is None else exact, strict=True):
        one, other, true = (tensor.detach().double() for tensor in each)
        largest = max(1.0, float(other.abs().max())) if other.numel() else 1.0  # sums over many candidates round by their size
        off = float((other - true).abs().max()) if other.numel() else 0.0
        torch.testing.assert_close(one, true, atol=2e-5 * largest + 8 * off, rtol=2e-4)


def test_request_mlp_equals_one_over_the_concatenation() -> None:
    torch.manual_seed(0)
    mlp = RequestMLP(5, 3, (7, 4))
    candidate, request, request_of = torch.randn(6, 5), torch.randn(2, 3), torch.tensor([0, 0, 0, 1, 1, 1])
    assert mlp.request is not None
    weight = torch.cat([mlp.candidate.weight, mlp.request.weight], 1)
    first = torch.cat([candidate, request[request_of]], 1) @ weight.T + mlp.candidate.bias
    torch.testing.assert_close(mlp([Part(candidate)], request, request_of), mlp.rest(first).squeeze(1))


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    ("part", "of", "said"),
    [
        (Part(torch.zeros(3, 2), torch.tensor([0, 3])), [0, 0], "part 1 of the candidates: place 3 has no row; there are 3"),
        (Part(torch.zeros(3, 2), torch.tensor([0, -1])), [0, 0], "part 1 of the candidates: place -1 has no row"),
        (Part(torch.zeros(3, 2), torch.tensor([0, 2]), 2), [0, 0], "part 1 of the candidates: place 2 has no row; there are 2"),
        (Part(torch.zeros(3, 2), torch.tensor([0, 2]), 4), [0, 0], "part 1 of the candidates has 3 rows, and n_rows = 4"),
        (Part(torch.zeros(3, 2), torch.tensor([0, 2])), [0, 1], "request_of: place 1 has no row; there are 1"),
    ],
)
def test_places_without_a_row_are_refused(
    monkeypatch: pytest.MonkeyPatch, part: Part, of: list[int], said: str, debug: bool
) -> None:
    """In a model's first step, and in every one where somebody looks for a mistake."""
    mlp, right = RequestMLP(4, 1, (3,)), Part(torch.zeros(2, 2))
    if debug:
        monkeypatch.setattr(request_mlp, "_CHECKS_EACH_STEP", True)
        mlp([right, Part(torch.zeros(3, 2), torch.tensor([0, 2]), 3)], torch.zeros(1, 1), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match=said):
        mlp([right, part], torch.zeros(1, 1), torch.tensor(of))


class Case(NamedTuple):
    """An MLP and a batch for it."""

    mlp: RequestMLP
    parts: list[Part | SlotPart]
    request: Tensor
    request_of: Tensor
    inputs: list[Tensor]
    """Whatever collects a gradient."""

    @classmethod
    def of(
        cls,
        seed: int,
        n_requests: int,
        most: int,
        hidden: tuple[int, ...],
        slots: bool | None,
        request_dim: int,
        products: Any = "float32",
    ) -> Case:
        torch.manual_seed(seed)
        counts = torch.randint(0, most + 1, (n_requests,))
        request_of = torch.repeat_interleave(torch.arange(n_requests), counts)
        n = len(request_of)
        rows, table, fixed = torch.randn(n, 4, requires_grad=True), torch.randn(5, 6, requires_grad=True), torch.randn(n, 2)
        parts: list[Part | SlotPart] = [Part(table, torch.randint(0, 5, (n,))), Part(rows), Part(fixed)]
        inputs, width = [rows, table], 12
        if slots is not None:
            encoder = SimExtract(4, 6, 5, 3, positions=slots)
            lengths = torch.randint(0, 7, (n,))
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
            parts.insert(1, SlotPart(encoder, encoder.slots(torch.randn(n, 3), torch.randn(int(offsets[-1]), 3), offsets)))
            inputs, width = [*inputs, *encoder.parameters()], width + encoder.width
        request = torch.randn(n_requests, request_dim, requires_grad=True)
        mlp = RequestMLP(width, request_dim, hidden, products)
        return cls(mlp, parts, request, request_of, inputs + [request] * bool(request_dim) + list(mlp.parameters()))

    @property
    def given(self) -> tuple[list[Part | SlotPart], Tensor, Tensor]:
        return self.parts, self.request, self.request_of

    def learned(self, labels: Tensor, weights: Tensor, meanwhile: Callable[[], Any] | None = None) -> tuple[Tensor, Tensor]:
        """Return logits and the gradient by them, and hold what is said of the loss against the loss of the logits."""
        logits, click = self.mlp.learn(*self.given, labels, weights, meanwhile)
        assert click is not None
        scores, loss, gradient = click_loss(logits.detach(), labels, weights)
        assert torch.equal(click.scores, scores)
        assert torch.equal(click.gradient, gradient)
        if mlp_passes.LEAST == mlp_ranges.BLOCK:  # each block's share has a place of its own
            assert click.loss == pytest.approx(loss, rel=1e-9)
        return logits, click.gradient

    def exact(self) -> Case:
        """Return the same in float64."""
        case = copy.deepcopy(self)
        rows = [part.rows for part in case.parts if isinstance(part, Part)]
        encoders = [parameter for part in case.parts if isinstance(part, SlotPart) for parameter in part.embedding.parameters()]
        for tensor in {id(t): t for t in [*case.mlp.parameters(), *rows, *encoders, case.request]}.values():
            tensor.data = tensor.data.double()
        return case

    def click(self) -> tuple[Tensor, Tensor]:
        """Return labels and weights."""
        n = len(self.request_of)
        return (torch.rand(n) < 0.3).float(), torch.rand(n)


CASES = {
    "seed": st.integers(0, 1000),
    "n_requests": st.integers(0, 5),
    "most": st.sampled_from([3, 3, 200]),  # up to several blocks of candidates
    "hidden": st.sampled_from([(3,), (40, 17), (6, 5, 4)]),
    "slots": st.sampled_from([None, True, False]),
    "request_dim": st.sampled_from([0, 3]),
}


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Threads of torch; ranges may be of a single candidate."""
    before = torch.get_num_threads()
    monkeypatch.setattr(mlp_passes, "LEAST", 1)
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


FIXED = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(**CASES)
@example(seed=237, n_requests=1, most=200, hidden=(3,), slots=True, request_dim=3)  # three values that are nearly equal
@FIXED
def test_compiled_equals_plain(threads: int, **sizes: Any) -> None:
    case = Case.of(**sizes)
    fast, plain = case.mlp(*case.given), case.mlp.plain(*case.given)
    exact = case.exact()
    true = exact.mlp.plain(*exact.given)
    assert_equal([fast], [plain], [true])
    assert_equal(gradients(fast, case.inputs), gradients(plain, case.inputs), gradients(true, exact.inputs))


@given(**CASES)
@FIXED
def test_learning_goes_back_with_the_gradient_of_the_click_loss(threads: int, **sizes: Any) -> None:
    case = Case.of(**sizes)
    labels, weights = case.click()
    fast, gradient = case.learned(labels, weights)
    plain = case.mlp.plain(*case.given)
    exact = case.exact()
    true = exact.mlp.plain(*exact.given)
    assert_equal([fast], [plain], [true])
    expected = click_gradients(plain, case.inputs, labels, weights)
    wanted = click_gradients(true, exact.inputs, labels, weights)
    for _ in range(2):  # handed out, and made anew
        found = torch.autograd.grad(fast, case.inputs, gradient, retain_graph=True, allow_unused=True)
        assert_equal([g for g in found if g is not None], expected, wanted)
    again, others = case.mlp.plain(*case.given), exact.mlp.plain(*exact.given)  # and any other gradient
    assert_equal(gradients(fast, case.inputs), gradients(again, case.inputs), gradients(others, exact.inputs))


def test_equal_bits_for_equal_threads(threads: int) -> None:
    case = Case.of(0, 5, 200, (40, 17), True, 3)
    labels, weights = case.click()
    runs = []
    for _ in range(20):
        logits, gradient = case.learned(labels, weights)
        found = torch.autograd.grad(logits, case.inputs, gradient, allow_unused=True)
        runs.append([logits.detach(), *(g for g in found if g is not None)])
    for run in runs[1:]:
        for one, other in zip(run, runs[0], strict=True):
            assert torch.equal(one, other)


def test_what_the_caller_does_meanwhile_is_done_once_with_a_graph_and_moves_nothing(threads: int) -> None:
    case = Case.of(2, 5, 200, (40, 17), True, 3)
    labels, weights = case.click()
    done: list[torch.Tensor] = []
    found = []
    for meanwhile in (None, lambda: done.append(case.inputs[0].sum())):
        logits, gradient = case.learned(labels, weights, meanwhile)
        made = torch.autograd.grad(logits, case.inputs, gradient, allow_unused=True)
        found.append([logits.detach(), *(g for g in made if g is not None)])
    (graph,) = done
    assert graph.requires_grad
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)  # other ranges, and blocks as small: sums in another order


def test_gradients_that_were_handed_out_stay_when_others_are_asked_for(threads: int) -> None:
    case = Case.of(2, 5, 200, (40, 17), True, 3)
    logits, gradient = case.learned(*case.click())
    tables = [part for part in case.inputs[1:] if len(part) < 40]  # rows that are shared, tables of slots
    first = torch.autograd.grad(logits, tables, gradient, retain_graph=True)
    kept = [each.clone() for each in first]
    for factor in (2, 3):
        found = torch.autograd.grad(logits, tables, factor * gradient, retain_graph=True)
        for each, before, expected in zip(found, first, kept, strict=True):
            assert torch.equal(before, expected)
            torch.testing.assert_close(each, factor * expected)


def test_rows_that_do_not_lie_in_one_piece_count_as_they_are(threads: int) -> None:
    torch.manual_seed(0)
    mlp, of, request = RequestMLP(4, 3, (7,)), torch.arange(300) // 30, torch.randn(3, 10).t()
    parts = [Part(torch.randn(4, 5).t(), torch.randint(0, 5, (300,)))]
    with torch.no_grad():
        torch.testing.assert_close(mlp(parts, request, of), mlp.plain(parts, request, of))


@pytest.mark.parametrize("stage", ["first", "last"])
def test_a_kernel_that_refuses_is_told_whatever_thread_it_is_in(threads: int, stage: str) -> None:
    case = Case.of(2, 5, 200, (40, 17), True, 3)
    labels, weights = case.click()
    expected, _ = case.learned(labels, weights)
    model = case.mlp._model
    assert model is not None
    before = model.flat.values.copy()
    narrow = np.zeros((40, 2), np.float32)
    of_first = model._replace(weights=model.weights._replace(request=narrow))
    of_last = model._replace(views=lambda array: model.views(array)._replace(request=narrow))
    for _ in range(5):
        case.mlp._model = of_first if stage == "first" else of_last
        with pytest.raises(ValueError, match="do not fit"):
            case.learned(labels, weights)
    case.mlp._model = model
    assert np.array_equal(model.flat.values, before)
    assert torch.equal(case.learned(labels, weights)[0], expected)


def of_two_threads() -> list[list[float]]:
    """Return what a case has for logits and gradients with two threads."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        case = Case.of(2, 5, 40, (8, 5), None, 3)
        logits, gradient = case.learned(*case.click())
        found = torch.autograd.grad(logits, case.inputs, gradient)
    finally:
        torch.set_num_threads(before)
    return [each.detach().flatten().tolist() for each in (logits, *found)]


def test_with_the_compiler_off_two_threads_share_a_step_too() -> None:
    program = "import json; from tests.learners.test_request_mlp import of_two_threads as f; print(json.dumps(f()))"
    environment = os.environ | {"NUMBA_DISABLE_JIT": "0" if os.environ.get("NUMBA_DISABLE_JIT") == "1" else "1"}
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    for one, other in zip(json.loads(run.stdout), of_two_threads(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-4)


def test_a_score_is_of_the_same_bits_whether_it_is_learned_or_not(threads: int) -> None:
    case = Case.of(1, 5, 200, (40, 17), True, 3)
    with torch.no_grad():
        scored = case.mlp(*case.given)
    assert torch.equal(scored, case.mlp.learn(*case.given, *case.click())[0].detach())


@pytest.mark.parametrize(("candidate", "request_dim"), [(4, 2), (6, 2), (5, 1), (5, 3)])
def test_inputs_of_another_width_are_refused(candidate: int, request_dim: int) -> None:
    mlp, of = RequestMLP(5, 2, (3,)), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="was made for"):
        mlp([Part(torch.zeros(4, 3)), Part(torch.zeros(2, candidate - 3), of)], torch.zeros(1, request_dim), of)


def test_one_slot_part_is_the_limit() -> None:
    encoder = SimExtract(2, 3, 2, 1)
    slots = SlotPart(encoder, encoder.slots(torch.ones(1, 2), torch.ones(2, 2), torch.tensor([0, 2])))
    with pytest.raises(ValueError, match="one SlotPart"):
        RequestMLP(2 * encoder.width, 0, (3,))([slots, slots], torch.zeros(1, 0), torch.zeros(1, dtype=torch.int64))


@given(seed=st.integers(0, 1000), newest=st.booleans(), max_history=st.sampled_from([0, 3, 12]))
@settings(deadline=None, max_examples=40)
def test_crossed_equals_plain(seed: int, newest: bool, max_history: int) -> None:
    block = random_block(n_requests=1 + seed % 7, seed=seed, max_history=max_history)
    batch = Batch(block, CPU)
    table = EmbeddingTable("t", TableConfig(dim=5, initial_scale=1.0))
    gathered = table.gather(batch.ids("candidate.item"), np.zeros(0, np.int64), batch.ids("click.item"), learn=True)
    fast, plain = (f(batch, gathered, 2, "click.item", newest=newest) for f in (crossed, crossed_plain))
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other)
    both = [torch.cat([part.flatten() for part in parts]) for parts in (fast, plain)]
    assert_equal(gradients(both[0], [gathered.weight]), gradients(both[1], [gathered.weight]))


def test_distinct_rows_are_those_of_the_first_use() -> None:
    gathered = EmbeddingTable("t", TableConfig(dim=2)).gather(np.array([5, 0, 5, 7]), np.array([9, 7]), learn=True)
    part = distinct(gathered)
    assert part.n_rows == 3
    assert part.rows is gathered.weight
    torch.testing.assert_close(part.expanded(), gathered.of(0))


def test_scores_have_the_same_bits_for_any_number_of_ranges() -> None:
    case = Case.of(seed=3, n_requests=5, most=400, hidden=(40, 17), slots=True, request_dim=3)
    assert len(case.request_of) > 5 * mlp_passes.LEAST
    labels, weights = case.click()
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 4):
            torch.set_num_threads(n)
            found += [case.mlp(*case.given), case.learned(labels, weights)[0]]
            found.append(case.learned(labels, weights, lambda: None)[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)


def test_who_does_something_else_before_has_the_smaller_range() -> None:
    assert mlp_passes._cut(Team(2), 1000, mlp_passes.HEAD_START) == [slice(0, 640), slice(640, 1000)]
    assert mlp_passes._cut(Team(2), 1000) == [slice(0, 512), slice(512, 1000)]
    for n, threads, busy in itertools.product(
        [0, 1, 127, 128, 129, 300, 1000, 5000], range(1, 9), [0.0, mlp_passes.HEAD_START, 2.0]
    ):
        ranges = mlp_passes._cut(Team(threads), n, busy)
        assert [part for rows in ranges for part in range(rows.start, rows.stop)] == list(range(n))
        assert len(ranges) <= threads
        assert all(rows.start % mlp_passes.LEAST == 0 for rows in ranges)
        assert n == 0 or all(rows.stop > rows.start for rows in ranges)


def test_what_a_step_made_is_gone_with_the_step_without_a_search_for_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []
    enter = mlp_entry.Entry

    def entered(*given: Any) -> Any:
        entry = enter(*given)
        made.append(weakref.ref(entry))
        return entry

    monkeypatch.setattr(mlp_passes, "Entry", entered)
    case = Case.of(seed=1, n_requests=3, most=3, hidden=(6,), slots=True, request_dim=3)
    gc.disable()
    try:
        logits, gradient = case.learned(*case.click())
        torch.autograd.backward(logits, gradient)
        assert made[0]() is not None
        del logits, gradient
        assert made[0]() is None
    finally:
        gc.enable()


@given(
    n=st.integers(0, 30), k=st.integers(1, 4), dim=st.integers(1, 12), width=st.sampled_from([1, 7, 40]),
    n_ranges=st.integers(1, 3), placed=st.booleans(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_pairs_of_slot_and_row_that_occur_contribute_and_learn_as_all_would(
    n: int, k: int, dim: int, width: int, n_ranges: int, placed: bool, seed: int
) -> None:
    """Against the product over all pairs; what does not occur has no gradient, and is neither written nor read."""
    rng, n_bins, most = np.random.default_rng(seed), 5, 6
    filled = np.arange(k) < rng.integers(0, k + 1, n)[:, None]
    bins = np.where(filled, rng.choice([0, 1, 2, 3, 4, 6], (n, k)), n_bins)
    positions = np.where(filled, rng.integers(1, most + 1, (n, k)), 0)
    n_rows = n_bins + 2 + placed * (most + 1)
    pairs = mlp_slots.occurring(bins, positions, n_bins, n_bins + 2 if placed else -1, n_rows)
    occurs = np.zeros((n_rows, k), bool)
    for slot in range(k):
        occurs[pairs.rows[pairs.ends[slot] : pairs.ends[slot + 1]], slot] = True
    taken = {(row, slot) for slot in range(k) for row in (*bins[:, slot], n_bins)}
    taken |= {(n_bins + 2 + row, slot) for slot in range(k) for row in (*positions[:, slot], 0) if placed}
    assert set(zip(*np.nonzero(occurs), strict=True)) == taken
    table = torch.from_numpy(rng.standard_normal((n_rows, dim), np.float32)).requires_grad_()
    w = torch.from_numpy(rng.standard_normal((width, k * dim + 3), np.float32)).requires_grad_()
    own = w[:, 2 : 2 + k * dim]
    expected = torch.einsum("td,wkd->tkw", table, own.reshape(width, k, dim))
    found = np.full((n_rows, k * width), np.nan, np.float32)
    rows = mlp_slots.SlotRows.of(table.detach().numpy(), pairs, 2, width, k * dim)
    mlp_slots.enter_slots(SGEMM, rows, w.detach().numpy(), found.reshape(-1, width))
    by_pair = found.reshape(n_rows, k, width)
    np.testing.assert_allclose(by_pair[occurs], expected.detach().numpy()[occurs], rtol=1e-4, atol=1e-5)
    assert np.isnan(by_pair[~occurs]).all()
    mlp_slots.clear(*pairs, found.reshape(-1, width))
    assert (by_pair[occurs] == 0).all()
    assert np.isnan(by_pair[~occurs]).all()
    of_slots = rng.standard_normal((n_ranges, n_rows, k, width)).astype(np.float32)
    of_slots[:, ~occurs] = np.nan
    torch.autograd.backward(expected, torch.from_numpy(np.nan_to_num(of_slots).sum(0)))
    of_table, of_w = np.empty((n_rows, dim), np.float32), np.zeros((width, k * dim + 3), np.float32)
    by_range = of_slots.reshape(n_ranges, n_rows * k, width)
    mlp_slots.enter_slots_backward(SGEMM, rows._replace(of_table=of_table), w.detach().numpy(), by_range, of_w)
    assert table.grad is not None
    assert w.grad is not None
    np.testing.assert_allclose(of_table, table.grad, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(of_w, w.grad, rtol=1e-3, atol=1e-4)
