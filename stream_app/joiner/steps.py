"""What stands around the kernels of :mod:`.core`: a config as words, and what they come back for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from stream_app.events import hash_id

from .blocks import Rows
from .config import JoinConfig
from .core.layout import (
    BLOCK,
    COUNTERS,
    COUNTERS_AT,
    CURSOR,
    DONE,
    HAS_ITEMS,
    HAS_USERS,
    LENGTHS,
    N_REFUSED,
    WANT,
    WANTED_KEY,
    WANTED_KIND,
    Ints,
)
from .decode import joiner_kinds
from .features import is_float
from .merge import Merged
from .store import State

__all__ = ["Steps"]


class Steps:
    """Pending requests and waiting actions of one partition.

    Args:
        config: options.
        state: holds users, requests and actions.
        rows: takes the rows that leave.
    """

    def __init__(self, config: JoinConfig, state: State, rows: Rows) -> None:
        self._state = state
        self._slab = state.slab
        self._rows = rows
        self._slab.config = config_words(config)
        self._slab.regs[HAS_ITEMS], self._slab.regs[HAS_USERS] = state.header.has_items, state.header.has_users
        state.restore_steps()

    def __len__(self) -> int:
        return self._slab.n_steps

    def apply(self, merged: Merged) -> Sequence[int]:
        """Apply a piece of the sequence, and pass to its bound; return the indexes of events that become dead letters."""
        slab, regs = self._slab, self._slab.regs
        refused = np.empty(len(merged.starts), np.int64)
        regs[CURSOR] = regs[N_REFUSED] = regs[COUNTERS_AT:] = 0
        self._load(slab.missing_of(merged.words, merged.starts))
        while True:
            status = slab.run(self._rows.columns, merged.words, merged.starts, merged.effective, merged.bound, refused)
            if status == DONE:
                break
            if status == WANT:
                self._load(np.array([[regs[WANTED_KIND], regs[WANTED_KEY]]], np.int64))
            elif status == BLOCK:
                self._rows.cut()
            else:
                self._rows.widen()
        header = self._state.header
        header.has_items, header.has_users = bool(regs[HAS_ITEMS]), bool(regs[HAS_USERS])
        for name, n in zip(COUNTERS, regs[COUNTERS_AT:].tolist(), strict=True):
            header.counters[name] = header.counters.get(name, 0) + n
        indexes: list[int] = refused[: regs[N_REFUSED]].tolist()
        return indexes

    def _load(self, wanted: Ints) -> None:
        if len(wanted):
            self._slab.load(wanted, self._state.fetch(wanted))


def config_words(config: JoinConfig) -> Ints:
    """Return a config as kernels read it (:mod:`.core.layout`)."""
    corrects = config.policy == "correct"
    lengths = [sequence.length for sequence in config.item_sequences.values()]
    kinds = [word for kind in joiner_kinds(config).values() for word in (kind.labels, kind.by_domain, *kind.feeds)]
    domains = [[hash_id("domain", name) for name in sequence.domains] for sequence in config.item_sequences.values()]
    page_features = [is_float(kind) for kind in config.request_features.values()]
    features = [is_float(kind) for kind in config.candidate_features.values()]
    kinds_at = LENGTHS + len(lengths)
    domains_at = kinds_at + len(kinds)
    names_at = domains_at + len(domains) + 1
    ends = [*itertools.accumulate(map(len, domains), initial=names_at)]
    page_features_at = ends[-1]
    words = [
        config.lateness_ms,
        config.correction_window_ms if corrects else config.label_window_ms,
        corrects,
        config.max_pending_per_user,
        config.block_requests,
        config.query_length,
        len(lengths),
        len(page_features),
        len(features),
        config.truth,
        kinds_at,
        domains_at,
        page_features_at,
        page_features_at + len(page_features),
        *lengths,
        *kinds,
        *ends,
        *itertools.chain.from_iterable(domains),
        *page_features,
        *features,
    ]
    return np.array(words, np.int64)
