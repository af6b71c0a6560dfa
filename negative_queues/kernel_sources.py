"""What a kernel is made of: its file and all files of this project, or of its own package, that it imports."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import numba
import numpy as np
from numba.core import codegen

__all__ = ["SIZE", "changed_since_start", "digest", "sources", "sources_of"]

SIZE: Final = 12
"""Bytes of a digest."""
_ROOT: Final = Path(__file__).resolve().parents[1]
_PACKAGES: Final = ("negative_queues", "learners", "stream_app")
_START_NS: Final = time.time_ns()
# Lines are whole and without comments; what is found too much, as in a text, makes code old too often and never too seldom.
_IMPORT: Final = re.compile(
    r"(?:^|[;:])[ \t]*(?:from\b[ \t]*(?P<module>[\w.]+?)[ \t]*(?<!\w)import\b[ \t]*(?P<names>\([^)]*\)|[^\n;]*)"
    r"|import[ \t]+(?P<modules>[\w., \t]+))",
    re.M,
)
_config: Any = numba.config
_codegen: Any = codegen
# One text makes other machine code with these.
_SWITCHES: Final = "OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "USING_SVML"
_VERSIONS: Final = numba.__version__, _codegen.ll.llvm_version_info, np.__version__
_TOLD: Final = repr((_VERSIONS, [getattr(_config, name) for name in _SWITCHES], sys.flags.optimize))
_told_of: dict[Path, tuple[object, str]] = {}


def digest(content: bytes | memoryview) -> bytes:
    """Return a hash of ``SIZE`` bytes."""
    return hashlib.blake2b(content, digest_size=SIZE).digest()


def sources_of(function: Callable[..., Any]) -> str:
    """Return :func:`sources` of a function's file: made once for each run of its module: reloaded, it may be another."""
    path, run = Path(function.__code__.co_filename), function.__globals__.get("__spec__")
    told = _told_of.get(path)
    if told is None or run is None or told[0] is not run:
        told = _told_of[path] = run, sources(path)
    return told[1]


def sources(path: Path) -> str:
    """Return a hash of a file, of all files that it imports, directly or not, and of what the compiler was told."""
    path = path.resolve()
    package = _package(path.parent)
    home = path.parent if package is None else package.parent
    found = [_TOLD]
    for file in sorted(_all_imported(path)):
        found += [os.path.relpath(file, home), _read(file, _state(file))[0]]
    return digest("\0".join(found).encode(errors="surrogateescape")).hex()


def changed_since_start(path: Path) -> bool:
    """Return whether a file, or one that it imports, changed in this process's time: what is loaded may be of either state."""
    return any(_state(file)[0] > _START_NS for file in _all_imported(path.resolve()))


def _all_imported(path: Path) -> set[Path]:
    seen, waiting = {path}, [path]
    while waiting:
        file = waiting.pop()
        new = _read(file, _state(file))[1] - seen
        seen |= new
        waiting += new
    return seen


def _state(path: Path) -> tuple[int, ...]:
    """Return when a file changed, which nobody can set, and what it is told apart by from another in its place."""
    try:
        found = path.stat()
    except OSError:  # it went in this process's time
        return (time.time_ns(),)
    return found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino


@cache
def _read(path: Path, state: tuple[int, ...]) -> tuple[str, frozenset[Path]]:
    """Return a file's hash and what it imports."""
    try:
        content = path.read_bytes()
    except OSError:
        return "gone", frozenset()
    text = content.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\\\n", " ")
    found: set[Path] = set()
    for match in _IMPORT.finditer(re.sub(r"#[^\n]*", "", text)):
        for module in re.findall(r"[\w.]+", match["modules"] or match["module"]):
            folder = _folder_of(path, module)
            if folder is not None:
                names = ["", *re.findall(r"\w+", match["names"] or "")]
                found |= {file for name in names if (file := _file_of(folder / name)) is not None}
    return digest(content).hex(), frozenset(found)


def _folder_of(path: Path, module: str) -> Path | None:
    """Return the path of a module without its suffix, None where it is neither of this project nor of the file's package."""
    parts = module.lstrip(".").split(".")
    dots = len(module) - len(module.lstrip("."))
    if dots:
        return path.parents[dots - 1].joinpath(*parts) if dots <= len(path.parents) else None
    package = _package(path.parent)
    if package is not None and parts[0] == package.name:
        return package.parent.joinpath(*parts)
    if package is None and path.with_name(f"{parts[0]}.py").is_file():  # a script's neighbour
        return path.parent.joinpath(*parts)
    return _ROOT.joinpath(*parts) if parts[0] in _PACKAGES else None


@cache
def _package(folder: Path) -> Path | None:
    """Return the folder of the outermost package that a folder is in."""
    found = None
    while (folder / "__init__.py").is_file():
        found, folder = folder, folder.parent
    return found


def _file_of(module: Path) -> Path | None:
    for file in (Path(f"{module}.py"), module / "__init__.py"):
        if file.is_file():
            return file
    return None
