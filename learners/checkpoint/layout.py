"""Where checkpoints lie: a folder each, named by step, and a pointer to the newest.

::

    ROOT/LATEST                 the name of the checkpoint to go on from
    ROOT/000000001200/          manifest.json, arrays.safetensors, model-NAME.safetensors
    ROOT/000000001200-1/        the same step, saved once more
    ROOT/.000000001300.saving/  a save that has not finished: ignored, removed by the next save
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from learners.checkpoint.errors import CheckpointError
from learners.checkpoint.manifest import read_manifest
from learners.checkpoint.tensors import check_file

LATEST = "LATEST"
_NAME = re.compile(r"(\d{12,})(?:-(\d+))?")


def order_of(folder: Path) -> tuple[int, int]:
    """Return (step, how often that step was saved before) out of a folder's name; (-1, -1) for any other name."""
    found = _NAME.fullmatch(folder.name)
    return (int(found[1]), int(found[2] or 0)) if found else (-1, -1)


def checkpoints(root: Path) -> list[Path]:
    """Return all finished checkpoints below ``root``, oldest first."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)), key=order_of)


def latest(root: Path) -> Path | None:
    """Return the checkpoint to go on from, None where there is none yet.

    Args:
        root: the folder of all checkpoints of a run.

    Raises:
        CheckpointError: ``LATEST`` names a checkpoint that is not there, or is gone while there are several to choose from.
    """
    found, pointer = checkpoints(root), root / LATEST
    if not pointer.is_file():
        if len(found) > 1:
            raise CheckpointError(f"{pointer} is missing, and there are {len(found)} checkpoints beside it. {way_out(root)}")
        # One and no pointer is a first save that was killed just before its last step: it is whole.
        return found[0] if found else None
    name = pointer.read_text().strip()
    if root / name not in found:
        raise CheckpointError(f"{pointer} names {name!r}, which is no checkpoint in {root}. {way_out(root)}")
    return root / name


def way_out(root: Path, broken: Path | None = None) -> str:
    """Return what a person can do: the newest intact checkpoint other than ``broken``, found by reading them all."""
    for folder in reversed(checkpoints(root)):
        if folder != broken and is_intact(folder):
            return f"{folder.name} is intact; to go on from it: echo {folder.name} > {root / LATEST}"
    return f"No other checkpoint in {root} is intact: start again with a new run folder"


def is_intact(folder: Path) -> bool:
    """Whether every file of a checkpoint is what its manifest says."""
    try:
        manifest = read_manifest(folder)
        for file in (manifest.arrays, *manifest.models.values()):
            check_file(folder / file.name, file.written)
    except CheckpointError:
        return False
    return True


def free_name(root: Path, step: int) -> str:
    """Return a name for a checkpoint of ``step`` that no folder has."""
    again = [order_of(folder)[1] for folder in checkpoints(root) if order_of(folder)[0] == step]
    return f"{step:012d}-{max(again) + 1}" if again else f"{step:012d}"


def remove_unfinished(root: Path) -> None:
    """Remove what saves that were killed have left."""
    for left in root.glob(".*.saving"):
        shutil.rmtree(left)
    for left in root.glob(".*.removing"):
        shutil.rmtree(left)


def remove_old(root: Path, kept: Path, keep: int, pinned: Collection[str] = ()) -> None:
    """Remove all checkpoints but ``kept``, the ``keep - 1`` before it, and those that are called as in ``pinned``.

    Those after it go too: they are of a future that the run has turned back from.
    """
    older = [folder for folder in checkpoints(root) if order_of(folder) < order_of(kept)]
    stay = {kept, *older[len(older) - min(keep - 1, len(older)) :]}
    for folder in checkpoints(root):
        if folder not in stay and folder.name not in pinned:
            # Renamed first: a checkpoint that is half removed must not look like one.
            doomed = root / f".{folder.name}.removing"
            folder.rename(doomed)
            shutil.rmtree(doomed)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and force it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
