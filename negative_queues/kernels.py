"""Kernels: functions compiled by Numba, without the interpreter's lock, whose machine code is kept on disk and can be trusted.

Numba's own ``cache=True`` keeps code under names that two processes can give to two things, and tells by the date of one file
whether code is of today. Three ways in which a kernel then runs what it was not made of, and what is done here instead:

- Machine code names what it calls by a number that each process counts from one, and where two loaded pieces define one name
  the first wins: ``sort`` of one ran as ``argsort`` of the other (numba issue 10486). Here the numbers are drawn from 2**62.
- Code of callees is copied into their callers, but only a change of the caller's own file makes it old. Here code is of the
  contents of its file and of all files of this project that it imports, directly or not.
- Two processes that compile one kernel for two kinds of arguments write two files of one name. Here a file's name says all that
  it is for, and it is complete from the moment that it has that name.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast, overload

import numba
from numba.core.bytecode import FunctionIdentity
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.registry import CPUDispatcher
from numba.core.serialize import dumps

__all__ = ["KernelCache", "callback", "kernel", "sources"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_ROOT: Final = Path(__file__).resolve().parents[1]
_PACKAGES: Final = ("negative_queues", "learners", "stream_app")
_SIZE: Final = 12  # bytes of a digest
_IMPORT: Final = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<module>[\w.]+)[ \t]+import[ \t]+(?P<names>\([^)]*\)|[^\n]*)|import[ \t]+(?P<modules>[\w., \t]+))",
    re.M,
)
# Numba's own tools are written without types.
_Dispatcher: Any = CPUDispatcher
_CFunc: Any = CFunc
_dumps: Callable[[object], bytes] = dumps


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_SIZE).digest()


class _Drawn:
    """An endless iterator of numbers that no other process has, forked ones neither."""

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return secrets.randbits(62)


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
        compiled._cache = KernelCache(function)
    return compiled


def callback(function: Callable[..., Any], signature: Any) -> Any:
    """Compile a function, whose types are known, to what C can call; its code is kept as that of a :func:`kernel`.

    Returns:
        what :func:`numba.cfunc` returns: it has ``address``, and must be kept as long as that is used.
    """
    compiled = _CFunc(function, (signature.args, signature.return_type), {}, {})
    compiled._cache = KernelCache(function)
    compiled.compile()
    return compiled


class KernelCache(FunctionCache):
    """Machine code of one function, by types of arguments and processor; takes the place of Numba's own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        numbas: Any = super()
        numbas.__init__(function)
        self._cache_file: Any = _Files(Path(self._cache_path), function)


class _Files:
    """One file per key and state of the sources, ``module.function.<key>.<sources>.nbc``: a hash, then what it is of."""

    def __init__(self, folder: Path, function: Callable[..., Any]) -> None:
        self._folder = folder
        self._sources = sources(Path(function.__code__.co_filename))  # now: later the file may be another than was imported
        version = "".join(map(str, sys.version_info[:2])) + sys.abiflags
        name = re.sub(r"\W", "_", function.__qualname__)
        self._base = f"{function.__module__.rpartition('.')[2]}.{name}.py{version}"

    def save(self, key: object, data: object) -> None:
        """Keep ``data``; what was kept under ``key`` for sources of another state goes."""
        place = self._place(key)
        if place is None:
            return
        path, older = place
        content = _dumps((key, data))
        draft = path.with_suffix(f".{secrets.token_hex(8)}.tmp")
        try:
            draft.write_bytes(_digest(content) + content)
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        for other in self._folder.glob(older):
            if other != path:
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
        if _digest(memoryview(content)[_SIZE:]) != content[:_SIZE]:
            return None
        kept, data = pickle.loads(memoryview(content)[_SIZE:])
        return data if kept == key else None

    def flush(self) -> None:
        """Forget all that is kept of the function."""
        for path in self._folder.glob(f"{self._base}.*.nbc"):
            path.unlink(missing_ok=True)

    def _place(self, key: object) -> tuple[Path, str] | None:
        told = repr(key)
        if " at 0x" in told:  # a function among the arguments: its address means nothing to another process
            return None
        known = f"{self._base}.{_digest(told.encode()).hex()}"
        return self._folder / f"{known}.{self._sources}.nbc", f"{known}.*.nbc"


def sources(path: Path) -> str:
    """Return a hash of a file's contents and of those of all files of this project that it imports, directly or not."""
    return _hash_of(path.resolve())


@cache
def _hash_of(path: Path) -> str:
    found = [numba.__version__]
    for file in sorted(_all_imported(path)):
        found += [os.path.relpath(file, _ROOT), _hash(file)]
    return _digest("\0".join(found).encode()).hex()


def _all_imported(path: Path) -> set[Path]:
    seen, waiting = {path}, [path]
    while waiting:
        new = _imported(waiting.pop()) - seen
        seen |= new
        waiting += new
    return seen


@cache
def _hash(path: Path) -> str:
    return _digest(path.read_bytes()).hex()


@cache
def _imported(path: Path) -> frozenset[Path]:
    found: set[Path] = set()
    for match in _IMPORT.finditer(path.read_text(encoding="utf-8")):
        for module in re.findall(r"[\w.]+", match["modules"] or match["module"]):
            folder = _folder_of(path, module)
            if folder is None:
                continue
            names = ["", *re.findall(r"\w+", match["names"] or "")]
            found |= {file for name in names if (file := _file_of(folder / name)) is not None}
    return frozenset(found)


def _folder_of(path: Path, module: str) -> Path | None:
    """Return the path of a module without its suffix, None where it is not of this project."""
    parts = module.lstrip(".")
    dots = len(module) - len(parts)
    if dots:
        return path.parents[dots - 1].joinpath(*parts.split(".")) if parts else path.parents[dots - 1]
    return _ROOT.joinpath(*parts.split(".")) if parts.split(".")[0] in _PACKAGES else None


def _file_of(module: Path) -> Path | None:
    for file in (module.with_name(f"{module.name}.py"), module / "__init__.py"):
        if file.is_file():
            return file
    return None
