"""How many threads torch has in one thread of ours, which the others keep as they have it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["set_own_threads"]


def set_own_threads(n: int) -> None:
    """Set how many threads torch has in the calling thread."""
    torch.get_num_threads()  # a thread takes the process's setting when it first asks, and keeps its own from then on
    _set_asked(n)


def _setter() -> Callable[[int], object]:
    """Return what sets how many threads torch has in the calling thread, once that has asked for it.

    ``torch.set_num_threads`` does that and sets what threads have that use torch for the first time from then on, which they
    keep: one that begins while another is inside a team would have one thread for good. So this does what torch does of it for
    the calling thread alone (ATen/ParallelOpenMP.cpp), where its library shows how.
    """
    backends: Any = torch.backends  # torch's own tools are written without types
    folder = Path(torch.__file__).parent / "lib"
    for path in (folder / "libtorch_cpu.so", folder / "libtorch_cpu.dylib"):
        if backends.openmp.is_available() and path.exists():
            library = ctypes.PyDLL(str(path))  # its own functions, or of a library that it loads
            openmp: Any = getattr(library, "omp_set_num_threads", None)
            mkl: Any = getattr(library, "MKL_Set_Num_Threads_Local", None)
            if openmp is not None and mkl is not None:
                return lambda n: (openmp(n), mkl(n))
            if openmp is not None and not backends.mkl.is_available():
                return lambda n: openmp(n)
    return torch.set_num_threads


_set_asked = _setter()
