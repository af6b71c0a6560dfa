"""MomentumEncoder: parameters and buffers follow, nothing else moves it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from negative_queues import MomentumEncoder


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_parameters_and_moments_follow_and_counters_are_copied() -> None:
    query = network()
    keys = MomentumEncoder(query, 0.75)
    expected = {name: tensor.clone() for name, tensor in query.state_dict().items()}
    optimiser = torch.optim.SGD(query.parameters(), 0.5)
    for _ in range(5):
        optimiser.zero_grad()
        torch.autograd.backward(query(torch.randn(8, 3) + 2).square().mean())
        optimiser.step()
        keys.update(query)
        for name, tensor in query.state_dict().items():
            expected[name] = 0.75 * expected[name] + 0.25 * tensor if tensor.is_floating_point() else tensor.clone()
    for name, tensor in keys.encoder.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], msg=name)
    assert int(keys.encoder.state_dict()["1.num_batches_tracked"]) == 5
    assert float(keys.encoder.state_dict()["1.running_mean"].abs().sum()) > 0


def test_keys_are_a_function_of_their_input_alone() -> None:
    """No graph, no dropout, no statistics of the batch, also after ``train()`` of the module around."""
    keys = MomentumEncoder(network())
    nn.ModuleList([keys]).train()
    before = {name: array.copy() for name, array in keys.state().items()}
    x = torch.randn(6, 3, requires_grad=True)
    out = keys(x)
    assert not out.requires_grad
    torch.testing.assert_close(out[:2], keys(x[:2]))
    assert all(not parameter.requires_grad for parameter in keys.parameters())
    for name, array in keys.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_state_comes_back_bit_for_bit() -> None:
    query = network()
    keys, other = MomentumEncoder(query, 0.9), MomentumEncoder(network(), 0.9)
    with torch.no_grad():
        for parameter in query.parameters():
            parameter.add_(torch.randn_like(parameter))
    keys.update(query)
    other.load_state(keys.state())
    keys.update(query)
    other.update(query)
    for name, array in keys.state().items():
        np.testing.assert_array_equal(array, other.state()[name])


def test_drift_is_the_cosine_of_stored_and_new_keys() -> None:
    query = nn.Linear(2, 2, bias=False)
    keys = MomentumEncoder(query, 0.0)
    x = torch.randn(9, 2)
    stored = keys(x)
    assert keys.drift(stored, x) == pytest.approx(1.0)
    with torch.no_grad():
        query.weight.mul_(-3.0)
    keys.update(query)
    assert keys.drift(stored, x) == pytest.approx(-1.0)


def test_what_does_not_fit_is_refused() -> None:
    keys = MomentumEncoder(nn.Linear(2, 2))
    before = {name: array.copy() for name, array in keys.state().items()}
    with pytest.raises(ValueError, match="names or shapes"):
        keys.update(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"differs in \['bias', 'weight'\]"):
        keys.load_state(MomentumEncoder(nn.Linear(2, 3)).state())
    with pytest.raises(ValueError, match="momentum must be"):
        MomentumEncoder(nn.Linear(2, 2), 1.1)
    for name, array in keys.state().items():
        np.testing.assert_array_equal(array, before[name])
