"""Several encoded blocks of one generation, decoded as one stream: a call for all where there would be a few for each.

What :meth:`learners.samples.SampleBlock.to_ipc` writes is an Arrow IPC stream: a schema message, the message of one record
batch, an end mark. Blocks of one generation begin with the same schema message, so the messages of their batches, one behind
the other, are a stream again. Reading it lets go of the interpreter's lock once, and parses the schema once.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from learners.samples import READ_OPTIONS, SampleBlock, SampleSchema

_PREFIX = 8
"""Bytes before a message: a mark, and its length as a little-endian int32."""
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"

__all__ = ["decode_blocks"]


def decode_blocks(encoded: Sequence[bytes]) -> list[SampleBlock]:
    """Decode blocks, as :meth:`~learners.samples.SampleBlock.from_ipc` would one after the other.

    Args:
        encoded: of :meth:`~learners.samples.SampleBlock.to_ipc`.

    Raises:
        SampleError: one is not a block, or of a newer schema version.
    """
    if len(encoded) > 1 and (batches := _as_one_stream(encoded)) is not None:
        schema = SampleSchema.of_arrow(batches[0].schema)
        return [SampleBlock(batch, schema) for batch in batches]
    return [SampleBlock.from_ipc(data) for data in encoded]


def _as_one_stream(encoded: Sequence[bytes]) -> list[pa.RecordBatch] | None:
    """Return the batches, one per block; None where they are no such stream: who reads them one by one finds out why."""
    first = encoded[0]
    header = _PREFIX + int.from_bytes(first[4:_PREFIX], "little")
    schema = first[:header]
    if not all(data.startswith(schema) and data.endswith(_END) for data in encoded):
        return None
    stream = b"".join([schema, *[memoryview(data)[header : -len(_END)] for data in encoded]])
    try:
        with pa.ipc.open_stream(stream, options=READ_OPTIONS) as reader:
            batches: list[pa.RecordBatch] = reader.read_all().to_batches()
    except (pa.ArrowException, OSError):
        return None
    return batches if len(batches) == len(encoded) else None
