"""SEMI: what users do in one domain helps to score another (Lei et al., "SEMI: A Sequential Multi-Modal Information Transfer
Network", KDD 2021, section 3.4). Domains are the item sequences of the samples, say ``video`` and ``product``.

- Encoder of each domain (3.2.3): item vector + embedding of its time block, one hour each, counted back from the request and
  shared by the domains; then multi-head self-attention.
- Transfer: self-attention over the entries of all domains, ``[V_intra, P_intra]``.
- Target attention per domain: the target (block 0) queries ``V_inter`` and ``P_inter``; ``u_v``, ``u_p`` and ``v_t`` go on.
- An MLP predicts, beside this repository's other features, which the paper leaves out "for simplicity".

Item vectors are the pre-extracted ones where the run has a store of them (``vectors``, see :mod:`learners.vector_inputs`), else
learned embeddings of id and category. The paper names Query, Key and Value but neither residual sums nor norms; they are as in
:class:`learners.transformer.Block`. All attention but the target's is computed once per request. With a single sequence there
is no other domain, and the transfer is one more block.

Encoders are modules of their own, which CCL trains too: before the click model sees anything (``ccl_pretrain_until``) or beside
it (``ccl = "on"``), see :mod:`learners.ccl_stream`. "SEMI-Product" and "SEMI-Micro-Video" of Table 2 are ``domains = NAME``:
the click model reads that domain alone, CCL both.

Legend: ``R`` requests, ``C`` candidates, ``H`` entries of a sequence, ``L`` longest, ``d`` width of a target.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from learners.batch import CANDIDATES, Batch
from learners.ccl import CCL, CCLConfig, Session
from learners.ccl_pairs import PairBuffer, under_one_name
from learners.ccl_stream import CCLStream, Pace
from learners.features import Encoded, Inputs, NetworkConfig
from learners.float_columns import HOUR_MS
from learners.learner import Learner, Scores, State, Stats
from learners.models import ModelContext
from learners.network import ClickNetwork, Forward, NeuralLearner, clicked
from learners.request_mlp import Part, RequestMLP
from learners.samples import SampleBlock
from learners.transformer import Block, Padding, ages
from learners.vector_inputs import VectorInputs, project


class Config(NetworkConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``semi``. The paper's MLP is ``hidden = [128]``."""

    heads: int = 8
    """Heads of the attention."""
    feed_forward: int = 128
    """Width of the hidden layer after the attention."""
    time_blocks: int = 7 * 24
    """Hours told apart; the paper's sequences span seven days. Older entries share the last."""
    domains: str = "both"
    """Item sequences that the click model reads: both, or the name of one."""

    ccl: Literal["off", "on", "pretrain"] = "off"
    """on: CCL trains the encoders beside the click model. pretrain: only on what lies before ``ccl_pretrain_until``."""
    ccl_pretrain_until: int | dt.datetime | None = None
    """Requests shown before this (UTC ms, or a TOML date-time) feed CCL alone, the first of them its dictionaries; the click
    model learns from here on. Let ``replay.score_from`` be no earlier."""
    ccl_batch: Annotated[int, msgspec.Meta(ge=2)] = 1024
    """Pairs of one step, each of another user: with fewer active users than this CCL never steps."""
    ccl_min_sessions: tuple[int, int] = (10, 10)
    """Entries that a user's two sequences must have to be a pair, in the order of the sequences; (10, 5) in the paper."""
    ccl_every: Annotated[int, msgspec.Meta(ge=0)] = 0
    """At most one step of CCL per so many click steps. 0: in a replay and on a GPU with every full batch; live on a CPU as
    ``ccl_budget`` allows."""
    ccl_budget: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.30
    """Share of the learner's time that CCL may take, live on a CPU. Turned into a cadence once, when the first batch is full,
    and kept in the checkpoint: the statistic ``ccl.every`` says which."""
    ccl_capacity: Annotated[int, msgspec.Meta(ge=1)] = 40 * 1024
    """K, keys of each dictionary."""
    ccl_temperature: Annotated[float, msgspec.Meta(gt=0)] = 0.7
    """tau."""
    ccl_momentum: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.999
    """m, of the key encoders."""
    ccl_rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    """Learning rate of CCL's own Adam."""


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


