"""Load: every byte is checked before anything is believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy.typing as npt

from learners.checkpoint.errors import CheckpointError
from learners.checkpoint.layout import way_out
from learners.checkpoint.manifest import Manifest, read_manifest
from learners.checkpoint.tensors import read_tensors
from learners.checkpoint.upgrade import upgraded

State = dict[str, npt.NDArray[Any]]


class Checkpoint(NamedTuple):
    """What :func:`learners.checkpoint.save` was given, bit for bit."""

    path: Path
    step: int
    models: dict[str, State]
    arrays: dict[str, State]
    marks: dict[str, dict[int, int]]
    extra: dict[str, Any]
    digests: dict[str, str]
    """``digest(state)`` per model."""


def load(path: Path) -> Checkpoint:
    """Return the checkpoint in the folder ``path``; its arrays are writable and its own.

    Raises:
        CheckpointError: a file is missing, truncated or damaged, or a newer Freshet wrote it. The message names the file, and
            another checkpoint that is intact.
    """
    try:
        return _load(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {way_out(path.parent, path)}") from error


def _load(path: Path) -> Checkpoint:
    manifest = read_manifest(path)
    models = {name: read_tensors(path / file.name, file.written) for name, file in manifest.models.items()}
    return Checkpoint(
        path=path,
        step=manifest.step,
        models={name: upgraded(state, manifest.format) for name, state in models.items()},
        arrays=_grouped(manifest, read_tensors(path / manifest.arrays.name, manifest.arrays.written)),
        marks=manifest.marks,
        extra=manifest.extra,
        digests={name: file.sha256 for name, file in manifest.models.items()},
    )


def _grouped(manifest: Manifest, flat: State) -> dict[str, State]:
    groups: dict[str, State] = {group: {} for group in manifest.groups}
    encoded = {quote(group, safe=""): state for group, state in groups.items()}
    for key, array in flat.items():
        group, _, name = key.partition("/")
        encoded[group][name] = array
    return groups
