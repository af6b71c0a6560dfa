"""BST: a transformer over history and target (Chen et al., "Behavior Sequence Transformer for E-commerce Recommendation in
Alibaba", 2019).

An entry is ``[item, category, position]``, position being the bucket of the time between it and the request (section 2.2:
``pos(v_i) = t(v_t) - t(v_i)``), concatenated; the target is part of the sequence and its own row of the last block goes into
the MLP beside the other features (section 2.3). Heads and width of the feed-forward network are those of SEMI's appendix A.2.

Which BST this is (there are several under the name): torch-rechub's position is the place 0, 1, ... in the padded sequence, and
it is added where the paper concatenates a time difference; other codes feed the mean of all rows, or all of them, to the MLP.
Here position and pooling are the paper's. With its weights and positions a block gives torch-rechub's rows
(``tests/learners/test_public_models.py``). There is no dropout: one pass over a stream never sees a sample twice.

Because only the target's row is read, the history's keys and values are computed once per request and a candidate costs
``O(L)``. With one block, the paper's best, this *is* the paper's model. With more, entries of the history see each other but
not the target: the full form would need a history per candidate, ``O(C L^2)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from learners.batch import CANDIDATES, Batch
from learners.features import Encoded, Inputs, NetworkConfig
from learners.learner import Learner
from learners.models import ModelContext
from learners.network import ClickNetwork, Forward, NeuralLearner, clicked
from learners.request_mlp import Part, RequestMLP
from learners.transformer import TIME_BUCKETS, Block, Padding, age_buckets


class Config(NetworkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``bst``."""

    heads: int = 8
    """Heads of the attention."""
    feed_forward: int = 128
    """Width of the hidden layer after the attention."""
    blocks: int = 1
    """Transformer blocks on top of one another."""


class BST(ClickNetwork):
    """A transformer per item sequence, and an MLP."""

    def __init__(self, config: Config, context: ModelContext) -> None:
        super().__init__()
        if config.blocks < 1 or config.heads < 1:
            raise ValueError(f"bst: blocks = {config.blocks} and heads = {config.heads} must be at least 1")
        self.inputs = Inputs(config, context, by_vector=True)
        self.tables = self.inputs.tables
        width = self.inputs.target_dim + config.feature_dim
        self.times = nn.Embedding(TIME_BUCKETS, config.feature_dim)
        nn.init.uniform_(self.times.weight, -config.initial_scale, config.initial_scale)
        groups = self.groups()
        blocks = {
            name: [Block(width, config.heads, config.feed_forward, 0.01) for _ in range(config.blocks)] for name in groups
        }
        self.blocks = nn.ModuleDict({name: nn.ModuleList(own) for name, own in blocks.items()})
        crossed = len(self.inputs.sequences) * self.inputs.target_dim
        self.mlp = RequestMLP(
            self.inputs.candidate_dim + crossed + len(groups) * width, self.inputs.request_dim, config.hidden, config.products
        )

    def groups(self) -> Mapping[str, Sequence[str]]:
        """Return which item sequences share a transformer: each has its own."""
        return {name: (name,) for name in self.inputs.sequences}

    def prepare(self, batch: Batch) -> None:
        """Make the inputs' part, the padding and the buckets of time."""
        super().prepare(batch)
        Padding.of_column(batch, CANDIDATES)
        for name in self.inputs.sequences:
            Padding.of_column(batch, f"{name}.item")
            age_buckets(batch, name)

    def forward(self, batch: Batch, learn: bool, step: int) -> Forward:
        """Return logits ``[C]``."""
        encoded: Encoded = self.inputs(batch, learn)
        now = self.times.weight[0].expand(batch.n_candidates, -1)
        target = torch.cat([self.inputs.target(encoded), now], 1)  # [C, d]
        rows = [Part(self._target_rows(batch, encoded, name, target)) for name in self.groups()]
        return clicked(self.mlp, [*encoded.candidate, *encoded.products, *rows], encoded.request, batch, learn)

    def _target_rows(self, batch: Batch, encoded: Encoded, group: str, target: Tensor) -> Tensor:
        """Return the target's row of the last block, ``[C, d]``."""
        candidates = Padding.of_column(batch, CANDIDATES)
        padded = [self._padded(batch, encoded, name) for name in self.groups()[group]]
        query, history = candidates.pad(target), torch.cat([entries for entries, _ in padded], 1)
        mask = torch.cat([mask for _, mask in padded], 1)
        layers = self.blocks[group]
        assert isinstance(layers, nn.ModuleList)
        for number, block in enumerate(layers):
            query = block(query, history, mask, own=True)
            if number + 1 < len(layers):
                history = block(history, history, mask)
        return candidates.unpad(query)

    def _padded(self, batch: Batch, encoded: Encoded, name: str) -> tuple[Tensor, Tensor]:
        """Return the entries of a sequence, ``[R, L, d]``, and where they are, ``[R, L]``."""
        times = self.times(age_buckets(batch, name))
        padding = Padding.of_column(batch, f"{name}.item")
        return padding.pad(torch.cat([self.inputs.history(encoded, name), times], 1)), padding.mask


def build(config: Config, context: ModelContext) -> Learner:
    """Build the learner."""
    torch.manual_seed(context.seed)
    return NeuralLearner(BST(config, context), config.rate, context.device)
