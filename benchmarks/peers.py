"""Our training step against those of torch-rechub and deepctr-torch, and of plain torch: same requests, sizes and threads.

    make bench                                          (sets up the peers in .venv-bench, runs this among the others)
    python benchmarks/peers.py --requests FILE [--threads 1 2] [--steps 300] [--json FILE]
    python benchmarks/peers.py --quick

Requests are Globo's (``--requests globo_requests.parquet``; --quick draws some). Every side makes a step per 100 requests of 10
candidates from memory, in turns within this run: ids of 16 numbers, histories of at most 50, an MLP of 200 and 80. A peer's
batch is ready made: 1,000 rows with histories padded to 50, as its own data loader would leave them; its step is forward,
binary cross-entropy, backward and its usual optimiser (Adam, dense). Ours starts from a block of samples, and scores each
candidate before it learns it. ``plain`` is our sizes in torch as one would write it down: a row per impression, padded, with
``nn.Embedding(sparse=True)`` and ``SparseAdam``. Figures are impressions per second of wall time, and per second of CPU time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from learners.models import ModelContext, build
from learners.samples import Ragged, SampleBlock, SampleSchema

DIM, HISTORY, CANDIDATES, REQUESTS = 16, 50, 10, 100
Step = Callable[[int], None]


class Requests(NamedTuple):
    """Requests in memory; items are 1 to ``n_items``, 0 is padding."""

    users: npt.NDArray[np.int64]  # [R]
    ts: npt.NDArray[np.int64]  # [R] UTC ms
    items: npt.NDArray[np.int64]  # [R, 10]
    labels: npt.NDArray[np.float32]  # [R, 10]
    history: Ragged  # items, the newest last
    history_ts: Ragged
    n_items: int


def from_file(path: Path, n: int) -> Requests:
    import pyarrow.parquet as pq

    batch = next(pq.ParquetFile(path).iter_batches(n))
    items = np.stack(batch.column("candidates").to_numpy(zero_copy_only=False)).astype(np.int64)
    labels = np.stack(batch.column("labels").to_numpy(zero_copy_only=False)).astype(np.float32)
    rows, times = batch.column("history"), batch.column("history_ts")
    offsets = rows.offsets.to_numpy().astype(np.int64)
    inner = rows.values.to_numpy().astype(np.int64)
    known, numbers = np.unique(np.concatenate([inner, items.ravel()]), return_inverse=True)
    return Requests(
        batch.column("user_id").to_numpy().astype(np.int64),
        batch.column("ts").to_numpy().astype(np.int64),
        numbers[len(inner) :].reshape(items.shape) + 1,
        labels,
        Ragged(numbers[: len(inner)] + 1, offsets),
        Ragged(times.values.to_numpy().astype(np.int64), offsets),
        len(known),
    )


def drawn(n: int) -> Requests:
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.geometric(0.2, n), HISTORY)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n_items = 5_000

    def popular(*size: int) -> npt.NDArray[np.int64]:
        return (n_items * rng.random(size) ** 3).astype(np.int64) + 1

    labels = np.zeros((n, CANDIDATES), np.float32)
    labels[np.arange(n), rng.integers(0, CANDIDATES, n)] = 1
    ts = np.sort(rng.integers(10**12, 10**12 + 10**8, n))
    times = np.sort(rng.integers(10**12 - 10**8, 10**12, offsets[-1]))
    return Requests(
        rng.integers(1, 1_000, n),
        ts,
        popular(n, CANDIDATES),
        labels,
        Ragged(popular(int(offsets[-1])), offsets),
        Ragged(times, offsets),
        n_items,
    )


def padded(requests: Requests) -> list[tuple[torch.Tensor, ...]]:
    """Return per step: items ``[1000]``, histories ``[1000, 50]``, lengths ``[1000]``, labels ``[1000]``."""
    steps: list[tuple[torch.Tensor, ...]] = []
    values, offsets = requests.history
    for first in range(0, len(requests.users) - REQUESTS + 1, REQUESTS):
        histories = np.zeros((REQUESTS, HISTORY), np.int64)
        lengths = np.zeros(REQUESTS, np.int64)
        for r in range(REQUESTS):
            entries = values[offsets[first + r] : offsets[first + r + 1]][-HISTORY:]
            histories[r, : len(entries)], lengths[r] = entries, max(1, len(entries))
        rows = slice(first, first + REQUESTS)
        steps.append(
            (
                torch.from_numpy(requests.items[rows].reshape(-1).copy()),
                torch.from_numpy(np.repeat(histories, CANDIDATES, axis=0)),
                torch.from_numpy(np.repeat(lengths, CANDIDATES)),
                torch.from_numpy(requests.labels[rows].reshape(-1).copy()),
            )
        )
    return steps


def blocks_of(requests: Requests, longest: int = HISTORY) -> list[SampleBlock]:
    """Return the same requests as blocks of samples, one per step."""
    from learners.samples import ragged_rows

    schema = SampleSchema(generation="bench", item_sequences=("click",), has_query=False, has_category=False)
    values, offsets = requests.history
    blocks = []
    for first in range(0, len(requests.users) - REQUESTS + 1, REQUESTS):
        rows = range(first, first + REQUESTS)
        cut = slice(first, first + REQUESTS)
        entries = [values[offsets[r] : offsets[r + 1]][-longest:].tolist() for r in rows]
        times = [requests.history_ts.values[offsets[r] : offsets[r + 1]][-longest:].tolist() for r in rows]
        candidates = requests.items.shape[1]
        shape = np.arange(REQUESTS + 1, dtype=np.int64) * candidates
        n = REQUESTS * candidates
        zeros = np.zeros(n, np.int64)
        columns: dict[str, Any] = {
            "request": np.arange(first + 1, first + 1 + REQUESTS, dtype=np.int64),
            "user": requests.users[cut],
            "ts": requests.ts[cut],
            "due": requests.ts[cut],
            "partition": np.zeros(REQUESTS, np.int32),
            "seq": np.arange(first, first + REQUESTS, dtype=np.int64),
            "query": np.zeros(REQUESTS, np.int64),
            "query_category": np.zeros((REQUESTS, 4), np.int64),
            "domain": np.zeros(REQUESTS, np.int64),
            "click.item": ragged_rows(entries, np.int64),
            "click.category": ragged_rows([[0] * len(e) for e in entries], np.int64),
            "click.ts": ragged_rows(times, np.int64),
            "click.fresh": np.array([min(1, len(e)) for e in entries], np.int32),
            "candidate.item": Ragged(requests.items[cut].reshape(-1), shape),
            "candidate.category": Ragged(zeros, shape),
            "candidate.domain": Ragged(zeros, shape),
            "candidate.position": Ragged(np.tile(np.arange(candidates, dtype=np.int32), REQUESTS), shape),
            "candidate.label": Ragged(requests.labels[cut].reshape(-1), shape),
            "candidate.weight": Ragged(np.ones(n, np.float32), shape),
        }
        blocks.append(SampleBlock.from_columns(schema, columns))
    return blocks


def ours(name: str, blocks: list[SampleBlock]) -> Step:
    learner = build(name, {}, ModelContext(schema=blocks[0].schema, name=name, seed=0, device="cpu", ignored_features=()))

    def step(at: int) -> None:
        learner.predict_learn(blocks[at % len(blocks)])

    return step


def rechub(name: str, batches: list[tuple[torch.Tensor, ...]], n_items: int) -> Step:
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.ranking import BST, DIN

    target = [SparseFeature("item", vocab_size=n_items + 1, embed_dim=DIM)]
    history = [SequenceFeature("history", vocab_size=n_items + 1, embed_dim=DIM, pooling="concat", shared_with="item")]
    context = [SparseFeature("context", vocab_size=2, embed_dim=1)]  # it asks for one feature beside the sequence
    mlp = {"dims": [200, 80]}
    if name == "din":
        model = DIN(context, history, target, mlp_params=mlp, attention_mlp_params={"dims": [36]})
    else:
        model = BST(context, history, target, mlp_params=mlp, nhead=8, dropout=0.0, max_seq_len=HISTORY + 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(at: int) -> None:
        items, histories, _, labels = batches[at % len(batches)]
        optimiser.zero_grad()
        scores = model({"context": torch.ones_like(items), "item": items, "history": histories})
        torch.autograd.backward(nn.functional.binary_cross_entropy(scores, labels))
        optimiser.step()

    return step


def deepctr(name: str, batches: list[tuple[torch.Tensor, ...]], n_items: int) -> Step:
    assert name == "din", "deepctr-torch has no BST"
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import DIN

    item = SparseFeat("item", n_items + 1, embedding_dim=DIM)
    hist = SparseFeat("hist_item", n_items + 1, embedding_dim=DIM, embedding_name="item")
    columns = [item, VarLenSparseFeat(hist, maxlen=HISTORY, length_name="seq_length")]
    model = DIN(columns, ["item"], dnn_hidden_units=(200, 80), att_hidden_size=(36,), l2_reg_embedding=0.0, device="cpu")
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    places = model.feature_index
    width = max(stop for _, stop in places.values())
    ready = []
    for items, histories, lengths, labels in batches:
        rows = torch.zeros(len(items), width)
        for key, values in (("item", items[:, None]), ("hist_item", histories), ("seq_length", lengths[:, None])):
            first, stop = places[key]
            rows[:, first:stop] = values.float()
        ready.append((rows, labels))

    def step(at: int) -> None:
        rows, labels = ready[at % len(ready)]
        optimiser.zero_grad()
        torch.autograd.backward(nn.functional.binary_cross_entropy(model(rows).squeeze(1), labels))
        optimiser.step()

    return step


class PlainDIN(nn.Module):
    """DIN as one would write it down: an impression a row, histories padded, every candidate with its own copy."""

    def __init__(self, n_items: int) -> None:
        super().__init__()
        self.table = nn.Embedding(n_items + 1, DIM, sparse=True)
        self.attention = nn.Sequential(nn.Linear(4 * DIM, 36), nn.ReLU(), nn.Linear(36, 1))
        self.mlp = nn.Sequential(nn.Linear(2 * DIM, 200), nn.ReLU(), nn.Linear(200, 80), nn.ReLU(), nn.Linear(80, 1))

    def forward(self, items: torch.Tensor, histories: torch.Tensor) -> torch.Tensor:
        """Return logits ``[B]`` of items ``[B]`` and histories ``[B, L]``."""
        target, past = self.table(items), self.table(histories)
        wide = target[:, None].expand_as(past)
        weights = self.attention(torch.cat([past, wide, past - wide, past * wide], -1)).squeeze(-1)
        interest = ((weights * (histories > 0))[..., None] * past).sum(1)
        logits: torch.Tensor = self.mlp(torch.cat([target, interest], -1)).squeeze(-1)
        return logits


def plain(name: str, batches: list[tuple[torch.Tensor, ...]], n_items: int) -> Step:
    assert name == "din", "the plain BST is torch-rechub's: nn.TransformerEncoder on padded rows"
    model = PlainDIN(n_items)
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.SparseAdam([model.table.weight], lr=1e-3),
        torch.optim.Adam([*model.attention.parameters(), *model.mlp.parameters()], lr=1e-3),
    ]

    def step(at: int) -> None:
        items, histories, _, labels = batches[at % len(batches)]
        for each in optimisers:
            each.zero_grad()
        torch.autograd.backward(nn.functional.binary_cross_entropy_with_logits(model(items, histories), labels))
        for each in optimisers:
            each.step()

    return step


def rates(step: Step, steps: Iterator[int]) -> tuple[float, float]:
    """Return impressions per second of wall time and of CPU time."""
    wall, cpu, n = time.perf_counter(), time.process_time(), 0
    for at in steps:
        step(at)
        n += REQUESTS * CANDIDATES
    return n / (time.perf_counter() - wall), n / (time.process_time() - cpu)


def installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) for name in names)


def sides(models: list[str], requests: Requests) -> dict[str, Step]:
    batches, blocks = padded(requests), blocks_of(requests)
    found: dict[str, Step] = {}
    for name in models:
        found[f"{name}, freshet"] = ours(name, blocks)
        if name in ("din", "bst") and installed("torch_rechub"):
            found[f"{name}, torch-rechub"] = rechub(name, batches, requests.n_items)
        if name == "din" and installed("deepctr_torch"):
            found["din, deepctr-torch"] = deepctr(name, batches, requests.n_items)
        if name == "din":
            found["din, plain torch per impression"] = plain(name, batches, requests.n_items)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=Path, help="globo_requests.parquet; drawn at random where it is not given")
    parser.add_argument("--models", nargs="+", default=["din", "dnn", "egin"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    steps, turns = (10, 1) if options.quick else (options.steps, options.turns)
    n = steps * REQUESTS
    requests = from_file(options.requests, n) if options.requests else drawn(n)
    for name in ("torch_rechub", "deepctr_torch"):
        if not installed(name):
            print(f"{name} is not installed here: left out (make bench installs it)")
    result: dict[str, Any] = {"steps": steps, "torch": torch.__version__, "rates": {}}
    for threads in options.threads:
        torch.set_num_threads(threads)
        found = sides(options.models, requests)
        walls: dict[str, list[float]] = {name: [] for name in found}
        cpus: dict[str, list[float]] = {name: [] for name in found}
        for step in found.values():
            rates(step, iter(range(3)))  # compiles
        for _ in range(turns):
            for name, step in found.items():
                few = max(3, steps // (1 if "freshet" in name else 5))
                wall, cpu = rates(step, iter(range(few)))
                walls[name].append(wall)
                cpus[name].append(cpu)
        print(f"{threads} thread{'s' * (threads > 1)}, median of {turns} turns: impressions per second")
        for name in found:
            model = name.partition(",")[0]
            wall, cpu = statistics.median(walls[name]), statistics.median(cpus[name])
            times = statistics.median(walls[f"{model}, freshet"]) / wall
            print(f"  {name:<36}{wall:>12,.0f} wall {cpu:>12,.0f} CPU {times:>8.1f} x slower than ours")
            result["rates"][f"{name}, {threads}"] = {"wall": wall, "cpu": cpu, "ours_is_faster": times}
    if options.json:
        options.json.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
