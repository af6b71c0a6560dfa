"""Snapshots of joiners' states in a folder or an object store, so that a partition can go on on another machine.

::

    PARTITION/data/HASH-SIZE                    a file of some state; RocksDB's tables never change, so most are stored once
    PARTITION/GENERATION-MILLISECONDS.json      manifest: the files of one state, its positions; written last

A snapshot counts once its manifest is there. The newest is that of the highest (generation of the assignment, time): a worker
that stood still and does not know that it lost the partition writes an older one, which is refused where a newer generation is
there, and never read where it slipped in. Positions of the inputs are in the state; the inbox is not copied: its records are
in the raw topics, from those positions on.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import obstore
import xxhash
from obstore.store import LocalStore, MemoryStore, from_url

from stream_app.joiner.store import StateError
from stream_app.state import read_header

__all__ = ["Manifest", "SnapshotError", "Snapshots", "restore_if_newer"]

KEPT: Final = 2
_MANIFEST: Final = re.compile(r"(\d{10})-(\d{15})\.json")
_NOT_STATE: Final = re.compile(r"LOCK|LOG.*")
log = logging.getLogger(__name__)


class SnapshotError(ValueError):
    """A snapshot cannot be written or read; the message says where and what to do."""


class Manifest(msgspec.Struct, frozen=True):
    """One snapshot."""

    partition: int
    generation: int
    """Of the assignment under which it was taken."""
    taken_ms: int
    position: int
    """Offsets applied, over all inputs: of two states of one partition, the one that is further."""
    files: dict[str, str]
    """Name in the state's folder -> name of its data."""


