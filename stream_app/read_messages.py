"""What a replay and the process that reads for it tell each other, on a pair of sockets per stream of batches.

A frame is a head (kind, bytes of each part), a part in MessagePack and one of Arrow: what is read goes over as one
uncompressed record batch for some batches, and is used where it was received.
"""

from __future__ import annotations

import pickle
import socket
import struct
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec
import pyarrow as pa

from learners.samples import SampleBlock, SampleSchema
from stream_app.joiner.config import JoinConfig
from stream_app.profile import Profile, Spent
from stream_app.sample_cursor import Place
from stream_app.samples_reader import Batch
from stream_app.topics.address import Address

__all__ = [
    "Ask",
    "Frame",
    "PeerGoneError",
    "ReadProcessError",
    "Setup",
    "read_setup",
    "received",
    "send_batches",
    "send_end",
    "send_error",
    "send_setup",
    "taken",
]

_HEAD: Final = struct.Struct("<cIQ")
_SETUP, _BATCHES, _END, _ERROR = b"S", b"B", b"E", b"X"


class ReadProcessError(ValueError):
    """The process that reads is gone, or has failed in a way that its own error cannot be told."""


class PeerGoneError(Exception):
    """The other end was closed."""


class Ask(msgspec.Struct, frozen=True):
    """A stream of batches, as :class:`~stream_app.samples_reader.SampleReader` takes it."""

    places: tuple[Place, ...]
    batch_requests: int
    start: int | None
    stop: int | None
    slack_ms: int
    at_once: int
    """Batches of a frame."""


class Setup(msgspec.Struct, frozen=True):
    """What the process is to join, and the streams that it is asked for; holds no secrets."""

    address: Address
    join: JoinConfig
    schema: SampleSchema
    asks: tuple[Ask, ...]


class _Cut(msgspec.Struct, frozen=True, array_like=True):
    """A batch: rows of the frame's block from the batch before it up to ``stop``."""

    stop: int
    places: msgspec.Raw
    """Encoded: nobody asks for most of them."""
    order_due: int


class _Told(msgspec.Struct, frozen=True, array_like=True):
    """What goes with the rows of a frame."""

    cuts: list[_Cut]
    spent: list[Spent]
    """Since the frame before."""


class Frame(NamedTuple):
    """A frame as it was received."""

    kind: bytes
    told: bytes
    body: pa.Buffer


_SETUPS: Final = msgspec.msgpack.Decoder(Setup)
_TOLD: Final = msgspec.msgpack.Decoder(_Told)
_PLACES: Final = msgspec.msgpack.Decoder(tuple[Place, ...])


def send_setup(stream: socket.socket, setup: Setup) -> None:
    """Tell the process what to do; the first frame of its first stream."""
    _send(stream, _SETUP, msgspec.msgpack.encode(setup))


def read_setup(frame: Frame) -> Setup:
    """Return what a process was told to do."""
    return _SETUPS.decode(frame.told)


def send_batches(stream: socket.socket, batches: Sequence[Batch], profile: Profile) -> None:
    """Send batches as one frame, and where the time went since the frame before."""
    cuts, stop = [], 0
    for batch in batches:
        stop += len(batch.block)
        cuts.append(_Cut(stop, msgspec.Raw(msgspec.msgpack.encode(batch.places)), batch.order_due))
    with profile.stage("hand over"):
        rows = SampleBlock.concat([batch.block for batch in batches]).batch.serialize()
    _send(stream, _BATCHES, msgspec.msgpack.encode(_Told(cuts, profile.take())), rows)


def send_end(stream: socket.socket, profile: Profile) -> None:
    """Say that there are no more batches."""
    _send(stream, _END, msgspec.msgpack.encode(_Told([], profile.take())))


def send_error(stream: socket.socket, error: BaseException) -> None:
    """Hand an error over, which is to be raised where the batches are asked for."""
    error.add_note("In the process that reads:\n" + "".join(traceback.format_exception(error)))
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)  # Not every error can be made again of what it was made of.
    except Exception:
        pickled = pickle.dumps(ReadProcessError(f"{type(error).__name__}: {error}"))
    _send(stream, _ERROR, pickled)


def taken(frame: Frame, schema: SampleSchema, profile: Profile) -> Iterator[Batch] | None:
    """Return the batches of a frame, None where it is the end.

    Args:
        frame: of :func:`send_batches`, :func:`send_end` or :func:`send_error`.
        schema: of the rows.
        profile: told where the time of the other process went.

    Raises:
        BaseException: what the other process has raised.
    """
    if frame.kind == _ERROR:
        raise pickle.loads(frame.told)
    told = _TOLD.decode(frame.told)
    profile.add(told.spent)
    return None if frame.kind == _END else _cut(SampleBlock(_record_batch(frame.body, schema), schema), told.cuts)


def _record_batch(body: pa.Buffer, schema: SampleSchema) -> Any:
    return pa.ipc.read_record_batch(body, schema.arrow())


def _cut(block: SampleBlock, cuts: Sequence[_Cut]) -> Iterator[Batch]:
    start = 0
    for cut in cuts:
        yield Batch(block.slice(start, cut.stop), partial(_PLACES.decode, cut.places), cut.order_due)
        start = cut.stop


def _send(stream: socket.socket, kind: bytes, told: bytes, body: pa.Buffer | None = None) -> None:
    try:
        stream.sendall(_HEAD.pack(kind, len(told), 0 if body is None else body.size) + told)
        if body is not None:
            stream.sendall(body)
    except OSError as error:
        raise PeerGoneError from error


def received(stream: socket.socket) -> Frame | None:
    """Wait for a frame; None where the other end was closed, be it in the middle of one."""
    head = bytearray(_HEAD.size)
    if not _fill(stream, head):
        return None
    kind, n_told, n_body = _HEAD.unpack(head)
    told, body = bytearray(n_told), pa.allocate_buffer(n_body)
    if not _fill(stream, told) or not _fill(stream, body):
        return None
    return Frame(kind, bytes(told), body)


def _fill(stream: socket.socket, room: Any) -> bool:
    """Receive so many bytes as there is room for, without the interpreter's lock while they come; false where they end."""
    rest = memoryview(room)
    while len(rest):
        try:
            n = stream.recv_into(rest, len(rest), socket.MSG_WAITALL)
        except OSError:  # Closed with frames of ours unread.
            return False
        if not n:
            return False
        rest = rest[n:]
    return True
