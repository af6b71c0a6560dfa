"""Kernels: functions compiled by Numba, without the interpreter's lock, whose machine code is kept on disk and can be trusted.

Numba's own ``cache=True`` keeps code under names that two processes can give to two things, and tells by the date of one file
whether code is of today. Three ways in which a kernel then runs what it was not made of, and what is done here instead:

- Machine code names what it calls by a number that each process counts from one, and where two loaded pieces define one name
  the first wins: ``sort`` of one ran as ``argsort`` of the other (numba issue 10486). Here the numbers are drawn from 2**62.
- Code of callees is copied into their callers, but only a change of the caller's own file makes it old. Here code is of the
  contents of all files that it is made of (:mod:`negative_queues.kernel_sources`).
- Two processes that compile one kernel for two kinds of arguments write two files of one name. Here a file's name says all that
  it is for, and it is complete from the moment that it has that name.

Nothing is kept of a function that has no file of its own (typed in, in a notebook, in an archive), that has another kernel
among its free variables, or whose files changed after this process began. Where there is no place to keep code, a warning says
so, and each process compiles.
"""

from __future__ import annotations

import os
import pickle
import re
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar, cast, overload

import numba
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.registry import CPUDispatcher
from numba.core.serialize import dumps

from negative_queues.kernel_sources import SIZE, changed_since_start, digest, sources_of

__all__ = ["KernelCache", "callback", "kernel"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Numba's own tools are written without types.
_Dispatcher: Any = CPUDispatcher
_CFunc: Any = CFunc
_dumps: Callable[[object], bytes] = dumps
_NO_PLACE: Final = (
    "machine code is not kept, so every process compiles it anew: neither the folder of the sources nor one at home can be "
    "written; set NUMBA_CACHE_DIR to one that can"
)


class _Drawn:
    """An endless iterator of numbers that no other process has, forked ones neither."""

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return secrets.randbits(62)


if not hasattr(FunctionIdentity, "_unique_ids"):
    raise ImportError(
        f"Numba {numba.__version__} numbers what it compiles in a way that is not known here: install an older one"
    )
# Of everything that is compiled in this process: what a kernel calls may be Numba's.
cast(Any, FunctionIdentity)._unique_ids = _Drawn()


@overload
def kernel(function: _Function) -> _Function: ...
@overload
def kernel(**options: Any) -> Callable[[_Function], _Function]: ...
def kernel(function: Any = None, **options: Any) -> Any:
    """Compile a function when it is first called; on later days take its code from the disk.

    Use as ``@kernel`` or ``@kernel(inline="always")``; ``options`` are those of :func:`numba.njit`. The code lies where Numba
    would keep it: beside the source, or under ``NUMBA_CACHE_DIR``. With ``NUMBA_DISABLE_JIT`` the function stays as it is.
    """
    if function is None:
        return lambda function: kernel(function, **options)
    compiled: Any = numba.njit(nogil=True, **options)(function)
    if isinstance(compiled, _Dispatcher):
        _keep(compiled, function, options)
    return compiled


def callback(function: Callable[..., Any], signature: Any) -> Any:
    """Compile a function, whose types are known, to what C can call; its code is kept as that of a :func:`kernel`.

    Returns:
        what :func:`numba.cfunc` returns: it has ``address``, and must be kept as long as that is used.
    """
    compiled = _CFunc(function, (signature.args, signature.return_type), {}, {})
    _keep(compiled, function, {})
    compiled.compile()
    return compiled


def _keep(compiled: Any, function: Callable[..., Any], options: dict[str, Any]) -> None:
    """Have machine code of a function kept, where that can be."""
    path = function.__code__.co_filename
    if not os.path.isfile(path):  # what it is made of cannot be read
        return
    try:
        compiled._cache = KernelCache(function, options)
    except RuntimeError:  # Numba found no folder
        warnings.warn(_NO_PLACE, RuntimeWarning, stacklevel=1)  # here: said once, and not for each kernel


class KernelCache(FunctionCache):
    """Machine code of one function, by types of arguments and processor; takes the place of Numba's own."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        numbas: Any = super()
        numbas.__init__(function)
        self._cache_file: Any = _Files(Path(self._cache_path), function, options)

    def save_overload(self, sig: object, data: object) -> None:
        """Keep compiled code; a full disk costs the next process time, and not this one its work."""
        numbas: Any = super()
        try:
            numbas.save_overload(sig, data)
        except OSError as error:
            told = f"machine code is not kept in {self._cache_path}, the next process compiles it again: {error.strerror}"
            warnings.warn(told, RuntimeWarning, stacklevel=1)


class _Files:
    """One file per kind of arguments, function of one name, and state of the sources: a hash, then what it is of.

    Its name is ``module.function.<Python>.<kind>.<which>.<sources>.nbc``.
    """

    def __init__(self, folder: Path, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._folder, self._function, self._source = folder, function, Path(function.__code__.co_filename)
        self._sources = sources_of(function)  # now: later the file may be another than was imported
        version = "".join(map(str, sys.version_info[:2])) + getattr(sys, "abiflags", "")
        module, name = (re.sub(r"\W", "_", name) for name in (self._source.stem, function.__qualname__))
        self._base = f"{module}.{name}.py{version}"
        # Where in the file: functions of one name may differ in what their bytecode does not show, their constants.
        self._which = repr((function.__code__.co_firstlineno, function.__code__.co_linetable, sorted(options.items())))

    def save(self, key: object, data: object) -> None:
        """Keep ``data``; what was kept under the name for such arguments and sources of another state goes."""
        place = self._place(key)
        if place is None or changed_since_start(self._source):
            return
        path, older = place
        content = _dumps((key, data))
        draft = path.with_suffix(f".{secrets.token_hex(8)}.tmp")
        try:
            draft.write_bytes(digest(content) + content)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        for other in self._folder.glob(older):
            if not other.name.endswith(f".{self._sources}.nbc"):
                other.unlink(missing_ok=True)  # another process may have been first

    def load(self, key: object) -> Any:
        """Return what was kept for ``key`` and today's sources; None where nothing was, or where the file is damaged."""
        place = self._place(key)
        if place is None:
            return None
        try:
            content = place[0].read_bytes()
        except OSError:
            return None
        if digest(memoryview(content)[SIZE:]) != content[:SIZE]:
            return None
        kept, data = pickle.loads(memoryview(content)[SIZE:])
        return data if kept == key else None

    def flush(self) -> None:
        """Forget all that is kept of the function."""
        for path in self._folder.glob(f"{self._base}.*.nbc"):
            path.unlink(missing_ok=True)

    def _place(self, key: Any) -> tuple[Path, str] | None:
        kind, which = repr(key[:2]), repr(key[2:]) + self._which  # types and processor; hashes of bytecode and free variables
        if " at 0x" in kind + which:  # a function among the arguments: its address means nothing to another process
            return None
        if any(isinstance(cell.cell_contents, _Dispatcher) for cell in self._function.__closure__ or ()):
            return None  # Numba's part of the key is another one in each process
        known, of = (digest(told.encode()).hex() for told in (kind, which))
        return self._folder / f"{self._base}.{known}.{of}.{self._sources}.nbc", f"{self._base}.{known}.*.nbc"