class FromVectors(nn.Module):
    """What CCL trains where items come with vectors: their projection, which the domains share, and a domain's encoder.

    A session's items are :meth:`learners.vector_inputs.VectorInputs.given`. Extractors of different domains need not agree on
    what a number means, and the projection is where that can be learned.
    """

    def __init__(self, vectors: VectorInputs, encoder: SequenceEncoder) -> None:
        super().__init__()
        self.projection, self.encoder = vectors.projection, encoder

    def forward(self, session: Session) -> Tensor:
        """Return ``V_intra``, ``[R, L, d]``."""
        out: Tensor = self.encoder(session._replace(vectors=project(self.projection, session.vectors)))
        return out


class SEMI(ClickNetwork):
    """Encoders, transfer, target attention, an MLP."""

    def __init__(self, config: Config, context: ModelContext) -> None:
        super().__init__()
        self.config = config
        every = config.sequences or context.schema.item_sequences
        if not every:
            raise ValueError(f"{context.name}: semi needs an item sequence for each domain, and these samples have none")
        self.inputs = Inputs(_reading(config, every, context.name), context, by_vector=True)
        self.tables = self.inputs.tables
        domains = self.inputs.sequences
        self.pair = _pair(every, context.name) if config.ccl != "off" else None
        """The domains of CCL."""
        self.contrast: CCLStream | None = None
        width = self.inputs.target_dim
        self.times = nn.Embedding(config.time_blocks, width)
        nn.init.uniform_(self.times.weight, -config.initial_scale, config.initial_scale)
        self.encoders = nn.ModuleDict({name: SequenceEncoder(self.times, self._block()) for name in self.pair or domains})
        self.transfer = self._block()
        self.towards = nn.ModuleDict({name: self._block() for name in domains})
        candidate = self.inputs.candidate_dim + 2 * len(domains) * width + width
        self.mlp = RequestMLP(candidate, self.inputs.request_dim, config.hidden, config.products)

    def _block(self) -> Block:
        return Block(self.inputs.target_dim, self.config.heads, self.config.feed_forward)

    def session(self, batch: Batch, encoded: Encoded, sequence: str) -> Session:
        """Return what the encoder of a domain reads, its sequence of every request."""
        return self._session(batch, sequence, self.inputs.history(encoded, sequence))

    def _session(self, batch: Batch, sequence: str, items: Tensor) -> Session:
        padding = Padding.of_column(batch, f"{sequence}.item")
        hours = (ages(batch, sequence) // int(HOUR_MS)).clamp(0, self.config.time_blocks - 1)
        return Session(padding.pad(items), padding.mask, padding.pad(hours))

    def contrasted(self) -> tuple[nn.Module, nn.Module]:
        """Return what CCL trains of this network, an encoder of :meth:`pair_sessions` per domain."""
        assert self.pair is not None, "asked for by CCL alone"
        first, second = (cast(SequenceEncoder, self.encoders[name]) for name in self.pair)
        if (vectors := self.inputs.vectors) is None:
            return first, second
        return FromVectors(vectors, first), FromVectors(vectors, second)

    @torch.no_grad()
    def pair_sessions(self, block: SampleBlock) -> tuple[Session, Session]:
        """Return the sessions of both domains of CCL, row by row, with the learned and given vectors of now."""
        assert self.pair is not None, "asked for by CCL alone"
        device, read = self.times.weight.device, self.inputs.sequences
        found = []
        for name in self.pair:
            # A model of one domain has no look-up for the other's sequence, which so takes the place of its own.
            own = name if name in read else read[0]
            batch = Batch(under_one_name(block, name, own), device)
            encoded = self.inputs(batch, False)
            without = self.inputs.vectors is None
            items = self.inputs.history(encoded, own) if without else self.inputs.given_history(encoded, own)
            found.append(self._session(batch, own, items))
        return found[0], found[1]

    def memory(self) -> State:
        """Return what the inputs and CCL keep."""
        contrast = {} if self.contrast is None else self.contrast.state()
        return {**super().memory(), **{f"contrast.{name}": array for name, array in contrast.items()}}

    def load_memory(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take :meth:`memory` back."""
        super().load_memory({name: array for name, array in state.items() if not name.startswith("contrast.")})
        if self.contrast is not None:
            prefix = "contrast."
            self.contrast.load_state({n.removeprefix(prefix): array for n, array in state.items() if n.startswith(prefix)})

    def describe(self) -> dict[str, Any]:
        """Return CCL's pace and dictionaries, or that it is off."""
        if self.contrast is None:
            return {"off": {"ccl": 'ccl = "off"'}}
        queues = [contrast.queue for contrast in self.contrast.ccl.contrasts]
        fills = {f"ccl.{n}": {"fill": q.fill, "capacity": q.capacity} for n, q in zip(self.pair or (), queues, strict=True)}
        return {"ccl": self.contrast.describe(), "queues": fills}

    def prepare(self, batch: Batch) -> None:
        """Make the inputs' part, the padding and the ages."""
        super().prepare(batch)
        Padding.of_column(batch, CANDIDATES)
        for name in self.inputs.sequences:
            Padding.of_column(batch, f"{name}.item")
            ages(batch, name)

    def forward(self, batch: Batch, learn: bool, step: int) -> Forward:
        """Return logits ``[C]``."""
        encoded: Encoded = self.inputs(batch, learn)
        sessions = [self.session(batch, encoded, name) for name in self.inputs.sequences]
        target = self.inputs.target(encoded) + self.times.weight[0]  # v_t
        interests = self._interests(sessions, Padding.of_column(batch, CANDIDATES), target)
        parts = [Part(rows) for rows in (*interests, target)]
        return clicked(self.mlp, [*encoded.candidate, *encoded.products, *parts], encoded.request, batch, learn)

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


class SEMILearner(NeuralLearner):
    """The click model, and CCL on its encoders where it is on.

    Args:
        network: on the CPU.
        config: of both.
        device: ``cpu`` or ``cuda``.
        live: whether the budget of CCL counts.
    """

    network: SEMI

    def __init__(self, network: SEMI, config: Config, device: str, live: bool) -> None:
        super().__init__(network, config.rate, device)
        self.config = config
        self.until = _milliseconds(config.ccl_pretrain_until)
        if network.pair is not None:
            by_budget = config.ccl_every == 0 and live and self.device.type == "cpu"
            pace = Pace(every=0 if by_budget else max(config.ccl_every, 1), budget=config.ccl_budget)
            network.contrast = CCLStream(_ccl(network, config), _waiting(network.pair, config), network.pair_sessions, pace)

    def predict_learn(self, block: SampleBlock) -> tuple[Scores, Stats]:
        """Score and learn; what lies before ``ccl_pretrain_until`` only feeds CCL."""
        contrast = self.network.contrast
        if contrast is None:
            return super().predict_learn(block)
        early = block.column("ts") < self.until
        if early.any():
            scores, stats = self.predict(block), contrast.pretrain(block.take(np.flatnonzero(early)))
            rest = block.take(np.flatnonzero(~early))
            return scores, {**stats, **(self._beside(rest)[1] if len(rest) else {})}
        return self._beside(block)

    def _beside(self, block: SampleBlock) -> tuple[Scores, Stats]:
        contrast, began = self.network.contrast, time.thread_time()
        scores, stats = super().predict_learn(block)
        if contrast is None or self.config.ccl != "on":
            return scores, stats
        return scores, {**stats, **contrast.after_click(block, time.thread_time() - began)}

    def take_decisions(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Step as often as the learner that returned ``state`` came to."""
        if self.network.contrast is not None:
            self.network.contrast.take_decisions(int(state["memory.contrast.pace"][0]))


def _ccl(network: SEMI, config: Config) -> CCL:
    first, second = network.contrasted()
    options = CCLConfig(
        capacity=config.ccl_capacity,
        temperature=config.ccl_temperature,
        momentum=config.ccl_momentum,
        rate=config.ccl_rate,
    )
    return CCL(first, second, network.inputs.target_dim, options)


def _waiting(pair: tuple[str, str], config: Config) -> PairBuffer:
    return PairBuffer(pair, config.ccl_batch, config.ccl_min_sessions)


def _pair(every: tuple[str, ...], model: str) -> tuple[str, str]:
    if len(every) != 2:
        have = ", ".join(every)
        raise ValueError(f"{model}: ccl needs two item sequences, one a domain, and there are {have}; name two in `sequences`")
    return every[0], every[1]


def _reading(config: Config, every: tuple[str, ...], model: str) -> Config:
    """Return the config with the sequences that the click model reads."""
    if config.domains == "both":
        return config
    if config.domains not in every:
        raise ValueError(f"{model}: domains = {config.domains!r} is neither both nor one of {', '.join(every)}")
    return msgspec.structs.replace(config, sequences=(config.domains,))


def _milliseconds(until: int | dt.datetime | None) -> int:
    if until is None:
        return np.iinfo(np.int64).min
    if isinstance(until, int):
        return until
    aware = until if until.tzinfo is not None else until.replace(tzinfo=dt.UTC)
    return (aware - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)


def build(config: Config, context: ModelContext) -> Learner:
    """Build the learner."""
    torch.manual_seed(context.seed)
    return SEMILearner(SEMI(config, context), config, context.device, context.live)
