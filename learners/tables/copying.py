"""Copies of many rows past the cache: all of an array, or the rows of it that are flagged.

A checkpoint's copy is read much later, by another thread, and is larger than any cache. An ordinary store first reads the line
that it is about to write and then keeps it in the cache; a *streaming* store (non-temporal) does neither, so that a third less
goes over the memory bus, which is all that such a copy waits for. Measured here on 640 MB: 30 ms, NumPy's 48.

Rows are picked in one of two ways. Where few are flagged, each is fetched by itself (:func:`_fetch`). Where many are, fetching
reads nearly all lines, only in an order that the processor does not foresee: then all rows are read one after the other into a
small buffer, where a row that is not flagged is overwritten by the next, without a branch (:func:`_sift`).

Everything is in words of four bytes; ``out`` begins at a cache line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np import arrayobj

from learners.tables.prefetch import AHEAD, prefetch
from learners.tables.storage import LINE
from negative_queues.kernels import kernel

Words = npt.NDArray[np.uint32]
Bytes = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int32]

# Numba's own tools are written without types.
_numba: Any = numba
_lower: Any = cgutils
_arrays: Any = arrayobj

CHUNK = 8
"""Words that are moved at once: 32 bytes."""
BLOCK = 64
"""Rows that are sifted at once."""
LISTED = 0.25
"""Up to this share of the rows it pays to have them listed."""

__all__ = ["LISTED", "aligned", "copy", "pick", "rows_of"]


def aligned(size: int) -> Bytes:
    """Return memory of ``size`` bytes that begins at a cache line."""
    memory = np.empty(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size]


def copy(source: npt.NDArray[Any], out: Bytes) -> None:
    """Write the bytes of ``source``, C-contiguous, to as many bytes of ``out``."""
    flat = source.reshape(-1).view(np.uint8)
    whole = len(flat) // 4 * 4
    _copy(flat[:whole].view(np.uint32), out[:whole].view(np.uint32))
    out[whole : len(flat)] = flat[whole:]


def pick(source: npt.NDArray[Any], touched: Bytes, rows: Rows | None, out: Bytes) -> None:
    """Write the rows of ``source`` that are touched to ``out``.

    Args:
        source: C-contiguous, ``[>= n, ..]``, of four bytes a row or a multiple.
        touched: 1 for each of the rows, else 0, ``[n]``.
        rows: which they are, ascending, int32 ``[U]``; None where they are so many that nobody has listed them.
        out: as many bytes as the rows have.
    """
    n, width = len(touched), source[:1].nbytes
    flat, found = source[:n].reshape(-1).view(np.uint32), out.view(np.uint32)
    if rows is None or len(rows) >= n * _sifted_from(width):
        _sift(flat, width // 4, touched, found)
    else:
        _fetch(flat, width // 4, rows, found)


def _sifted_from(width: int) -> float:
    """Return the share of rows from which on all are read, by the bytes of a row: measured at 10^6 and 10^7 rows."""
    return 0.06 if 8 < width <= 32 else LISTED


def rows_of(touched: Bytes, rows: Rows) -> None:
    """Write which flags ``[n]`` are 1 to ``rows [U]``, ascending."""
    whole = len(touched) // 8 * 8
    _rows_of(touched[:whole].view(np.uint64), touched, rows)


def _lowered(streaming: bool) -> Any:
    """Return what moves a chunk: ``out[to : to + CHUNK] = source[start : start + CHUNK]``, words of 1-dimensional arrays."""

    def as_compiled(typing_context: Any, out: Any, to: Any, source: Any, start: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            ir = _lower.ir  # llvmlite, in Numba's own version
            chunk = ir.VectorType(ir.IntType(32), CHUNK).as_pointer()

            def address(array: int, at: int) -> Any:
                data = _arrays.make_array(signature.args[array])(context, builder, arguments[array]).data
                return builder.bitcast(builder.gep(data, [arguments[at]]), chunk)

            value = builder.load(address(2, 3), align=4)
            stored = builder.store(value, address(0, 1), align=4 * CHUNK if streaming else 4)
            if streaming:
                stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
            return context.get_dummy_value()

        return types.void(out, types.intp, source, types.intp), lower

    return as_compiled


def _fence_compiled(typing_context: Any) -> Any:
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), lower


def _as_python(out: Any, to: Any, source: Any, start: Any) -> None:
    out[to : to + CHUNK] = source[start : start + CHUNK]


def _no_fence() -> None:
    """Do nothing: so do kernels run with the compiler off."""


_off = _numba.config.DISABLE_JIT
_move: Callable[[Any, Any, Any, Any], None] = _as_python if _off else cast(Any, intrinsic(_lowered(streaming=False)))
_stream: Callable[[Any, Any, Any, Any], None] = _as_python if _off else cast(Any, intrinsic(_lowered(streaming=True)))
"""The same past the cache; ``out[to]`` begins at 32 bytes."""
_fence: Callable[[], None] = _no_fence if _off else cast(Any, intrinsic(_fence_compiled))
"""Other threads see what was streamed before it."""


@kernel
def _copy(source: Words, out: Words) -> None:
    whole = len(source) // CHUNK * CHUNK
    for at in range(0, whole, CHUNK):
        _stream(out, at, source, at)
    for at in range(whole, len(source)):
        out[at] = source[at]
    _fence()


@kernel
def _fetch(source: Words, width: int, rows: Rows, out: Words) -> None:
    """Pick rows of ``width`` words one by one."""
    if width == 2 * CHUNK:
        _fetch_whole(source, 2 * CHUNK, rows, out)
    elif width % CHUNK == 0:
        _fetch_whole(source, width, rows, out)
    else:
        for i in range(len(rows)):
            if i + AHEAD < len(rows):
                prefetch(source, rows[i + AHEAD] * width)
            start, to = rows[i] * width, i * width
            for at in range(width):
                out[to + at] = source[start + at]
    _fence()


@kernel(inline="always")
def _fetch_whole(source: Words, width: int, rows: Rows, out: Words) -> None:
    for i in range(len(rows)):
        if i + AHEAD < len(rows):
            prefetch(source, rows[i + AHEAD] * width)
        for at in range(0, width, CHUNK):
            _stream(out, i * width + at, source, rows[i] * width + at)


@kernel
def _sift(source: Words, width: int, touched: Bytes, out: Words) -> None:
    """Pick the rows of ``width`` words that are touched, reading all of them."""
    size = -(-width // CHUNK) * CHUNK
    by_chunks = min(len(touched), max(0, (len(source) - size) // width + 1))  # rows whose last chunk ends in the source
    buffer = np.empty((BLOCK + CHUNK) * width + CHUNK, np.uint32)
    done = held = 0
    for start in range(0, len(touched), BLOCK):
        end = min(start + BLOCK, by_chunks)
        if width == 1:
            held = int(_held_words(buffer, held, source, touched, start, end))
        elif size == CHUNK:
            held = _held(buffer, held, source, width, CHUNK, touched, start, end)
        elif size == 2 * CHUNK:
            held = _held(buffer, held, source, width, 2 * CHUNK, touched, start, end)
        else:
            held = _held(buffer, held, source, width, size, touched, start, end)
        for row in range(max(start, by_chunks), min(start + BLOCK, len(touched))):
            for at in range(width):
                buffer[held * width + at] = source[row * width + at]
            held += touched[row]
        full = held // CHUNK * CHUNK  # rows: of any width they are whole chunks
        for at in range(0, full * width, CHUNK):
            _stream(out, done * width + at, buffer, at)
        done, held = done + full, held - full
        for at in range(0, held * width, CHUNK):
            _move(buffer, at, buffer, full * width + at)
    for at in range(held * width):
        out[done * width + at] = buffer[at]
    _fence()


@kernel(inline="always")
def _held_words(buffer: Words, held: int, source: Words, touched: Bytes, start: int, end: int) -> np.int64:
    to = np.uint64(held)  # an index that may be negative takes as long as the rest of it
    for at in range(start, end):
        row = np.uint64(at)
        buffer[to] = source[row]
        to += np.uint64(touched[row])
    return np.int64(to)


@kernel(inline="always")
def _held(buffer: Words, held: int, source: Words, width: int, size: int, touched: Bytes, start: int, end: int) -> int:
    for row in range(start, end):
        for at in range(0, size, CHUNK):
            _move(buffer, held * width + at, source, row * width + at)
        held += touched[row]
    return held


@kernel
def _rows_of(words: npt.NDArray[np.uint64], touched: Bytes, rows: Rows) -> None:
    n, safe = 0, len(rows) - 8
    for word in range(len(words)):
        if words[word] != 0:
            if n <= safe:
                for row in range(word * 8, word * 8 + 8):
                    rows[n] = row  # overwritten by the next one where it is not touched
                    n += touched[row]
            else:
                for row in range(word * 8, word * 8 + 8):
                    if touched[row]:
                        rows[n] = row
                        n += 1
    for row in range(len(words) * 8, len(touched)):
        if touched[row]:
            rows[n] = row
            n += 1
