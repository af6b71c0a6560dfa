"""Load: every byte is checked before anything is believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy.typing as npt

from learners.checkpoint.errors import CheckpointError
from learners.checkpoint.layout import way_out
from learners.checkpoint.manifest import INITIALISATION, Manifest, read_manifest
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
    initialisation: int
    """:data:`learners.checkpoint.manifest.INITIALISATION` of the Freshet that learned the models."""


def load(path: Path, *, learn: bool = False) -> Checkpoint:
    """Return the checkpoint in the folder ``path``; its arrays are writable and its own.

    Args:
        path: the folder.
        learn: whether its models are to learn on, rather than to be looked at.

    Raises:
        CheckpointError: a file is missing, truncated or damaged, or a newer Freshet wrote it: the message names the file, and
            another checkpoint that is intact. Or the models are to learn on, and this Freshet would give new ids first vectors
            of another kind than those that they know.
    """
    try:
        checkpoint = _load(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {way_out(path.parent, path)}") from error
    if learn and checkpoint.initialisation != INITIALISATION:
        raise CheckpointError(
            f"{path} is of a Freshet that gave new ids other first vectors (initialisation {checkpoint.initialisation}, this "
            f"one has {INITIALISATION}): a model that went on would be a mixture. Replay its log into a new run folder, or let "
            "the Freshet that wrote it go on"
        )
    return checkpoint


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
        initialisation=manifest.initialisation,
    )


def _grouped(manifest: Manifest, flat: State) -> dict[str, State]:
    groups: dict[str, State] = {group: {} for group in manifest.groups}
    encoded = {quote(group, safe=""): state for group, state in groups.items()}
    for key, array in flat.items():
        group, _, name = key.partition("/")
        encoded[group][name] = array
    return groups
