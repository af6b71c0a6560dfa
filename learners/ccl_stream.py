"""CCL beside a click model, in one process: which pairs it learns, when it steps, what survives a restart.

Two ways, each on or off by itself:

- Pre-training (SEMI, section 3.3): requests before a time only feed CCL, the first of them fill the dictionaries (Algorithm 1,
  lines 2 to 4).
- Continuously: after each click step the block's pairs join a buffer; a full one makes a step, with CCL's own optimiser, at
  most one per ``every`` click steps.

``every`` makes CCL's share of the time, and no clock may decide what a replay learns: that steps with every full batch, or as
given. Live on a CPU a *budget* is turned into ``every`` once, when the first batch is full: a copy of CCL with full
dictionaries is timed against the click steps so far. The answer is part of the state and of the statistics (``ccl.every``),
and the run is from its beginning the one that a given ``every`` of that value makes.
"""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learners.ccl import CCL, Session
from learners.ccl_pairs import PairBuffer
from learners.learner import State, Stats
from learners.samples import SampleBlock
from negative_queues import telemetry

__all__ = ["CCLStream", "Pace", "Sessions", "cadence"]

Sessions = Callable[[SampleBlock], tuple[Session, Session]]
PROBE = 64
"""Pairs that are encoded again to see how far keys have drifted."""
TIMED = 64
"""Click steps whose median time counts."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How often CCL steps."""

    every: int = 1
    """At most one step per so many click steps; 0 leaves it to the budget."""
    budget: float = 0.30
    """Share of the learner's time that CCL may take."""


def cadence(click_s: float, ccl_s: float, budget: float) -> int:
    """Return the least n for which one CCL step per n click steps stays within the budget: ``ccl / (n click + ccl) <= budget``.

    >>> cadence(0.01, 0.1, 0.3), cadence(1.0, 0.1, 0.3), cadence(0.01, 0.1, 1.0)
    (24, 1, 1)
    """
    if click_s <= 0:
        return 1
    return max(1, math.ceil(ccl_s * (1 - budget) / (budget * click_s)))


