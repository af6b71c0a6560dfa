"""SimExtract: known answers, a brute-force oracle, and the compiled form against padded torch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learners.sim_extract import SimExtract, Slots, sim_extract, sim_extract_torch
from learners.tables import EmbeddingTable, TableConfig

FORMS = pytest.mark.parametrize("form", [sim_extract, sim_extract_torch])


def offsets(*lengths: int) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)


def angle(degrees: float, length: float = 1.0) -> list[float]:
    return [length * float(np.cos(np.radians(degrees))), length * float(np.sin(np.radians(degrees)))]


@FORMS
def test_by_hand(form: Any) -> None:
    """Oldest to newest at 60, 180, 0, 90 degrees from the target: cosines .5, -1, 1, 0; lengths do not matter."""
    sequence = torch.tensor([angle(60, 3.0), angle(180), angle(0, 0.1), angle(90, 7.0)])
    slots = form(torch.tensor([angle(0, 2.0)]), sequence, offsets(4), k=5, n_bins=4, max_len=3)
    np.testing.assert_allclose(slots.sims, [[1.0, 0.5, 0.0, -1.0, 0.0]], atol=1e-6)
    assert slots.positions.tolist() == [[2, 3, 1, 3, 0]]  # distance from the newest; the oldest shares the last position
    assert slots.bins[:, [0, 1, 3, 4]].tolist() == [[3, 3, 0, 4]]  # 1.0 in the last bin, an empty slot in none


@FORMS
def test_a_bin_holds_its_lower_edge(form: Any) -> None:
    """Exact cosines: -1, 0 and 1 of axis vectors, 0.6 and 0.8 as 3-4-5."""
    sequence = torch.tensor([[0.0, -5.0], [1.0, 0.0], [0.0, 2.0]])
    slots = form(torch.tensor([[0.0, 1.0]]), sequence, offsets(3), k=3, n_bins=20)
    assert slots.sims.tolist() == [[1.0, 0.0, -1.0]]
    assert slots.bins.tolist() == [[19, 10, 0]]


@FORMS
def test_ties_go_to_the_newer_entry(form: Any) -> None:
    same = [0.3, -0.7, 0.2]
    sequence = torch.tensor([same, [0.1, 0.9, 0.4], same, same, same])
    slots = form(torch.tensor([[0.5, -0.2, 0.9]]), sequence, offsets(5), k=3)
    assert slots.positions.tolist() == [[4, 1, 2]] or slots.positions.tolist() == [[1, 2, 3]]
    cosine = torch.nn.functional.cosine_similarity(torch.tensor([[0.5, -0.2, 0.9]]), sequence)
    assert slots.positions.tolist() == ([[4, 1, 2]] if cosine[1] > cosine[0] else [[1, 2, 3]])


@FORMS
def test_empty_and_short_histories_and_zero_vectors(form: Any) -> None:
    target, sequence = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0], [3.0, 0.0]])
    slots = form(target, sequence, offsets(0, 1, 1), k=2, n_bins=10)
    assert slots.bins.tolist() == [[10, 10], [9, 10], [5, 10]]
    assert slots.positions.tolist() == [[0, 0], [1, 0], [1, 0]]
    assert slots.sims.tolist() == [[0, 0], [1, 0], [0, 0]]
    nothing = form(target[:0], sequence[:0], offsets(), k=2)
    assert [part.shape for part in nothing] == [(0, 2)] * 3
    alone = form(target, sequence[:0], offsets(0, 0, 0), k=2, n_bins=10)
    assert alone.bins.tolist() == [[10, 10]] * 3


@FORMS
def test_a_nan_takes_no_slot(form: Any) -> None:
    sequence = torch.tensor([[1.0, 0.0], [float("nan"), 0.0]])
    slots = form(torch.tensor([[1.0, 0.0]]), sequence, offsets(2), k=2, n_bins=10)
    assert slots.bins.tolist() == [[9, 10]]
    assert slots.positions.tolist() == [[2, 0]]


def brute(target: Tensor, sequence: Tensor, sequence_offsets: Tensor, target_offsets: Tensor) -> list[list[tuple[float, int]]]:
    """Per target the (cosine in float64, distance from the newest) of all entries, the most similar first."""
    out = []
    for r in range(len(sequence_offsets) - 1):
        start, end = sequence_offsets[r : r + 2].tolist()
        for c in range(int(target_offsets[r]), int(target_offsets[r + 1])):
            cosine = torch.nn.functional.cosine_similarity(target[c].double()[None], sequence[start:end].double(), dim=1)
            out.append(sorted(((float(value), end - start - i) for i, value in enumerate(cosine)), reverse=True))
    return out


def told_apart(ranked: list[tuple[float, int]]) -> bool:
    """Whether float32 tells each from the next one."""
    return all(one - other > 1e-6 for (one, _), (other, _) in pairwise(ranked))


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 25)), min_size=1, max_size=5), st.integers(1, 12), st.integers(0, 999)
)
def test_both_forms_are_the_brute_force(sizes: list[tuple[int, int]], k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target_offsets, sequence_offsets = offsets(*(c for c, _ in sizes)), offsets(*(n for _, n in sizes))
    target = torch.randn(int(target_offsets[-1]), 7, generator=generator)
    sequence = torch.randn(int(sequence_offsets[-1]), 7, generator=generator)
    expected = brute(target, sequence, sequence_offsets, target_offsets)
    for form in (sim_extract, sim_extract_torch):
        slots = form(target, sequence, sequence_offsets, target_offsets, k=k, n_bins=13, max_len=100)
        assert slots.bins.shape == slots.positions.shape == slots.sims.shape == (len(target), k)
        for row, ranked in enumerate(expected):
            best, cosines = ranked[:k], {place: value for value, place in ranked}
            n = len(best)
            np.testing.assert_allclose(slots.sims[row, :n], [value for value, _ in best], atol=1e-5)
            places = slots.positions[row, :n].tolist()
            assert len(set(places)) == n
            if told_apart(ranked[: k + 1]):
                assert places == [place for _, place in best]
            # Where float32 cannot tell two apart they may change places, and nothing else may.
            np.testing.assert_allclose([cosines[place] for place in places], [value for value, _ in best], atol=1e-6, rtol=0)
            near_edge = np.abs((np.array([v for v, _ in best]) + 1) * 6.5 % 1 - 0.5) > 0.4999
            exact = np.minimum(((np.array([v for v, _ in best]) + 1) * 6.5).astype(int), 12)
            assert ((slots.bins[row, :n].numpy() == exact) | near_edge).all()
            assert (slots.bins[row, n:] == 13).all()
            assert not slots.positions[row, n:].any()


def test_a_target_does_not_feel_its_neighbours() -> None:
    """Alone or among others, in a batch or not: the same bits (promise 5)."""
    generator = torch.Generator().manual_seed(3)
    target, sequence = torch.randn(9, 16, generator=generator), torch.randn(60, 16, generator=generator)
    together = sim_extract(target, sequence, offsets(37, 23), offsets(4, 5))
    for row in range(9):
        part = sequence[:37] if row < 4 else sequence[37:]
        alone = sim_extract(target[row : row + 1], part, offsets(len(part)))
        for one, all_of in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_of[row])


def test_by_place_is_as_if_gathered() -> None:
    """Of distinct vectors that both sides, or two tables, share; lengths on both sides of a whole eight; an empty history."""
    module, table, other = (
        SimExtract(k=4),
        EmbeddingTable("items", TableConfig(dim=16)),
        EmbeddingTable("q", TableConfig(dim=16)),
    )
    rng, lengths = np.random.default_rng(0), (7, 0, 8, 9, 40)
    past, now = rng.integers(1, 30, sum(lengths)), rng.integers(1, 30, 15)
    items, queries = table.gather(now, past), other.gather(now)
    own, targets = offsets(*lengths), offsets(3, 3, 3, 3, 3)
    for gathered, target in ((items, items), (items, queries)):
        found = module.found(target, 0, gathered, 1, own.numpy(), targets.numpy())
        for one, two in zip(found, module.slots(target.of(0), gathered.of(1), own, targets), strict=True):
            assert torch.equal(one, two)


def test_module_adds_bin_and_position_per_slot() -> None:
    torch.manual_seed(0)
    module = SimExtract(k=3, n_bins=4, max_len=5, dim=2)
    target, sequence = torch.randn(4, 6), torch.randn(7, 6)
    args = target, sequence, offsets(5, 2), offsets(3, 1)
    slots = module.slots(*args)
    assert module.position is not None
    expected = (module.bin.weight[slots.bins] + module.position.weight[slots.positions]).reshape(4, 6)
    assert module.width == 6
    np.testing.assert_allclose(module(*args).detach(), expected.detach(), rtol=1e-6)


@pytest.mark.parametrize("positions", [True, False])
def test_only_the_tables_learn(positions: bool) -> None:
    torch.manual_seed(0)
    module = SimExtract(k=3, n_bins=4, max_len=5, dim=2, positions=positions)
    target, sequence = torch.randn(4, 6, requires_grad=True), torch.randn(7, 6, requires_grad=True)
    args = target, sequence, offsets(5, 2), offsets(3, 1)
    weight = torch.randn(4, 6)
    torch.autograd.backward((module(*args) * weight).sum())
    assert target.grad is None
    assert sequence.grad is None
    slots = module.slots(*args)
    for table, index in ((module.bin, slots.bins), (module.position, slots.positions)):
        if table is not None:
            expected = torch.zeros_like(table.weight).index_add_(0, index.flatten(), weight.reshape(-1, 2))
            assert table.weight.grad is not None
            np.testing.assert_allclose(table.weight.grad, expected, rtol=1e-5, atol=1e-6)
    assert (module.position is not None) == positions


def test_every_row_of_the_tables_can_learn() -> None:
    module = SimExtract(k=2, n_bins=3, max_len=2, dim=1)
    slots = Slots(torch.tensor([[0, 1], [2, 3], [4, 4]]), torch.tensor([[1, 2], [2, 0], [1, 1]]), torch.zeros(3, 2))
    for gradient in torch.autograd.grad(module.embed(slots).sum(), list(module.parameters())):
        assert gradient.all()


def test_the_target_itself_has_a_bin_of_its_own() -> None:
    torch.manual_seed(0)
    module = SimExtract(k=3, n_bins=4, max_len=5, dim=2)
    target = torch.randn(5, 16)
    near = target[4] + 0.01 * torch.randn(16)
    slots = module.slots(target, torch.cat([3 * target[:2], near[None]]), offsets(3), offsets(5))
    assert (slots.bins[:2, 0] == 5).all()
    assert slots.bins[4, 0] == 3
    assert int((slots.bins == 5).sum()) == 2


def test_a_size_below_one_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="n_bins must be at least 1, got 0"):
        SimExtract(n_bins=0)


@pytest.mark.cuda
def test_a_gpu_finds_and_embeds_the_same() -> None:
    torch.manual_seed(0)
    module = SimExtract(k=3, n_bins=4, max_len=5, dim=2)
    args = torch.randn(4, 6), torch.randn(7, 6), offsets(5, 2), offsets(3, 1)
    here = module(*args).detach()
    there = module.cuda()(*(arg.cuda() for arg in args))
    torch.autograd.backward(there.sum())
    np.testing.assert_allclose(there.detach().cpu(), here, rtol=1e-5)
    assert module.bin.weight.grad is not None
