"""Cross-domain contrastive learning: a user's sessions in two domains find each other (SEMI, Lei et al. 2021, section 3.3).

Algorithm 1 on :mod:`negative_queues`: two query encoders ``f``, two momentum key encoders ``z``, two dictionaries of the last K
keys. A session's vector is the maximum over its items' (Eq. 4); it is not scaled to length 1, and tau is 0.7. Each step
enqueues the batch's keys, then

    L = mean_i -log exp(q_i . k_i / tau) / sum_{j in K} exp(q_i . k_j / tau)                             (Eq. 5 and 6)

from the first domain's queries to the second's keys and the other way round, a step of Adam on the query encoders alone (Eq. 7
and 8), and ``theta_k <- m theta_k + (1 - m) theta_q`` (Eq. 9).

Beside the paper: keys of the row's own user are no negatives (``mask_users``; users come back in a stream, and the paper keeps
one session of each). "Uniform(0, 1)" for the first parameters is read as notation; the key encoders start as copies.

Legend: ``B`` pairs of a batch, ``L`` longest session, ``D`` width, ``K`` keys of a dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from learners.learner import State, Stats
from negative_queues import InfoNCE, InfoNCEOptions, KeyQueue, MomentumEncoder, Pair, bidirectional

__all__ = ["CCL", "CCLConfig", "Session", "max_pool", "session_pairs"]

Ints = npt.NDArray[np.int64]


class CCLConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of CCL; the defaults are SEMI's (appendix A.1)."""

    capacity: int = 40 * 1024
    """K of each dictionary."""
    temperature: float = 0.7
    momentum: float = 0.999
    rate: float = 1e-3
    """Adam's learning rate."""
    mask_users: bool = True
    """Whether keys of the row's own user are left out of its negatives; false is the paper's sum over all K."""
    warm_up_share: float = 0.0
    """Share of K below which the loss is in-batch; with a dictionary that :meth:`CCL.fill` filled it does not matter."""


class Session(NamedTuple):
    """The sessions of a batch in one domain, one per row."""

    vectors: Tensor
    """Item vectors, padded, ``[B, L, D]``; no gradient reaches them."""
    mask: Tensor
    """bool ``[B, L]``: where an item is. A row without any has no maximum."""
    blocks: Tensor
    """Time block of each item, int64 ``[B, L]``; what they are is the encoder's business."""


def max_pool(vectors: Tensor, mask: Tensor) -> Tensor:
    """Return the maximum over the items of each session (``g`` of Eq. 4), ``[B, D]`` of ``[B, L, D]``; 0 for an empty one."""
    if not vectors.shape[1]:
        return vectors.new_zeros(len(vectors), vectors.shape[2])
    pooled = vectors.masked_fill(~mask.unsqueeze(2), -torch.inf).amax(1)
    return torch.where(mask.any(1, keepdim=True), pooled, torch.zeros_like(pooled))


def session_pairs(users: Ints, first: Ints, second: Ints, least: tuple[int, int] = (10, 5)) -> Ints:
    """Return the rows that serve as pairs, int64, in order: one per user, of those with sessions that are long enough.

    Of several rows of a user the one with the longest sessions on average is kept (section 4.1), the earliest among equals.

    Args:
        users: of each row, ``[R]``; 0 is unknown and never a pair.
        first: lengths of the sessions in the first domain (micro-videos), ``[R]``.
        second: in the second (products).
        least: smallest lengths; (10, 5) is Table 5's and the paper's best.
    """
    rows = np.flatnonzero((users != 0) & (first >= least[0]) & (second >= least[1]))
    order = rows[np.lexsort((rows, -(first + second)[rows], users[rows]))]
    chosen: Ints = np.sort(order[np.unique(users[order], return_index=True)[1]])
    return chosen


