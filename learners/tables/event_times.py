"""When each row was first and last seen: four bytes a time while the stream spans less than 49 days, eight after.

A time is kept as milliseconds since a base a little before the first that was met, 0 for none, which fits uint32; the first
time that does not fit turns both arrays into int64. Nothing is rounded, and nobody outside can see which of the two it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from learners.tables.storage import lengthened, zeros
from negative_queues.kernels import kernel

Times = npt.NDArray[np.int64]
Part = slice | npt.NDArray[np.int32]
_BEFORE = 1 << 30
_SPAN = 1 << 32


class EventTimes:
    """First and last event time (ms) per row; 0 is none.

    Args:
        first, last: uint32 of zeros, ``[capacity]``, where times are kept while they fit.
    """

    def __init__(self, first: npt.NDArray[Any], last: npt.NDArray[Any]) -> None:
        self.first, self.last = first, last
        self._base: int | None = None

    @property
    def base(self) -> int:
        """What stands for 0 in the arrays, ms; 0 where they hold times themselves."""
        return 0 if self.wide or self._base is None else self._base

    @property
    def wide(self) -> bool:
        """Whether times take eight bytes."""
        return self.first.dtype == np.int64

    @property
    def begun(self) -> bool:
        """Whether a time was met."""
        return self.wide or self._base is not None

    def limits(self) -> tuple[int, int]:
        """Return the times, exclusive, between which ``ts - base`` is what :meth:`code` returns and nothing is widened."""
        return (0, np.iinfo(np.int64).max) if self.wide else (max(self.base, 0), self.base + _SPAN)

    def code(self, ts: int) -> int:
        """Return what to write for ``ts``; may widen the arrays, so take them after this."""
        if ts == 0 or self.wide:
            return ts
        if self._base is None:
            self._base = ts - _BEFORE
        if 0 < ts - self._base < _SPAN:
            return ts - self._base
        self.first, self.last = self._times(self.first), self._times(self.last)
        return ts

    def last_of(self, rows: Part) -> Times:
        """Return when rows were last seen, ms, ``[N]``."""
        return self._times(self.last[rows])

    def put(self, rows: Part, first: Times, last: Times) -> None:
        """Write the times of rows."""
        both = np.concatenate([first, last])
        known = both[both != 0]
        for ts in (int(known.min()), int(known.max())) if len(known) else ():
            self.code(ts)
        self.first[rows], self.last[rows] = self._codes(first), self._codes(last)

    @property
    def state_of_base(self) -> Times:
        """What is added to a code that is not 0, int64 ``[1]``; ``[0]`` before the first time and where times are wide."""
        return np.array([] if self.wide or self._base is None else [self._base], np.int64)

    def put_codes(self, rows: Part, first: npt.NDArray[Any], last: npt.NDArray[Any], base: Times) -> None:
        """Write what rows of another's :attr:`first` and :attr:`last` hold, whose :attr:`state_of_base` is given.

        Raises:
            ValueError: ours hold codes of another base.
        """
        if len(base):
            if self.wide or self._base not in (None, int(base[0])):
                raise ValueError(
                    f"event times are kept since {base[0]} ms there and since {self._base} here: not the same table"
                )
            self._base = int(base[0])
        elif first.dtype == np.int64 and not self.wide:
            self.first, self.last = self._times(self.first), self._times(self.last)
        self.first[rows], self.last[rows] = first, last

    def move(self, used: int, first: npt.NDArray[Any], last: npt.NDArray[Any]) -> None:
        """Go on in longer arrays that hold what was in ours."""
        if self.wide:
            self.first, self.last = lengthened(self.first, used, len(first)), lengthened(self.last, used, len(last))
        else:
            self.first, self.last = first, last

    def _codes(self, times: Times) -> npt.NDArray[Any]:
        if self.wide or self._base is None:
            return times
        return np.where(times == 0, 0, times - self._base).astype(np.uint32)

    def _times(self, codes: npt.NDArray[Any]) -> Times:
        if self.wide:
            return codes
        times = zeros((len(codes),), np.int64)
        _decode(codes, self.base, times)
        return times


def coded(first: Times, last: Times) -> dict[str, npt.NDArray[Any]]:
    """Return the state of times in ms, as checkpoints of format 1 hold them, ``[N]`` each."""
    times = EventTimes(np.zeros(len(first), np.uint32), np.zeros(len(last), np.uint32))
    times.put(slice(None), first, last)
    return {"first": times.first, "last": times.last, "ts_base": times.state_of_base}


@kernel
def _decode(codes: npt.NDArray[np.uint32], base: int, times: Times) -> None:
    """Write the times of codes to zeros; where there is none nothing is written, so that reserved rows take no memory."""
    for i in range(len(codes)):
        if codes[i] != 0:
            times[i] = np.int64(codes[i]) + base
