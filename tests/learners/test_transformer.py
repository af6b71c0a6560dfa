"""Blocks over padded histories against torch's encoder layer with copied weights, and BST against the same written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from learners.batch import CANDIDATES, Batch
from learners.checks import SCHEMA, random_block
from learners.models import ModelContext
from learners.models.bst import BST, Config
from learners.transformer import TIME_BUCKETS, Block, Padding, time_buckets


def oracle(block: Block, dim: int, slope: float) -> nn.TransformerEncoderLayer:
    """Return torch's layer with the block's weights; its projections have biases, which are 0 here."""
    hidden = block.wide.out_features
    layer = nn.TransformerEncoderLayer(
        dim, block.attention.heads, hidden, dropout=0.0, activation=nn.LeakyReLU(slope), batch_first=True
    )
    unit = block.attention
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(torch.cat([unit.query.weight, unit.key.weight, unit.value.weight]))
        layer.self_attn.in_proj_bias.zero_()
    pairs = [
        (layer.self_attn.out_proj, unit.out),
        (layer.linear1, block.wide),
        (layer.linear2, block.narrow),
        (layer.norm1, block.first_norm),
        (layer.norm2, block.second_norm),
    ]
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    return layer


def shaken(module: nn.Module) -> None:
    """Move every parameter off its start, where LayerNorm's are 1 and 0."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=20)
def test_self_attention_is_torchs_encoder_layer(lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    block = Block(16, 4, 24, slope=0.01)
    shaken(block)
    layer = oracle(block, 16, 0.01)
    padding = Padding.of(torch.tensor([0, *np.cumsum(lengths)]))
    values = torch.randn(sum(lengths), 16)
    padded = padding.pad(values)
    expected = layer(padded, src_key_padding_mask=~padding.mask)
    got = block(padded, padded, padding.mask)
    torch.testing.assert_close(padding.unpad(got), padding.unpad(expected), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(padding.unpad(padded), values)


def test_bst_reads_the_targets_row_of_an_encoder_over_history_and_target() -> None:
    torch.manual_seed(1)
    network = BST(Config(), ModelContext(schema=SCHEMA, name="bst"))
    shaken(network)
    batch = Batch(random_block(seed=3), torch.device("cpu"))
    encoded = network.inputs(batch, False)
    width = network.inputs.target_dim + 8
    first = network.blocks["click"][0]  # type: ignore[index]
    layer = oracle(first, width, 0.01)
    now = network.times.weight[0].expand(batch.n_candidates, -1)
    target = torch.cat([10 * network.inputs.target(encoded), now], 1)
    got = network._target_rows(batch, encoded, "click", target)
    entries, candidates = batch.ragged("click.item").offsets, batch.ragged(CANDIDATES).offsets
    history, times = network.inputs.history(encoded, "click"), batch.ragged("click.ts").values
    for row in range(batch.n_requests):
        own = range(entries[row], entries[row + 1])
        places = [written_bucket(int(batch.ids("ts")[row]) - int(times[at])) for at in own]
        past = [torch.cat([history[at], network.times.weight[place]]) for at, place in zip(own, places, strict=True)]
        for at in range(candidates[row], candidates[row + 1]):
            sequence = torch.stack([*past, target[at]]).unsqueeze(0)
            torch.testing.assert_close(got[at], layer(sequence)[0, -1], atol=2e-5, rtol=1e-4)


def written_bucket(milliseconds: int) -> int:
    bucket, edge = 0, 1_000
    while milliseconds >= edge and bucket < TIME_BUCKETS - 1:
        bucket, edge = bucket + 1, edge * 2
    return bucket


@pytest.mark.parametrize("milliseconds", [0, 1, 999, 1_000, 1_999, 2_000, 3_600_000, 7_199_999, 2**40, 2**62])
def test_a_time_bucket_is_one_doubling_of_seconds(milliseconds: int) -> None:
    assert time_buckets(torch.tensor([milliseconds])).tolist() == [written_bucket(milliseconds)]


def test_a_time_before_the_entry_counts_as_none() -> None:
    assert time_buckets(torch.tensor([-5])).tolist() == [0]


@pytest.mark.parametrize("own", [True, False])
def test_no_history_is_no_information(own: bool) -> None:
    """With no key there is the bias of the output alone; with itself as the only key, a query gets its own value."""
    torch.manual_seed(0)
    unit = Block(8, 2, 8).attention
    query, mask = torch.randn(2, 3, 8), torch.zeros(2, 4, dtype=torch.bool)
    got: Tensor = unit(query, torch.randn(2, 4, 8), mask, own=own)
    expected = unit.out(unit.value(query)) if own else unit.out.bias.expand(2, 3, 8)
    torch.testing.assert_close(got, expected)


def test_no_row_at_all() -> None:
    padding = Padding.of(torch.zeros(1, dtype=torch.int64))
    assert padding.pad(torch.zeros(0, 5)).shape == (0, 1, 5)


def test_two_blocks_let_the_history_see_itself_only() -> None:
    torch.manual_seed(0)
    network = BST(Config(blocks=2), ModelContext(schema=SCHEMA, name="bst"))
    shaken(network)
    batch = Batch(random_block(seed=4), torch.device("cpu"))
    encoded = network.inputs(batch, False)
    width = network.inputs.target_dim + 8
    target = torch.randn(batch.n_candidates, width)
    one = network._target_rows(batch, encoded, "click", target)
    target[1:] += 1.0
    torch.testing.assert_close(network._target_rows(batch, encoded, "click", target)[0], one[0])
