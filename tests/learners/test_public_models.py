"""DIEN and BST against public code from PyPI with copied weights: where both define the same they agree,
and where not, how they differ.

================ ===================================== =========================================================
part             torch-rechub 0.9                      deepctr-torch 0.3
================ ===================================== =========================================================
interests (GRU)  the same                              the same
attention        the same: softmax of ``h W e``        an MLP of ``h``, ``e`` and their product; no softmax
AUGRU            the same, one bias per gate           the same; both biases of a gate are one parameter
auxiliary loss   the same, also where the negative is  an MLP for the inner product; half, as the mean is over
                 the positive's item                   positives and negatives together
BST, one block   the same; positions are places in     has none
                 the padded sequence, added
BST, more blocks the history sees the target           has none
================ ===================================== =========================================================

DIEN's first TensorFlow code scales the update gate the other way (``learners/augru.py``); it is written out here.
Legend: ``B`` rows of theirs, one per candidate; ``L`` longest history, ``d`` width.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from learners.augru import AUGRU
from learners.models.dien import Evolution, auxiliary_loss
from learners.transformer import Block, Padding

VOCABULARY, WIDTH = 30, 8
HISTORIES = [[3, 7, 5], [], [9, 4, 4, 8, 2], [6]]
NEGATIVES = [[1, 2, 9], [], [3, 5, 6, 7, 1], [2]]
TARGETS = [4, 9, 11, 6]
LENGTHS = [len(history) for history in HISTORIES]
LONGEST = 6
PADDING = Padding.of(torch.tensor([0, *np.cumsum(LENGTHS)]))


@pytest.fixture(scope="module")
def rechub() -> Any:
    return importlib.import_module("torch_rechub.models.ranking")


@pytest.fixture(scope="module")
def deepctr() -> Iterator[Any]:
    """DIEN of deepctr-torch, without its package's own file: that one asks PyPI for a newer version whenever it is imported."""
    spec = importlib.util.find_spec("deepctr_torch")
    assert spec is not None
    package = ModuleType("deepctr_torch")
    package.__path__ = list(spec.submodule_search_locations or ())
    before = set(sys.modules)
    sys.modules["deepctr_torch"] = package
    yield importlib.import_module("deepctr_torch.models.dien")
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "deepctr_torch":
            del sys.modules[name]


def padded(rows: list[list[int]], longest: int = LONGEST) -> Tensor:
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def flat(rows: list[list[int]]) -> Tensor:
    return torch.tensor([each for row in rows for each in row], dtype=torch.int64)


def randomly(module: nn.Module, scale: float = 0.5) -> None:
    """Draw every parameter: public code begins with biases of 0, or with weights of 1e-4."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, scale)


def given_to(module: nn.Module, taken: list[Tensor]) -> None:
    """Note what a module gets."""
    module.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))


# -- torch-rechub


def rechub_dien(rechub: Any) -> Any:
    basic = importlib.import_module("torch_rechub.basic.features")
    shared = {"vocab_size": VOCABULARY, "embed_dim": WIDTH, "padding_idx": 0}
    model = rechub.DIEN(
        features=[basic.SparseFeature("page", 3, WIDTH)],
        history_features=[basic.SequenceFeature("history", pooling="concat", shared_with="item", **shared)],
        neg_history_features=[basic.SequenceFeature("negative", pooling="concat", shared_with="item", **shared)],
        target_features=[basic.SparseFeature("item", **shared)],
        mlp_params={"dims": [4]},
        alpha=1.0,
    ).eval()
    randomly(model)
    with torch.no_grad():
        model.embedding.embed_dict["item"].weight[0] = 0
    return model


def evolution_of(model: Any) -> Evolution:
    """Return our layers with the weights of torch-rechub's, whose matrices stand on the right of a row."""
    layers, theirs = Evolution(WIDTH), model.interest_evolving_layers[0]
    cell = theirs.augru_cell
    layers.extractor.load_state_dict(model.interest_extractor_layers[0].state_dict())
    with torch.no_grad():
        layers.match.weight.copy_(theirs.Wa)
        layers.evolution.input.weight.copy_(torch.cat([cell.Wr.T, cell.Wu.T, cell.Wh.T]))
        layers.evolution.state.weight.copy_(torch.cat([cell.Ur.T, cell.Uu.T, cell.Uh.T]))
        layers.evolution.input.bias.copy_(torch.cat([cell.br, cell.bu, cell.bh], 1)[0])
        layers.evolution.state.bias.zero_()
    return layers