class Snapshots:
    """Where snapshots are kept.

    Args:
        url: a folder, ``file:///DIR``, ``s3://BUCKET/PREFIX`` or another URL that obstore knows (credentials come from the
            environment), or a store of obstore.

    Raises:
        SnapshotError: the URL cannot be used.
    """

    def __init__(self, url: str | MemoryStore) -> None:
        self.where = "memory" if isinstance(url, MemoryStore) else url
        try:
            self._store = url if isinstance(url, MemoryStore) else _store(url)
        except Exception as error:
            raise SnapshotError(
                f"--snapshots {url}: {str(error).partition(chr(10))[0]}; give a folder, or a URL like file:///DIR or s3://BUCKET/PREFIX"
            ) from error

    def save(self, partition: int, generation: int, checkpoint: Callable[[Path], None], scratch: Path) -> Manifest:
        """Store what ``checkpoint`` copies; keep the last two snapshots.

        Args:
            partition, generation: whose, and of which assignment.
            checkpoint: copies a state to a folder that does not exist.
            scratch: that folder; removed again.

        Raises:
            SnapshotError: a newer generation has stored one, or the store refuses.
        """
        self._check_generation(partition, generation)
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            checkpoint(scratch)
            position = _position(scratch)
            files = {file.name: file for file in sorted(scratch.iterdir()) if not _NOT_STATE.fullmatch(file.name)}
            known = {name for _, name in self._list(f"{partition}/data/")}
            stored: dict[str, str] = {}
            for name, file in files.items():
                data = file.read_bytes()
                stored[name] = f"{xxhash.xxh3_128_hexdigest(data)}-{len(data)}"
                if stored[name] not in known:
                    self._put(f"{partition}/data/{stored[name]}", data)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        manifest = Manifest(partition, generation, time.time_ns() // 1_000_000, position, stored)
        self._check_generation(partition, generation)
        self._put(_manifest_path(manifest), msgspec.json.encode(manifest))
        self._drop_old(partition)
        return manifest

    def newest(self, partition: int) -> Manifest | None:
        """Return the newest snapshot of a partition, None if there is none."""
        manifests = self._manifests(partition)
        return msgspec.json.decode(self._get(manifests[-1]), type=Manifest) if manifests else None

    def restore(self, manifest: Manifest, folder: Path) -> None:
        """Put a snapshot in the place of ``folder``.

        Raises:
            SnapshotError: a file is not there, or not what it was; or the state is one that this version does not read, and
                ``folder`` stays as it is.
        """
        draft = folder.with_name(f"{folder.name}.restored")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, data_name in manifest.files.items():
            data = self._get(f"{manifest.partition}/data/{data_name}")
            if f"{xxhash.xxh3_128_hexdigest(data)}-{len(data)}" != data_name:
                raise SnapshotError(
                    f"snapshot {_manifest_path(manifest)} in {self.where}: {name} is damaged; delete that manifest, and "
                    "the one before it counts"
                )
            (draft / name).write_bytes(data)
        try:
            read_header(draft)
        except StateError as error:
            shutil.rmtree(draft)
            which = f"snapshot {_manifest_path(manifest)} in {self.where}"
            if not isinstance(error.__cause__, msgspec.DecodeError):  # A full disk, for one, is no reason to delete anything.
                raise SnapshotError(
                    f"{which} cannot be opened in {draft} ({error.__cause__}); if that is not the disk's fault, delete that "
                    "manifest, and the one before it counts"
                ) from error
            raise SnapshotError(
                f"{which} is of a joiner's state that this version does not read ({error.__cause__}): stop the workers, delete "
                f"{self.where} and each one's --state, and start them again: they join the raw topics from the beginning"
            ) from error
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)

    def _check_generation(self, partition: int, generation: int) -> None:
        manifests = self._manifests(partition)
        newest = int(_matched(manifests[-1])[0]) if manifests else 0
        if newest > generation:
            raise SnapshotError(
                f"partition {partition}: {self.where} has a snapshot of generation {newest} of the group, this worker's "
                f"assignment is of generation {generation}: another worker owns the partition"
            )

    def _drop_old(self, partition: int) -> None:
        paths = self._manifests(partition)
        kept = [msgspec.json.decode(self._get(path), type=Manifest) for path in paths[-KEPT:]]
        needed = {name for manifest in kept for name in manifest.files.values()}
        old = [f"{partition}/data/{name}" for _, name in self._list(f"{partition}/data/") if name not in needed]
        # Manifests first: none may name what is gone.
        for path in [*paths[:-KEPT], *old]:
            obstore.delete(self._store, path)

    def _manifests(self, partition: int) -> list[str]:
        """Return the paths of a partition's manifests, the newest last."""
        found = [path for path, name in self._list(f"{partition}/") if _MANIFEST.fullmatch(name) and path.count("/") == 1]
        return sorted(found)

    def _list(self, prefix: str) -> list[tuple[str, str]]:
        try:
            found = [str(each["path"]) for piece in obstore.list(self._store, prefix) for each in piece]
        except Exception as error:
            raise SnapshotError(f"cannot list {prefix} in {self.where}: {error}") from error
        return [(path, path.rpartition("/")[2]) for path in found]

    def _put(self, path: str, data: bytes) -> None:
        try:
            obstore.put(self._store, path, data)
        except Exception as error:
            raise SnapshotError(f"cannot write {path} to {self.where}: {error}") from error

    def _get(self, path: str) -> bytes:
        try:
            return bytes(obstore.get(self._store, path).bytes())
        except Exception as error:
            raise SnapshotError(f"cannot read {path} from {self.where}: {error}") from error


def restore_if_newer(snapshots: Snapshots, partition: int, folder: Path) -> bool:
    """Restore a partition's newest snapshot if it is further than the state in ``folder``; return whether it was."""
    newest = snapshots.newest(partition)
    if newest is None:
        return False
    if _position(folder) >= newest.position:
        return False
    log.info("partition %d: restoring snapshot of generation %d from %s", partition, newest.generation, snapshots.where)
    snapshots.restore(newest, folder)
    return True


def _position(folder: Path) -> int:
    """Return how many offsets a state has applied; -1 where there is none."""
    header = read_header(folder) if (folder / "CURRENT").exists() else None
    return -1 if header is None else sum(each.offset for each in header.positions)


def _store(url: str) -> Any:
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        path = Path(parts.path if parts.scheme else url).absolute()
        path.mkdir(parents=True, exist_ok=True)
        return LocalStore(path)
    return MemoryStore() if parts.scheme == "memory" else from_url(url)


def _manifest_path(manifest: Manifest) -> str:
    return f"{manifest.partition}/{manifest.generation:010d}-{manifest.taken_ms:015d}.json"


def _matched(path: str) -> tuple[str, str]:
    match = _MANIFEST.fullmatch(path.rpartition("/")[2])
    assert match is not None, "only such paths are listed"
    return match[1], match[2]
