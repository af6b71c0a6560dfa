"""Where everything stands in the joiner's memory: int64 words, addresses are indexes into the arena, 0 is nowhere.

::

    event     TYPE SIZE OFFSET TS | body                    what decoding makes of a record
    record    KIND KEY FLAGS USED NEXT SIZE | body | vectors   what the joiner remembers, found by (kind, key)
    vector    address, words used, size class (0: none yet)

=========  ==============  =======================================  ==========================================
kind       key             body                                     vectors
=========  ==============  =======================================  ==========================================
USER       hashed user     last ts, closed requests                 pending requests, queries, item sequences
REQUEST    its offset      a page, as in its event                  none
ACTION     its offset      an action, as in its event               none
ITEM       hashed item     none                                     versions: ts, category, domain, features
PROFILE    hashed user     none                                     versions, likewise
QUERY      hashed query    4 categories, the most recent first      none
=========  ==============  =======================================  ==========================================

A page's body: :data:`PAGE_WORDS` words, its features, and then column after column of its ``n`` candidates: items,
categories, domains, positions (with :data:`ACTED`), the truth if the config has it, and features.
Floats are the bits of a float32.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

# Events.
TYPE, SIZE_OF_EVENT, OFFSET_OF_EVENT, TS_OF_EVENT, EVENT_HEAD = range(5)
PAGE, ACT_EVENT, ITEM_EVENT, USER_EVENT, IGNORED, UNUSABLE, STEP = range(7)

# Records.
KIND, KEY, FLAGS, USED, NEXT, SIZE, HEAD = range(7)
USER, REQUEST, ACTION, ITEM, PROFILE, QUERY = range(6)
LETTERS: Final = b"uraipq"
"""Of the kinds, in keys of the durable state."""
TOUCHED, STORED, GONE = 1, 2, 4
VECTOR: Final = 3
"""Words that say where a vector is."""
PENDING, QUERIES, SEQUENCES = range(3)
"""Vectors of a user; one per item sequence from ``SEQUENCES`` on."""

# Bodies.
LAST_TS, N_CLOSED, USER_WORDS = range(3)
(
    PAGE_USER,
    PAGE_REQUEST,
    PAGE_TS,
    PAGE_DUE,
    PAGE_QUERY,
    PAGE_CATEGORIES,
    _,
    _,
    _,
    PAGE_DOMAIN,
    PAGE_N,
    PAGE_FLAGS,
    PAGE_WORDS,
) = range(13)
COMPLETE, CLOSED, LEFT, SEEN = 1, 2, 4, 8
"""Of a page: metadata could add nothing; it leaves early; it has left and is remembered for corrections; its query is known."""
(
    ACTION_USER,
    ACTION_ITEM,
    ACTION_TS,
    ACTION_LOGGED_TS,
    ACTION_KIND,
    ACTION_REQUEST,
    ACTION_QUERY,
    ACTION_CATEGORY,
    ACTION_DOMAIN,
    ACTION_VALUE,
    ACTION_WORDS,
) = range(11)
"""With the head of its record they make 16 words, a size class of the arena."""
LATE: Final = 1 << 32
"""In an action's kind: it came late."""
UPDATE_KEY, UPDATE_VERSION = range(2)
"""Of an item's or a user's event: whose, and the version from there on."""
VERSION_TS, VERSION_CATEGORY, VERSION_DOMAIN, VERSION_FEATURES = range(4)
ACTED: Final = 1 << 32
"""In a candidate's position: it has a label (``wait``) or a correction row of its own (``correct``)."""
POSITION: Final = (1 << 32) - 1
N_CATEGORIES: Final = 4

# Entries of vectors.
ENTRY: Final = 3
"""Item, category, ts."""
QUERY_ENTRY: Final = 2 + N_CATEGORIES
"""Query, its categories, ts."""
PENDING_REQUEST, PENDING_OFFSET, PENDING_TS, PENDING_CLOSED, PENDING_ENTRY = range(5)

# Steps: time, and step | offset.
OFFSET_BITS: Final = 46
OFFSETS: Final = (1 << OFFSET_BITS) - 1
SEE, ACT, LEAVE, FORGET = range(4)

