"""What was read of records, as events (:mod:`stream_app.joiner.core.layout`)."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from stream_app.joiner.core.layout import (
    ACT_EVENT,
    ACTION_WORDS,
    COMPLETE,
    EVENT_HEAD,
    IGNORED,
    N_CATEGORIES,
    PAGE,
    PAGE_CATEGORIES,
    PAGE_DOMAIN,
    PAGE_DUE,
    PAGE_FLAGS,
    PAGE_N,
    PAGE_QUERY,
    PAGE_REQUEST,
    PAGE_TS,
    PAGE_USER,
    PAGE_WORDS,
    POSITION,
    Ints,
)

from .compiled import kernel
from .events import N_PAGE, Candidates

CANDIDATE_WORDS: Final = 4


@kernel
def pack_pages(
    rows: Ints,
    candidates: Candidates,
    missing: Ints,
    firsts: Ints,
    offsets: Ints,
    due_after: int,
    packed: Ints,
    starts: Ints,
) -> int:
    """Pack pages.

    Args:
        rows, candidates, firsts: of :func:`~.events.scan_pages`.
        missing: words of the candidates' features where they are missing, ``[F]``.
        offsets: ``[N]``.
        due_after: ms from a request's ``ts`` to its ``due``.
        packed: events are written here.
        starts: ``[N]`` is filled: where each begins, -1 for what was not read.

    Returns:
        Words used.
    """
    at = 0
    ids, positions, features = candidates
    n_features, n_words = rows.shape[1] - N_PAGE, features.shape[1]
    n_truth = n_words - len(missing)
    for i in range(len(firsts)):
        first = firsts[i]
        starts[i] = at if first >= 0 else -1
        if first < 0:
            continue
        row, n = rows[i], rows[i, 5]
        page = at + EVENT_HEAD
        packed[at], packed[at + 1] = PAGE, EVENT_HEAD + PAGE_WORDS + n_features + (CANDIDATE_WORDS + n_words) * n
        packed[at + 2], packed[at + 3] = offsets[i], row[2]
        packed[page + PAGE_USER], packed[page + PAGE_REQUEST], packed[page + PAGE_TS] = row[0], row[1], row[2]
        packed[page + PAGE_DUE], packed[page + PAGE_QUERY], packed[page + PAGE_DOMAIN] = row[2] + due_after, row[3], row[4]
        for category in range(N_CATEGORIES):
            packed[page + PAGE_CATEGORIES + category] = row[6 + category]
        packed[page + PAGE_N] = n
        at, complete = page + PAGE_WORDS, True
        for index in range(n_features):
            packed[at + index] = row[N_PAGE + index]
        at += n_features
        for place in range(n):
            c = first + place
            packed[at + place], packed[at + n + place] = ids[0, c], ids[1, c]
            packed[at + 2 * n + place], packed[at + 3 * n + place] = ids[2, c], np.int64(positions[c]) & POSITION
            complete = complete and ids[1, c] != 0 and ids[2, c] != 0
            for index in range(n_words):
                packed[at + (CANDIDATE_WORDS + index) * n + place] = features[c, index]
            for index in range(len(missing)):
                complete = complete and features[c, n_truth + index] != missing[index]
        packed[page + PAGE_FLAGS] = COMPLETE if complete else 0
        at += (CANDIDATE_WORDS + n_words) * n
    return at


@kernel
def pack_actions(rows: Ints, read: npt.NDArray[np.bool_], offsets: Ints, packed: Ints, starts: Ints) -> int:
    """Pack actions.

    Args:
        rows, read: of :func:`~.events.scan_actions`.
        offsets, packed, starts: as of :func:`pack_pages`.

    Returns:
        Words used.
    """
    at = 0
    for i in range(len(read)):
        starts[i] = at if read[i] else -1
        if not read[i]:
            continue
        row = rows[i]
        body = at + EVENT_HEAD
        ignored = row[3] < 0
        size = EVENT_HEAD if ignored else EVENT_HEAD + ACTION_WORDS
        packed[at], packed[at + 1] = IGNORED if ignored else ACT_EVENT, size
        packed[at + 2], packed[at + 3] = offsets[i], row[2]
        if not ignored:
            # User, item, ts, logged ts, kind, request, query, category, domain, value.
            packed[body], packed[body + 1], packed[body + 2], packed[body + 3] = row[0], row[1], row[2], row[2]
            for column in range(6):
                packed[body + 4 + column] = row[3 + column]
        at += size
    return at
