"""The tape, parameters in one array, and Adam over them."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from learners import gather
from learners.adam import DenseAdam
from learners.batch import Batch
from learners.beside import beside
from learners.checks import random_block
from learners.crossed import crossed
from learners.flat import LINE, Flat
from learners.layers import pool
from learners.request_mlp import Part, RequestMLP
from learners.tables import EmbeddingTable, Gathered, TableConfig
from learners.tape import Tape, recording

Floats = np.typing.NDArray[np.float32]


def double(value: Tensor) -> Tensor:
    """An operation as there are others: 2 x."""
    out, tape = value * 2, recording()

    def back() -> None:
        assert tape is not None
        grad = tape.take(out)
        if grad is not None:
            tape.give(value, 2 * grad)

    if tape is not None:
        tape.then(back, out)
    return out


def test_gradients_of_several_uses_are_summed_and_go_back_in_reverse() -> None:
    x, w = torch.ones(3), nn.Parameter(torch.ones(2))
    with Tape() as tape:
        assert recording() is tape
        y = double(x)
        z = double(y)
        tape.give(z, np.array([1, 2, 3], np.float32))
        tape.give(y, np.array([1, 1, 1], np.float32))
        tape.give(w, np.array([1, 2], np.float32))
        tape.give(w, np.array([3, 4], np.float32))
        assert not torch.is_grad_enabled()
        tape.back()
    assert recording() is None
    assert torch.is_grad_enabled()
    found = tape.take(x)
    assert found is not None
    assert found.tolist() == [6.0, 10.0, 14.0]  # 2 (2 g_z + g_y)
    assert tape.take(x) is None
    assert tape.parameters[w].tolist() == [4.0, 6.0]


def test_an_operation_that_nobody_asks_gives_nothing() -> None:
    x = torch.ones(2)
    with Tape() as tape:
        y = double(x)
        assert tape.wants(y)
        assert not tape.wants(x)
        assert tape.wants(nn.Parameter(x))
        tape.back()
    assert tape.take(x) is None
    assert tape.sums(x).tolist() == [0.0, 0.0]


def test_a_thread_has_one_tape_and_loses_it_with_an_error() -> None:
    with Tape(), pytest.raises(RuntimeError, match="records on a tape already"), Tape():
        pass
    assert recording() is None
    with pytest.raises(KeyError), Tape():
        raise KeyError
    assert recording() is None
    assert torch.is_grad_enabled()
    elsewhere: list[Tape | None] = []
    with Tape():
        thread = threading.Thread(target=lambda: elsewhere.append(recording()))
        thread.start()
        thread.join()
    assert elsewhere == [None]


def test_what_a_step_has_made_goes_with_its_error() -> None:
    gc.disable()
    try:
        gone = []

        def step() -> None:
            with Tape():
                gone.append(weakref.ref(double(torch.ones(2))))
                raise KeyError

        with pytest.raises(KeyError):
            step()
        assert gone[0]() is None
    finally:
        gc.enable()


def an_mlp() -> tuple[RequestMLP, Callable[[RequestMLP], Tensor]]:
    torch.manual_seed(4)
    candidate, request, request_of = [Part(torch.randn(9, 6))], torch.randn(3, 4), torch.arange(9) // 3
    labels, weights = torch.arange(9.0) % 2, torch.ones(9)
    return RequestMLP(6, 4, (5, 3)), lambda mlp: mlp.learn(candidate, request, request_of, labels, weights)[0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda mlp: pickle.loads(pickle.dumps(mlp))])
def test_a_copy_of_an_mlp_learns_on_its_own(copied: Callable[[RequestMLP], RequestMLP]) -> None:
    mlp, learn = an_mlp()
    learners = []
    learn(mlp)  # its parameters lie in one array
    twin = copied(mlp)
    before = [p.detach().clone() for p in mlp.parameters()]
    for each in (twin, mlp):
        with Tape() as tape:
            logits = learn(each)
            tape.back()
        adam = DenseAdam(each.parameters(), 0.1)
        adam.step_with(tape.parameters, tape.flats)
        learners.append((logits, [p.detach().clone() for p in each.parameters()]))
        if each is twin:
            assert all(map(torch.equal, before, mlp.parameters()))
    assert torch.equal(learners[0][0], learners[1][0])
    assert all(map(torch.equal, learners[0][1], learners[1][1]))
    assert not any(map(torch.equal, before, mlp.parameters()))


def test_an_mlp_learns_once_on_a_tape() -> None:
    mlp, learn = an_mlp()
    with Tape():
        learn(mlp)
        with pytest.raises(RuntimeError, match="learns once in a step"):
            learn(mlp)


def looked_up(seed: int, max_history: int) -> tuple[Batch, Callable[[], tuple[EmbeddingTable, Gathered]]]:
    block = random_block(n_requests=1 + seed % 7, seed=seed, max_history=max_history)
    batch = Batch(block, torch.device("cpu"))

    def look_up() -> tuple[EmbeddingTable, Gathered]:
        table = EmbeddingTable("t", TableConfig(dim=5, initial_scale=1.0, optimiser="sgd", rate=1.0))
        return table, table.gather(batch.ids("candidate.item"), batch.ids("click.item"), learn=True)

    return batch, look_up


def used(batch: Batch, gathered: Gathered, newest: bool) -> list[Tensor]:
    """Return what all operations of the inputs make of a look-up, candidates' first."""
    products = crossed(batch, gathered, 1, "click.item", newest=newest)
    pooled = [pool(gathered, 1, batch.offsets("click.item"), mode) for mode in ("mean", "sum")]
    request = beside([products.request, *pooled, torch.ones(batch.n_requests, 2)])
    return [products.candidate, gather.rows(gathered.weight, gathered.places[0]), request]


