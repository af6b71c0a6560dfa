"""CCL: its loss by hand, its steps against Algorithm 1 written out, its state to the bit, and what it finds in two domains."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from learners.ccl import CCL, CCLConfig, Session, max_pool, session_pairs
from negative_queues import LossNotFiniteError

DIM = 6


class Linear(nn.Module):
    """An encoder that is one matrix: what comes of it can be written down."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.layer = nn.Linear(dim, dim)

    def forward(self, session: Session) -> Tensor:
        return torch.relu(self.layer(session.vectors))


def session(rng: np.random.Generator, n: int, longest: int = 4) -> Session:
    mask = np.arange(longest) < rng.integers(1, longest + 1, (n, 1))
    vectors = torch.from_numpy(rng.normal(size=(n, longest, DIM)).astype(np.float32))
    return Session(vectors, torch.from_numpy(mask), torch.zeros(n, longest, dtype=torch.int64))


def built(seed: int = 0, **options: float) -> CCL:
    torch.manual_seed(seed)
    return CCL(Linear(), Linear(), DIM, CCLConfig(**options))  # type: ignore[arg-type]


def pooled(encoder: nn.Module, rows: Session) -> Tensor:
    encoded = encoder(rows)
    return torch.stack([vectors[held].max(0).values for vectors, held in zip(encoded, rows.mask, strict=True)])


def loss_by_loop(query: Tensor, keys: Tensor, own: int, tau: float) -> Tensor:
    """Eq. 5: the newest ``own`` keys of the dictionary are the batch's."""
    total = query.new_zeros(())
    for i, q in enumerate(query):
        scores = torch.stack([(q * key).sum() / tau for key in keys])
        total = total - scores[len(keys) - own + i] + scores.exp().sum().log()
    return total / len(query)


class WrittenOut:
    """Algorithm 1 line by line: lists for queues, torch's Adam, no masks."""

    def __init__(self, ccl: CCL) -> None:
        self.config = ccl.config
        self.query = [copy.deepcopy(encoder) for encoder in ccl.encoders]
        self.key = [copy.deepcopy(encoder) for encoder in ccl.encoders]
        self.dictionary: list[list[Tensor]] = [[], []]
        self.adam = torch.optim.Adam([p for encoder in self.query for p in encoder.parameters()], lr=self.config.rate)

    def enqueue(self, rows: list[Session]) -> None:
        for domain in range(2):
            with torch.no_grad():
                self.dictionary[domain] += list(pooled(self.key[domain], rows[domain]))
            self.dictionary[domain] = self.dictionary[domain][-self.config.capacity :]

    def step(self, rows: list[Session]) -> list[float]:
        self.enqueue(rows)
        n = len(rows[0].vectors)
        losses = [
            loss_by_loop(pooled(self.query[here], rows[here]), torch.stack(self.dictionary[there]), n, self.config.temperature)
            for here, there in ((0, 1), (1, 0))
        ]
        self.adam.zero_grad()
        torch.autograd.backward(losses[0] + losses[1])
        self.adam.step()
        m = self.config.momentum
        for encoder, query in zip(self.key, self.query, strict=True):
            for mine, theirs in zip(encoder.parameters(), query.parameters(), strict=True):
                mine.data = m * mine.data + (1 - m) * theirs.data
        return [float(loss.detach()) for loss in losses]


def test_steps_are_those_of_algorithm_1() -> None:
    """Over a dictionary that wraps at batches that do not divide it."""
    rng = np.random.default_rng(0)
    ccl = built(capacity=11, momentum=0.9, rate=0.01, mask_users=False)
    plain = WrittenOut(ccl)
    start = [session(rng, 11), session(rng, 11)]
    ccl.fill(start[0], start[1], np.arange(1, 12))
    plain.enqueue(start)
    assert ccl.filled == 1
    for step in range(12):
        n = int(rng.integers(2, 6))
        rows = [session(rng, n), session(rng, n)]
        stats = ccl.step(rows[0], rows[1], np.arange(1, n + 1) + 100 * step)
        np.testing.assert_allclose([stats["ccl.loss.first"], stats["ccl.loss.second"]], plain.step(rows), atol=1e-5)
    for domain in range(2):
        for mine, theirs in zip(ccl.query[domain].parameters(), plain.query[domain].parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
        for mine, theirs in zip(ccl.keys[domain].parameters(), plain.key[domain].parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_the_loss_of_two_pairs_by_hand() -> None:
    """Sessions of one item and encoders that change nothing: q = k = the item."""
    ccl = CCL(Scaled(), Scaled(), 2, CCLConfig(capacity=8, temperature=0.5))
    first, second = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]])
    mask, blocks = torch.ones(2, 1, dtype=torch.bool), torch.zeros(2, 1, dtype=torch.int64)
    stats = ccl.step(Session(first, mask, blocks), Session(second, mask, blocks), np.array([1, 2]))
    forth = [-4 + np.log(np.exp(4) + 1), -2 + np.log(1 + np.exp(2))]
    back = [-4 + np.log(np.exp(4) + 1), -2 + np.log(1 + np.exp(2))]
    assert stats["ccl.loss.first"] == pytest.approx(np.mean(forth), abs=1e-6)
    assert stats["ccl.loss.second"] == pytest.approx(np.mean(back), abs=1e-6)


