"""SampleBlock: the columnar contract between the stream and the learners.

One row is one *request* (a page shown to a user): the user's histories once, all candidates with their labels.

Shapes: ``R`` requests in a block, ``C`` candidates over all requests of a block, ``H`` history entries likewise,
``K`` = :data:`QUERY_CATEGORIES` category slots of a query.

Columns of the Arrow record batch:

=========================  ==========================  =============================================================
column                     Arrow type                  meaning
=========================  ==========================  =============================================================
partition                  int32                       stream partition the row came from
seq                        int64                       dense counter per partition, from 0; gaps mean loss
request, user              int64                       hashed ids (:func:`stream_app.events.hash_id`), 0 is missing
ts, due                    int64                       UTC ms: shown at; labels final at
query                      int64                       hashed query, 0 is missing
query_category             fixed_size_list<int64>[K]   categories of the query, 0 pads
domain                     int64                       hashed domain, 0 is missing
request_feature.NAME       float32 or int64            NaN / 0 is missing
SEQ.item, SEQ.category     list<int64>                 one item sequence, oldest first; every ts < the row's ts
SEQ.ts                     list<int64>                 UTC ms, not decreasing
SEQ.fresh                  int32                       the last so many entries are new since the user's last request
query.id                   list<int64>                 the query sequence, oldest first
query.category             list<fixed_size_list[K]>    its categories
query.ts, query.fresh      list<int64>, int32          as above
candidate.item             list<int64>                 hashed item, one entry per candidate
candidate.category         list<int64>                 0 is missing
candidate.domain           list<int64>                 0 is missing
candidate.position         list<int32>                 as logged, from 0; -1 is missing
candidate.label            list<float32>               1 labelled, 0 not
candidate.weight           list<float32>               weight in the loss
candidate.truth            list<float32>               only where a generator knows it; never shown to a model
candidate_feature.NAME     list<float32 or int64>      NaN / 0 is missing
=========================  ==========================  =============================================================

Missing floats are NaN and missing ids 0 rather than Arrow nulls, so that every column is a NumPy view without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

SCHEMA_VERSION = 1
QUERY_CATEGORIES = 4
QUERY = "query"

type_id = pa.int64()
type_query_categories = pa.list_(pa.int64(), QUERY_CATEGORIES)

Array = npt.NDArray[Any]
Made = TypeVar("Made")

# A block is small: waking Arrow's threads for its columns costs more than compressing them here.
_IPC_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
READ_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)

__all__ = ["QUERY_CATEGORIES", "SCHEMA_VERSION", "Ragged", "SampleBlock", "SampleError", "SampleSchema", "ragged_rows"]


class SampleError(ValueError):
    """A block that cannot be used: unreadable, of a newer version, or of another generation."""


class Ragged(NamedTuple):
    """Rows of different length: row ``r`` is ``values[offsets[r]:offsets[r + 1]]``.

    ``values`` is ``[N]`` or ``[N, K]``; ``offsets`` is int64 ``[R + 1]`` and starts at 0.
    """

    values: Array
    offsets: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Entries per row, int64 ``[R]``."""
        return np.diff(self.offsets)


class SampleSchema(msgspec.Struct, frozen=True, kw_only=True):
    """What the columns of a generation of samples are; travels in the header of every block."""

    generation: str
    """Hash of the joiner's config and partition count: samples of two generations never mix."""
    version: int = SCHEMA_VERSION
    item_sequences: tuple[str, ...] = ("click",)
    has_query: bool = True
    has_category: bool = True
    """Whether the log knows categories; the columns are there either way, all 0 without."""
    request_floats: tuple[str, ...] = ()
    request_ids: tuple[str, ...] = ()
    candidate_floats: tuple[str, ...] = ()
    candidate_ids: tuple[str, ...] = ()
    has_truth: bool = False

    def arrow(self) -> pa.Schema:
        """Return the Arrow schema of a block, this struct in its metadata."""
        return _arrow_schema(self)

    @staticmethod
    def of_arrow(arrow: pa.Schema) -> SampleSchema:
        """Return the struct in the metadata of :meth:`arrow`.

        Raises:
            SampleError: it is of a newer version.
            KeyError: there is none.
            msgspec.MsgspecError: it is damaged.
        """
        schema = _decoded((arrow.metadata or {})[b"freshet"])
        if schema.version > SCHEMA_VERSION:
            raise SampleError(
                f"samples have schema version {schema.version}, this Freshet reads up to {SCHEMA_VERSION}; "
                "update Freshet, or join the raw topics again with this version"
            )
        return schema

    def _arrow(self) -> pa.Schema:
        fields: list[tuple[str, pa.DataType]] = [
            ("partition", pa.int32()),
            ("seq", pa.int64()),
            ("request", type_id),
            ("user", type_id),
            ("ts", pa.int64()),
            ("due", pa.int64()),
            ("query", type_id),
            ("query_category", type_query_categories),
            ("domain", type_id),
        ]
        fields += [(f"request_feature.{name}", pa.float32()) for name in self.request_floats]
        fields += [(f"request_feature.{name}", type_id) for name in self.request_ids]
        for name in self.item_sequences:
            fields += [(f"{name}.{part}", pa.list_(pa.int64())) for part in ("item", "category", "ts")]
            fields += [(f"{name}.fresh", pa.int32())]
        if self.has_query:
            fields += [
                (f"{QUERY}.id", pa.list_(type_id)),
                (f"{QUERY}.category", pa.list_(type_query_categories)),
                (f"{QUERY}.ts", pa.list_(pa.int64())),
                (f"{QUERY}.fresh", pa.int32()),
            ]
        fields += [(f"candidate.{part}", pa.list_(type_id)) for part in ("item", "category", "domain")]
        fields += [("candidate.position", pa.list_(pa.int32()))]
        fields += [(f"candidate.{part}", pa.list_(pa.float32())) for part in ("label", "weight")]
        if self.has_truth:
            fields += [("candidate.truth", pa.list_(pa.float32()))]
        fields += [(f"candidate_feature.{name}", pa.list_(pa.float32())) for name in self.candidate_floats]
        fields += [(f"candidate_feature.{name}", pa.list_(type_id)) for name in self.candidate_ids]
        header = {b"freshet": msgspec.json.encode(self)}
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields], metadata=header)


