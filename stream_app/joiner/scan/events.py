"""Pages and actions out of JSON into columns, with ids hashed: what :class:`~stream_app.joiner.decode.Decoder` calls per read.

Shapes: ``N`` records, ``C`` candidates over all of them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from stream_app.joiner.action_values import NO_VALUE
from stream_app.joiner.features import NAN

from .compiled import inner, kernel
from .features import Features, float_word_of, read_features
from .values import (
    FAIL,
    Bytes,
    colon,
    following,
    id_of,
    integer,
    namespace_rows,
    null_end,
    number_or_null_end,
    opened,
    scalar_end,
    string_end,
    value_word_of,
    word_of,
    words,
)

Ints = npt.NDArray[np.int64]
PAGE_COLUMNS: Final = ("user", "request", "ts", "query", "domain", "n", "first", "second", "third", "fourth")
"""Of a page: hashed ids, candidates, and up to four categories of the query."""
N_PAGE: Final = len(PAGE_COLUMNS)
ACTION_COLUMNS: Final = ("user", "item", "ts", "kind", "request", "query", "category", "domain", "value")
"""Of an action; ``kind`` is an index into the joiner's kinds, -1 for one that it does not use; ``value`` is a word of
:mod:`stream_app.joiner.action_values`."""
CANDIDATE_BYTES: Final = 15
"""At least so many bytes of JSON make a candidate."""
_MAX_POSITION: Final = (1 << 31) - 1
_NAMESPACES: Final = ["user", "item", "request", "query", "category", "domain"]
_USER, _ITEM, _REQUEST, _QUERY, _CATEGORY, _DOMAIN = range(6)
_PREFIXES: Final = namespace_rows(_NAMESPACES)[1]
_PAGE, _PAGE_SIZES = words(["user_id", "request_id", "ts", "query", "domain", "items", "query_category", "features"])
_SHOWN, _SHOWN_SIZES = words(["item_id", "category", "domain", "position", "features", "truth"])
_ACTION, _ACTION_SIZES = words(["user_id", "item_id", "ts", "kind", "request_id", "query", "category", "domain", "value"])
_OPEN, _CLOSE, _LIST, _LIST_END = ord("{"), ord("}"), ord("["), ord("]")


class Candidates(NamedTuple):
    """Candidates as they are read: ``C`` of them, and room for more."""

    ids: Ints
    """Hashed item, category, domain, ``[3, >= C]``."""
    positions: npt.NDArray[np.int32]
    """``[>= C]``; -1 is missing."""
    features: Ints
    """``[>= C, T + F]``: the words of the truth, where it is wanted (``T`` is 0 or 1), and of the features."""


def scratch_rows() -> Bytes:
    """Return the scratch that hashing needs; one per thread."""
    return namespace_rows(_NAMESPACES)[0]


@inner
def _id(data: Bytes, at: int, scratch: Bytes, namespace: int) -> tuple[int, int]:
    return id_of(data, at, scratch[namespace], _PREFIXES[namespace])


@inner
def _query_categories(data: Bytes, at: int, scratch: Bytes, row: Ints) -> int:
    """Read a list of names into the last four columns of a page's row."""
    at = opened(data, at, _LIST)
    if at == FAIL or data[at] == _LIST_END:
        return FAIL if at == FAIL else at + 1
    known, more = 0, True
    while more:
        if data[at] == ord("n"):
            return FAIL
        at, category = _id(data, at, scratch, _CATEGORY)
        if at == FAIL:
            return FAIL
        if category and known < 4:
            row[6 + known] = category
            known += 1
        at, more = following(data, at, _LIST_END)
    return at


