"""Records to events as words, by kernel: a read at once, without an object per record.

What the kernels do not read (escapes, errors, ...) has no event here, and :mod:`stream_app.joiner.decode` reads it alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from stream_app.joiner.config import FeatureKind
from stream_app.joiner.core.layout import ACTION_WORDS, EVENT_HEAD, PAGE_WORDS, Ints
from stream_app.joiner.merge import NEVER

from .events import ACTION_COLUMNS, CANDIDATE_BYTES, N_PAGE, Candidates, scan_actions, scan_pages, scratch_rows
from .features import features_of
from .pack import CANDIDATE_WORDS, pack_actions, pack_pages
from .values import joined, words


class Reader:
    """Reads pages and actions.

    Args:
        kinds: names of the kinds of action that the joiner uses, by index.
        due_after: ms from a request's ``ts`` to its ``due``.
        reads_values: whether the values of actions are read, or all passed over as if they were missing.
        features: of pages, feature name to ``float`` or ``id``.
        shown: features of candidates, likewise.
        truth: whether candidates have one.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        due_after: int,
        reads_values: bool,
        features: Mapping[str, FeatureKind] = MappingProxyType({}),
        shown: Mapping[str, FeatureKind] = MappingProxyType({}),
        truth: bool = False,
    ) -> None:
        self._kinds = words(list(kinds))
        self._due_after = due_after
        self._reads_values = reads_values
        self._scratch = scratch_rows()
        self._features, self._shown = features_of(features), features_of(shown)
        self._n_truth = int(truth)

    def pages(self, values: Sequence[bytes], offsets: Ints) -> tuple[Ints, Ints, Ints]:
        """Return events of impressions.

        Args:
            values: their JSON ``[N]``.
            offsets: ``[N]``.

        Returns:
            Words, and per record where its event begins (-1: it was not read) and its ``ts``.
        """
        features, shown = self._features, self._shown
        if features is None or shown is None:
            return np.zeros(0, np.int64), np.full(len(values), -1, np.int64), np.full(len(values), NEVER, np.int64)
        n, (data, ends) = len(values), joined(values)
        room, n_words = len(data) // CANDIDATE_BYTES + 1, self._n_truth + len(shown.sizes)
        rows, firsts = np.empty((n, N_PAGE + len(features.sizes)), np.int64), np.empty(n, np.int64)
        into = Candidates(np.empty((3, room), np.int64), np.empty(room, np.int32), np.empty((room, n_words), np.int64))
        n_candidates = scan_pages(data, ends, self._scratch, features, shown, rows, into, firsts)
        size = n * (EVENT_HEAD + PAGE_WORDS + len(features.sizes)) + n_candidates * (CANDIDATE_WORDS + n_words)
        packed, starts = np.empty(size, np.int64), np.empty(n, np.int64)
        used = pack_pages(rows, into, shown.missing, firsts, offsets, self._due_after, packed, starts)
        return packed[:used], starts, rows[:, 2].copy()

    def actions(self, values: Sequence[bytes], offsets: Ints) -> tuple[Ints, Ints, Ints]:
        """Return events of actions; arguments and results as of :meth:`pages`."""
        n, (data, ends) = len(values), joined(values)
        rows, read = np.empty((n, len(ACTION_COLUMNS)), np.int64), np.empty(n, np.bool_)
        scan_actions(data, ends, self._scratch, rows, *self._kinds, self._reads_values, read)
        packed, starts = np.empty(n * (EVENT_HEAD + ACTION_WORDS), np.int64), np.empty(n, np.int64)
        used = pack_actions(rows, read, offsets, packed, starts)
        return packed[:used], starts, rows[:, 2].copy()