class CCLStream:
    """CCL with a buffer of pairs, a pace and figures.

    Args:
        ccl: the two encoders and their dictionaries.
        pairs: where pairs wait.
        sessions: makes a block's rows into the sessions of both domains, with the item vectors of now.
        pace: how often it steps beside the click model.
    """

    def __init__(self, ccl: CCL, pairs: PairBuffer, sessions: Sessions, pace: Pace) -> None:
        self.ccl, self.pairs, self.sessions, self.pace = ccl, pairs, sessions, pace
        self.every = pace.every
        """One step per so many click steps; 0 until the budget has decided."""
        self._since = 0  # click steps since the last step of CCL
        self._probe: SampleBlock | None = None
        self._probe_keys = [np.zeros((0, contrast.queue.dim), np.float32) for contrast in ccl.contrasts]
        self._probed_at = 0  # pushes of the dictionaries then
        self._click_s: deque[float] = deque(maxlen=TIMED)
        self._spent = [0.0, 0.0]  # seconds of click steps and of CCL in this process: figures, no state

    def pretrain(self, block: SampleBlock) -> Stats:
        """Feed CCL alone: fill the dictionaries, then learn from each batch of pairs."""
        began = time.thread_time()
        self.pairs.add(block)
        stats: Stats = {}
        if self.pairs.full:
            rows = self.pairs.take()
            if self.ccl.filled < 1.0:
                first, second = self.sessions(rows)
                self.ccl.fill(first, second, rows.column("user"), _newest(rows))
                stats = {"ccl.filled": self.ccl.filled}
            else:
                stats = self._step(rows)
        self._spent[1] += time.thread_time() - began
        return {"ccl.waiting": float(len(self.pairs)), **stats}

    def after_click(self, block: SampleBlock, click_s: float) -> Stats:
        """Take the pairs of a block that the click model has learned, and step where one is due.

        Args:
            block: what was learned.
            click_s: seconds that it took; only a budget that has not decided yet asks for them.
        """
        began = time.thread_time()
        self._click_s.append(click_s)
        self._spent[0] += click_s
        self._since += 1
        self.pairs.add(block)
        stats: Stats = {"ccl.waiting": float(len(self.pairs))}
        if self.pairs.full:
            if self.every == 0:
                self.every = self._decided()
                began = time.thread_time()  # the trial is no part of the pace
            if self._since >= self.every:
                stats |= self._step(self.pairs.take())
                stats["ccl.every"] = float(self.every)
                self._since = 0
        self._spent[1] += time.thread_time() - began
        if "ccl.every" in stats:
            stats["ccl.time_share"] = self.time_share
        return stats

    @property
    def time_share(self) -> float:
        """CCL's share of the seconds that this process has learned for."""
        return self._spent[1] / max(sum(self._spent), 1e-9)

    def _step(self, rows: SampleBlock) -> Stats:
        first, second = self.sessions(rows)
        drift = self._drift()
        stats = self.ccl.step(first, second, rows.column("user"), _newest(rows))
        queue = self.ccl.contrasts[0].queue
        age = telemetry(queue, _newest(rows))
        self._renew_probe(rows)
        found = {"ccl.age": age["age.mean"], "ccl.age_s": age["age_ms.mean"] / 1000.0}
        return {**stats, **found, **({} if drift is None else {"ccl.drift": drift})}

    def _drift(self) -> float | None:
        """Return the mean cosine between the probe's keys as they were stored and as they would be now; None without one."""
        if self._probe is None:
            return None
        now = self._encoded(self._probe)
        cosines = [
            torch.cosine_similarity(torch.from_numpy(old), new, dim=1) for old, new in zip(self._probe_keys, now, strict=True)
        ]
        return float(torch.cat(cosines).mean())

    def _renew_probe(self, rows: SampleBlock) -> None:
        """Once the probe's keys have left the dictionaries, watch pairs of the newest batch instead."""
        queue = self.ccl.contrasts[0].queue
        if self._probe is not None and (queue.pushes - self._probed_at) * self.pairs.batch < queue.capacity:
            return
        self._probe, self._probed_at = rows.slice(0, PROBE), queue.pushes
        self._probe_keys = [keys.numpy().copy() for keys in self._encoded(self._probe)]

    def _encoded(self, rows: SampleBlock) -> list[Tensor]:
        keys = zip(self.ccl.keys, self.sessions(rows), strict=True)
        return [encoder(session).cpu() for encoder, session in keys]

    def _decided(self) -> int:
        """Time two steps of a copy whose dictionaries are full; nothing of this run changes."""
        rows, trial = self.pairs.peek(), copy.deepcopy(self.ccl)
        for contrast in trial.contrasts:
            queue = contrast.queue
            nobody = np.zeros(queue.capacity, np.int64)
            queue.enqueue(torch.zeros(queue.capacity, queue.dim, device=queue.device), {"user": nobody})
        seconds = []
        for _ in range(2):
            began = time.thread_time()
            first, second = self.sessions(rows)
            trial.step(first, second, rows.column("user"))
            seconds.append(time.thread_time() - began)
        return cadence(float(np.median(self._click_s)), min(seconds), self.pace.budget)

    def take_decisions(self, every: int) -> None:
        """Keep the pace that another run came to, from now on."""
        self.every = every

    def describe(self) -> dict[str, Any]:
        """Return pace, dictionary and waiting pairs."""
        return {
            "steps": self.ccl.steps,
            "every": self.every,
            "filled": self.ccl.filled,
            "waiting": len(self.pairs),
            "time_share": round(self.time_share, 4),
        }

    def state(self) -> State:
        """Return everything that must survive: CCL, pairs, pace, probe."""
        probe = b"" if self._probe is None else self._probe.to_ipc()
        return {
            **{f"ccl.{name}": array for name, array in self.ccl.state().items()},
            "pairs": self.pairs.state(),
            "pace": np.array([self.every, self._since, self._probed_at], np.int64),
            "probe": np.frombuffer(probe, np.uint8),
            **{f"probe.{number}": keys for number, keys in enumerate(self._probe_keys)},
        }

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become exactly what returned ``state``.

        Raises:
            ValueError: it does not fit these encoders.
        """
        self.ccl.load_state({name.removeprefix("ccl."): array for name, array in state.items() if name.startswith("ccl.")})
        self.pairs.load_state(state["pairs"])
        self.every, self._since, self._probed_at = (int(value) for value in state["pace"])
        self._probe = SampleBlock.from_ipc(state["probe"].tobytes()) if len(state["probe"]) else None
        self._probe_keys = [np.array(state[f"probe.{number}"], np.float32) for number in range(2)]


def _newest(rows: SampleBlock) -> int:
    return int(rows.column("ts").max())