@inner
def _candidate(data: Bytes, at: int, scratch: Bytes, features: Features, into: Candidates, c: int) -> int:
    """Read one candidate into place ``c``."""
    at = opened(data, at, _OPEN)
    if at == FAIL:
        return FAIL
    ids, more_words = into.ids, into.features[c]
    n_truth = len(more_words) - len(features.sizes)
    ids[0, c] = ids[1, c] = ids[2, c] = 0
    into.positions[c] = -1
    for index in range(n_truth):
        more_words[index] = NAN
    for index in range(len(features.sizes)):
        more_words[n_truth + index] = features.missing[index]
    read, more = 0, True
    while more:
        end = string_end(data, at)
        if end == FAIL:
            return FAIL
        field = word_of(data, at + 1, end, _SHOWN, _SHOWN_SIZES)
        at = colon(data, end)
        if at == FAIL or (field >= 0 and read >> field & 1):
            return FAIL
        if field >= 0:
            read |= 1 << field
        if field == 0:
            at, ids[0, c] = _id(data, at, scratch, _ITEM)
        elif field == 1:
            at, ids[1, c] = _id(data, at, scratch, _CATEGORY)
        elif field == 2:
            at, ids[2, c] = _id(data, at, scratch, _DOMAIN)
        elif field == 3 and data[at] != ord("n"):
            at, position = integer(data, at)
            if position > _MAX_POSITION:
                return FAIL
            into.positions[c] = position
        elif field == 3:
            at = null_end(data, at)
        elif field == 4:
            at = read_features(data, at, features, more_words, n_truth)
        elif field == 5 and n_truth and data[at] != ord("n"):
            at, more_words[0] = float_word_of(data, at)
        elif field == 5:
            at = number_or_null_end(data, at)
        else:
            at = scalar_end(data, at)
        if at == FAIL:
            return FAIL
        at, more = following(data, at, _CLOSE)
    return at if ids[0, c] else FAIL


@inner
def _candidates(data: Bytes, at: int, scratch: Bytes, features: Features, into: Candidates, c: int) -> tuple[int, int]:
    """Read a list of candidates from place ``c`` on; return the position after it and the next place."""
    at = opened(data, at, _LIST)
    more = True
    while more and at != FAIL:
        at = _candidate(data, at, scratch, features, into, c)
        c += 1
        if at != FAIL:
            at, more = following(data, at, _LIST_END)
    return at, c


@inner
def _page(
    data: Bytes, at: int, scratch: Bytes, features: Features, shown: Features, row: Ints, into: Candidates, c: int
) -> tuple[int, int]:
    """Read a page into ``row`` and its candidates from place ``c`` on; return the position after it and the next place."""
    row[:] = 0
    for index in range(len(features.sizes)):
        row[N_PAGE + index] = features.missing[index]
    at = opened(data, at, _OPEN)
    if at == FAIL:
        return FAIL, c
    first, read, more = c, 0, True
    while more:
        end = string_end(data, at)
        if end == FAIL:
            return FAIL, first
        field = word_of(data, at + 1, end, _PAGE, _PAGE_SIZES)
        at = colon(data, end)
        if at == FAIL or (field >= 0 and read >> field & 1):
            return FAIL, first
        if field >= 0:
            read |= 1 << field
        if field == 0:
            at, row[0] = _id(data, at, scratch, _USER)
        elif field == 1:
            at, row[1] = _id(data, at, scratch, _REQUEST)
        elif field == 2:
            at, row[2] = integer(data, at)
        elif field == 3:
            at, row[3] = _id(data, at, scratch, _QUERY)
        elif field == 4:
            at, row[4] = _id(data, at, scratch, _DOMAIN)
        elif field == 5:
            at, c = _candidates(data, at, scratch, shown, into, c)
        elif field == 6:
            at = _query_categories(data, at, scratch, row)
        elif field == 7:
            at = read_features(data, at, features, row, N_PAGE)
        else:
            at = scalar_end(data, at)
        if at == FAIL:
            return FAIL, first
        at, more = following(data, at, _CLOSE)
    row[5] = c - first
    return (at, c) if row[0] and row[1] and read & 4 and c > first else (FAIL, first)


