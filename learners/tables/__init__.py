"""Tables that grow by themselves: 64-bit key -> row of weights with their own sparse optimiser, or of counts."""

from learners.tables.counts import CountTable
from learners.tables.table import EmbeddingTable, Gathered, TableConfig

__all__ = ["CountTable", "EmbeddingTable", "Gathered", "TableConfig"]
