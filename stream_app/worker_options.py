"""What a worker is told besides the config of its joiner."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from stream_app.state import CACHE_ENTRIES, check_cache_entries

__all__ = ["WORKER_ROCKSDB_MB", "WorkerOptions"]

WORKER_ROCKSDB_MB: Final = 128


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How one worker of a group works; the config says what it makes."""

    app: str = "freshet"
    """Name of the group; its workers share the partitions."""
    worker_id: str
    """Unique in the group; a worker that comes back under its old name within the session keeps its partitions."""
    state_dir: Path
    """A folder per partition is kept in it; one worker at a time."""
    snapshots: str | None = None
    """Where to keep copies of the state: a folder, or a URL of an object store."""
    snapshot_seconds: float = 300.0
    inbox_records: int = 100_000
    """Delivered records of a topic partition that may wait for the joiner before delivery does."""
    rocksdb_mb: int = WORKER_ROCKSDB_MB
    """Memory for state and inboxes of all partitions together: what RocksDB caches, and what it has not put into files yet."""
    cache_entries: int = CACHE_ENTRIES
    """Of a partition, users, pending requests, items and so on that stay decoded in memory between commits, each; >= 1."""
    session_seconds: float = 10.0
    """How long a worker that is silent keeps its partitions."""
    stall_seconds: float = 120.0
    """How long nothing may move while there is something to do, before the worker ends itself."""
    metrics_port: int | None = None

    def __post_init__(self) -> None:
        check_cache_entries(self.cache_entries)
