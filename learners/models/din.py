"""DIN: histories weighted by what is being scored (Zhou et al. 2018).

As the DNN, with :class:`learners.attention.TargetAttention`'s sum over each history beside its mean. Attention goes from one
candidate to its user's history only, so no candidate sees another (the first public code attended to the positive while it
scored the negative). No Dice: its batch statistics would tie a score to its neighbours; PReLU takes its place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from learners.attention import Columns, TargetAttention, matrices
from learners.batch import CANDIDATES, Batch
from learners.features import Encoded, Inputs, NetworkConfig
from learners.learner import Learner
from learners.models import ModelContext
from learners.network import ClickNetwork, Forward, NeuralLearner, clicked
from learners.request_mlp import Part, RequestMLP


class Config(NetworkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``din``."""

    attention_hidden: int = 36
    """Width of the activation unit's hidden layer."""


class DIN(ClickNetwork):
    """Target attention and an MLP."""

    uses_torch_threads = False

    def __init__(self, config: Config, context: ModelContext) -> None:
        super().__init__()
        self.inputs = Inputs(config, context, by_vector=True)
        self.tables = self.inputs.tables
        width = self.inputs.target_dim
        self.attention = nn.ModuleDict(
            {name: TargetAttention(width, config.attention_hidden) for name in self.inputs.sequences}
        )
        wide = 3 * len(self.inputs.sequences) * width
        self.mlp = RequestMLP(self.inputs.candidate_dim + wide, self.inputs.request_dim, config.hidden, config.products)
        self.on_tape = self.inputs.vectors is None

    def forward(self, batch: Batch, learn: bool, step: int) -> Forward:
        """Return logits ``[C]``."""
        encoded: Encoded = self.inputs(batch, learn)
        interest = [Part(part) for part in interests(batch, encoded, self.inputs, self.attention)]
        candidate = [*encoded.candidate, *encoded.products, *interest]
        return clicked(self.mlp, candidate, encoded.request, batch, learn)


def interests(batch: Batch, encoded: Encoded, inputs: Inputs, attention: nn.ModuleDict) -> list[Tensor]:
    """Return the interest in each item sequence and its product with the target side by side, ``[C, 2 T]`` each."""
    parts: list[Tensor] = []
    targets = batch.ragged(CANDIDATES).offsets
    target = inputs.target(encoded) if inputs.vectors is not None else None
    for use, (name, unit) in enumerate(attention.items(), 1):
        if target is None:
            tables = [encoded.items] + ([encoded.categories] if encoded.categories else [])
            columns = [Columns(table.weight, table.weight, table.places[0], table.places[use]) for table in tables]
        else:
            columns = matrices(target, inputs.history(encoded, name))
        parts.append(unit.forward(columns, targets, batch.ragged(f"{name}.item").offsets))
    return parts


def build(config: Config, context: ModelContext) -> Learner:
    """Build the learner."""
    torch.manual_seed(context.seed)
    return NeuralLearner(DIN(config, context), config.rate, context.device)
