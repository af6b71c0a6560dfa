"""DIEN: its evolution against a GRU of torch and against Eq. 13 to 16 step by step; its auxiliary loss by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from learners.augru import AUGRU
from learners.batch import Batch
from learners.checks import SCHEMA, random_block, replaced
from learners.models import ModelContext
from learners.models.dien import DIEN, Config, Evolution, auxiliary_loss
from learners.samples import Ragged
from learners.transformer import Padding


def copied(augru: AUGRU) -> nn.GRU:
    """Return torch's GRU with the weights; its update gate is what stays, so the update rows change sign."""
    width = augru.state.in_features
    gru = nn.GRU(width, width, batch_first=True)
    sign = torch.ones(3 * width)
    sign[width : 2 * width] = -1
    weights = {
        "weight_ih_l0": augru.input.weight * sign[:, None],
        "weight_hh_l0": augru.state.weight * sign[:, None],
        "bias_ih_l0": augru.input.bias * sign,
        "bias_hh_l0": augru.state.bias * sign,
    }
    gru.load_state_dict(weights)
    return gru


def test_with_full_attention_it_is_a_gru() -> None:
    torch.manual_seed(0)
    augru, history = AUGRU(5), torch.randn(3, 7, 5)
    expected = copied(augru)(history)[1][0]
    torch.testing.assert_close(augru(history, torch.ones(3, 7), torch.arange(3)), expected)


def test_it_follows_the_paper_step_by_step() -> None:
    torch.manual_seed(1)
    augru, history, attention = AUGRU(4), torch.randn(2, 6, 4), torch.rand(3, 6)
    request_of = torch.tensor([0, 1, 1])
    got = augru(history, attention, request_of)
    (w_r, w_u, w_h), (b_r, b_u, b_h) = augru.input.weight.chunk(3), augru.input.bias.chunk(3)
    (u_r, u_u, u_h), (c_r, c_u, c_h) = augru.state.weight.chunk(3), augru.state.bias.chunk(3)
    for c in range(3):
        h = torch.zeros(4)
        for t in range(6):
            i = history[request_of[c], t]
            u = torch.sigmoid(w_u @ i + b_u + u_u @ h + c_u)
            r = torch.sigmoid(w_r @ i + b_r + u_r @ h + c_r)
            new = torch.tanh(w_h @ i + b_h + r * (u_h @ h + c_h))
            scaled = attention[c, t] * u
            h = (1 - scaled) * h + scaled * new
        torch.testing.assert_close(got[c], h)


def test_an_entry_without_attention_changes_nothing() -> None:
    """The public TensorFlow code moves the state there."""
    torch.manual_seed(2)
    augru, history = AUGRU(4), torch.randn(1, 3, 4)
    some = torch.tensor([[0.7, 0.0, 0.4]])
    without = augru(history[:, [0, 2]], some[:, [0, 2]], torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(augru(history, some, torch.zeros(1, dtype=torch.int64)), without)


def test_interest_of_padded_histories_is_that_of_each_alone() -> None:
    torch.manual_seed(3)
    layers, lengths = Evolution(6), [3, 0, 5]
    history, target, request_of = torch.randn(8, 6), torch.randn(4, 6), torch.tensor([0, 1, 2, 2])
    padding = Padding.of(torch.tensor([0, *np.cumsum(lengths)]))
    states = layers.states(history, padding)
    got = layers(states, padding, target, request_of)
    rows = [history[:3], history[3:3], history[3:]]
    for c, row in enumerate(request_of.tolist()):
        if not len(rows[row]):
            assert got[c].abs().sum() == 0
            continue
        own = layers.extractor(rows[row].unsqueeze(0))[0]
        attention = (own[0] @ layers.match(target[c])).softmax(0)
        expected = layers.evolution(own, attention.unsqueeze(0), torch.zeros(1, dtype=torch.int64))[0]
        torch.testing.assert_close(got[c], expected)


def test_auxiliary_loss_by_hand() -> None:
    states, positive = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.5, 9.0], [9.0, 1.0]])
    negative = torch.tensor([[-1.0, 3.0], [7.0, 7.0]])
    first = math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-1.0))
    second = math.log1p(math.exp(-2.0))  # its negative is the positive's item
    loss = auxiliary_loss(states, positive, negative, torch.tensor([True, False]))
    assert float(loss) == pytest.approx((first + second) / 2)


def network(**options: float) -> DIEN:
    torch.manual_seed(0)
    return DIEN(Config(**options), ModelContext(schema=SCHEMA, name="dien"))  # type: ignore[arg-type]


def auxiliary(model: DIEN, batch: Batch) -> Tensor:
    return model(batch, True, 3).losses["auxiliary"]  # type: ignore[no-any-return]


def test_auxiliary_loss_sees_real_steps_only() -> None:
    """Histories of one entry have no next one; no step crosses from one user to another."""
    block = random_block(seed=1, n_requests=6)
    one = {
        f"click__{part}": Ragged(block.ragged(f"click.{part}").values[:6], np.arange(7)) for part in ("item", "category", "ts")
    }
    batch = Batch(replaced(block, click__fresh=np.zeros(6, np.int32), **one), torch.device("cpu"))
    assert auxiliary(network(), batch).item() == 0


def test_auxiliary_loss_trains_the_extractor_and_can_be_off() -> None:
    batch = Batch(random_block(seed=1), torch.device("cpu"))
    model = network()
    loss = auxiliary(model, batch)
    assert loss.item() == pytest.approx(2 * math.log(2), abs=0.1)  # small vectors at the start: a coin for each
    layers = model.evolve["click"]
    assert isinstance(layers, Evolution)
    grads = torch.autograd.grad(loss, list(layers.extractor.parameters()))
    assert all(grad.abs().sum() > 0 for grad in grads)
    assert not network(auxiliary=0.0)(batch, True, 3).losses
