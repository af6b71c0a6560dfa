"""One budget of memory for all the RocksDBs of a process, however many there are."""

from __future__ import annotations

from typing import Final

from rocksdict import BlockBasedOptions, Cache, Options, WriteBufferManager

__all__ = ["MemoryBudgetError", "RocksMemory"]

_LEAST_MB: Final = 8
_FOR_WRITES: Final = 2
"""One part in so many may be what was written and is in no file yet; it counts within the budget."""


class MemoryBudgetError(ValueError):
    """A budget that is too small to work with."""


class RocksMemory:
    """What RocksDBs may hold together: blocks of files, their indexes, and what was written and is in no file yet.

    Each keeps to the buffer size of its own options as well; where all together hold too much, the one that is written to next
    makes a file of what it has. Writes do not wait for that: a burst that outruns the disk goes over the budget for a while.
    Not counted: a few MB per database that is open, and what the allocator keeps of freed memory.

    Args:
        mb: MB of 2^20 bytes.

    Raises:
        MemoryBudgetError: too little to work with.
    """

    def __init__(self, mb: int = 256) -> None:
        if mb < _LEAST_MB:
            raise MemoryBudgetError(
                f"rocksdb_mb = {mb}: RocksDB needs {_LEAST_MB} MB at least; give {_LEAST_MB} or more (--rocksdb-mb)"
            )
        self.n_bytes = mb << 20
        self._cache = Cache(self.n_bytes)
        self._buffers = WriteBufferManager.new_write_buffer_manager_with_cache(
            self.n_bytes // _FOR_WRITES, allow_stall=False, cache=self._cache
        )

    def share(self, options: Options, table: BlockBasedOptions, *, writes: bool = True) -> None:
        """Let a database with these options live within the budget.

        Args:
            options, table: of the database.
            writes: False: it only reads, or follows another process. What a follower keeps of writes it cannot make a file of;
                counted, it would have the others make one of each little thing.
        """
        table.set_block_cache(self._cache)
        table.set_cache_index_and_filter_blocks(True)
        options.set_block_based_table_factory(table)
        if writes:
            options.set_write_buffer_manager(self._buffers)

    def used(self) -> int:
        """Return the bytes that are held now."""
        return self._cache.get_usage()
