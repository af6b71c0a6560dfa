"""Records to what the joiner keeps, by kernel: a read at once, without an object per field.

What the kernels do not read (escapes, errors, features, ...) is None here, and :mod:`stream_app.joiner.decode` reads it alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stream_app.joiner.pending import Ignored, Request, Waiting

from .events import ACTION_COLUMNS, CANDIDATE_BYTES, PAGE_COLUMNS, scan_actions, scan_pages, scratch_rows
from .values import words

Ints = npt.NDArray[np.int64]


class Reader:
    """Reads pages and actions.

    Args:
        kinds: names of the kinds of action that the joiner uses, by index.
        due_after: ms from a request's ``ts`` to its ``due``.
    """

    def __init__(self, kinds: Sequence[str], due_after: int) -> None:
        self._kinds = words(list(kinds))
        self._due_after = due_after
        self._scratch = scratch_rows()

    def pages(self, values: Sequence[bytes], offset_of: Sequence[int]) -> list[Request | None]:
        """Return a request per value.

        Args:
            values: JSON of impressions.
            offset_of: their offsets.
        """
        n, (data, ends) = len(values), _joined(values)
        room = len(data) // CANDIDATE_BYTES + 1
        rows, firsts = np.empty((n, len(PAGE_COLUMNS)), np.int64), np.empty(n, np.int64)
        ids, positions = np.empty((3, room), np.int64), np.empty(room, np.int32)
        n_candidates = scan_pages(data, ends, self._scratch, rows, ids, positions, firsts)
        items, categories, domains = (column[:n_candidates].tobytes() for column in ids)
        placed = positions[:n_candidates].tobytes()
        unknown = np.zeros(n_candidates + 1, np.int64)
        np.cumsum((ids[1, :n_candidates] == 0) | (ids[2, :n_candidates] == 0), out=unknown[1:])
        complete = unknown[firsts] == unknown[np.minimum(firsts + rows[:, 5], n_candidates)]
        due_after = self._due_after
        requests: list[Request | None] = []
        for offset, first, row, known in zip(offset_of, firsts.tolist(), rows.tolist(), complete.tolist(), strict=True):
            if first < 0:
                requests.append(None)
                continue
            user, request, ts, query, domain, size, one, two, three, four = row
            wide, narrow = slice(8 * first, 8 * (first + size)), slice(4 * first, 4 * (first + size))
            requests.append(
                Request(
                    offset,
                    user,
                    request,
                    ts,
                    ts + due_after,
                    query,
                    (one, two, three, four),
                    domain,
                    size,
                    items[wide],
                    categories[wide],
                    domains[wide],
                    placed[narrow],
                    b"",
                    (),
                    (),
                    known,
                )
            )
        return requests

    def actions(self, values: Sequence[bytes], offset_of: Sequence[int]) -> list[Waiting | Ignored | None]:
        """Return an action per value; arguments as of :meth:`pages`."""
        n, (data, ends) = len(values), _joined(values)
        rows, read = np.empty((n, len(ACTION_COLUMNS)), np.int64), np.empty(n, np.bool_)
        scan_actions(data, ends, self._scratch, rows, *self._kinds, read)
        actions: list[Waiting | Ignored | None] = []
        for offset, known, row in zip(offset_of, read.tolist(), rows.tolist(), strict=True):
            if not known:
                actions.append(None)
                continue
            user, item, ts, kind, request, query, category = row
            if kind < 0:
                actions.append(Ignored(ts))
            else:
                actions.append(Waiting(offset, user, item, ts, ts, kind, request, query, category))
        return actions


def _joined(values: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], Ints]:
    """Return all values one after another with a 0 byte at the end, and where each of them ends."""
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    return np.frombuffer(b"".join([*values, b"\0"]), np.uint8), np.cumsum(sizes)