@given(seed=st.integers(0, 1000), newest=st.booleans(), max_history=st.sampled_from([0, 3, 12]))
@settings(deadline=None, max_examples=40)
def test_the_inputs_operations_go_back_as_by_autograd(seed: int, newest: bool, max_history: int) -> None:
    batch, look_up = looked_up(seed, max_history)
    table, gathered = look_up()
    made = used(batch, gathered, newest)
    torch.manual_seed(seed)
    grads = [torch.randn(value.shape) for value in made]
    torch.autograd.backward(made, grads)
    table.apply_gradients()
    with Tape() as tape:
        other, gathered = look_up()
        for value, again, grad in zip(made, used(batch, gathered, newest), grads, strict=True):
            torch.testing.assert_close(value.detach(), again)
            tape.give(again, grad.numpy().copy())
        tape.back()  # the table takes its step
    for name, array in table.state().items():
        np.testing.assert_allclose(array, other.state()[name], atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("mode", ["mean", "sum"])
@given(lengths=st.lists(st.integers(0, 4), max_size=6), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_pooling_is_torchs(mode: str, lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    offsets = torch.tensor([0, *np.cumsum(lengths).tolist()])
    weight, places = torch.randn(5, 3, requires_grad=True), torch.randint(0, 5, (int(offsets[-1]),))
    gathered = Gathered(weight, [places], np.arange(5), np.arange(5, dtype=np.int32), 5)
    ours = pool(gathered, 0, offsets, mode)
    torchs = embedding_bag(places, weight, offsets, mode=mode, include_last_offset=True) if lengths else torch.zeros(0, 3)
    torch.testing.assert_close(ours, torchs)
    with torch.no_grad():
        assert torch.equal(pool(gathered, 0, offsets, mode), ours)
    if lengths:
        grad = torch.randn(ours.shape)
        torch.testing.assert_close(*(torch.autograd.grad(out, weight, grad)[0] for out in (ours, torchs)))


def some_layers() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3), nn.Linear(3, 1))


def test_parameters_are_views_of_one_array() -> None:
    layers, plain = some_layers(), some_layers()
    weight, bias, *others = layers.parameters()
    flat = Flat([[weight], [bias, *others[:2]], others[2:]])
    assert flat.holds()
    assert [place.start for place in flat.places] == [0, LINE, LINE + 3, LINE + 6, 2 * LINE, 2 * LINE + 3]
    for one, other in zip(layers.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        bias.fill_(7.0)
    assert flat.values[LINE : LINE + 3].tolist() == [7.0] * 3
    layers.load_state_dict(plain.state_dict())
    assert flat.holds()
    assert np.array_equal(flat.views(flat.values)[1], list(plain.parameters())[1].detach().numpy())
    twin = copy.deepcopy(layers)
    assert next(twin.parameters()).data_ptr() != weight.data_ptr()
    layers.double()
    assert not flat.holds()


@pytest.mark.parametrize("restored", [False, True])
def test_adam_over_one_array_is_adam_over_each(restored: bool) -> None:
    ours, theirs = some_layers(), some_layers()
    flat = Flat([list(ours.parameters())])
    adam, others = DenseAdam(ours.parameters(), 0.1), torch.optim.Adam(theirs.parameters(), lr=0.1)
    for step in range(6):
        if restored and step == 3:
            state: dict[Tensor, dict[str, Tensor]] = {
                p: {name: t.clone() for name, t in adam.state[p].items()} for p in flat.parameters
            }
            adam = DenseAdam(ours.parameters(), 0.1)
            adam.state.update(state)
            adam.restored()
        for parameter, view in zip(theirs.parameters(), flat.views(flat.gradient), strict=True):
            parameter.grad = torch.randn(parameter.shape)
            view[:] = parameter.grad.numpy()
        adam.step_with({}, [flat])
        others.step()
    for mine, yours in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, yours, atol=1e-6, rtol=1e-5)
        for part, tensor in others.state[yours].items():
            torch.testing.assert_close(adam.state[mine][part], tensor, atol=1e-6, rtol=1e-5)


def test_adam_takes_gradients_of_autograd_and_of_a_tape_by_turns() -> None:
    ours, theirs = some_layers(), some_layers()
    flat = Flat([list(ours.parameters())])
    adam, others = DenseAdam(ours.parameters(), 0.1), torch.optim.Adam(theirs.parameters(), lr=0.1)
    for step in range(6):
        adam.zero_grad()
        for mine, yours, view in zip(ours.parameters(), theirs.parameters(), flat.views(flat.gradient), strict=True):
            yours.grad = torch.randn(yours.shape)
            mine.grad = yours.grad.clone()
            view[:] = yours.grad.numpy()
        if step % 2:
            adam.step_with({}, [flat])
        else:
            adam.step()
        others.step()
    for mine, yours in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, yours, atol=1e-6, rtol=1e-5)
        for part, tensor in others.state[yours].items():
            torch.testing.assert_close(adam.state[mine][part], tensor, atol=1e-6, rtol=1e-5)
