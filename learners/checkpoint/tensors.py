"""Named arrays to a safetensors file and back, hashed on the way.

The file is written here rather than by the library because that hashes while it writes, without a copy of the state in memory,
and because the library takes an array that is not contiguous for one that is. Its bytes are canonical: arrays by falling item
size (which keeps them aligned), then by name. So the sha256 of the file is a digest of (name, dtype, shape, bytes) of all
arrays, and two states are equal bit for bit exactly if their digests are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from learners.checkpoint.errors import CheckpointError

Array = npt.NDArray[Any]

_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "uint64": "U64",
    "int32": "I32",
    "uint32": "U32",
    "int16": "I16",
    "uint16": "U16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_CHUNK = 1 << 22


class Written(NamedTuple):
    """What a file holds: its size in bytes and its sha256 as hex."""

    size: int
    sha256: str


def digest(state: Mapping[str, Array]) -> str:
    """Return the sha256 (hex) of named arrays: of name, dtype, shape and bytes, whatever their order and memory layout.

    Raises:
        CheckpointError: an array has a dtype that a checkpoint cannot hold.
    """
    sha = hashlib.sha256()
    _encode(state, sha.update)
    return sha.hexdigest()


def write_tensors(path: Path, state: Mapping[str, Array]) -> Written:
    """Write named arrays to a new file and force it to the disk; the sha256 is that of :func:`digest`.

    Raises:
        CheckpointError: an array has a dtype that a checkpoint cannot hold.
        OSError: the disk is full, or the file is there already.
    """
    sha, size = hashlib.sha256(), 0
    with path.open("xb", buffering=0) as file:

        def emit(piece: memoryview | bytes) -> None:
            nonlocal size
            sha.update(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[file.write(rest) :]  # a raw file may take less than it is given
            size += len(piece)

        _encode(state, emit)
        os.fsync(file.fileno())
    return Written(size, sha.hexdigest())


def read_tensors(path: Path, expected: Written) -> dict[str, Array]:
    """Return the arrays of a file as writable arrays of their own memory.

    Raises:
        CheckpointError: the file is missing, shorter or longer than it was, or any byte of it has changed.
    """
    check_file(path, expected)
    try:
        return {name: np.array(array) for name, array in safetensors.numpy.load_file(path).items()}
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from error


def check_file(path: Path, expected: Written) -> None:
    """Compare a file with what its manifest says.

    Raises:
        CheckpointError: the file is missing, shorter or longer than it was, or any byte of it has changed.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if (size := path.stat().st_size) != expected.size:
        raise CheckpointError(f"{path} has {size} bytes, its manifest says {expected.size}: it was truncated or overwritten")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected.sha256:
        raise CheckpointError(f"{path} is damaged: its sha256 is {found}, its manifest says {expected.sha256}")


def _encode(state: Mapping[str, Array], emit: Callable[[memoryview | bytes], None]) -> None:
    arrays = sorted(state.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {}
    end = 0
    for name, array in arrays:
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _code(name, array), "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    emit(len(text).to_bytes(8, "little") + text)
    for _, array in arrays:
        flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
        for at in range(0, len(flat), _CHUNK):
            emit(flat[at : at + _CHUNK])


def _code(name: str, array: Array) -> str:
    code = _CODES.get(array.dtype.name)
    if code is None:
        raise CheckpointError(f"array {name!r} is {array.dtype}; a checkpoint holds {', '.join(_CODES)}")
    if name == "__metadata__":
        raise CheckpointError("an array cannot be called '__metadata__': safetensors keeps that name for itself")
    return code
