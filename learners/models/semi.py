"""SEMI: what users do in one domain helps to score another (Lei et al., "SEMI: A Sequential Multi-Modal Information Transfer
Network", KDD 2021, section 3.4). Domains are the item sequences of the samples, say ``video`` and ``product``.

- Encoder of each domain (3.2.3): item vector + embedding of its time block, one hour each, counted back from the request and
  shared by the domains; then multi-head self-attention.
- Transfer: self-attention over the entries of all domains, ``[V_intra, P_intra]``.
- Target attention per domain: the target (block 0) queries ``V_inter`` and ``P_inter``; ``u_v``, ``u_p`` and ``v_t`` go on.
- An MLP predicts, beside this repository's other features, which the paper leaves out "for simplicity".

Item vectors are learned id embeddings; :meth:`SEMI.item_vectors` is where pre-extracted ones come in. The paper names Query,
Key and Value but neither residual sums nor norms; they are as in :class:`learners.transformer.Block`. All attention but the
target's is computed once per request. Encoders are modules of their own, which :class:`learners.ccl.CCL` can train: see
:meth:`SEMI.session`. With a single sequence there is no other domain, and the transfer is one more block.

Legend: ``R`` requests, ``C`` candidates, ``H`` entries of a sequence, ``L`` longest, ``d`` width of a target.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from learners.batch import CANDIDATES, Batch
from learners.ccl import Session
from learners.features import HOUR_MS, Encoded, Inputs, NetworkConfig
from learners.learner import Learner
from learners.models import ModelContext
from learners.network import ClickNetwork, Forward, NeuralLearner
from learners.request_mlp import Part, RequestMLP
from learners.transformer import Block, Padding, ages


class Config(NetworkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``semi``. The paper's MLP is ``hidden = [128]``."""

    heads: int = 8
    """Heads of the attention."""
    feed_forward: int = 128
    """Width of the hidden layer after the attention."""
    time_blocks: int = 7 * 24
    """Hours told apart; the paper's sequences span seven days. Older entries share the last."""


class SequenceEncoder(nn.Module):
    """One domain's encoder (Figure 2 d).

    Args:
        times: embeddings of time blocks, shared by the domains.
        block: self-attention.
    """

    def __init__(self, times: nn.Embedding, block: Block) -> None:
        super().__init__()
        self.times, self.block = times, block

    def forward(self, session: Session) -> Tensor:
        """Return ``V_intra``, ``[R, L, d]``; what stands in places without an item means nothing."""
        timed = session.vectors + self.times(session.blocks)
        out: Tensor = self.block(timed, timed, session.mask)
        return out


class SEMI(ClickNetwork):
    """Encoders, transfer, target attention, an MLP."""

    def __init__(self, config: Config, context: ModelContext) -> None:
        super().__init__()
        self.config = config
        self.inputs = Inputs(config, context)
        self.tables = self.inputs.tables
        domains = self.inputs.sequences
        if not domains:
            raise ValueError(f"{context.name}: semi needs an item sequence for each domain, and these samples have none")
        width = self.inputs.target_dim
        self.times = nn.Embedding(config.time_blocks, width)
        nn.init.uniform_(self.times.weight, -config.initial_scale, config.initial_scale)
        self.encoders = nn.ModuleDict({name: SequenceEncoder(self.times, self._block()) for name in domains})
        self.transfer = self._block()
        self.towards = nn.ModuleDict({name: self._block() for name in domains})
        candidate = self.inputs.candidate_dim + 2 * len(domains) * width + width
        self.mlp = RequestMLP(candidate, self.inputs.request_dim, config.hidden)

    def _block(self) -> Block:
        return Block(self.inputs.target_dim, self.config.heads, self.config.feed_forward)

    def item_vectors(self, batch: Batch, encoded: Encoded, sequence: str | None) -> Tensor:
        """Return the vectors of a sequence's items ``[H, d]``, or for None the candidates' ``[C, d]``: others come in here."""
        return self.inputs.target(encoded) if sequence is None else self.inputs.history(encoded, sequence)

    def session(self, batch: Batch, encoded: Encoded, sequence: str) -> Session:
        """Return what the encoder of a domain reads, its sequence of every request; :class:`learners.ccl.CCL` takes it too."""
        padding = Padding.of(batch.offsets(f"{sequence}.item"))
        hours = (ages(batch, sequence) // int(HOUR_MS)).clamp(0, self.config.time_blocks - 1)
        return Session(padding.pad(self.item_vectors(batch, encoded, sequence)), padding.mask, padding.pad(hours))

    def forward(self, batch: Batch, learn: bool, step: int) -> Forward:
        """Return logits ``[C]``."""
        encoded: Encoded = self.inputs(batch, learn)
        sessions = [self.session(batch, encoded, name) for name in self.inputs.sequences]
        target = self.item_vectors(batch, encoded, None) + self.times.weight[0]  # v_t
        interests = self._interests(sessions, Padding.of(batch.offsets(CANDIDATES)), target)
        parts = [Part(rows) for rows in (*interests, target)]
        return Forward(self.mlp([*encoded.candidate, *encoded.products, *parts], encoded.request, batch.request_of()))

    def _interests(self, sessions: list[Session], candidates: Padding, target: Tensor) -> list[Tensor]:
        """Return ``u_v``, ``u_p``, ...: the user in each domain as each target sees it, ``[C, d]``."""
        names = self.inputs.sequences
        intra = [self.encoders[name](session) for name, session in zip(names, sessions, strict=True)]
        both, mask = torch.cat(intra, 1), torch.cat([session.mask for session in sessions], 1)
        inter = torch.split(self.transfer(both, both, mask), [session.mask.shape[1] for session in sessions], 1)
        query = candidates.pad(target)
        found = []
        for name, session, keys in zip(names, sessions, inter, strict=True):
            found.append(candidates.unpad(cast(Block, self.towards[name])(query, keys, session.mask)))
        return found


def build(config: Config, context: ModelContext) -> Learner:
    """Build the learner."""
    torch.manual_seed(context.seed)
    return NeuralLearner(SEMI(config, context), config.rate, context.device)
