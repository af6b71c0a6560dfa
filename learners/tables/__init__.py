"""Tables that grow by themselves: 64-bit key -> row of weights with their own sparse optimiser, or of counts."""

from learners.tables.config import TableConfig
from learners.tables.counts import CountTable
from learners.tables.distinct import Distinct, distinct
from learners.tables.sharding import Shard, shard_of
from learners.tables.table import EmbeddingTable, Gathered
from learners.tables.twin import TorchTable

__all__ = ["CountTable", "Distinct", "EmbeddingTable", "Gathered", "Shard", "TableConfig", "TorchTable", "distinct", "shard_of"]