@kernel
def scan_pages(
    data: Bytes,
    ends: Ints,
    scratch: Bytes,
    features: Features,
    shown: Features,
    rows: Ints,
    into: Candidates,
    firsts: Ints,
) -> int:
    """Read records of ``impressions``; return the candidates ``C`` that were read.

    Args:
        data: all records one after another, and a 0 byte.
        ends: ``[N]``, where each record ends.
        scratch: of :func:`scratch_rows`.
        features: of pages, ``F``.
        shown: of candidates.
        rows: ``[N, 10 + F]`` is filled: :data:`PAGE_COLUMNS`, and the words of the features.
        into: is filled; room for a candidate per :data:`CANDIDATE_BYTES`.
        firsts: ``[N]`` is filled: the first candidate of each page, -1 if the record is left to a slower reader.
    """
    start, c = 0, 0
    for i in range(len(ends)):
        at, after = _page(data, start, scratch, features, shown, rows[i], into, c)
        done = at != FAIL and _ends(data, at, ends[i])
        firsts[i] = c if done else -1
        c = after if done else c
        start = ends[i]
    return c


@inner
def _ends(data: Bytes, at: int, end: int) -> bool:
    """Whether nothing but white space is left."""
    while at < end and (data[at] == 32 or data[at] == 10 or data[at] == 13 or data[at] == 9):
        at += 1
    return at == end


@inner
def _action(data: Bytes, at: int, scratch: Bytes, row: Ints, kinds: Bytes, kind_sizes: Ints, reads_values: bool) -> int:
    """Read an action into ``row``; return the position after it."""
    at = opened(data, at, _OPEN)
    if at == FAIL:
        return FAIL
    row[:] = 0
    row[8] = NO_VALUE
    read, more = 0, True
    while more:
        end = string_end(data, at)
        if end == FAIL:
            return FAIL
        field = word_of(data, at + 1, end, _ACTION, _ACTION_SIZES)
        at = colon(data, end)
        if at == FAIL or (field >= 0 and read >> field & 1):
            return FAIL
        if field >= 0:
            read |= 1 << field
        if field == 0:
            at, row[0] = _id(data, at, scratch, _USER)
        elif field == 1:
            at, row[1] = _id(data, at, scratch, _ITEM)
        elif field == 2:
            at, row[2] = integer(data, at)
        elif field == 3:
            end = string_end(data, at)
            if end != FAIL:
                row[3] = word_of(data, at + 1, end, kinds, kind_sizes)
                end += 1
            at = end
        elif field == 4:
            at, row[4] = _id(data, at, scratch, _REQUEST)
        elif field == 5:
            at, row[5] = _id(data, at, scratch, _QUERY)
        elif field == 6:
            at, row[6] = _id(data, at, scratch, _CATEGORY)
        elif field == 7:
            at, row[7] = _id(data, at, scratch, _DOMAIN)
        elif field == 8 and reads_values and data[at] != ord("n"):
            at, row[8] = value_word_of(data, at)
        elif field == 8:
            at = number_or_null_end(data, at)
        else:
            at = scalar_end(data, at)
        if at == FAIL:
            return FAIL
        at, more = following(data, at, _CLOSE)
    return at if row[0] and row[1] and read & 12 == 12 else FAIL


@kernel
def scan_actions(
    data: Bytes,
    ends: Ints,
    scratch: Bytes,
    rows: Ints,
    kinds: Bytes,
    kind_sizes: Ints,
    reads_values: bool,
    read: npt.NDArray[np.bool_],
) -> None:
    """Read records of ``actions``.

    Args:
        data, ends, scratch: as of :func:`scan_pages`.
        rows: ``[N, 9]`` is filled: :data:`ACTION_COLUMNS`.
        kinds, kind_sizes: the joiner's kinds, of :func:`~.values.words`.
        reads_values: whether values are read; else all are as if they were missing.
        read: ``[N]`` is filled: false where a record is left to a slower reader.
    """
    start = 0
    for i in range(len(ends)):
        at = _action(data, start, scratch, rows[i], kinds, kind_sizes, reads_values)
        read[i] = at != FAIL and _ends(data, at, ends[i])
        start = ends[i]