# Registers.
(
    TOP,
    N_SLOTS,
    HEAP_SIZE,
    N_SIGNATURES,
    PASSED,
    CURSOR,
    WANTED_KIND,
    WANTED_KEY,
    NEEDED,
    FIRST_TOUCHED,
    BATCH,
    HAS_ITEMS,
    HAS_USERS,
    ROWS,
    N_REFUSED,
    FREE,
) = range(16)
"""``FREE`` + size class: the first free block of it."""
N_CLASSES: Final = 40
COUNTS: Final = FREE + N_CLASSES
"""``COUNTS`` + kind: records in memory."""
COUNTERS_AT: Final = COUNTS + 6
COUNTERS: Final = (
    "requests",
    "rows",
    "labels",
    "corrections",
    "actions",
    "late_actions",
    "orphan_actions",
    "low_value_actions",
    "no_value_actions",
    "no_domain_actions",
    "duplicate_actions",
    "ignored_actions",
    "duplicate_impressions",
    "early_requests",
    "truncated",
    "items",
    "users",
)
"""What is counted, besides dead letters by reason."""
(
    N_REQUESTS,
    _,
    N_LABELS,
    N_CORRECTIONS,
    N_ACTIONS,
    N_LATE,
    N_ORPHANS,
    N_LOW_VALUE,
    N_NO_VALUE,
    N_NO_DOMAIN,
    N_DUPLICATE_ACTIONS,
    N_IGNORED,
    N_DUPLICATE_PAGES,
    N_EARLY,
    N_TRUNCATED,
    N_ITEMS,
    N_USERS,
    N_REGISTERS,
) = range(COUNTERS_AT, COUNTERS_AT + 18)

# What the joiner is told (a config as words).
(
    LATENESS,
    WINDOW,
    CORRECTS,
    MAX_PENDING,
    BLOCK_REQUESTS,
    QUERY_LENGTH,
    N_SEQUENCES,
    N_PAGE_FEATURES,
    N_FEATURES,
    HAS_TRUTH,
    KINDS_AT,
    DOMAINS_AT,
    PAGE_FEATURES_AT,
    FEATURES_AT,
    LENGTHS,
) = range(15)
"""``LENGTHS`` + sequence: its length. At ``KINDS_AT``, a row per kind. At ``DOMAINS_AT``, per sequence and once more: where the
domains begin that may feed it; those of a sequence end where the next one's begin, and none are any.
At ``PAGE_FEATURES_AT`` and ``FEATURES_AT``: whether each feature is a float."""
KIND_LABELS, KIND_BY_DOMAIN, KIND_FEEDS = range(3)
"""Of a kind's row: the least value (:mod:`stream_app.joiner.action_values`) with which it labels, whether a sequence that it
feeds takes some domains only, and per sequence the least value with which it feeds it."""

# Why a kernel comes back.
DONE, WANT, GROW, BLOCK, WIDEN = range(5)
"""Nothing is left; a record is not in memory; memory is too small; a block is full; the columns of rows are too small."""


class Memory(NamedTuple):
    """The joiner's memory as kernels see it."""

    words: Ints
    """The arena."""
    slots: Ints
    """``[2^k, 2]``: address and key, a hash index with linear probing."""
    heap: Ints
    """``[n, 2]``: steps, time and step | offset."""
    signatures: Ints
    """``[2^k, 6]``: 1 and the signature of a waiting action, hashed likewise."""
    regs: Ints
    config: Ints


class Columns(NamedTuple):
    """Rows of a block as kernels write them. ``R`` rows, ``C`` candidates, ``H`` entries, ``S`` item sequences."""

    heads: Ints
    """``[R, 11]``: request, user, ts, due, query, 4 categories, domain, whether it is a correction."""
    ids: Ints
    """``[3, C]``: item, category, domain."""
    positions: npt.NDArray[np.int32]
    labels: npt.NDArray[np.float32]
    features: Ints
    """``[truth + features, C]``: bits of a float32, or ids."""
    page_features: Ints
    """``[features, R]``, likewise."""
    entries: Ints
    """``[3 S + 6, H]``: columns of each item sequence and of the queries."""
    offsets: Ints
    """``[2 + S, R + 1]``: of candidates, queries and item sequences."""
    fresh: npt.NDArray[np.int32]
    """``[1 + S, R]``: queries and item sequences."""
