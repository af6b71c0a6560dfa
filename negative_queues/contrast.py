"""InfoNCE: the loss with its queue. One call scores a batch against the queue and lets the batch in, or does neither.

The order is an option, because the sources differ: MoCo scores against the old queue and enqueues after; cross-batch memory
and CCL (SEMI, Algorithm 1) enqueue first. With ``before`` a row's own key is in the queue; it is the positive and counts
once, so that the denominator is the sum over K keys of SEMI's Eq. 5. With ``after`` it is the "one positive and K negative
pairs" of SEMI's text.

Letters: ``B`` rows, ``W`` rows of all ranks, ``N`` negatives, ``D`` dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from negative_queues.drawing.ring import Slots
from negative_queues.draws import DrawKey
from negative_queues.frequency import StreamingFrequency
from negative_queues.gather import agree, all_gather_rows
from negative_queues.infonce import LogQ, Negatives, info_nce
from negative_queues.key_queue import Entries, IdsLike, KeyQueue, as_ids
from negative_queues.logq import log_draw_probability
from negative_queues.masks import accidental_hits

__all__ = ["Draw", "InfoNCE", "InfoNCEOptions", "LossNotFiniteError", "Pair", "bidirectional"]

Draw = Callable[[KeyQueue, DrawKey], Slots]
"""Which slots serve as negatives, as of :mod:`negative_queues.drawing`: ``partial(recent_slots, n=1024, half_life=20_000)``."""

MASKS = ("item", "user", "request")
"""Columns that tell accidental hits apart, where a queue has them."""


class LossNotFiniteError(ValueError):
    """A loss that is NaN or infinite; the queue is as it was before."""


@dataclass(frozen=True)
class InfoNCEOptions:
    """How a batch is scored against a queue. The defaults are MoCo's."""

    temperature: float = 0.07
    normalize: bool = True
    """Whether queries and keys are scaled to length 1 first (not in CCL)."""
    order: Literal["after", "before"] = "after"
    """Whether the batch enters after its loss (MoCo) or before (cross-batch memory, CCL)."""
    in_batch: bool = False
    """Whether the batch's other keys are negatives too; with ``before`` they are in the queue already."""
    mask_by: tuple[str, ...] | None = None
    """Columns of accidental hits; None for those of item, user and request that the queue has."""
    log_q: LogQ = "none"
    """Which correction for popularity; all but ``none`` need a frequency and a column ``item``."""
    warm_up_share: float = 0.0
    """Share of the capacity that must be filled before the queue serves."""
    warm_up: Literal["in_batch", "off"] = "in_batch"
    """What the loss is until then: against the batch's other keys, or 0."""

    def __post_init__(self) -> None:
        if self.order not in ("after", "before") or self.warm_up not in ("in_batch", "off"):
            raise ValueError(f"order is after or before, warm_up in_batch or off; got {self.order!r} and {self.warm_up!r}")
        if self.order == "before" and self.in_batch:
            raise ValueError("in_batch = true counts a batch twice that entered before its loss; take one of the two")
        if not 0 <= self.warm_up_share <= 1:
            raise ValueError(f"warm_up_share must be 0 to 1 of the capacity, got {self.warm_up_share}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}; MoCo has 0.07, CCL 0.7")
        if self.log_q not in get_args(LogQ):
            raise ValueError(f"log_q must be one of {get_args(LogQ)}, got {self.log_q!r}")


class _Batch(NamedTuple):
    """This rank's rows, and the rows of all ranks that enter the queue."""

    query: Tensor
    positive: Tensor
    keys: Tensor
    ids: dict[str, Tensor]
    joined: dict[str, Tensor]
    first: int

    @property
    def own(self) -> Tensor:
        """Place of each row among the joined rows, int64 ``[B]``."""
        return torch.arange(self.first, self.first + len(self.query), device=self.query.device)


