"""What a worker is told besides the config of its joiner."""

from __future__ import annotations

from pathlib import Path

import msgspec

__all__ = ["WorkerOptions"]


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
    rocksdb_mb: int = 128
    """Memory for state and inboxes of all partitions together: what RocksDB caches, and what it has not put into files yet."""
    cache_entries: int = 200_000
    """Of a partition, users, pending requests, items and so on that stay decoded in memory between commits, each."""
    session_seconds: float = 10.0
    """How long a worker that is silent keeps its partitions."""
    stall_seconds: float = 120.0
    """How long nothing may move while there is something to do, before the worker ends itself."""
    metrics_port: int | None = None
