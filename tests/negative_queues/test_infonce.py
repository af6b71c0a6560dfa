"""InfoNCE, masks and logQ against sums written out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from negative_queues import Negatives, StreamingFrequency, accidental_hits, info_nce, log_draw_probability
from negative_queues.infonce import LogQ


def written_out(
    query: Tensor, positive: Tensor, pools: list[Negatives], temperature: float, log_q: LogQ, own_q: Tensor
) -> float:
    """The loss of each row, term by term in Python floats."""
    losses = []
    for row in range(len(query)):
        s_own = float(query[row] @ positive[row]) / temperature
        terms: list[tuple[float, float]] = []
        for pool in pools:
            assert pool.log_q is not None
            left = [n for n in range(len(pool.keys)) if pool.hits is None or not pool.hits[row, n]]
            terms += [(float(query[row] @ pool.keys[n]) / temperature, float(pool.log_q[n])) for n in left]
        if log_q == "none":
            rest = sum(math.exp(s) for s, _ in terms)
        elif log_q == "standard":
            s_own -= float(own_q[row])
            rest = sum(math.exp(s - q) for s, q in terms)
        else:
            others = 1 - math.exp(float(own_q[row]))
            rest = sum(math.exp(s) / (math.exp(q) / others) for s, q in terms) / max(len(terms), 1)
        losses.append(math.log(math.exp(s_own) + rest) - s_own)
    return sum(losses) / max(len(losses), 1)


@settings(max_examples=60)
@given(
    st.integers(0, 2**31),
    st.integers(0, 4),
    st.lists(st.integers(0, 6), max_size=3),
    st.sampled_from(["none", "standard", "corrected"]),
    st.floats(0.3, 2.0),
)
def test_it_is_the_sum_written_out(seed: int, n_rows: int, sizes: list[int], log_q: LogQ, temperature: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    query, positive = torch.randn(2, n_rows, 3, generator=rng, dtype=torch.float64)
    own_q = -torch.rand(n_rows, generator=rng, dtype=torch.float64) * 3 - 0.1
    pools = [
        Negatives(
            torch.randn(n, 3, generator=rng, dtype=torch.float64),
            torch.rand(n_rows, n, generator=rng) < 0.4 if n % 2 else None,
            -torch.rand(n, generator=rng, dtype=torch.float64) * 5,
        )
        for n in sizes
    ]
    query.requires_grad_()
    ours = info_nce(query, positive, pools, temperature=temperature, log_q=log_q, positive_log_q=own_q)
    theirs = written_out(query.detach(), positive, pools, temperature, log_q, own_q)
    assert float(ours.detach()) == pytest.approx(theirs, abs=1e-9)
    torch.autograd.backward(ours)
    assert query.grad is not None
    assert torch.isfinite(query.grad).all()


def test_what_is_masked_gets_no_gradient() -> None:
    query = torch.randn(2, 3, requires_grad=True)
    keys = torch.randn(4, 3, requires_grad=True)
    hits = torch.tensor([[True, False, True, True], [True, True, False, True]])
    torch.autograd.backward(info_nce(query, torch.randn(2, 3), [Negatives(keys, hits)], temperature=0.5))
    assert keys.grad is not None
    assert (keys.grad.abs().sum(1) > 0).tolist() == [False, True, True, False]


def test_a_row_whose_negatives_are_all_hits_has_no_loss() -> None:
    query, key = torch.randn(1, 3, requires_grad=True), torch.randn(1, 3)
    pool = Negatives(torch.randn(5, 3), torch.ones(1, 5, dtype=torch.bool))
    loss = info_nce(query, key, [pool], temperature=0.1)
    torch.autograd.backward(loss)
    assert float(loss.detach()) == 0
    assert query.grad is not None
    assert (query.grad == 0).all()


def test_corrected_has_the_gradient_of_the_papers_form() -> None:
    """arXiv 2507.09331: sg(1 - P) [-s+ + log sum exp(s - log Q')], the weight estimated from the same draws."""
    torch.manual_seed(0)
    query = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    positive, keys = torch.randn(5, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    log_p, own = -torch.rand(7, dtype=torch.float64) * 4, -torch.rand(5, dtype=torch.float64) * 4 - 0.2
    hits = torch.rand(5, 7) < 0.3
    assert hits.any()
    assert not hits.all(1).any()  # the form written out below is of rows that have negatives left
    loss = info_nce(query, positive, [Negatives(keys, hits, log_p)], temperature=0.7, log_q="corrected", positive_log_q=own)
    (ours,) = torch.autograd.grad(loss, query)
    s_own = (query * positive).sum(1) / 0.7
    q_prime = log_p[None, :] - torch.log(1 - own.exp())[:, None]
    shifted = (query @ keys.T / 0.7 - q_prime).masked_fill(hits, -torch.inf)
    log_z = torch.logsumexp(shifted, 1) - torch.log((~hits).sum(1).double())
    weight = (1 - torch.softmax(torch.stack([s_own, log_z], 1), 1)[:, 0]).detach()
    (theirs,) = torch.autograd.grad((weight * (-s_own + torch.logsumexp(shifted, 1))).mean(), query)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_corrected_estimates_the_full_softmax_without_bias() -> None:
    """The expectation over every draw of two negatives, weighted by its probability, of the estimated denominator."""
    scores = torch.tensor([1.0, -0.5, 0.3, 0.8], dtype=torch.float64)  # of four items; item 0 is the positive
    q = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    expected = 0.0
    for draw in itertools.product([1, 2, 3], repeat=2):  # draws of the positive are hits: what is left follows Q'
        at = torch.tensor(draw)
        pool = Negatives(scores[at][:, None], None, q[at].log())
        loss = info_nce(one, scores[:1][:, None], [pool], temperature=1.0, log_q="corrected", positive_log_q=q[:1].log())
        p = float((q[at] / (1 - q[0])).prod())
        expected += p * (math.exp(float(loss) + float(scores[0])) - math.exp(float(scores[0])))
    assert expected == pytest.approx(float(scores[1:].exp().sum()), rel=1e-12)


ids = st.lists(st.integers(0, 4), min_size=6, max_size=6)


@given(ids, ids, st.lists(st.integers(0, 4), max_size=20))
def test_hits_are_equal_ids_that_are_known(items: list[int], users: list[int], theirs: list[int]) -> None:
    rows = {"item": torch.tensor(items), "user": torch.tensor(users)}
    negatives = {"item": torch.tensor(theirs, dtype=torch.int64), "user": torch.tensor(theirs[::-1], dtype=torch.int64)}
    plain = [
        [any(r[b] == n[j] != 0 for r, n in ((items, theirs), (users, theirs[::-1]))) for j in range(len(theirs))]
        for b in range(6)
    ]
    hits = accidental_hits(rows, negatives, ["item", "user"])
    assert (hits.tolist() if hits is not None else [[False] * len(theirs)] * 6) == plain
    assert accidental_hits(rows, negatives, []) is None


def test_a_mask_needs_its_column() -> None:
    with pytest.raises(ValueError, match="cannot mask by 'user'"):
        accidental_hits({"item": torch.ones(1)}, {"item": torch.ones(1)}, ["user"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": 1.0, "log_q": "both"}, "log_q must be one of"),
        ({"temperature": 1.0, "log_q": "standard"}, "needs positive_log_q"),
    ],
)
def test_options_that_make_no_loss(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        info_nce(torch.ones(1, 1), torch.ones(1, 1), [Negatives(torch.ones(1, 1))], **options)


def test_probability_of_a_draw_is_that_of_a_step_shared_by_its_entries() -> None:
    frequency = StreamingFrequency(1_000, alpha=0.5)
    for step in range(8):
        frequency.update([1, 2] if step % 2 else [1])
    got = log_draw_probability(frequency, torch.tensor([1, 2, 3]), 10).exp()
    np.testing.assert_allclose(got.numpy(), [0.1, 0.05, 1 / 90], rtol=1e-6)
