"""EmbeddingTable: one vector per 64-bit id, admitted when first learned, evicted when the table is full.

Legend: ``N`` keys asked for, ``U`` distinct ones among them, ``D`` dim.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from learners import gather
from learners.device import compiled, place
from learners.tables import probing
from learners.tables.admission import admission_of
from learners.tables.changes import WHOLE_FROM, Delta, Mark
from learners.tables.columns import Columns
from learners.tables.config import TableConfig, check
from learners.tables.copying import aligned
from learners.tables.distinct import Distinct, deduped, distinct
from learners.tables.index import Keys, RowIndex, Rows, State
from learners.tables.sharding import WHOLE, Shard, shard_of
from learners.tape import Tape, recording


class Gathered(NamedTuple):
    """Vectors of one batch.

    ``weight`` is ``[U, D]``, a leaf that collects the gradient; ``places`` has, per key array that was asked for, the row of
    ``weight`` of each key, int64 ``[N]``; ``keys`` are the distinct keys in order of appearance, int64 ``[U]``, ``rows``
    the table's rows of them, int32 ``[U]``, -1 for keys that it does not hold, and ``n_first`` counts those of the first array.
    """

    weight: torch.Tensor
    places: list[torch.Tensor]
    keys: Keys
    rows: Rows
    n_first: int

    def of(self, use: int) -> torch.Tensor:
        """Return the vectors of the ``use``-th key array, ``[N, D]``."""
        return gather.rows(self.weight, self.places[use])


class _Pending(NamedTuple):
    """A learning look-up whose gradient is awaited: ``leaf [U, D]`` are the vectors of ``rows [U]``."""

    leaf: torch.Tensor
    rows: Rows


class EmbeddingTable:
    """Vectors for 64-bit ids.

    A key's first vector is a function of (seed, name without the model's, key): models that are compared begin alike, and a key
    that was never learned is scored with the vector that it would be admitted with. Scoring and training agree, and scoring
    changes nothing. Key 0 (missing) is the zero vector.

    Args:
        name: ``MODEL/TABLE`` or ``TABLE``, for messages; what follows the last slash is part of the seed.
        config: dim, rate, bounds.
        seed: of the initial vectors.
        device: where weights live; the index is always on the CPU.
        shard: the part of the table that this one is; keys of other shards are refused.

    Attributes:
        index: rows, counts and ages; append to its ``on_evict`` to be told of the keys that leave.
        on_load: called when the table has become another, by :meth:`load_state` or :meth:`apply_delta`: rows that were looked
            up before may be other keys' now.
    """

    def __init__(self, name: str, config: TableConfig, seed: int = 0, device: str = "cpu", shard: Shard = WHOLE) -> None:
        check(name, config)
        self.name = name
        self.config = config
        self.device = torch.device(device)
        self.shard = shard
        self._seed = self.seed_of(name, seed)
        admission = admission_of(config, self._seed)
        self.index = RowIndex(name, config.max_rows, rarest=config.evict == "rarest", admission=admission)
        self.on_load: list[Callable[[], None]] = []
        self._pending: _Pending | None = None
        self._swept_ts = 0
        self._mark = Mark(name, self.index)
        self.columns = Columns(config, self.device)
        self._lengthen()

    @staticmethod
    def seed_of(name: str, seed: int) -> int:
        """Return the key of a table's initial vectors and draws, 63 bits.

        It is part of what a checkpoint means: with a change, ``learners.checkpoint.manifest.INITIALISATION`` is raised.
        """
        table = name.rpartition("/")[2]
        return int.from_bytes(hashlib.sha256(f"{table}\0{seed}".encode()).digest()[:8], "little") >> 1

    def __len__(self) -> int:
        """Return how many keys the table holds."""
        return len(self.index)

    def gather(self, *keys: Keys, learn: bool = False, ts: int = 0) -> Gathered:
        """Look up several key arrays with one dedupe for all of them.

        Args:
            keys: int64 arrays, any lengths; 0 is missing.
            learn: admit keys that are new, count uses, and let the result collect a gradient for :meth:`apply_gradients`.
            ts: event time in ms, kept as the rows' age when learning.

        Raises:
            ValueError: a key belongs to another shard, or ``max_rows`` is too small for the batch.
        """
        return self.look_up(distinct(*keys), learn=learn, ts=ts)

    def look_up(self, asked: Distinct, *, learn: bool = False, ts: int = 0) -> Gathered:
        """Do what :meth:`gather` does with what was deduped before."""
        # torch's memory begins at a cache line, on which the bits of a product over these rows depend; NumPy's does not.
        weight = torch.empty(len(asked.keys), self.config.dim, device=self.device)
        if compiled(self.device):
            rows, places = self._looked_up(asked, weight.numpy(), learn, ts), asked.places
        else:
            rows = self._looked_up(asked, weight, learn, ts)
            places = [place(each.numpy(), self.device) for each in asked.places]
        if learn:
            tape = recording()
            if tape is None:
                weight.requires_grad_()
                self._pending = _Pending(weight, rows)
            else:
                tape.then(partial(self._back, tape, weight, rows), weight)
        return Gathered(weight, places, asked.keys, rows, asked.n_first)

    def look_up_into(self, leaf: torch.Tensor, start: int, asked: Distinct, *, learn: bool, ts: int) -> Rows:
        """Write the vectors of :meth:`look_up` to ``leaf [.., D]`` from row ``start`` on; return the rows, int32 ``[U]``, whose
        step is the caller's (:attr:`columns`)."""
        out = leaf.detach()[start : start + len(asked.keys)]
        return self._looked_up(asked, out.numpy() if compiled(out.device) else out, learn, ts)

    def _looked_up(self, asked: Distinct, out: torch.Tensor | npt.NDArray[np.float32], learn: bool, ts: int) -> Rows:
        self._check_own(asked.keys)
        if learn:
            self._expire(asked.keys, ts)
        if isinstance(out, torch.Tensor):
            return self._on_other(asked, out, learn, ts)
        return self._on_cpu(asked, out, learn, ts)

    def _on_cpu(self, asked: Distinct, out: npt.NDArray[np.float32], learn: bool, ts: int) -> Rows:
        """Write vectors of distinct keys to ``out [U, D]``, return their rows: with one compiled call where all are known."""
        keys, seen, weight = asked.keys, ts if learn else None, self.columns.arrays[0]
        rows = np.empty(len(keys), np.int32)
        first = self._seed, self.config.initial_scale
        unknown, admitted = self.index.look_up(keys, weight, rows, out, seen, first)
        if admitted:
            self.columns.begin_last(self.index.n, admitted)
        if unknown and learn and self._admit(asked, rows):
            unknown, _ = self.index.look_up(keys, self.columns.arrays[0], rows, out, seen, first)
        if unknown:
            at = np.flatnonzero(rows < 0)
            vectors = np.empty((len(at), self.config.dim), np.float32)
            probing.initial(keys[at], *first, vectors)
            out[at] = vectors
            if learn:
                self.index.touch(rows, ts)
        return rows

    def _on_other(self, asked: Distinct, out: torch.Tensor, learn: bool, ts: int) -> Rows:
        rows = self._learned_rows(asked, ts) if learn else self.index.find(asked.keys)
        out.copy_(self.columns.weight.index_select(0, self._on_device(rows.clip(min=0))))
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            out[self._on_device(unknown)] = self._initial(asked.keys[unknown])
        return rows

    def apply_gradients(self) -> None:
        """Take one step of the optimiser on the rows of the last learning :meth:`gather`."""
        if self._pending is None:
            raise RuntimeError(f"table {self.name!r}: apply_gradients needs a gather(learn=True) before it")
        (leaf, rows), self._pending = self._pending, None
        if leaf.grad is not None:
            self.columns.step(rows, leaf.grad)

    def _back(self, tape: Tape, leaf: torch.Tensor, rows: Rows) -> None:
        """Do what :meth:`apply_gradients` does, at the end of a tape."""
        grad = tape.take(leaf)
        if grad is not None:
            self.columns.step(rows, torch.from_numpy(grad))

    def update(self, keys: Keys, grad: torch.Tensor, ts: int = 0) -> None:
        """Admit, count and learn with a gradient per use of a key: dedupe, sum and step in one, without autograd.

        Equal to a learning :meth:`gather` and :meth:`apply_gradients` but for the order in which a key's gradients are summed.

        Args:
            keys: int64 ``[N]``, may repeat; 0 is missing.
            grad: float32 ``[N, D]``.
            ts: event time in ms.
        """
        asked = distinct(keys)
        self._check_own(asked.keys)
        self._expire(asked.keys, ts)
        rows = self._learned_rows(asked, ts)
        self._step_summed(rows, asked.all_places(), grad)

    def update_rows(self, rows: Rows, grad: torch.Tensor) -> None:
        """Learn with a gradient per use of a row, ``[N]`` and ``[N, D]``; nothing is admitted or counted."""
        unique, inverse = deduped(rows)
        self.index.changed[unique[unique >= 0]] = True
        self._step_summed(unique, inverse, grad)

    def _step_summed(self, unique: Rows, inverse: Keys, grad: torch.Tensor) -> None:
        if compiled(self.device):
            total = np.zeros((len(unique), self.config.dim), np.float32)
            gather.add_at(inverse, grad.contiguous().numpy(), total)
            summed = torch.from_numpy(total)
        else:
            summed = torch.zeros(len(unique), self.config.dim, device=self.device)
            summed.index_add_(0, self._on_device(inverse), grad)
        self.columns.step(unique, summed)

    def statistics(self, keys: Keys) -> tuple[Keys, Keys]:
        """Return (count of learned batches, ts of the first) of keys, int64 ``[N]`` each; 0 for unknown keys."""
        return self.index.seen(keys)

    def _check_own(self, keys: Keys) -> None:
        if self.shard.of > 1 and ((shard_of(keys, self.shard.of) != self.shard.at) & (keys != 0)).any():
            raise ValueError(
                f"table {self.name!r}: a key belongs to another shard than {self.shard.at} of {self.shard.of}; "
                "route keys by shard_of first"
            )

    def _expire(self, keys: Keys, ts: int) -> None:
        if (after := self.config.expire_after_ms) is not None and ts >= self._swept_ts + max(1, after // 8):
            self._swept_ts = ts
            held = self.index.find(keys)  # what the batch asks for stays, so that it is learned as it was scored
            self.index.expire(ts - after, protected=held[held > 0])

    def _learned_rows(self, asked: Distinct, ts: int) -> Rows:
        """Return the row of every key, -1 where it is not admitted, and count the use."""
        rows = self.index.find(asked.keys)
        if len(rows) and rows.min() < 0 and self._admit(asked, rows):
            rows = self.index.find(asked.keys)
        self.index.touch(rows, ts)
        return rows

    def _admit(self, asked: Distinct, rows: Rows) -> bool:
        """Give those of the keys a row that have none, -1 in ``rows``, and are admitted; return whether there are any."""
        uses = asked.all_places() if self.index.admission.counts_uses else None
        new = self.index.admit_unknown(asked.keys, rows, uses)
        self._lengthen()
        if len(new):
            self.columns.begin(new, self._initial(self.index.keys[new]))
        return len(new) > 0

    def _on_device(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return place(array, self.device)

    def _initial(self, keys: Keys) -> torch.Tensor:
        vectors = np.empty((len(keys), self.config.dim), np.float32)
        probing.initial(keys, self._seed, self.config.initial_scale, vectors)
        return self._on_device(vectors)

    def _lengthen(self) -> None:
        self.columns.lengthen(self.index.n, self.index.capacity)

    def state(self) -> State:
        """Return everything that must survive, slot for slot, as arrays."""
        n = self.index.n
        return {**self.index.state(), **self._swept(), **{name: c[:n].cpu().numpy() for name, c in self.columns.items()}}

    def _swept(self) -> State:
        return {} if self.config.expire_after_ms is None else {"swept_ts": np.array(self._swept_ts, np.int64)}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become the table that returned ``state``.

        Raises:
            ValueError: the vectors are of another dim or optimiser, or more than ``max_rows``.
        """
        self._check_columns(state)
        self.index.load_state(state)
        self.columns.clear()
        self._put(slice(0, self.index.n), state)
        self._mark.forget()

    def mark(self) -> int:
        """Begin to note which rows change; return the number that :meth:`delta_state` takes.

        Call it where a checkpoint is taken, after :meth:`state` or :meth:`delta_state`.
        """
        number = self._mark.set()
        if self._pending is not None:  # its rows will change after the mark, though they were touched before
            self.index.changed[self._pending.rows[self._pending.rows >= 0]] = True
        return number

    def delta(self, since: int) -> Delta | State:
        """Return what has changed since :meth:`mark` returned ``since``, to be copied at once: the rows that were touched, and
        all that is no row's; or the whole :meth:`state` where nearly all were, so that to pick them takes as long.

        Raises:
            ValueError: it is not the latest mark: a whole :meth:`state` is needed.
        """
        touched = self._mark.touched(since)
        n_touched = int(np.count_nonzero(touched))
        if n_touched >= WHOLE_FROM * len(touched):
            return self.state()
        rest = {**self.index.state_of_no_row(), **self._swept(), **self._mark.header()}
        if compiled(self.device):
            columns = dict(zip(self.columns.shapes, self.columns.arrays, strict=True))
            return Delta(touched, n_touched, {**self.index.columns(), **columns}, rest)
        at = self._on_device(np.flatnonzero(touched))
        picked = {name: column.index_select(0, at).cpu().numpy() for name, column in self.columns.items()}
        return Delta(touched, n_touched, self.index.columns(), {**rest, **picked})

    def delta_state(self, since: int) -> State:
        """Return :meth:`delta` as arrays; copies, but where it is the whole state."""
        delta = self.delta(since)
        return delta.copied_to(aligned(delta.size)) if isinstance(delta, Delta) else delta

    def apply_delta(self, delta: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become, from the state at a mark, the table that returned ``delta``, slot for slot.

        Raises:
            ValueError: the table has other rows than the one that set the mark.
        """
        if "rows" not in delta:
            self.load_state(delta)
            return
        self._check_columns(delta)
        rows = self._mark.checked(delta)
        self.index.put(rows, int(delta["n"]), delta)
        self._put(rows, delta)
        self._mark.forget()

    def _put(self, rows: slice | Rows, state: Mapping[str, npt.NDArray[Any]]) -> None:
        self._pending = None
        for forget in self.on_load:
            forget()
        self._lengthen()
        self._swept_ts = int(state.get("swept_ts", 0))
        self.columns.put(rows, state)

    def _check_columns(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        for name in self.columns.shapes:
            if name not in state:
                raise ValueError(
                    f"table {self.name!r}: the checkpoint has no {name!r}, which optimiser = {self.config.optimiser!r} keeps; "
                    "resume with the config that the run was started with"
                )
        if (dim := state["weight"].shape[1]) != self.config.dim:
            raise ValueError(
                f"table {self.name!r}: the checkpoint has dim {dim}, the config dim = {self.config.dim}; "
                "resume with the config that the run was started with"
            )

    def describe(self) -> dict[str, Any]:
        """Return rows, load (share of the index's slots that is taken), admissions, evictions and bytes in use."""
        per_row = self.index.bytes_per_row + sum(4 * int(np.prod(shape)) for shape in self.columns.shapes.values())
        size = self.index.n * per_row + self.index.nbytes - self.index.n * self.index.bytes_per_row
        return {
            "rows": len(self),
            "dim": self.config.dim,
            "load": self.index.load,
            "admitted": len(self) + self.index.evicted_total,
            "evicted": self.index.evicted_total,
            "bytes": size,
            "bytes_per_row": size / self.index.n,
        }
