"""SEMI and Cross-BST on samples of two domains: the check-suite, SEMI written out per candidate, and CCL on its encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from learners.batch import CANDIDATES, Batch
from learners.ccl import CCL, CCLConfig, max_pool, session_pairs
from learners.checks import CHECKS, Case, random_block, replaced
from learners.models import ModelContext
from learners.models.bst import BST
from learners.models.bst import Config as BSTConfig
from learners.models.cross_bst import Config as CrossConfig
from learners.models.cross_bst import CrossBST
from learners.models.semi import SEMI, Config, SequenceEncoder
from learners.samples import Ragged, SampleSchema
from learners.transformer import Block, Padding

SCHEMA = SampleSchema(generation="two", item_sequences=("video", "product"), has_query=False)
CPU = torch.device("cpu")
HOUR = 3_600_000


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_semi_on_two_domains(check: Callable[[Case], None]) -> None:
    check(Case("semi", {"hidden": [32]}, SCHEMA))


def semi() -> SEMI:
    torch.manual_seed(0)
    network = SEMI(Config(), ModelContext(schema=SCHEMA, name="semi"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return network


def alone(block: Block, query: Tensor, keys: Tensor) -> Tensor:
    """Run a block on one unpadded sequence."""
    return cast(Tensor, block(query.unsqueeze(0), keys.unsqueeze(0), torch.ones(1, len(keys), dtype=torch.bool)))[0]


def test_interests_are_those_of_each_request_alone() -> None:
    network, batch = semi(), Batch(random_block(SCHEMA, seed=2), CPU)
    encoded = network.inputs(batch, False)
    target = network.inputs.target(encoded) + network.times.weight[0]
    sessions = [network.session(batch, encoded, name) for name in SCHEMA.item_sequences]
    got = network._interests(sessions, Padding.of(batch.offsets(CANDIDATES)), target)
    candidates = batch.ragged(CANDIDATES).offsets
    bounds = {name: batch.ragged(f"{name}.item").offsets for name in SCHEMA.item_sequences}
    for row in range(batch.n_requests):
        intra = []
        for name in SCHEMA.item_sequences:
            own = slice(bounds[name][row], bounds[name][row + 1])
            hours = (batch.ids("ts")[row] - batch.ids(f"{name}.ts")[own]) // HOUR
            vectors = network.inputs.history(encoded, name)[own] + network.times.weight[hours.tolist()]
            intra.append(alone(cast(SequenceEncoder, network.encoders[name]).block, vectors, vectors))
        both = torch.cat(intra)
        inter = torch.split(alone(network.transfer, both, both), [len(part) for part in intra])
        seen = target[candidates[row] : candidates[row + 1]]
        for name, keys, interests in zip(SCHEMA.item_sequences, inter, got, strict=True):
            expected = alone(cast(Block, network.towards[name]), seen, keys)
            torch.testing.assert_close(interests[candidates[row] : candidates[row + 1]], expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["semi", "cross_bst", "bst"])
def test_the_other_domain_reaches_the_interest_in_a_domain_by_transfer(kind: str) -> None:
    """Another product history changes what the video history says in SEMI and Cross-BST, and does not in BST."""
    block = random_block(SCHEMA, seed=2)
    product = block.ragged("product.item")
    other = replaced(block, product__item=Ragged(product.values + 1000, product.offsets))
    one, two = (of_videos(kind, Batch(changed, CPU)) for changed in (block, other))
    assert torch.equal(one, two) == (kind == "bst")


def of_videos(kind: str, batch: Batch) -> Tensor:
    if kind == "semi":
        network = semi()
        encoded = network.inputs(batch, False)
        sessions = [network.session(batch, encoded, name) for name in SCHEMA.item_sequences]
        target = torch.ones(batch.n_candidates, network.inputs.target_dim)
        return network._interests(sessions, Padding.of(batch.offsets(CANDIDATES)), target)[0]
    torch.manual_seed(0)
    context = ModelContext(schema=SCHEMA, name="bst")
    model = BST(BSTConfig(), context) if kind == "bst" else CrossBST(CrossConfig(), context)
    target = torch.ones(batch.n_candidates, model.inputs.target_dim + 8)
    return model._target_rows(batch, model.inputs(batch, False), next(iter(model.groups())), target)


def test_ccl_trains_semis_encoders_and_nothing_else() -> None:
    network = semi()
    encoders = [network.encoders[name] for name in SCHEMA.item_sequences]
    width = network.inputs.target_dim
    ccl = CCL(encoders[0], encoders[1], width, CCLConfig(capacity=64, rate=0.01))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for seed in range(6):
        block = random_block(SCHEMA, 40, seed=seed, max_history=20)
        block = replaced(block, user=np.arange(1, 41) + 40 * seed)
        batch = Batch(block, CPU)
        encoded = network.inputs(batch, False)
        videos, products = (batch.ragged(f"{name}.item").lengths for name in SCHEMA.item_sequences)
        rows = session_pairs(batch.ids("user"), videos, products, least=(3, 3))
        at = torch.from_numpy(rows)
        sessions = [network.session(batch, encoded, name) for name in SCHEMA.item_sequences]
        first, second = (type(session)(*(part[at] for part in session)) for session in sessions)
        stats = ccl.step(first, second, batch.ids("user")[rows])
        assert stats["ccl.pairs"] > 5
        assert np.isfinite([stats["ccl.loss.first"], stats["ccl.loss.second"]]).all()
    moved = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith(("encoders.", "times.")) for name in moved)
    assert "times.weight" in moved
    # What CCL says of a session is the pooled output of the network's own encoder.
    torch.testing.assert_close(ccl.encode(0, first), max_pool(encoders[0](first), first.mask).detach())
