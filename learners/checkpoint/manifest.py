"""The manifest: one JSON file that says what a checkpoint holds and what every byte of it hashes to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from learners.checkpoint.errors import CheckpointError
from learners.checkpoint.tensors import Written

FORMAT = 2
"""1 had times of eight bytes in tables; see :mod:`learners.checkpoint.upgrade`."""
INITIALISATION = 2
"""How a table makes the first vector of an id (``EmbeddingTable.seed_of``, ``probing.initial``); raise it with each change, for
a table that went on would hold vectors of both kinds. 1, where a manifest does not say, was keyed by the model's name too."""
MANIFEST = "manifest.json"


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file beside the manifest."""

    name: str
    size: int
    sha256: str

    @property
    def written(self) -> Written:
        """Size and hash."""
        return Written(self.size, self.sha256)


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of a checkpoint but the arrays."""

    format: int
    step: int
    models: dict[str, File]
    """One file per model; its sha256 is the digest of the model's state."""
    arrays: File
    """All other arrays, named ``GROUP/NAME``, the group percent-encoded."""
    groups: list[str]
    """Groups of ``arrays``, the empty ones too."""
    marks: dict[str, dict[int, int]]
    extra: dict[str, Any]
    initialisation: int = 1
    """:data:`INITIALISATION` of the Freshet that learned the models."""


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as JSON that carries its own sha256.

    Raises:
        CheckpointError: ``extra`` holds what JSON cannot.
    """
    try:
        body = _canonical(msgspec.to_builtins(manifest, str_keys=True))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"extra cannot be written as JSON ({error}); give str, int, finite float, bool, None, list, dict"
        ) from error
    return json.dumps({"sha256": hashlib.sha256(body).hexdigest(), "manifest": json.loads(body)}, indent=1).encode() + b"\n"


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint folder.

    Raises:
        CheckpointError: there is none, it is damaged, or a newer Freshet wrote it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: {folder} is no checkpoint, or one that was taken apart")
    try:
        whole = json.loads(path.read_bytes())
        body = whole["manifest"]
        sound = hashlib.sha256(_canonical(body)).hexdigest() == whole["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged: it is not the JSON of a manifest ({type(error).__name__}: {error})"
        ) from error
    if not sound:
        raise CheckpointError(f"{path} is damaged: its content does not fit its own sha256")
    if body["format"] > FORMAT:
        raise CheckpointError(f"{path} has format {body['format']}, this Freshet reads up to {FORMAT}: update Freshet")
    try:
        return msgspec.convert(body, Manifest, strict=False)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