class _Pooled(nn.Module):
    """An encoder of sessions and the maximum over its items."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, session: Session) -> Tensor:
        """Return ``[B, D]``."""
        return max_pool(self.encoder(session), session.mask)


class CCL:
    """Two encoders that learn from pairs of sessions, with an optimiser of their own.

    Args:
        first: encoder of the first domain, ``Session -> [B, L, D]``; trained in place, so that whoever else uses it is fed.
        second: of the second domain; the two may share modules (SEMI's time blocks).
        dim: ``D`` of their outputs.
        config: dictionary, temperature, momentum, rate.
    """

    def __init__(self, first: nn.Module, second: nn.Module, dim: int, config: CCLConfig | None = None) -> None:
        self.config = config = config or CCLConfig()
        self.query = nn.ModuleList([_Pooled(first), _Pooled(second)])
        self.encoders = first, second
        parameters = list(self.query.parameters())
        device = parameters[0].device
        self.keys = [MomentumEncoder(encoder, config.momentum).to(device) for encoder in self.query]
        options = InfoNCEOptions(
            temperature=config.temperature,
            normalize=False,
            order="before",
            mask_by=("user",) if config.mask_users else (),
            warm_up_share=config.warm_up_share,
        )
        queues = [KeyQueue(config.capacity, dim, ("user",), device=device) for _ in range(2)]
        self.contrasts = [InfoNCE(queue, options) for queue in queues]
        """One per dictionary: of the first domain's keys, of the second's."""
        self.optimiser = torch.optim.Adam(parameters, lr=config.rate)
        for parameter in parameters:  # from the start, as Adam would at the first step: so a state always has the same names
            moments = {name: torch.zeros_like(parameter, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
            self.optimiser.state[parameter] = {"step": torch.zeros(()), **moments}
        self.steps = 0

    def fill(self, first: Session, second: Session, users: Ints, ts_ms: int = 0) -> None:
        """Enqueue sessions without a loss: how dictionaries start (Algorithm 1, lines 2 to 4)."""
        encoded = [keys(session) for keys, session in zip(self.keys, (first, second), strict=True)]
        with self.contrasts[0].queue.attempt(), self.contrasts[1].queue.attempt():
            for contrast, rows in zip(self.contrasts, encoded, strict=True):
                contrast.queue.enqueue(rows, {"user": users}, ts_ms)

    @property
    def filled(self) -> float:
        """Share of the dictionaries that is in use."""
        return self.contrasts[0].queue.fill / self.config.capacity

    def step(self, first: Session, second: Session, users: Ints, ts_ms: int = 0) -> Stats:
        """Learn from ``B`` pairs once (Algorithm 1, lines 7 to 21).

        Args:
            first: sessions in the first domain.
            second: of the same users in the second, row by row.
            users: int64 ``[B]``, distinct: a user's other pair would be a negative that is none.
            ts_ms: time of the batch, UTC ms.

        Raises:
            LossNotFiniteError: a loss is NaN or infinite; nothing has changed then.
            ValueError: a user comes twice.
        """
        if not len(users):
            return {}
        if len(np.unique(users)) < len(users):
            raise ValueError("ccl: a batch holds one pair per user, and some user comes twice; choose rows with session_pairs")
        # Items' vectors are given, not learned here; whatever graph they carry ends.
        sessions = [session._replace(vectors=session.vectors.detach()) for session in (first, second)]
        keys = [encoder(session) for encoder, session in zip(self.keys, sessions, strict=True)]
        queries = [encoder(session) for encoder, session in zip(self.query, sessions, strict=True)]
        one, two = (Pair(query, key) for query, key in zip(queries, keys, strict=True))
        forth, back = bidirectional(self.contrasts[1], self.contrasts[0], one, two, {"user": users}, ts_ms=ts_ms)
        self.optimiser.zero_grad()
        torch.autograd.backward(forth + back)
        self.optimiser.step()
        for encoder, query in zip(self.keys, self.query, strict=True):
            encoder.update(query)
        self.steps += 1
        losses = {"ccl.loss.first": float(forth.detach()), "ccl.loss.second": float(back.detach())}
        return {**losses, "ccl.pairs": float(len(users)), "ccl.filled": self.filled}

    @torch.no_grad()
    def encode(self, domain: int, session: Session) -> Tensor:
        """Return the query vectors of sessions in domain 0 or 1, ``[B, D]``."""
        vectors: Tensor = self.query[domain](session)
        return vectors

    def state(self) -> State:
        """Return all that must survive: query and key encoders, dictionaries, Adam's moments, steps."""
        state: State = {"steps": np.array(self.steps, np.int64)}
        state |= {f"query.{name}": tensor.cpu().numpy() for name, tensor in self.query.state_dict().items()}
        for name, parameter in self.query.named_parameters():
            parts = self.optimiser.state.get(parameter, {})
            state |= {f"adam.{name}.{part}": tensor.cpu().numpy() for part, tensor in parts.items()}
        for number, (keys, contrast) in enumerate(zip(self.keys, self.contrasts, strict=True)):
            state |= {f"key.{number}.{name}": array for name, array in keys.state().items()}
            state |= {f"dictionary.{number}.{name}": array for name, array in contrast.state().items()}
        return state

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become exactly what returned ``state``.

        Raises:
            ValueError: an array is missing, unknown or of another shape.
        """
        parts = {name: _part(state, f"{name}.") for name in ("query", "adam", "key.0", "key.1", "dictionary.0", "dictionary.1")}
        weights = {name: torch.from_numpy(np.array(array)) for name, array in parts["query"].items()}
        own = {name: tuple(tensor.shape) for name, tensor in self.query.state_dict().items()}
        saved = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if own != saved or "steps" not in state:
            wrong = sorted(name for name in own | saved if own.get(name) != saved.get(name)) or ["steps"]
            raise ValueError(f"ccl: the saved encoders differ in {wrong[:5]}; resume with the encoders of the saved run")
        for number, (keys, contrast) in enumerate(zip(self.keys, self.contrasts, strict=True)):
            contrast.load_state(parts[f"dictionary.{number}"])
            keys.load_state(parts[f"key.{number}"])
        self.query.load_state_dict(weights)
        self.optimiser.state.clear()
        for name, parameter in self.query.named_parameters():
            moments = {part: torch.from_numpy(np.array(a)) for part, a in _part(parts["adam"], f"{name}.").items()}
            if moments:  # step is a scalar that Adam keeps on the CPU
                self.optimiser.state[parameter] = {p: t if p == "step" else t.to(parameter) for p, t in moments.items()}
        self.steps = int(state["steps"])


def _part(state: Mapping[str, npt.NDArray[Any]], prefix: str) -> State:
    return {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
