"""What was on the page when a Globo click happened: candidates drawn from recent clicks, or given in a file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .source import SourceError, Tally

__all__ = ["Clicks", "Drawn", "Given", "Shown"]

_DRAWS: Final = 256
_TRIES: Final = 20


class Clicks(NamedTuple):
    """Clicks in the order of (time, user, article), ``[N]`` each; equal times are never torn apart."""

    users: npt.NDArray[np.int64]
    articles: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]


class Shown(NamedTuple):
    """The page of one click."""

    request_id: str
    candidates: list[int]
    in_window: bool
    """Whether the clicked article is among the clicks that candidates are drawn from, as all others are."""
    clicked_before: bool
    """Whether the user had clicked it before, as none of the others."""


class Drawn:
    """Candidates as ``make_requests.py`` of the data draws them: the clicked article and distinct ones of the last clicks.

    Every click after the warm-up of a user with an earlier click (by time) is a request. The others on its page come evenly
    from the ``window`` clicks strictly before it, none of them clicked by the user so far. Memory grows with the users' clicks.

    Args:
        seed: of the draws; one generator for the whole log, so a request depends on all before it.
        window: clicks that are drawn from.
        warm_up: first clicks, which are no requests.
        n_negatives: candidates beside the clicked one.
        tally: counts clicks for which too few candidates are left.
    """

    def __init__(self, seed: int, window: int, warm_up: int, n_negatives: int, tally: Tally) -> None:
        self._rng = np.random.default_rng(seed)
        self._window, self._warm_up, self._n_negatives = window, warm_up, n_negatives
        self._tally = tally
        self._recent: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._n_clicks = 0
        self._n_requests = 0
        self._first_ts: dict[int, int] = {}
        self._clicked: defaultdict[int, set[int]] = defaultdict(set)
        self._last_at: dict[int, int] = {}

    def finished(self) -> bool:
        """Whether no later click can be a request."""
        return False

    def of(self, clicks: Clicks) -> Iterator[Shown | None]:
        """Yield the page of each click, None where it is no request."""
        recent, kept = np.concatenate([self._recent, clicks.articles]), len(self._recent)
        ends = kept + np.searchsorted(clicks.times, clicks.times, side="left")
        offset = self._n_clicks - kept
        same_time: list[tuple[int, int]] = []
        columns = zip(clicks.users.tolist(), clicks.articles.tolist(), clicks.times.tolist(), ends.tolist(), strict=True)
        for i, (user, article, now, end) in enumerate(columns):
            if same_time and same_time[-1][1] < end + offset:
                self._last_at.update(same_time)
                same_time = []
            shown = None
            if self._n_clicks + i >= self._warm_up and self._first_ts.get(user, now) < now:
                start = max(0, end - self._window)
                in_window = self._last_at.get(article, -1) >= start + offset
                shown = self._page(user, article, recent[start:end], in_window)
            yield shown
            self._first_ts.setdefault(user, now)
            self._clicked[user].add(article)
            same_time.append((article, self._n_clicks + i))
        self._last_at.update(same_time)
        self._n_clicks += len(clicks.users)
        self._recent = recent[-self._window :].copy()

    def _page(self, user: int, article: int, window: npt.NDArray[np.int64], in_window: bool) -> Shown | None:
        clicked = self._clicked[user]
        negatives = self._draw(window, clicked | {article})
        if negatives is None:
            self._tally.left_out["clicks with too few candidates (history only)"] += 1
            return None
        candidates = [article, *negatives]
        order = self._rng.permutation(len(candidates)).tolist()
        self._n_requests += 1
        return Shown(str(self._n_requests - 1), [candidates[i] for i in order], in_window, article in clicked)

    def _draw(self, window: npt.NDArray[np.int64], seen: set[int]) -> list[int] | None:
        chosen: list[int] = []
        for _ in range(_TRIES):
            for article in window[self._rng.integers(0, len(window), _DRAWS)].tolist():
                if article not in seen:
                    seen.add(article)
                    chosen.append(article)
                    if len(chosen) == self._n_negatives:
                        return chosen
        return None


class Given:
    """Candidate lists of a Parquet file with ``user_id, ts, candidates, labels``, in the order of (ts, user, clicked article).

    Args:
        path: the file; ``request_id, in_window, clicked_before`` are taken where it has them.

    Raises:
        SourceError: the file cannot be read or lacks a column.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._row = 0
        self._rows = self._read()
        self._next = next(self._rows, None)

    def finished(self) -> bool:
        """Whether all requests have been found."""
        return self._next is None

    def of(self, clicks: Clicks) -> Iterator[Shown | None]:
        """Yield the page of each click, None where it is no request.

        Raises:
            SourceError: a request has no click.
        """
        for user, article, now in zip(clicks.users.tolist(), clicks.articles.tolist(), clicks.times.tolist(), strict=True):
            if self._next is None or now < self._next[0][0]:
                yield None
                continue
            key, shown = self._next
            if now > key[0]:
                raise self._unmatched(key)
            if (now, user, article) == key:
                self._next = next(self._rows, None)
                yield shown
            else:
                yield None

    def _unmatched(self, key: tuple[int, int, int]) -> SourceError:
        return SourceError(
            f"{self._path.name}: request {self._row} (user {key[1]}, ts {key[0]}, clicked article {key[2]}) has no click in "
            "the log, or the file is not in the order of ts, user and clicked article; make it from the same clicks"
        )

    def _read(self) -> Iterator[tuple[tuple[int, int, int], Shown]]:
        needed, optional = ["user_id", "ts", "candidates", "labels"], ["request_id", "in_window", "clicked_before"]
        try:
            file = pq.ParquetFile(self._path)
        except (pa.ArrowInvalid, OSError) as error:
            raise SourceError(f"{self._path}: not readable as Parquet ({error}); candidates are a Parquet file") from error
        with file:
            found = file.schema_arrow.names
            if lacking := [name for name in needed if name not in found]:
                raise SourceError(f"{self._path.name}: there is no column {lacking[0]!r}; found {', '.join(found)}")
            for batch in file.iter_batches(batch_size=4_096, columns=needed + [name for name in optional if name in found]):
                for row in batch.to_pylist():
                    self._row += 1
                    yield self._request(row)

    def _request(self, row: dict[str, Any]) -> tuple[tuple[int, int, int], Shown]:
        candidates, labels = row["candidates"], row["labels"]
        clicked = [item for item, label in zip(candidates, labels, strict=False) if label]
        if len(candidates) != len(labels) or len(clicked) != 1:
            raise SourceError(
                f"{self._path.name}: request {self._row} has {len(candidates)} candidates, {len(labels)} labels and "
                f"{len(clicked)} clicks; one label per candidate and one click are needed"
            )
        request_id = str(row.get("request_id", self._row - 1))
        shown = Shown(request_id, candidates, bool(row.get("in_window", True)), bool(row.get("clicked_before", False)))
        return (row["ts"], row["user_id"], clicked[0]), shown
