"""InfoNCE with its queue: a written-out MoCo, cross-batch memory, orders, warm-up, steps that fail."""

from __future__ import annotations

import copy
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.losses import CrossBatchMemory, NTXentLoss
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from negative_queues import (
    InfoNCE,
    InfoNCEOptions,
    KeyQueue,
    LossNotFiniteError,
    MomentumEncoder,
    Negatives,
    Pair,
    StreamingFrequency,
    bidirectional,
    draw_key,
    info_nce,
)
from negative_queues.drawing import recent_slots, uniform_slots
from negative_queues.infonce import LogQ

DIM, ROWS, STEPS, MOMENTUM, TEMPERATURE = 4, 6, 40, 0.9, 0.2
RATE = 0.02  # at 0.1 the rounding of two equal programs grows past 1e-5 in 40 steps
PLAIN = InfoNCEOptions(temperature=1.0, normalize=False)


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, DIM))


def batches(seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Two views of each row; a batch of ``ROWS`` does not divide the queues below."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(STEPS, ROWS, 5, generator=generator)
    y = x + 0.1 * torch.randn(STEPS, ROWS, 5, generator=generator)
    return list(zip(x, y, strict=True))


class WrittenOutMoCo:
    """He et al., Algorithm 1, row by row: the queue a list, the keys' parameters a second set, the loss a cross-entropy."""

    def __init__(self, capacity: int) -> None:
        self.f_q = encoder()
        self.f_k = copy.deepcopy(self.f_q)
        self.queue: list[Tensor] = []
        self.capacity = capacity
        self.optimiser = torch.optim.SGD(self.f_q.parameters(), RATE)

    def step(self, x: Tensor, y: Tensor) -> float:
        q = normalize(self.f_q(x), dim=1)
        with torch.no_grad():
            k = normalize(self.f_k(y), dim=1)
        positive = torch.einsum("bd,bd->b", q, k)[:, None]
        negative = torch.stack([torch.stack([row @ key for key in self.queue]) for row in q]) if self.queue else q[:, :0]
        logits = torch.cat([positive, negative], 1) / TEMPERATURE
        loss = cross_entropy(logits, torch.zeros(len(q), dtype=torch.int64))
        self.optimiser.zero_grad()
        torch.autograd.backward(loss)
        self.optimiser.step()
        with torch.no_grad():
            for mine, theirs in zip(self.f_k.parameters(), self.f_q.parameters(), strict=True):
                mine.copy_(MOMENTUM * mine + (1 - MOMENTUM) * theirs)
        self.queue = [*self.queue, *k][-self.capacity :]
        return float(loss.detach())


@pytest.mark.parametrize("capacity", [4, 6, 50])
def test_it_is_a_written_out_moco_step_for_step(capacity: int) -> None:
    """Losses, weights and queue over 240 keys: rings below the batch, of its size, and one that it does not divide."""
    plain = WrittenOutMoCo(capacity)
    f_q = encoder()
    f_k = MomentumEncoder(f_q, MOMENTUM)
    contrast = InfoNCE(KeyQueue(capacity, DIM, ()), InfoNCEOptions(temperature=TEMPERATURE))
    optimiser = torch.optim.SGD(f_q.parameters(), RATE)
    losses = []
    for x, y in batches():
        theirs = plain.step(x, y)
        loss = contrast(f_q(x), f_k(y))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        f_k.update(f_q)
        losses.append(float(loss.detach()))
        assert losses[-1] == pytest.approx(theirs, abs=1e-5)
        for mine, other in ((f_q, plain.f_q), (f_k.encoder, plain.f_k)):
            for one, two in zip(mine.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
        queue = contrast.queue
        oldest = queue.seen % capacity if queue.seen > capacity else 0
        torch.testing.assert_close(queue.keys().roll(-oldest, 0), torch.stack(plain.queue), rtol=0, atol=1e-5)
    assert max(losses[1:]) > 0.1


def test_enqueued_before_it_is_cross_batch_memory() -> None:
    """pytorch-metric-learning's memory with NT-Xent: labels that never repeat, so that a row's own key is its positive."""
    memory = CrossBatchMemory(NTXentLoss(TEMPERATURE, distance=DotProductSimilarity(normalize_embeddings=False)), DIM, 20)
    contrast = InfoNCE(KeyQueue(20, DIM, ()), InfoNCEOptions(temperature=TEMPERATURE, normalize=False, order="before"))
    mine = encoder()
    theirs = copy.deepcopy(mine)
    for step, (x, y) in enumerate(batches()):
        label = torch.arange(step * ROWS, (step + 1) * ROWS)
        enqueue = torch.arange(2 * ROWS) >= ROWS
        embeddings = torch.cat([theirs(x), theirs(y).detach()])
        expected = memory(embeddings, torch.cat([label, label]), enqueue_mask=enqueue)
        loss = contrast(mine(x), mine(y).detach())
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
        for model, value in ((mine, loss), (theirs, expected)):
            grads = torch.autograd.grad(value, list(model.parameters()))
            with torch.no_grad():
                for parameter, grad in zip(model.parameters(), grads, strict=True):
                    parameter.sub_(RATE * grad)
        for one, two in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    assert contrast.queue.seen == 12 * 20


def rows(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def loss_of(contrast: InfoNCE, query: Tensor, positive: Tensor, ids: dict[str, Any] | None = None, **more: Any) -> float:
    return float(contrast(query, positive, ids, **more).detach())


def softmax_loss(own: float, *others: float) -> float:
    return float(-torch.log_softmax(torch.tensor([own, *others]), 0)[0])


def test_after_meets_the_old_queue_and_before_the_new_one() -> None:
    for order, expected in (("after", softmax_loss(2.0, 5.0)), ("before", softmax_loss(2.0, 5.0, 3.0))):
        contrast = InfoNCE(KeyQueue(4, 1, ()), InfoNCEOptions(**{**asdict(PLAIN), "order": order}))
        contrast.queue.enqueue(rows(5.0))
        first = float(contrast(rows(1.0, 0.0), rows(2.0, 3.0)).detach())
        second = softmax_loss(0.0, 0.0) if order == "after" else softmax_loss(0.0, 0.0, 0.0)
        assert first == pytest.approx((expected + second) / 2)
        assert contrast.queue.keys().flatten().tolist() == [5, 2, 3]


def test_before_with_a_batch_beyond_the_capacity() -> None:
    """Row 0's key did not stay: the two that did are its negatives. Row 2's own key is its positive and counts once."""
    contrast = InfoNCE(KeyQueue(2, 1, ()), InfoNCEOptions(temperature=1.0, normalize=False, order="before"))
    got = loss_of(contrast, rows(1.0, 1.0, 1.0), rows(1.0, 2.0, 3.0))
    expected = [softmax_loss(1.0, 2.0, 3.0), softmax_loss(2.0, 3.0), softmax_loss(3.0, 2.0)]
    assert got == pytest.approx(sum(expected) / 3)


def test_hits_are_left_out_in_the_batch_and_in_the_queue() -> None:
    queue = KeyQueue(8, 1, ("item", "user", "request"))
    contrast = InfoNCE(queue, InfoNCEOptions(temperature=1.0, normalize=False, in_batch=True))
    queue.enqueue(rows(4.0, 5.0, 6.0, 7.0), {"item": [1, 9, 9, 9], "user": [9, 1, 9, 0], "request": [9, 9, 1, 0]})
    ids = {"item": [1, 2, 1], "user": [1, 2, 0], "request": [1, 0, 0]}
    got = loss_of(contrast, rows(1.0, 1.0, 1.0), rows(1.0, 2.0, 3.0), ids)
    second = softmax_loss(2.0, 1.0, 3.0, 4.0, 5.0, 6.0, 7.0)
    expected = [softmax_loss(1.0, 2.0, 7.0), second, softmax_loss(3.0, 2.0, 5.0, 6.0, 7.0)]
    assert got == pytest.approx(sum(expected) / 3)
    only_item = InfoNCE(queue, InfoNCEOptions(temperature=1.0, normalize=False, mask_by=("item",)))
    assert only_item.mask_by == ("item",)
    assert contrast.mask_by == ("item", "user", "request")


@pytest.mark.parametrize("order", ["after", "before"])
@pytest.mark.parametrize("warm_up", ["in_batch", "off"])
def test_the_queue_serves_once_it_is_filled_to_a_share(order: Any, warm_up: Any) -> None:
    options = InfoNCEOptions(temperature=1.0, normalize=False, order=order, warm_up=warm_up, warm_up_share=0.5)
    contrast = InfoNCE(KeyQueue(8, 1, ()), options)
    in_batch = (softmax_loss(1.0, 2.0) + softmax_loss(2.0, 1.0)) / 2
    cold = in_batch if warm_up == "in_batch" else 0.0
    both = (softmax_loss(1.0, 1.0, 2.0) + softmax_loss(2.0, 1.0, 2.0)) / 2  # the first batch's keys, and its own
    twice = (softmax_loss(1.0, 1.0, 2.0, 2.0) + softmax_loss(2.0, 1.0, 1.0, 2.0)) / 2
    query = torch.ones(2, 1, requires_grad=True)
    seen = []
    for _ in range(3):
        loss = contrast(query, rows(1.0, 2.0))
        torch.autograd.backward(loss)  # a loss of 0 has a graph too
        seen.append(float(loss.detach()))
    four = (softmax_loss(1.0, 1.0, 1.0, 2.0, 2.0) + softmax_loss(2.0, 1.0, 1.0, 2.0, 2.0)) / 2
    six = (softmax_loss(1.0, 1.0, 1.0, 2.0, 2.0, 2.0) + softmax_loss(2.0, 1.0, 1.0, 1.0, 2.0, 2.0)) / 2
    assert both != twice
    assert seen == pytest.approx([cold, cold, four] if order == "after" else [cold, twice, six])
    assert contrast.queue.fill == 6


FAILURES: dict[str, tuple[dict[str, Any], type[Exception]]] = {
    "a query that is NaN": ({"query": torch.full((2, 1), torch.nan)}, LossNotFiniteError),
    "a loss that overflows": ({"query": torch.full((2, 1), 1e38)}, LossNotFiniteError),
    "a key that is NaN": ({"key": torch.full((2, 1), torch.nan)}, ValueError),
    "ids of another length": ({"ids": {"item": [1, 2, 3]}}, ValueError),
    "a pool that does not fit": ({"extra": [Negatives(torch.ones(2, 7))]}, RuntimeError),
}


@pytest.mark.parametrize("order", ["after", "before"])
@pytest.mark.parametrize("name", FAILURES)
def test_a_loss_that_fails_leaves_the_queue_as_it_was(name: str, order: Any) -> None:
    wrong, error = FAILURES[name]
    frequency = StreamingFrequency(16)
    options = InfoNCEOptions(temperature=0.5, normalize=False, order=order)
    contrast = InfoNCE(KeyQueue(3, 1), options, frequency=frequency)
    good: dict[str, Any] = {"query": rows(1.0, 2.0), "key": rows(100.0, 4.0), "ids": {"item": [1, 2]}, "extra": ()}
    for _ in range(2):
        contrast(good["query"], good["key"], good["ids"])
    before = {part: array.copy() for part, array in contrast.state().items()}
    bad = good | wrong
    with pytest.raises(error):
        contrast(bad["query"], bad["key"], bad["ids"], extra=bad["extra"])
    for part, array in contrast.state().items():
        np.testing.assert_array_equal(array, before[part], err_msg=part)


def test_a_draw_serves_instead_of_the_whole_queue() -> None:
    queue, key = KeyQueue(8, 1, ()), draw_key(0, "test", "negatives", 5)
    queue.enqueue(rows(*range(8)))
    draw = partial(recent_slots, n=3, half_life=2.0)
    contrast = InfoNCE(queue, PLAIN, draw=lambda ring, key: draw(ring, key=key))
    at = draw(queue, key=key)
    got = loss_of(contrast, rows(1.0), rows(2.0), key=key)
    assert got == pytest.approx(softmax_loss(2.0, *at.astype(float).tolist()))
    with pytest.raises(ValueError, match="call it with key"):
        contrast(rows(1.0), rows(2.0))


def test_log_q_comes_from_the_stream() -> None:
    frequency = StreamingFrequency(64, alpha=0.5)
    for step in range(4):
        frequency.update([1, 2] if step % 2 else [1])
    queue = KeyQueue(4, 1)
    queue.enqueue(rows(1.0, 0.5), {"item": [1, 2]})
    log_p = np.log(frequency.probability([1, 2, 3]) / 2)
    names: tuple[LogQ, ...] = ("standard", "corrected")
    for log_q in names:
        options = InfoNCEOptions(temperature=0.5, normalize=False, log_q=log_q)
        contrast = InfoNCE(queue, options, frequency=copy.deepcopy(frequency))
        with queue.attempt():
            got = loss_of(contrast, rows(1.0, 2.0), rows(2.0, 1.0), {"item": [3, 2]})
        pool = [
            Negatives(rows(1.0, 0.5), torch.tensor([[False, False], [False, True]]), torch.tensor(log_p[:2]).float()),
        ]
        own = torch.tensor(log_p[[2, 1]]).float()
        expected = info_nce(rows(1.0, 2.0), rows(2.0, 1.0), pool, temperature=0.5, log_q=options.log_q, positive_log_q=own)
        assert got == pytest.approx(float(expected))
        assert contrast.frequency is not None
        assert contrast.frequency.steps == 5
        queue = KeyQueue(4, 1)
        queue.enqueue(rows(1.0, 0.5), {"item": [1, 2]})


def test_a_loaded_one_goes_on_as_the_saved_one() -> None:
    def fresh() -> InfoNCE:
        options = InfoNCEOptions(log_q="corrected", in_batch=True)
        return InfoNCE(
            KeyQueue(10, DIM), options, frequency=StreamingFrequency(64), draw=lambda ring, key: uniform_slots(ring, 7, key)
        )

    one, other = fresh(), fresh()
    for step, (x, y) in enumerate(batches()):
        if step == 20:
            other.load_state({name: array.copy() for name, array in one.state().items()})
        more: dict[str, Any] = {"ids": {"item": x[:, 0].abs().mul(4).long()}, "key": draw_key(0, "test", "draw", step)}
        first = loss_of(one, x[:, :DIM], y[:, :DIM], **more)
        if step >= 20:
            assert first == loss_of(other, x[:, :DIM], y[:, :DIM], **more)
    for name, array in one.state().items():
        np.testing.assert_array_equal(array, other.state()[name])


def test_both_directions_by_hand() -> None:
    to_b, to_a = InfoNCE(KeyQueue(4, 1, ()), PLAIN), InfoNCE(KeyQueue(4, 1, ()), PLAIN)
    to_b.queue.enqueue(rows(0.5))
    to_a.queue.enqueue(rows(-1.0))
    forth, back = bidirectional(to_b, to_a, Pair(rows(1.0), rows(2.0)), Pair(rows(3.0), rows(4.0)))
    assert float(forth) == pytest.approx(softmax_loss(4.0, 0.5), abs=1e-6)
    assert float(back) == pytest.approx(softmax_loss(6.0, -3.0), abs=1e-6)
    assert (to_b.queue.keys().flatten().tolist(), to_a.queue.keys().flatten().tolist()) == ([0.5, 4], [-1, 2])


def test_both_queues_take_a_batch_in_or_neither() -> None:
    to_b, to_a = (InfoNCE(KeyQueue(4, 1), PLAIN, frequency=StreamingFrequency(8)) for _ in range(2))
    bad = Pair(rows(torch.nan), rows(4.0))
    with pytest.raises(LossNotFiniteError):
        bidirectional(to_b, to_a, Pair(rows(1.0), rows(2.0)), bad, {"item": [1]})
    assert [(side.queue.seen, side.queue.pushes) for side in (to_b, to_a)] == [(0, 0), (0, 0)]
    assert [side.frequency.steps for side in (to_b, to_a) if side.frequency] == [0, 0]


def test_no_gradient_enters_a_queue_and_some_enters_the_keys() -> None:
    contrast = InfoNCE(KeyQueue(4, 1, ()), PLAIN)
    key = rows(2.0, 3.0).requires_grad_()
    contrast(rows(1.0, 1.0), key)
    torch.autograd.backward(contrast(rows(1.0, 1.0), key))
    assert key.grad is not None
    assert (key.grad != 0).all()
    assert not contrast.queue.keys().requires_grad


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"order": "during"}, "order is"),
        ({"order": "before", "in_batch": True}, "counts a batch twice"),
        ({"warm_up_share": 1.5}, "warm_up_share"),
        ({"temperature": 0.0}, "temperature"),
        ({"log_q": "both"}, "log_q"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        InfoNCEOptions(**options)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot mask by \['user'\]"):
        InfoNCE(KeyQueue(2, 1), InfoNCEOptions(mask_by=("user",)))
    with pytest.raises(ValueError, match="StreamingFrequency"):
        InfoNCE(KeyQueue(2, 1), InfoNCEOptions(log_q="standard"))
    with pytest.raises(ValueError, match="column 'item'"):
        InfoNCE(KeyQueue(2, 1, ()), frequency=StreamingFrequency(4))
    with pytest.raises(ValueError, match=r"\[B, D\] alike"):
        InfoNCE(KeyQueue(2, 1, ()))(rows(1.0), rows(1.0, 2.0))