class Scaled(nn.Module):
    """Items times one number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, rows: Session) -> Tensor:
        return rows.vectors * self.scale


class Wide(nn.Module):
    """An encoder with a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(DIM, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, rows: Session) -> Tensor:
        encoded: Tensor = self.layers(rows.vectors)
        return encoded


def test_a_users_own_keys_are_no_negatives() -> None:
    """The same user, alone in the dictionary, again and again: nothing is left to tell apart."""
    rng = np.random.default_rng(1)
    masked, plain = built(capacity=8), built(capacity=8, mask_users=False)
    for _ in range(3):
        one, two = session(rng, 1), session(rng, 1)
        masked_loss, plain_loss = (ccl.step(one, two, np.array([5]))["ccl.loss.first"] for ccl in (masked, plain))
    assert masked_loss == 0
    assert plain_loss > 0.1


def test_a_failed_step_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    ccl = built(capacity=8)
    ccl.step(session(rng, 3), session(rng, 3), np.array([1, 2, 3]))
    before = {name: np.array(array) for name, array in ccl.state().items()}
    for pooler in ccl.query:
        pooler.register_forward_hook(lambda *call: call[2] * torch.inf)
    with pytest.raises(LossNotFiniteError):
        ccl.step(session(rng, 3), session(rng, 3), np.array([1, 2, 3]))
    after = ccl.state()
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_user_twice_is_refused_and_no_user_is_no_step() -> None:
    rng = np.random.default_rng(3)
    ccl = built(capacity=8)
    with pytest.raises(ValueError, match="one pair per user"):
        ccl.step(session(rng, 2), session(rng, 2), np.array([4, 4]))
    assert ccl.step(session(rng, 0), session(rng, 0), np.zeros(0, np.int64)) == {}
    assert ccl.steps == 0


def test_state_comes_back_to_the_bit() -> None:
    rng = np.random.default_rng(4)
    batches = [(session(rng, 5), session(rng, 5), rng.permutation(9)[:5] + 1) for _ in range(8)]
    one, other = built(0, capacity=12), built(1, capacity=12)
    for batch in batches[:4]:
        one.step(*batch)
    saved = {name: np.array(array) for name, array in one.state().items()}
    other.load_state(saved)
    for batch in batches[4:]:
        assert one.step(*batch) == other.step(*batch)
    left, right = one.state(), other.state()
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[name], right[name]) for name in left)


def test_a_state_of_other_encoders_is_refused() -> None:
    state = CCL(Linear(4), Linear(4), 4, CCLConfig(capacity=4)).state()
    with pytest.raises(ValueError, match="saved encoders differ in"):
        built(capacity=4).load_state(state)


@given(lengths=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 14), st.integers(0, 9)), max_size=12))
@settings(deadline=None, max_examples=60)
def test_pairs_are_each_users_longest(lengths: list[tuple[int, int, int]]) -> None:
    rows = np.array(lengths, np.int64).reshape(-1, 3)
    best: dict[int, int] = {}
    for row, (user, first, second) in enumerate(lengths):
        longer = user not in best or first + second > sum(lengths[best[user]][1:])
        if user and first >= 10 and second >= 5 and longer:
            best[user] = row
    assert session_pairs(rows[:, 0], rows[:, 1], rows[:, 2]).tolist() == sorted(best.values())


def test_max_pool_looks_at_items_alone() -> None:
    vectors = torch.tensor([[[-1.0], [9.0]], [[-1.0], [-2.0]], [[5.0], [5.0]]])
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    assert max_pool(vectors, mask).tolist() == [[-1.0], [-1.0], [0.0]]


def test_it_finds_the_factor_that_two_domains_share() -> None:
    """Items of each domain are a user's factor, turned by a matrix of the domain, with noise: after CCL a user's other session
    is first among 64 far more often than by chance, and it was not before."""
    rng = np.random.default_rng(5)
    turn = [np.linalg.qr(rng.normal(size=(DIM, DIM)))[0] for _ in range(2)]

    def pairs(n: int) -> list[Session]:
        factor = rng.normal(size=(n, 1, DIM))
        mask, blocks = torch.ones(n, 10, dtype=torch.bool), torch.zeros(n, 10, dtype=torch.int64)
        noisy = [(factor + 0.3 * rng.normal(size=(n, 10, DIM))) @ matrix for matrix in turn]
        return [Session(torch.from_numpy(rows.astype(np.float32)), mask, blocks) for rows in noisy]

    def recall(ccl: CCL, rows: list[Session]) -> float:
        scores = ccl.encode(0, rows[0]) @ ccl.encode(1, rows[1]).T
        return float((scores.argmax(1) == torch.arange(len(scores))).float().mean())

    torch.manual_seed(0)
    ccl = CCL(Wide(), Wide(), 32, CCLConfig(capacity=512, rate=0.01, momentum=0.9))
    held_out = pairs(64)
    before = recall(ccl, held_out)
    start = pairs(512)
    ccl.fill(start[0], start[1], np.arange(1, 513))
    for step in range(150):
        rows = pairs(64)
        ccl.step(rows[0], rows[1], np.arange(64) + 1000 + 64 * step)
    assert before < 0.1
    assert recall(ccl, held_out) > 0.4