@lru_cache(maxsize=64)
def _arrow_schema(schema: SampleSchema) -> pa.Schema:
    """Return the one Arrow schema of a generation: each block of it needs it again."""
    return schema._arrow()


@lru_cache(maxsize=64)
def _decoded(header: bytes) -> SampleSchema:
    return msgspec.json.decode(header, type=SampleSchema)


class SampleBlock:
    """A few hundred requests as columns.

    Args:
        batch: the record batch, of ``schema.arrow()``.
        schema: what its columns are.
    """

    __slots__ = ("_flat", "_made", "_numbers", "_ragged", "batch", "schema")

    def __init__(self, batch: pa.RecordBatch, schema: SampleSchema) -> None:
        self.batch = batch
        self.schema = schema
        self._numbers: dict[str, int] | None = None
        self._ragged: dict[str, Ragged] = {}
        self._flat: dict[str, Array] = {}
        self._made: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return int(self.batch.num_rows)

    @property
    def n_candidates(self) -> int:
        """Candidates over all requests (``C``)."""
        return len(self.ragged("candidate.item").values)

    def column(self, name: str) -> Array:
        """Return a flat column as a NumPy view: ``[R]``, or ``[R, K]`` for ``query_category``."""
        return _flat(self._array(name))

    def ragged(self, name: str) -> Ragged:
        """Return a list column as views on its values ``[N]`` (or ``[N, K]``) and offsets ``[R + 1]`` from 0."""
        found = self._ragged.get(name)
        return self._decoded(name, self._array(name)) if found is None else found

    def values(self, name: str) -> Array:
        """Return the values of a list column, ``[N]`` or ``[N, K]``, or a flat column."""
        if name in self._ragged:
            return self._ragged[name].values
        array = self._array(name)
        return self._decoded(name, array).values if isinstance(array, pa.ListArray) else _flat(array)

    def flat(self, name: str) -> Array:
        """Return :meth:`values` in one dimension, ``[N]`` or ``[N * K]``."""
        found = self._flat.get(name)
        if found is None:
            found = self.values(name)
            found = self._flat[name] = found if found.ndim == 1 else found.reshape(-1)
        return found

    def _decoded(self, name: str, array: Any) -> Ragged:
        offsets = array.offsets.to_numpy(zero_copy_only=True).astype(np.int64)
        first, last = int(offsets[0]), int(offsets[-1])
        child = array.values
        if first or last != len(child):
            child = child.slice(first, last - first)
            offsets -= first
        offsets.setflags(write=False)  # Shared by all who ask, as the values are, which Arrow makes read-only.
        found = self._ragged[name] = Ragged(_flat(child), offsets)
        return found

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what ``make`` has made of this block for whoever asked first under ``key``: a thread that prepares the block,
        the model that needs it, or another model beside it.

        Args:
            key: names all that it depends on beside the block.
            make: returns what nobody changes, and not None.
        """
        found: Made | None = self._made.get(key)
        if found is None:
            found = self._made[key] = make()
        return found

    def forget(self) -> None:
        """Let go of what was made of the block: it has been learned. Whoever asks again has it made again.

        What is kept until the figures are counted is freed by another thread, and the step gets cold memory meanwhile.
        """
        self._made.clear()
        self._ragged.clear()
        self._flat.clear()

    def _array(self, name: str) -> Any:
        if self._numbers is None:  # Arrow looks a name up in a new copy of the schema each time
            self._numbers = {known: at for at, known in enumerate(self.batch.schema.names)}
        at = self._numbers.get(name)
        if at is None:
            raise SampleError(f"samples have no column {name!r}; they have {', '.join(self._numbers)}")
        return self.batch.column(at)

    def has(self, name: str) -> bool:
        """Whether the block carries the column ``name``."""
        return int(self.batch.schema.get_field_index(name)) >= 0

    def is_ragged(self, name: str) -> bool:
        """Whether the column ``name`` is a list per request."""
        return bool(pa.types.is_list(self._array(name).type))

    def marks(self) -> dict[int, int]:
        """Return the highest ``seq`` per partition in the block."""
        partitions, seqs = self.column("partition"), self.column("seq")
        return {int(p): int(seqs[partitions == p].max()) for p in np.unique(partitions)}

    def slice(self, start: int, stop: int) -> SampleBlock:
        """Return rows ``start`` to ``stop`` (exclusive) without a copy."""
        return SampleBlock(self.batch.slice(start, max(0, stop - start)), self.schema)

    def take(self, rows: Array) -> SampleBlock:
        """Return the given rows, in the given order."""
        return SampleBlock(self.batch.take(pa.array(rows, type=pa.int64())), self.schema)

    @staticmethod
    def concat(blocks: Sequence[SampleBlock]) -> SampleBlock:
        """Join blocks of one generation, in order.

        Raises:
            SampleError: the blocks are of different generations.
        """
        if len(blocks) == 1:
            return blocks[0]
        schema = blocks[0].schema
        for block in blocks:
            if block.schema != schema:
                raise SampleError(
                    f"samples of two generations cannot be mixed: {schema.generation} and {block.schema.generation}; "
                    "the joiner's config changed in between: join the log again into a new folder"
                )
        return SampleBlock(pa.concat_batches([block.batch for block in blocks]), schema)

    @staticmethod
    def from_columns(schema: SampleSchema, columns: Mapping[str, Array | Ragged]) -> SampleBlock:
        """Build a block from NumPy columns; every column of ``schema.arrow()`` must be given, no other may be.

        Args:
            schema: what the columns are.
            columns: ``[R]`` arrays (``[R, K]`` for ``query_category``) and :class:`Ragged` ones.
        """
        arrow = schema.arrow()
        if set(columns) != set(arrow.names):
            missing, extra = set(arrow.names) - set(columns), set(columns) - set(arrow.names)
            raise SampleError(f"columns do not fit the schema: missing {sorted(missing)}, unknown {sorted(extra)}")
        # Many columns share their offsets.
        offsets = {id(c.offsets): c.offsets for c in columns.values() if isinstance(c, Ragged)}
        int32 = {of: pa.array(given.astype(np.int32)) for of, given in offsets.items()}
        arrays = [_to_arrow(columns[field.name], field.type, int32) for field in arrow]
        return SampleBlock(pa.RecordBatch.from_arrays(arrays, schema=arrow), schema)

    def to_ipc(self) -> bytes:
        """Encode as an Arrow IPC stream of one lz4-compressed batch."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.batch.schema, options=_IPC_OPTIONS) as writer:
            writer.write_batch(self.batch)
        return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]

    @staticmethod
    def from_ipc(data: bytes) -> SampleBlock:
        """Decode :meth:`to_ipc`.

        Raises:
            SampleError: the bytes are not a block, or one of a newer schema version.
        """
        try:
            with pa.ipc.open_stream(data, options=READ_OPTIONS) as reader:
                batch = reader.read_next_batch()
                return SampleBlock(batch, SampleSchema.of_arrow(reader.schema))
        except (pa.ArrowException, OSError, KeyError, StopIteration, msgspec.MsgspecError) as error:
            raise SampleError(
                f"not a block of samples ({type(error).__name__}: {error}); is the topic really `samples`?"
            ) from error


