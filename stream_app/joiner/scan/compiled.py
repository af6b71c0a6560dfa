"""How the kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])
_INNER: Final[dict[str, Any]] = {"cache": True, "nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def inner(function: _Function) -> _Function:
    """Compile a function that only kernels call: without the entry from Python, which takes as long to compile as the rest."""
    return cast(_Function, numba.njit(**_INNER)(function))
