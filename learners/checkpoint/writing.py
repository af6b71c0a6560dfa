"""Save: numbered steps, none of which leaves a half-visible checkpoint.

=====  =====================================================  ===========================================================
step   what happens                                           if the process dies just after it
=====  =====================================================  ===========================================================
1      leftovers of killed saves are removed                  as before the save
2      arrays are written and synced to ``.STEP.saving``      as before; the next save removes the folder
3      the manifest is written, files and folder synced       as before; the next save removes the folder
4      the folder is renamed to ``STEP``, ROOT is synced      as before: ``LATEST`` names the older one, the new one is whole
5      ``LATEST`` is replaced, ROOT is synced                 the new checkpoint counts
6      older checkpoints are removed                          the new checkpoint counts; the next save removes the rest
=====  =====================================================  ===========================================================
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy.typing as npt

from learners.checkpoint.errors import CheckpointError
from learners.checkpoint.layout import LATEST, free_name, remove_old, remove_unfinished, sync_folder, write_durably
from learners.checkpoint.manifest import FORMAT, INITIALISATION, MANIFEST, File, Manifest, encode_manifest
from learners.checkpoint.tensors import write_tensors

State = Mapping[str, npt.NDArray[Any]]

ARRAYS = "arrays.safetensors"


def save(
    root: Path,
    step: int,
    models: Mapping[str, State],
    *,
    marks: Mapping[str, Mapping[int, int]],
    extra: Mapping[str, Any],
    arrays: Mapping[str, State],
    keep: int = 2,
    pinned: Collection[str] = (),
    on_step: Callable[[int], None] = lambda step: None,
) -> Path:
    """Save a checkpoint; when this returns it is on the disk, and before that the older one counts.

    Args:
        root: the folder of all checkpoints of a run; made if it is not there. One process saves into it.
        step: batches learned so far, >= 0. Saving a step again makes a folder of its own.
        models: state per model.
        marks: position per cursor or topic: partition -> ``seq``.
        extra: anything else as JSON.
        arrays: other state per group, for example of the metrics.
        keep: checkpoints that stay, >= 1.
        pinned: names of others that stay.
        on_step: called with the number of each step of the table above before it starts; what it raises stops the save.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: what is given cannot be written; nothing has changed then.
        OSError: the disk is full or not writable; the older checkpoint still counts then.
    """
    if step < 0 or keep < 1:
        raise CheckpointError(f"step must be 0 or more and keep 1 or more, not {step} and {keep}")
    on_step(1)
    root.mkdir(parents=True, exist_ok=True)
    remove_unfinished(root)
    name = free_name(root, step)
    saving = root / f".{name}.saving"
    saving.mkdir()
    try:
        on_step(2)
        manifest = _write_arrays(saving, step, models, marks, extra, arrays)
        on_step(3)
        write_durably(saving / MANIFEST, encode_manifest(manifest))
        sync_folder(saving)
        on_step(4)
    except BaseException:
        shutil.rmtree(saving, ignore_errors=True)  # room for the next try, should the disk be full
        raise
    folder = saving.rename(root / name)
    sync_folder(root)
    on_step(5)
    point_to(folder)
    on_step(6)
    remove_old(root, folder, keep, pinned)
    return folder


def point_to(folder: Path) -> None:
    """Make ``LATEST`` name a checkpoint."""
    root = folder.parent
    fresh = root / f".{LATEST}"
    write_durably(fresh, f"{folder.name}\n".encode())
    os.replace(fresh, root / LATEST)
    sync_folder(root)


def _write_arrays(
    folder: Path,
    step: int,
    models: Mapping[str, State],
    marks: Mapping[str, Mapping[int, int]],
    extra: Mapping[str, Any],
    arrays: Mapping[str, State],
) -> Manifest:
    """Write the files of a checkpoint; return what says what they are."""
    files = {model: _write(folder, f"model-{quote(model, safe='')}.safetensors", state) for model, state in models.items()}
    flat = {f"{quote(group, safe='')}/{key}": array for group, state in arrays.items() for key, array in state.items()}
    return Manifest(
        format=FORMAT,
        step=step,
        models=files,
        arrays=_write(folder, ARRAYS, flat),
        groups=list(arrays),
        marks={name: {int(partition): int(seq) for partition, seq in of.items()} for name, of in marks.items()},
        extra=dict(extra),
        initialisation=INITIALISATION,
    )


def _write(folder: Path, name: str, state: State) -> File:
    written = write_tensors(folder / name, state)
    return File(name, written.size, written.sha256)
