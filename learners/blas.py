"""Matrix products inside compiled code: the ``sgemm`` of the BLAS that torch brings, without the interpreter in between.

A step's products are short, and a compiled pass stands between every two of them. Called from Python each costs two hand-overs
of the interpreter's lock, for which two threads that work side by side wait on each other. torch's library exports its BLAS
under the names of the standard (MKL on x86, OpenBLAS on ARM); where a build does not, compiled loops stand in.

How many threads a product takes is torch's affair: callers see to it that it is one (:mod:`learners.threads`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt
import torch
from numba.core import cgutils, types
from numba.extending import intrinsic

from negative_queues.kernels import kernel

# Numba's own tools are written without types.
_numba: Any = numba
_lower: Any = cgutils
_types: Any = types

__all__ = ["SGEMM", "matrix_at", "product"]

Floats = npt.NDArray[np.float32]
_carray: Callable[..., Floats] = _numba.carray


def _found() -> int:
    """Return the address of ``sgemm_``, 0 where torch's library shows none."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        if (folder / name).exists():
            function = getattr(ctypes.CDLL(str(folder / name)), "sgemm_", None)  # its own or of a library that it loads
            return cast(int, ctypes.cast(function, ctypes.c_void_p).value) if function is not None else 0
    return 0


SGEMM: int = 0 if _numba.config.DISABLE_JIT else _found()
"""What :func:`product` calls; 0 for compiled loops."""


def _as_compiled(typing_context: Any, address: Any, flags: Any, sizes: Any, places: Any, beta: Any) -> Any:
    """Lower ``call(address, (trans_a, trans_b), (m, n, k, lda, ldb, ldc), (a, b, c), beta)`` to a call in the Fortran way.

    Sizes are handed over as 64 bits each, of which a BLAS with 32-bit integers reads the lower half.
    """

    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        ir = _lower.ir  # llvmlite, in Numba's own version
        number, real, byte = ir.IntType(64), ir.FloatType(), ir.IntType(8)

        def kept(kind: Any, value: Any) -> Any:
            slot = _lower.alloca_once(builder, kind)
            builder.store(value, slot)
            return builder.bitcast(slot, _lower.voidptr_t)

        turned = [builder.icmp_signed("!=", flag, number(0)) for flag in _of(builder, arguments[1])]
        trans_a, trans_b = (kept(byte, builder.select(flag, byte(ord("T")), byte(ord("N")))) for flag in turned)
        m, n, k, lda, ldb, ldc = (kept(number, size) for size in _of(builder, arguments[2]))
        a, b, c = (builder.inttoptr(place, _lower.voidptr_t) for place in _of(builder, arguments[3]))
        alpha, scale = kept(real, real(1.0)), kept(real, arguments[4])
        given = [trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, scale, c, ldc]
        kind = ir.FunctionType(ir.VoidType(), [_lower.voidptr_t] * len(given))
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), given)
        return context.get_dummy_value()

    int64, float32 = _types.int64, _types.float32
    tuples = (_types.UniTuple(int64, n) for n in (2, 6, 3))
    return _types.void(int64, *tuples, float32), lower


def _of(builder: Any, values: Any) -> Any:
    return _lower.unpack_tuple(builder, values)


def _as_python(*arguments: Any) -> None:
    """With the compiler off no address is called."""
    raise AssertionError("product calls no address with the compiler off")


_sgemm: Callable[..., None] = _as_python if _numba.config.DISABLE_JIT else cast(Any, intrinsic(_as_compiled))


def _pointer_compiled(typing_context: Any, address: Any) -> Any:
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return _types.CPointer(_types.float32)(_types.int64), lower


_NOTHING = ctypes.c_float()


def _pointer_python(address: int) -> Any:
    return ctypes.cast(int(address) or ctypes.addressof(_NOTHING), ctypes.POINTER(ctypes.c_float))  # no rows lie nowhere


_pointer: Callable[[int], Any] = _pointer_python if _numba.config.DISABLE_JIT else cast(Any, intrinsic(_pointer_compiled))


@kernel
def matrix_at(address: int, rows: int, columns: int) -> Floats:
    """Return the floats from an address on as a matrix: for kernels that take any number of them. Others hold the memory."""
    return _carray(_pointer(address), (rows, columns))


@kernel
def product(sgemm: int, a: Floats, turn_a: bool, b: Floats, turn_b: bool, out: Floats, add: bool) -> None:
    """Write ``A B`` to ``out [M, N]``, ``A`` being ``a`` or its transpose, ``B`` likewise; a row lies in one piece.

    Args:
        sgemm: :data:`SGEMM`, or 0 for compiled loops.
        a: ``[M, K]``, or ``[K, M]`` to be turned.
        turn_a: whether it is.
        b: ``[K, N]``, or ``[N, K]`` to be turned.
        turn_b: whether it is.
        out: see above.
        add: to what is there, rather than in its place.

    Raises:
        ValueError: the sizes do not fit: a BLAS would read and write beyond the arrays.
    """
    m, n = out.shape
    k = a.shape[0] if turn_a else a.shape[1]
    if (a.shape[1] if turn_a else a.shape[0]) != m or b.shape != ((n, k) if turn_b else (k, n)):
        raise ValueError("sizes of the factors and of their product do not fit")
    if m == 0 or n == 0:
        return
    if sgemm == 0 or k == 0:
        _loops(a, turn_a, b, turn_b, out, add, k)
        return
    # The standard's matrices lie column by column: there every one of ours is its transpose, and out' = B' A'.
    flags = np.int64(turn_b), np.int64(turn_a)
    sizes = np.int64(n), np.int64(m), np.int64(k), _stride(b), _stride(a), _stride(out)
    places = np.int64(b.ctypes.data), np.int64(a.ctypes.data), np.int64(out.ctypes.data)
    _sgemm(np.int64(sgemm), flags, sizes, places, np.float32(add))


@kernel(inline="always")
def _stride(matrix: Floats) -> Any:
    """Return how many floats a row is from the next."""
    return max(matrix.strides[0] // 4, matrix.shape[1], 1)


@kernel
def _loops(a: Floats, turn_a: bool, b: Floats, turn_b: bool, out: Floats, add: bool, n_sums: int) -> None:
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            total = out[i, j] if add else np.float32(0)
            for k in range(n_sums):
                total += (a[k, i] if turn_a else a[i, k]) * (b[j, k] if turn_b else b[k, j])
            out[i, j] = total
