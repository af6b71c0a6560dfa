"""How the kernels are compiled: each function once, and all that a kernel calls in one go with the kernel.

Numba alone compiles a function once for every constant that is passed to it, and optimises it once for itself and once more
inside each of its callers, up to the kernel: three times as long for what runs alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from numba.core import types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.registry import CPUDispatcher

from negative_queues import kernels

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Kernels allocate nothing, so nothing in them counts references: that would be an atomic operation per array and call.
_KERNEL: Final[dict[str, Any]] = {"_nrt": False}
_INNER: Final[dict[str, Any]] = {
    **_KERNEL,
    "nogil": True,
    "nopython": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


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


def kernel(function: _Function) -> _Function:
    """Compile a function that Python calls."""
    return kernels.kernel(**_KERNEL)(function)


def inner(function: _Function) -> _Function:
    """Compile a function that only kernels call."""
    return cast(_Function, _PartDispatcher(function, targetoptions=_INNER, pipeline_class=_PartCompiler))
