"""YoutubeDNN: a user vector from averaged histories, and its inner product with the item (Covington et al. 2016, section 3).

The network of the paper's candidate generation as the baseline for ranking that SEMI's Table 1 compares with ("obtains user
representations by simply averaging the item embeddings", section 4.2.1): ``u = MLP([mean of each history, other features of
the request])``, ReLU, and ``logit = u . v + w x + b`` with ``v`` the embedding of the scored item and ``x`` what else is known
of the candidate (position, statistics, floats). Shown and not clicked takes the place of the paper's sampled softmax: every
candidate is an impression with a label. The network of the paper's section 4 (ranking by an MLP over averaged history and
item) is this repository's ``dnn`` with ``cross = false``.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from learners.batch import Batch
from learners.features import Encoded, Inputs, NetworkConfig
from learners.learner import Learner
from learners.models import ModelContext
from learners.network import ClickNetwork, Forward, NeuralLearner
from learners.request_mlp import Part, SlotPart


class Config(NetworkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``youtube_dnn``. ``hidden`` are the layers of the user's tower, below the vector of a target's width;
    ``products`` is float32 alone."""


class YoutubeDNN(ClickNetwork):
    """A tower for the user, a table for the item."""

    def __init__(self, config: Config, context: ModelContext) -> None:
        super().__init__()
        if config.products != "float32":
            raise ValueError(f"{context.name}: youtube_dnn multiplies in float32; leave `products` out")
        self.inputs = Inputs(config, context, by_vector=True)
        self.tables = self.inputs.tables
        layers: list[nn.Module] = []
        for wide, narrow in itertools.pairwise((self.inputs.request_dim, *config.hidden)):
            layers += [nn.Linear(wide, narrow), nn.LayerNorm(narrow), nn.ReLU()]
        self.user = nn.Sequential(*layers, nn.Linear(config.hidden[-1], self.inputs.target_dim))
        self.other = nn.Linear(self.inputs.candidate_dim, 1)

    def forward(self, batch: Batch, learn: bool, step: int) -> Forward:
        """Return logits ``[C]``."""
        encoded: Encoded = self.inputs(batch, learn)
        user = self.user(encoded.request).index_select(0, batch.request_of())  # [C, T]
        other = torch.cat([_columns(part) for part in encoded.candidate], 1)
        return Forward((user * self.inputs.target(encoded)).sum(1) + self.other(other).squeeze(1))


def _columns(part: Part | SlotPart) -> Tensor:
    return part.expanded() if isinstance(part, Part) else part.embedding.embed(part.slots)


def build(config: Config, context: ModelContext) -> Learner:
    """Build the learner."""
    torch.manual_seed(context.seed)
    return NeuralLearner(YoutubeDNN(config, context), config.rate, context.device)
