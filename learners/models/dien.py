"""DIEN: interests evolve towards what is being scored (Zhou et al., "Deep Interest Evolution Network", AAAI 2019).

- Interest extractor: a GRU over the history, once per request (Eq. 2 to 5).
- Auxiliary loss (Eq. 6): a state tells the next entry from a negative, by inner product. It is masked to real entries, and part
  of the loss by default: public codes leave it unmasked, or out. (deepctr-torch has an MLP for the inner product; not here.)
- Interest evolution: attention ``a_t = softmax_t(h_t W e)`` (Eq. 12) and :class:`learners.augru.AUGRU`, per candidate.

With copied weights all three are torch-rechub's, which ``tests/learners/test_public_models.py`` holds.

A negative is an entry of the batch's histories, drawn at random, thus as often as it is clicked; one of the positive's item
is left out. The paper draws from all items; entries of the batch come with their categories.

Legend: ``R`` requests, ``C`` candidates, ``H`` history entries, ``L`` longest history, ``T`` width of a target.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from learners.augru import AUGRU
from learners.batch import Batch
from learners.features import Encoded, Inputs, NetworkConfig
from learners.gather import rows
from learners.learner import Learner
from learners.models import ModelContext
from learners.network import ClickNetwork, Forward, NeuralLearner, clicked
from learners.request_mlp import Part, RequestMLP
from learners.transformer import OUT, Padding
from negative_queues import draw_below, draw_key


class Config(NetworkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``dien``."""

    auxiliary: float = 0.1
    """Weight of the auxiliary loss (alpha of Eq. 7); 0 is off. Public code: 1. On the first 20,000 requests of Globo (one
    seed, the last half scored) AUC is .741 without it, .743 with 0.1 and .732 with 1."""


class Evolution(nn.Module):
    """The layers of one item sequence.

    Args:
        dim: ``T``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.extractor = nn.GRU(dim, dim, batch_first=True)
        self.match = nn.Linear(dim, dim, bias=False)
        self.evolution = AUGRU(dim)

    def states(self, history: Tensor, padding: Padding) -> Tensor:
        """Return the interest states ``[R, L, T]`` of a history ``[H, T]``."""
        padded = padding.pad(history)
        if not padding.n_rows:
            return padded
        states: Tensor = self.extractor(padded)[0]
        return states

    def forward(self, states: Tensor, padding: Padding, target: Tensor, request_of: Tensor) -> Tensor:
        """Return the interest in each target ``[C, T]``, 0 where the history is empty."""
        mask = padding.mask.index_select(0, request_of)  # [C, L]
        matched = self.match(target)  # [C, T]
        scores = (states.index_select(0, request_of) @ matched.unsqueeze(2)).squeeze(2)
        attention = scores.masked_fill(~mask, OUT).softmax(1) * mask
        interest: Tensor = self.evolution(states, attention, request_of)
        return interest


class DIEN(ClickNetwork):
    """Interest extraction and evolution per item sequence, and an MLP."""

    def __init__(self, config: Config, context: ModelContext) -> None:
        super().__init__()
        self.context, self.auxiliary = context, config.auxiliary
        self.inputs = Inputs(config, context, by_vector=True)
        self.tables = self.inputs.tables
        width = self.inputs.target_dim
        self.evolve = nn.ModuleDict({name: Evolution(width) for name in self.inputs.sequences})
        wide = 3 * len(self.inputs.sequences) * width
        self.mlp = RequestMLP(self.inputs.candidate_dim + wide, self.inputs.request_dim, config.hidden, config.products)

    def loss_weights(self) -> Mapping[str, float]:
        """Return alpha of Eq. 7."""
        return {"auxiliary": self.auxiliary}

    def prepare(self, batch: Batch) -> None:
        """Make the inputs' part and the padding."""
        super().prepare(batch)
        for name in self.inputs.sequences:
            Padding.of_column(batch, f"{name}.item")

    def forward(self, batch: Batch, learn: bool, step: int) -> Forward:
        """Return logits ``[C]`` and, when learning, the auxiliary loss."""
        encoded: Encoded = self.inputs(batch, learn)
        target = self.inputs.target(encoded)
        parts: list[Part] = []
        losses: list[Tensor] = []
        for name, layers in self.evolve.items():
            assert isinstance(layers, Evolution)
            history, padding = self.inputs.history(encoded, name), Padding.of_column(batch, f"{name}.item")
            states = layers.states(history, padding)
            interest = layers(states, padding, target, batch.request_of())
            parts += [Part(interest), Part(interest * target)]
            if learn and self.auxiliary:
                losses.append(self._auxiliary(batch, name, padding.unpad(states), history, step))
        out = clicked(self.mlp, [*encoded.candidate, *encoded.products, *parts], encoded.request, batch, learn)
        return out._replace(losses={"auxiliary": torch.stack(losses).sum()} if losses else {})

    def _auxiliary(self, batch: Batch, name: str, states: Tensor, history: Tensor, step: int) -> Tensor:
        """Return the mean over steps of ``-log s(h_t . e_{t+1}) - log(1 - s(h_t . e'))``, ``s`` the sigmoid; 0 of none."""
        if not len(history):
            return history.new_zeros(())
        request, items = batch.request_of(f"{name}.item"), batch.tensor(batch.ids(f"{name}.item"))
        before = (request[1:] == request[:-1]).nonzero().squeeze(1)  # entries with a next one
        key = draw_key(self.context.seed, self.context.name, f"negatives.{name}", step)
        drawn = batch.tensor(draw_below(key, len(before), len(history)))
        # Not ``history[drawn]``: torch adds up the gradients of such places in the order in which its threads come.
        taken = rows(states, before), rows(history, before + 1), rows(history, drawn)
        return auxiliary_loss(*taken, items[before + 1] != items[drawn])


def auxiliary_loss(states: Tensor, positive: Tensor, negative: Tensor, apart: Tensor) -> Tensor:
    """Return DIEN's Eq. 6 over ``n`` steps, a scalar; ``apart`` bool ``[n]`` says where the negative is another item."""
    told = softplus(-(states * positive).sum(1)).sum() + (softplus((states * negative).sum(1)) * apart).sum()
    return told / max(len(states), 1)


def build(config: Config, context: ModelContext) -> Learner:
    """Build the learner."""
    torch.manual_seed(context.seed)
    return NeuralLearner(DIEN(config, context), config.rate, context.device)
