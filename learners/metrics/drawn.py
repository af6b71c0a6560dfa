"""HR@3 of a positive among drawn negatives, test-then-train (SEMI, section 4.2.2: 300 random videos not watched by the user).

Each positive is scored once more, alone among ``n`` items drawn uniformly from those of its domain that came by before its
block, less what the request shows as positive and what is in the user's histories. A negative has the category and the features
that it was last shown with, and the positive's position, so that a place tells nothing. A positive with too few items to draw
from does not count. Draws are counted on (seed, request, item): all models rank the same lists.

Memory: :data:`POOL` items; of more, a uniform sample of the distinct ones stays.

Legend: ``R`` requests, ``P`` positives, ``n`` negatives, ``N`` items in the pool.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from learners.learner import Scores, State
from learners.metrics.ranking import HIT_3, rank_requests
from learners.metrics.rows import MetricError
from learners.samples import Ragged, SampleBlock, SampleSchema
from negative_queues import draw_key
from negative_queues.draws import fold, mix64, uniform_below
from negative_queues.kernels import kernel

POOL = 1 << 17
"""Items that may be drawn, at most."""
TRIES = 64
"""Draws per negative, at most, that may hit what is no negative."""
AT_ONCE = 32_768
"""Candidates that are scored at once, at most."""

Ids = npt.NDArray[np.int64]

__all__ = ["POOL", "DrawnHits"]


class DrawnHits:
    """HR@3 among drawn negatives, for several models side by side.

    Args:
        schema: of the samples.
        negatives: ``n``.
        names: of the models.
        seed: of the draws.
        share: of the requests with a positive that are ranked, chosen by their id.
    """

    def __init__(self, schema: SampleSchema, negatives: int, names: Sequence[str], seed: int = 0, share: float = 1.0) -> None:
        self.negatives, self.names = negatives, tuple(names)
        self._key = draw_key(seed, "evaluation", "negatives", 0)
        self._below = np.uint64(min(int(share * 2.0**64), 2**64 - 1))
        self._histories = [f"{name}.item" for name in schema.item_sequences]
        kept = ("category", "domain")
        self._columns = [f"candidate.{name}" for name in kept]
        self._columns += [f"candidate_feature.{name}" for name in (*schema.candidate_ids, *schema.candidate_floats)]
        empty = np.zeros(0, np.int64)
        self._pool: dict[str, npt.NDArray[Any]] = {"rank": np.zeros(0, np.uint64), "item": empty}
        floats = {f"candidate_feature.{name}" for name in schema.candidate_floats}
        self._pool |= {name: np.zeros(0, np.float32) if name in floats else empty for name in self._columns}
        self._sums = np.zeros((len(self.names), 2))  # hits, positives

    def trials(self, block: SampleBlock, mask: npt.NDArray[np.bool_] | None = None) -> Iterator[SampleBlock]:
        """Give lists to score: a request for each positive, its candidates the positive and then its negatives.

        Args:
            block: about to be scored.
            mask: requests that count, bool ``[R]``; None is all.
        """
        rows, places, drawn = self._draw(block, mask)
        step = max(1, AT_ONCE // (self.negatives + 1))
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            yield self._listed(block, rows[part], places[part], drawn[part])

    def count(self, name: str, scores: Scores, trial: SampleBlock) -> None:
        """Count a model's scores of a list of :meth:`trials`, float32 ``[P * (1 + n)]``."""
        labels, offsets = trial.ragged("candidate.label")
        hits = rank_requests(scores, labels.astype(np.uint8), offsets)[:, HIT_3]
        self._sums[self.names.index(name)] += hits.sum(), len(hits)

    def admit(self, block: SampleBlock) -> None:
        """Let the items of a block be drawn from now on."""
        items = block.ragged("candidate.item").values
        found, first = np.unique(items[::-1], return_index=True)  # what was shown last counts
        at = len(items) - 1 - first[found != 0]
        new = {"rank": _ranks(items[at]), "item": items[at]} | {name: block.ragged(name).values[at] for name in self._columns}
        order = np.argsort(new["rank"])
        new = {name: column[order] for name, column in new.items()}
        near = np.searchsorted(self._pool["rank"], new["rank"])
        known = near < len(self._pool["rank"])
        known[known] = self._pool["rank"][near[known]] == new["rank"][known]
        for name, column in self._pool.items():
            column[near[known]] = new[name][known]
        if not known.all() and (len(self._pool["rank"]) < POOL or (near[~known] < POOL).any()):
            self._pool = {n: np.insert(c, near[~known], new[n][~known])[:POOL] for n, c in self._pool.items()}

    def figures(self) -> dict[str, dict[str, float]]:
        """Return per model ``hr@3`` (NaN without a positive) and ``positives``."""
        return {
            name: {"hr@3": hits / counted if counted else math.nan, "positives": counted}
            for name, (hits, counted) in zip(self.names, self._sums.tolist(), strict=True)
        }

    def _draw(self, block: SampleBlock, mask: npt.NDArray[np.bool_] | None) -> tuple[Ids, Ids, Ids]:
        """Return row and place among the candidates of each positive, ``[P]`` each, and places in the pool, ``[P, n]``."""
        items, offsets = block.ragged("candidate.item")
        labels = block.ragged("candidate.label").values
        chosen = _mixed(block.column("request").view(np.uint64) ^ np.uint64(self._key)) <= self._below
        chosen &= True if mask is None else mask
        rows = np.repeat(np.arange(len(block)), np.diff(offsets))
        places = np.flatnonzero((labels > 0) & (items != 0) & chosen[rows])
        rows = rows[places]
        drawn = np.full((len(places), self.negatives), -1, np.int64)
        domains = block.ragged("candidate.domain").values
        histories = [block.ragged(name) for name in self._histories]
        pool, pool_domains = self._pool["item"], self._pool["candidate.domain"]
        requests = block.column("request")
        for p, (row, place) in enumerate(zip(rows.tolist(), places.tolist(), strict=True)):
            own = slice(offsets[row], offsets[row + 1])
            out = [items[own][labels[own] > 0], *(h.values[h.offsets[row] : h.offsets[row + 1]] for h in histories)]
            key = fold(fold(self._key, int(requests[row])), int(items[place]))
            _fill(key, pool, pool_domains, domains[place], np.unique(np.concatenate(out)), drawn[p])
        enough = drawn[:, -1] >= 0 if self.negatives else np.ones(len(places), np.bool_)
        return rows[enough], places[enough], drawn[enough]

    def _listed(self, block: SampleBlock, rows: Ids, places: Ids, drawn: Ids) -> SampleBlock:
        picked = block.take(rows)
        width = self.negatives + 1
        offsets = np.arange(len(rows) + 1) * width
        columns: dict[str, npt.NDArray[Any] | Ragged] = {}
        for name in picked.batch.schema.names:
            if not picked.is_ragged(name):
                columns[name] = picked.column(name)
            elif not name.startswith("candidate"):
                columns[name] = picked.ragged(name)
            else:
                columns[name] = Ragged(self._values(block, name, places, drawn).reshape(-1), offsets)
        return SampleBlock.from_columns(block.schema, columns)

    def _values(self, block: SampleBlock, name: str, places: Ids, drawn: Ids) -> npt.NDArray[Any]:
        """Return a candidate column of the lists, ``[P, 1 + n]``."""
        own = block.ragged(name).values[places][:, None]
        if name == "candidate.label":
            negatives = np.zeros(drawn.shape, np.float32)
        elif name == "candidate.truth":
            negatives = np.full(drawn.shape, np.nan, np.float32)  # nobody knows
        elif name in ("candidate.weight", "candidate.position"):
            negatives = np.repeat(own, drawn.shape[1], axis=1)
        else:
            negatives = self._pool[name.replace("candidate.item", "item")][drawn]
        return np.concatenate([own, negatives], axis=1)

    def state(self) -> State:
        """Return everything that must survive, as named arrays."""
        return {**{f"pool.{name}": column for name, column in self._pool.items()}, "sums": self._sums}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become exactly what returned ``state``.

        Raises:
            MetricError: it is of other samples or models.
        """
        mine = self.state()
        if set(state) != set(mine) or state["sums"].shape != self._sums.shape:
            raise MetricError(
                "the checkpoint was written with other models or samples than drawn negatives are counted for now; "
                "resume with the config that the run was started with"
            )
        self._pool = {name: np.array(state[f"pool.{name}"]) for name in self._pool}
        self._sums = np.array(state["sums"])


def _mixed(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    out = np.empty_like(bits)
    _mix_all(bits, out)
    return out


def _ranks(items: Ids) -> npt.NDArray[np.uint64]:
    """Return the order in which a full pool prefers items: that of a hash, so that each is as likely to stay."""
    return _mixed(items.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15))


@kernel
def _mix_all(bits: npt.NDArray[np.uint64], out: npt.NDArray[np.uint64]) -> None:
    for i in range(len(bits)):
        out[i] = mix64(bits[i])


@kernel
def _fill(key: np.uint64, items: Ids, domains: Ids, domain: np.int64, out: Ids, drawn: Ids) -> None:
    """Draw distinct places of the domain's items, none of them in ``out`` (sorted); -1 comes last where there are too few."""
    if len(items) == 0:
        return
    tries, found = 0, 0
    taken = np.zeros(len(items), np.bool_)
    while found < len(drawn) and tries < TRIES * len(drawn):
        at = uniform_below(key, tries, len(items))
        tries += 1
        if taken[at] or domains[at] != domain:
            continue
        near = np.searchsorted(out, items[at])
        if near < len(out) and out[near] == items[at]:
            continue
        taken[at] = True
        drawn[found] = at
        found += 1