def ragged_rows(rows: Iterable[Sequence[Any]], dtype: npt.DTypeLike) -> Ragged:
    """Build a :class:`Ragged` from Python rows (for tests and small inputs)."""
    lists = [np.asarray(row, dtype=dtype) for row in rows]
    offsets = np.zeros(len(lists) + 1, np.int64)
    np.cumsum([len(row) for row in lists], out=offsets[1:])
    return Ragged(np.concatenate(lists) if lists else np.zeros(0, dtype), offsets)


def _flat(array: Any) -> Array:
    if not isinstance(array, pa.FixedSizeListArray):
        return array.to_numpy(zero_copy_only=True)  # type: ignore[no-any-return]
    width = array.type.list_size
    flat = array.values.slice(array.offset * width, len(array) * width).to_numpy(zero_copy_only=True)
    return flat.reshape(-1, width)  # type: ignore[no-any-return]


def _to_arrow(column: Array | Ragged, kind: pa.DataType, offsets: Mapping[int, pa.Array]) -> Any:
    """Return a column as Arrow has it; ``offsets``: those of ragged columns as Arrow has them, by ``id``."""
    if isinstance(column, Ragged):
        child = _to_arrow(column.values, kind.value_type, offsets)
        return pa.ListArray.from_arrays(offsets[id(column.offsets)], child)
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(column).reshape(-1), type=kind.value_type)
        return pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
    return pa.array(column, type=kind)