def test_dien_is_torch_rechubs(rechub: Any) -> None:
    """The whole public model, from ids on: the interest that its MLP is given, and its auxiliary loss."""
    torch.manual_seed(0)
    model, taken = rechub_dien(rechub), list[Tensor]()
    given_to(model.mlp, taken)
    rows = {"history": padded(HISTORIES), "negative": padded(NEGATIVES), "item": torch.tensor(TARGETS)}
    _, auxiliary = model({**rows, "page": torch.zeros(4, dtype=torch.int64)})

    layers, item = evolution_of(model), model.embedding.embed_dict["item"].weight
    history = item[flat(HISTORIES)]
    states = layers.states(history, PADDING)
    interest = layers(states, PADDING, item[torch.tensor(TARGETS)], torch.arange(4))
    torch.testing.assert_close(interest, taken[0][:, :WIDTH], atol=1e-6, rtol=1e-5)
    assert interest[0].abs().max() > 0.1
    assert not interest[1].any()  # an empty history

    before = torch.tensor([at for at in range(len(history) - 1) if at + 1 not in np.cumsum(LENGTHS)])
    told = auxiliary_loss(
        PADDING.unpad(states)[before], history[before + 1], item[flat(NEGATIVES)][before + 1], torch.ones(len(before)).bool()
    )
    torch.testing.assert_close(told, auxiliary)


def rechub_bst(rechub: Any, n_layers: int) -> Any:
    basic = importlib.import_module("torch_rechub.basic.features")
    shared = {"vocab_size": VOCABULARY, "embed_dim": WIDTH, "padding_idx": 0}
    model = rechub.BST(
        features=[basic.SparseFeature("page", 3, WIDTH)],
        history_features=[basic.SequenceFeature("history", pooling="concat", shared_with="item", **shared)],
        target_features=[basic.SparseFeature("item", **shared)],
        mlp_params={"dims": [4]},
        nhead=2,
        num_layers=n_layers,
        max_seq_len=20,
    ).eval()
    randomly(model, 0.3)
    with torch.no_grad():
        model.embedding.embed_dict["item"].weight[0] = 0
        for layer in model.transformer_layers.layers:
            layer.norm1.weight.add_(1)
            layer.norm2.weight.add_(1)
            layer.linear2.weight.mul_(0.1)  # 2,048 wide: else nothing beside it is seen
            layer.self_attn.in_proj_bias.zero_()  # ours has none: one on the keys falls out, and Eq. 2 names no other
    return model


def blocks_of(model: Any) -> list[Block]:
    """Return our blocks with the weights of torch-rechub's layers."""
    blocks = []
    for layer in model.transformer_layers.layers:
        block = Block(WIDTH, 2, layer.linear1.out_features, slope=0.01)
        query, key, value = layer.self_attn.in_proj_weight.chunk(3)
        pairs = [
            (block.attention.query, {"weight": query}),
            (block.attention.key, {"weight": key}),
            (block.attention.value, {"weight": value}),
            (block.attention.out, layer.self_attn.out_proj.state_dict()),
            (block.wide, layer.linear1.state_dict()),
            (block.narrow, layer.linear2.state_dict()),
            (block.first_norm, layer.norm1.state_dict()),
            (block.second_norm, layer.norm2.state_dict()),
        ]
        for ours, weights in pairs:
            ours.load_state_dict(weights)
        blocks.append(block)
    return blocks


def bst_interest(model: Any, longest: int = LONGEST) -> Tensor:
    """Return the target's row that torch-rechub's BST gives its MLP, ``[B, d]``."""
    taken: list[Tensor] = []
    given_to(model.mlp, taken)
    model({"history": padded(HISTORIES, longest), "item": torch.tensor(TARGETS), "page": torch.zeros(4, dtype=torch.int64)})
    return taken[0][:, :WIDTH]