class InfoNCE:
    """InfoNCE with a queue, in one call.

    Under ``torch.distributed`` (``gather=True``) the keys of all ranks enter every rank's queue in rank order, and the in-batch
    negatives are those of all ranks: queues, and the mean of the ranks' losses weighted by their rows, are those of one process
    with the joined batch. Gradients into *keys* stay on their rank. A loss that fails on one rank is undone on all.

    Args:
        queue: of keys; its columns are what can be masked by.
        options: see :class:`InfoNCEOptions`.
        frequency: of items, updated here with each batch; for logQ.
        draw: which slots serve; None for all.
        gather: whether keys are gathered from all ranks.

    Raises:
        ValueError: the options ask for a column or a frequency that is not there.

    >>> info_nce = InfoNCE(KeyQueue(8, 2, columns=()), InfoNCEOptions(temperature=1.0))
    >>> query, key = torch.eye(2, requires_grad=True), torch.eye(2)
    >>> [round(float(info_nce(query, key).detach()), 4) for _ in range(2)]  # an empty queue, then log(1 + (e + 1) / e)
    [0.0, 0.862]
    """

    def __init__(
        self,
        queue: KeyQueue,
        options: InfoNCEOptions | None = None,
        *,
        frequency: StreamingFrequency | None = None,
        draw: Draw | None = None,
        gather: bool = False,
    ) -> None:
        self.queue, self.options = queue, options or InfoNCEOptions()
        self.frequency, self.draw, self.gather = frequency, draw, gather
        asked = self.options.mask_by
        self.mask_by = tuple(name for name in MASKS if name in queue.columns) if asked is None else asked
        missing = [name for name in self.mask_by if name not in queue.columns]
        if missing:
            raise ValueError(f"cannot mask by {missing}: the queue has the columns {list(queue.columns)}")
        if frequency is not None and "item" not in queue.columns:
            raise ValueError(f"a frequency counts the column 'item'; the queue has {list(queue.columns)}")
        if frequency is None and self.options.log_q != "none":
            raise ValueError(f"log_q {self.options.log_q!r} needs frequency=StreamingFrequency(...)")

    @property
    def warm(self) -> bool:
        """Whether the queue is filled to the share at which it serves."""
        return self.queue.fill >= self.options.warm_up_share * self.queue.capacity

    def __call__(
        self,
        query: Tensor,
        positive: Tensor,
        ids: Mapping[str, IdsLike] | None = None,
        *,
        ts_ms: int = 0,
        key: DrawKey | None = None,
        extra: Sequence[Negatives] = (),
    ) -> Tensor:
        """Return the mean loss of a batch, a scalar with a graph, and let its keys into the queue.

        Args:
            query: ``[B, D]``.
            positive: keys, ``[B, D]``; the loss passes a gradient into them if they have a graph, the queue none.
            ids: for every column of the queue, int64 ``[B]``.
            ts_ms: time of the batch, UTC ms.
            key: of the draw, where the contrast has one.
            extra: more pools of negatives, say of a reservoir.

        Raises:
            LossNotFiniteError: the loss is NaN or infinite on some rank.
            ValueError: shapes or columns do not fit, or the key of a draw is missing.
            Exception: whatever else fails; in each case the queue is as it was, to the bit.
        """
        loss, batch = self._step(query, positive, ids or {}, ts_ms, key, extra)
        self._count(batch)
        return loss

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return what must survive: ``queue.*``, and ``frequency.*`` where there is one."""
        state = {f"queue.{name}": array for name, array in self.queue.state().items()}
        if self.frequency is not None:
            state |= {f"frequency.{name}": array for name, array in self.frequency.state().items()}
        return state

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become exactly the contrast that returned ``state``; see the parts for what they raise."""
        self.queue.load_state(
            {name.removeprefix("queue."): a for name, a in state.items() if not name.startswith("frequency.")}
        )
        if self.frequency is not None:
            parts = {name.removeprefix("frequency."): a for name, a in state.items() if name.startswith("frequency.")}
            self.frequency.load_state(parts)

    def _step(
        self,
        query: Tensor,
        positive: Tensor,
        ids: Mapping[str, IdsLike],
        ts_ms: int,
        key: DrawKey | None = None,
        extra: Sequence[Negatives] = (),
    ) -> tuple[Tensor, _Batch]:
        with self.queue.attempt():
            batch = self._batch(query, positive, ids)
            slots = self._enqueue(batch, ts_ms) if self.options.order == "before" else None
            loss = self._loss(batch, slots, key, extra)
            self._check(loss)
            if self.options.order == "after":
                self._enqueue(batch, ts_ms)
        return loss, batch

    def _count(self, batch: _Batch) -> None:
        """Count the batch's items, once nothing can fail any more: the estimate cannot be undone."""
        if self.frequency is not None:
            self.frequency.update(batch.joined["item"].cpu().numpy())

    def _batch(self, query: Tensor, positive: Tensor, ids: Mapping[str, IdsLike]) -> _Batch:
        if query.ndim != 2 or query.shape != positive.shape:
            raise ValueError(f"query and positive must be [B, D] alike, got {list(query.shape)} and {list(positive.shape)}")
        if self.options.normalize:
            query, positive = normalize(query, dim=1), normalize(positive, dim=1)
        own = {name: as_ids(name, values, query.device) for name, values in ids.items()}
        if set(own) != set(self.queue.columns) or any(len(values) != len(query) for values in own.values()):
            given = {name: len(values) for name, values in own.items()}
            raise ValueError(f"{len(query)} rows come with as many ids of {list(self.queue.columns)}; got {given}")
        if not self.gather:
            return _Batch(query, positive, positive.detach(), own, own, 0)
        keys, first = all_gather_rows(positive)
        return _Batch(query, positive, keys, own, {name: all_gather_rows(own[name]).rows for name in sorted(own)}, first)

    def _enqueue(self, batch: _Batch, ts_ms: int) -> Tensor:
        return self.queue.enqueue(batch.keys, batch.joined, ts_ms)

    def _loss(self, batch: _Batch, slots: Tensor | None, key: DrawKey | None, extra: Sequence[Negatives]) -> Tensor:
        options = self.options
        if not self.warm and options.warm_up == "off":
            return (batch.query * 0.0).sum() + (batch.positive * 0.0).sum()
        pools = list(extra)
        if options.in_batch or not self.warm:
            pools.append(self._in_batch(batch))
        if self.warm:
            pools.append(self._queued(batch, slots, key))
        log_q = self._log_q(batch.ids["item"], batch) if options.log_q != "none" else None
        return info_nce(
            batch.query,
            batch.positive,
            pools,
            temperature=options.temperature,
            log_q=options.log_q,
            positive_log_q=log_q,
        )

    def _in_batch(self, batch: _Batch) -> Negatives:
        """Return all rows' keys as a pool, in which a row leaves out its own."""
        before, after = batch.keys[: batch.first], batch.keys[batch.first + len(batch.query) :]
        keys = torch.cat([before, batch.positive, after])  # this rank's with their graph
        own = torch.zeros(len(batch.query), len(keys), dtype=torch.bool, device=keys.device)
        own[torch.arange(len(own), device=keys.device), batch.own] = True
        hits = accidental_hits(batch.ids, batch.joined, self.mask_by)
        return Negatives(keys, own if hits is None else own | hits, self._pool_log_q(batch.joined, batch))

    def _queued(self, batch: _Batch, slots: Tensor | None, key: DrawKey | None) -> Negatives:
        """Return the queue, or what is drawn of it, as a pool, in which a row leaves out its own key and its hits."""
        entries = self._entries(key)
        hits = accidental_hits(batch.ids, entries.ids, self.mask_by)
        if slots is not None:
            own = slots[batch.own][:, None] == entries.slots[None, :]
            hits = own if hits is None else own | hits
        return Negatives(entries.keys, hits, self._pool_log_q(entries.ids, batch))

    def _entries(self, key: DrawKey | None) -> Entries:
        if self.draw is None:
            return self.queue.entries()
        if key is None:
            raise ValueError("this contrast draws from its queue: call it with key=draw_key(seed, name, purpose, step)")
        return self.queue.entries(np.asarray(self.draw(self.queue, key)))

    def _pool_log_q(self, ids: Mapping[str, Tensor], batch: _Batch) -> Tensor | None:
        return None if self.options.log_q == "none" else self._log_q(ids["item"], batch)

    def _log_q(self, items: Tensor, batch: _Batch) -> Tensor:
        assert self.frequency is not None
        return log_draw_probability(self.frequency, items, len(batch.keys))

    def _check(self, loss: Tensor) -> None:
        fine = torch.isfinite(loss.detach()).all()
        if not (agree(fine) if self.gather else bool(fine)):
            raise LossNotFiniteError(
                f"the loss is {float(loss.detach())} (of this rank); the queue is as it was. Look at the encoders' outputs and "
                f"at the temperature, {self.options.temperature}"
            )


class Pair(NamedTuple):
    """One side of a bidirectional contrast: ``query`` and ``key`` of the same rows, ``[B, D]`` each."""

    query: Tensor
    key: Tensor


def bidirectional(
    towards_second: InfoNCE,
    towards_first: InfoNCE,
    first: Pair,
    second: Pair,
    ids: Mapping[str, IdsLike] | None = None,
    *,
    ts_ms: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return both losses of a batch of pairs: the first's queries against the second's keys, and the other way round.

    SEMI, Eq. 5 and 6. Both queues take the batch in, or neither.

    Args:
        towards_second: its queue holds keys of the second side.
        towards_first: its queue holds keys of the first side.
        first: queries and keys of the first side.
        second: of the second side, row by row the first's positives.
        ids: for the columns of both queues, int64 ``[B]``.
        ts_ms: time of the batch, UTC ms.
    """
    with towards_second.queue.attempt(), towards_first.queue.attempt():
        forth, forth_batch = towards_second._step(first.query, second.key, ids or {}, ts_ms)
        back, back_batch = towards_first._step(second.query, first.key, ids or {}, ts_ms)
    towards_second._count(forth_batch)
    towards_first._count(back_batch)
    return forth, back
