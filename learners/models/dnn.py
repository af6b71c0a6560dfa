"""DNN: mean-pooled histories beside the candidate, into an MLP (the pooling baseline of EGIN's section 4.2).

``p = sigmoid(MLP([target, target * pooled, other features]))``. ``cross`` adds the elementwise product of the target and each
pooled history, without which an MLP finds it hard to tell whether they agree.
"""

from __future__ import annotations

import torch

from learners.batch import Batch
from learners.features import Encoded, Inputs, NetworkConfig
from learners.learner import Learner
from learners.models import ModelContext
from learners.network import ClickNetwork, Forward, NeuralLearner, clicked
from learners.request_mlp import RequestMLP


class Config(NetworkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``dnn``."""

    cross: bool = True
    """Whether the products of target and pooled histories are inputs."""


class DNN(ClickNetwork):
    """Pooling and an MLP."""

    on_tape = True
    uses_torch_threads = False

    def __init__(self, config: Config, context: ModelContext) -> None:
        super().__init__()
        self.inputs = Inputs(config, context)
        self.tables = self.inputs.tables
        self.cross = config.cross
        cross_dim = config.cross * len(self.inputs.sequences) * self.inputs.target_dim
        self.mlp = RequestMLP(self.inputs.candidate_dim + cross_dim, self.inputs.request_dim, config.hidden, config.products)

    def forward(self, batch: Batch, learn: bool, step: int) -> Forward:
        """Return logits ``[C]``."""
        encoded: Encoded = self.inputs(batch, learn)
        candidate = encoded.candidate + (encoded.products if self.cross else [])
        return clicked(self.mlp, candidate, encoded.request, batch, learn)


def build(config: Config, context: ModelContext) -> Learner:
    """Build the learner."""
    torch.manual_seed(context.seed)
    return NeuralLearner(DNN(config, context), config.rate, context.device)