def bst_inputs(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return histories ``[B, L, d]``, their mask, and targets ``[B, 1, d]``, with the positions that torch-rechub adds."""
    item, places = model.embedding.embed_dict["item"].weight, model.pos_embedding.weight
    ids = padded(HISTORIES)
    return item[ids] + places[:LONGEST], ids > 0, (item[torch.tensor(TARGETS)] + places[LONGEST]).unsqueeze(1)


# torch says that it cannot use its fast path with a LeakyReLU, which is the paper's.
NO_FAST_PATH = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")


@NO_FAST_PATH
def test_a_block_of_bst_is_torch_rechubs(rechub: Any) -> None:
    torch.manual_seed(1)
    model = rechub_bst(rechub, 1)
    (block,) = blocks_of(model)
    history, mask, target = bst_inputs(model)
    got = block(target, history, mask, own=True).squeeze(1)
    torch.testing.assert_close(got, bst_interest(model), atol=1e-5, rtol=1e-4)


@NO_FAST_PATH
def test_with_more_blocks_its_history_sees_the_target_and_ours_does_not(rechub: Any) -> None:
    torch.manual_seed(2)
    model = rechub_bst(rechub, 2)
    first, second = blocks_of(model)
    history, mask, target = bst_inputs(model)
    got = second(first(target, history, mask, own=True), first(history, history, mask), mask, own=True).squeeze(1)
    rows = [row for row, length in enumerate(LENGTHS) if length]  # without a history nothing is left to see it
    assert (got - bst_interest(model))[rows].abs().amax(1).min() > 1e-3
    # Theirs, with the target hidden from the history, is ours.
    hidden = torch.zeros(LONGEST + 1, LONGEST + 1, dtype=torch.bool)
    hidden[:LONGEST, LONGEST] = True
    padding = torch.cat([~mask, torch.zeros(4, 1, dtype=torch.bool)], 1)
    out = model.transformer_layers(torch.cat([history, target], 1), mask=hidden, src_key_padding_mask=padding)
    torch.testing.assert_close(got[rows], out[rows, -1], atol=1e-5, rtol=1e-4)


@NO_FAST_PATH
def test_its_positions_are_places_that_padding_moves(rechub: Any) -> None:
    torch.manual_seed(3)
    model = rechub_bst(rechub, 1)
    assert (bst_interest(model) - bst_interest(model, LONGEST + 2)).abs().max() > 1e-2
    with torch.no_grad():
        model.pos_embedding.weight.zero_()
    torch.testing.assert_close(bst_interest(model), bst_interest(model, LONGEST + 2), atol=1e-5, rtol=1e-4)


# -- deepctr-torch


def test_interests_and_evolution_are_deepctr_torchs_given_its_attention(deepctr: Any) -> None:
    torch.manual_seed(4)
    extractor, evolving = deepctr.InterestExtractor(WIDTH), deepctr.InterestEvolving(WIDTH, gru_type="AUGRU")
    randomly(extractor)
    randomly(evolving)
    cell = evolving.interest_evolution.rnn
    assert cell.bias_ih is cell.bias_hh
    layers = Evolution(WIDTH)
    layers.extractor.load_state_dict(extractor.gru.state_dict())
    layers.evolution.input.load_state_dict({"weight": cell.weight_ih, "bias": cell.bias_ih})
    layers.evolution.state.load_state_dict({"weight": cell.weight_hh, "bias": cell.bias_hh})

    item, lengths = torch.randn(VOCABULARY, WIDTH), torch.tensor(LENGTHS)
    interests, _ = extractor(item[padded(HISTORIES)], lengths)  # of rows with a history
    states = layers.states(item[flat(HISTORIES)], PADDING)
    some = lengths > 0
    ours, theirs = states[some] * PADDING.mask[some].unsqueeze(2), interests[:, : PADDING.longest]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)

    scores: list[Tensor] = []
    evolving.attention.register_forward_hook(lambda module, inputs, output: scores.append(output))
    expected = evolving(item[torch.tensor(TARGETS)], interests, lengths)
    attention = torch.zeros(4, LONGEST)
    attention[some] = scores[0].squeeze(1)
    got = layers.evolution(states, attention[:, : PADDING.longest], torch.arange(4))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    assert attention.abs().max() > 0.05


class InnerProduct(nn.Module):
    """The paper's answer to whether an entry follows a state, in the place of deepctr-torch's MLP."""

    def forward(self, pairs: Tensor) -> Tensor:
        state, entry = pairs.chunk(2, 1)
        return torch.sigmoid((state * entry).sum(1, keepdim=True))


def test_the_auxiliary_loss_is_twice_deepctr_torchs_once_its_mlp_is_an_inner_product(deepctr: Any) -> None:
    torch.manual_seed(5)
    extractor = deepctr.InterestExtractor(WIDTH, use_neg=True)
    randomly(extractor)
    item, lengths = 0.5 * torch.randn(VOCABULARY, WIDTH), torch.tensor(LENGTHS)
    keys, negatives = item[padded(HISTORIES)], item[padded(NEGATIVES)]
    by_network = extractor(keys, lengths, negatives)[1]
    extractor.auxiliary_net = InnerProduct()
    states, loss = extractor(keys, lengths, negatives)
    told = [(row, at) for row, length in enumerate(n for n in LENGTHS if n) for at in range(length - 1)]
    rows, places = torch.tensor(told).T
    after = keys[lengths > 0][rows, places + 1], negatives[lengths > 0][rows, places + 1]
    got = auxiliary_loss(states[rows, places], *after, torch.ones(len(told)).bool())
    torch.testing.assert_close(got, 2 * loss)
    assert abs(got.item() - 2 * by_network.item()) > 1e-3


# -- the first TensorFlow code, which PyPI does not have for torch


def test_the_first_tensorflow_code_scales_the_update_gate_the_other_way() -> None:
    """``VecAttGRUCell``: ``u = (1 - a) u; h = u h + (1 - u) c``. The smaller the attention, the *more* of the new state."""
    torch.manual_seed(6)
    augru, entry, state = AUGRU(WIDTH), torch.randn(1, 1, WIDTH), torch.randn(1, WIDTH)
    randomly(augru, 1.0)
    of_reset, of_update, of_new = augru.input(entry[:, 0]).chunk(3, 1)
    reset, update, new = augru.state(state).chunk(3, 1)
    gate, candidate = torch.sigmoid(of_update + update), torch.tanh(of_new + torch.sigmoid(of_reset + reset) * new)

    def paper(attention: float) -> Tensor:
        return (1 - attention * gate) * state + attention * gate * candidate

    def tensorflow(attention: float) -> Tensor:
        share = (1 - attention) * gate
        return share * state + (1 - share) * candidate

    torch.testing.assert_close(paper(0.0), state)
    torch.testing.assert_close(tensorflow(1.0), candidate)
    for attention in (0.0, 1.0):
        assert (tensorflow(attention) - paper(attention)).abs().max() > 0.5
