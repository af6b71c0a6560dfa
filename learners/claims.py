"""Tasks that threads claim inside compiled code, stage after stage, without the interpreter in between.

Each thread makes the same compiled call. It claims the tasks of a stage one by one until none is left, waits until those of
the others are done, and goes on to the next stage. A thread that comes late, or never, leaves more to the others: nobody waits
for a task that nobody has claimed. A thread that waits looks again and again for some microseconds, about what waking it would
take, and then sleeps between looks.

Counts are words of memory, one array per job, that are only changed atomically.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import numba
import numpy as np
import numpy.typing as npt
from numba.core import cgutils, types
from numba.extending import intrinsic

from negative_queues.kernels import kernel

# Numba's own tools are written without types.
_numba: Any = numba
_lower: Any = cgutils
_types: Any = types

__all__ = ["BUSY", "CLAIMED", "DONE", "Words", "claim", "done", "failed", "over", "settled", "stop", "wait", "words"]

Words = npt.NDArray[np.int64]
LINE = 8
"""Words of a cache line: counts that several threads write lie in lines of their own."""
FAILED, SLEEP, LOOKS, FIRST = 0, 1, 2, LINE
"""Whether a task has failed; what :func:`_nap` calls; how often a thread looks before it sleeps; where the stages begin."""
LOOKS_AT_MOST = 2000
"""Between 20 and 100 microseconds, by what the processor's pause takes."""
NAP_US = 1
"""At least: a system takes some 50 more to wake who sleeps."""


BUSY, CLAIMED, DONE = 0, 1, 2
"""When a thread returns from its call: where tasks begin that take long, to come again while others are at them; when all tasks
are claimed, and its own done; when all are done."""


def words(stages: int, threads: int) -> Words:
    """Return the counts of a job.

    Args:
        stages: of tasks.
        threads: that are to work on it; where there are fewer cores, who waits sleeps at once.
    """
    made = np.zeros((2 * stages + 1) * LINE, np.int64)
    made[SLEEP], made[LOOKS] = _SLEEP, LOOKS_AT_MOST if threads <= _CORES else 0
    return made


def stop(job: Words) -> None:
    """Say that a task has failed: no task is claimed any more, and nobody waits."""
    job[FAILED] = 1


def settled(job: Words, sizes: Sequence[int]) -> bool:
    """Whether all tasks of all stages are done.

    Args:
        job: its counts.
        sizes: tasks of each stage.
    """
    return all(job[FIRST + (2 * stage + 1) * LINE] >= n for stage, n in enumerate(sizes))


def _address(name: str) -> int:
    """Return the address of a function of the C library, 0 where it has none."""
    if os.name != "posix":
        return 0
    function = getattr(ctypes.CDLL(None), name, None)
    return 0 if function is None else cast(int, ctypes.cast(function, ctypes.c_void_p).value)


_SLEEP = 0 if _numba.config.DISABLE_JIT else _address("usleep")
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _place(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Return the pointer to ``array[at]``."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]])


def _add_compiled(typing_context: Any, array: Any, at: Any, more: Any) -> Any:
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _place(context, builder, signature, arguments), arguments[2], "seq_cst")

    return _types.int64(array, _types.int64, _types.int64), lower


def _read_compiled(typing_context: Any, array: Any, at: Any) -> Any:
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_place(context, builder, signature, arguments), "seq_cst", 8)

    return _types.int64(array, _types.int64), lower


def _pause_compiled(typing_context: Any) -> Any:
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        ir, machine = _lower.ir, platform.machine().lower()
        if machine in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), kind), [])
        elif machine in ("aarch64", "arm64"):
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(32)])
            builder.call(builder.module.declare_intrinsic("llvm.aarch64.hint", (), kind), [ir.IntType(32)(1)])
        return context.get_dummy_value()

    return _types.void(), lower


def _nap_compiled(typing_context: Any, address: Any) -> Any:
    def lower(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = _lower.ir.IntType(32)
        kind = _lower.ir.FunctionType(number, [number])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), [number(NAP_US)])
        return context.get_dummy_value()

    return _types.void(_types.int64), lower


_one_at_a_time = threading.Lock()


def _add_python(array: Words, at: int, more: int) -> int:
    with _one_at_a_time:
        before = int(array[at])
        array[at] += more
        return before


def _read_python(array: Words, at: int) -> int:
    return int(array[at])


def _no_python(*arguments: object) -> None:
    """With the compiler off there is nothing to pause, and no address is called."""


_compiled = not _numba.config.DISABLE_JIT
_add: Callable[[Words, int, int], int] = cast(Any, intrinsic(_add_compiled)) if _compiled else _add_python
_read: Callable[[Words, int], int] = cast(Any, intrinsic(_read_compiled)) if _compiled else _read_python
_pause: Callable[[], None] = cast(Any, intrinsic(_pause_compiled)) if _compiled else _no_python
_nap: Callable[[int], None] = cast(Any, intrinsic(_nap_compiled)) if _compiled else _no_python


@kernel
def claim(job: Words, stage: int, n: int) -> int:
    """Return a task of a stage of ``n`` that nobody has claimed, -1 where there is none. For kernels, as what follows."""
    if failed(job):
        return -1
    at = _add(job, FIRST + 2 * stage * LINE, 1)
    return at if at < n else -1


@kernel
def done(job: Words, stage: int) -> None:
    """Say that a claimed task is done; who finds the stage over sees what it has written."""
    _add(job, FIRST + (2 * stage + 1) * LINE, 1)


@kernel
def over(job: Words, stage: int, n: int) -> bool:
    """Whether all tasks of a stage of ``n`` are done."""
    return _read(job, FIRST + (2 * stage + 1) * LINE) >= n


@kernel
def failed(job: Words) -> bool:
    """Whether a task has failed."""
    return _read(job, FAILED) != 0


@kernel
def wait(job: Words, stage: int, n: int) -> bool:
    """Wait until all tasks of a stage of ``n``, which are claimed, are done; return False where one has failed."""
    looks = 0
    while not over(job, stage, n):
        if failed(job):
            return False
        if looks < job[LOOKS] or job[SLEEP] == 0:
            looks += 1
            _pause()
        else:
            _nap(job[SLEEP])
    return True
