"""How the kernels are compiled: each function once, and all that a kernel calls in one go with the kernel.

Numba alone compiles a function once for every constant that is passed to it, and optimises it once for itself and once more
inside each of its callers, up to the kernel: three times as long for what runs alike.

On disk it keeps a kernel's code until the kernel's own file changes, although code of other files is part of it. Here the code
is old as soon as any file of the joiner is another.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
import xxhash
from numba.core import types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.registry import CPUDispatcher

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Kernels allocate nothing, so nothing in them counts references: that would be an atomic operation per array and call.
_KERNEL: Final[dict[str, Any]] = {"nogil": True, "_nrt": False}
_INNER: Final[dict[str, Any]] = {**_KERNEL, "nopython": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


class _Part(JITCodeLibrary):
    """Code that only waits to be linked into a kernel: neither optimised nor made executable for itself."""

    def _optimize_final_module(self) -> None:
        """Leave it to the kernel."""

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Return 0: there is no such code."""
        return 0

    @property
    def codegen(self) -> _Part:
        """What Numba tells the function's environment to; kernels that come from the cache do without as well."""
        return self

    def set_env(self, env_name: str, env: object) -> None:
        """Nothing: only objects and messages made at run time are looked up there."""


class _PartCompiler(Compiler):
    def __init__(self, typingctx: Any, targetctx: Any, library: Any, *rest: Any) -> None:
        part: Any = _Part
        compiler: Any = super()
        compiler.__init__(typingctx, targetctx, library or part(targetctx.codegen(), "part"), *rest)


class _PartDispatcher(CPUDispatcher):
    def get_call_template(self, args: Any, kws: Any) -> Any:
        """Compile for integers, not for each constant."""
        return super().get_call_template([each.literal_type if isinstance(each, types.Literal) else each for each in args], kws)


def sources_hash(folder: Path) -> str:
    """Return a hash of all Python files in a folder: names and contents."""
    found = xxhash.xxh3_128()
    for path in sorted(folder.rglob("*.py")):
        source = path.read_bytes()
        found.update(f"{path.relative_to(folder)}\0{len(source)}\0".encode())
        found.update(source)
    return found.hexdigest()


_Dispatcher: Any = CPUDispatcher
_SOURCES: Final = sources_hash(Path(__file__).parents[1])


class _KernelCache(FunctionCache):
    def __init__(self, function: Callable[..., Any]) -> None:
        cache: Any = super()
        cache.__init__(function)
        file: Any = IndexDataCacheFile
        self._cache_file = file(
            cache_path=self._cache_path,
            filename_base=self._impl.filename_base,
            source_stamp=(self._impl.locator.get_source_stamp(), _SOURCES),
        )


def kernel(function: _Function) -> _Function:
    """Compile a function that Python calls."""
    compiled: Any = numba.njit(**_KERNEL)(function)
    if isinstance(compiled, _Dispatcher):  # not so where NUMBA_DISABLE_JIT is set
        compiled._cache = _KernelCache(function)
    return cast(_Function, compiled)


def inner(function: _Function) -> _Function:
    """Compile a function that only kernels call."""
    return cast(_Function, _PartDispatcher(function, targetoptions=_INNER, pipeline_class=_PartCompiler))
