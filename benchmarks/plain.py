"""DNN, DIN, BST and EGIN as they are usually written in torch: one row per impression, histories padded, as baselines.

They see items and histories alone. Ids are hashed to rows of ``nn.Embedding(sparse=True)`` under Adagrad, layers are under Adam
and as wide as ours. EGIN's graph is that of a row too: the edges of its history and of what its request clicked, as often as
the request has candidates; their mean, and so what is learned, is the same. ``edges_once`` lays them once per request, which
one row per impression has no means to do; it shows what that alone is worth. Negatives are drawn once per batch and shared by
all its edges in both, as the paper has it.

Legend: ``R`` requests, ``C`` candidates, ``L`` = 50 padded history entries, ``M`` negatives, ``D`` dim.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from learners.samples import SampleBlock

KINDS = ("dnn", "din", "bst", "egin")
PADDED, DIM, HIDDEN = 50, 16, (200, 80)
ATTENTION, HEADS, FEED_FORWARD, TIME_DIM = 36, 8, 128, 8
TOP_K, BINS, SLOT_DIM, WINDOW, NEGATIVES, QUEUE, EDGE_WEIGHT = 10, 20, 10, 2, 100, 1_000_000, 0.05

__all__ = ["KINDS", "PlainLearner"]


class Padded(NamedTuple):
    """A block as rows of the tables; 0 pads."""

    target: Tensor
    """``[C]``."""
    history: Tensor
    """``[C, L]``: a request's newest entries, as often as it has candidates."""
    clicks: Tensor
    """``[R, L + 1]``: histories, and what is clicked now behind them."""
    fresh: Tensor
    """``[R, L + 1]``, bool: entries that no earlier request of the user had."""
    request: Tensor
    """``[C]``: the row of ``clicks`` of each impression."""
    labels: Tensor
    """``[C]``."""


class Plain(nn.Module):
    """One of the four, per impression: every candidate carries its own padded history."""

    def __init__(self, kind: str, rows: int) -> None:
        super().__init__()
        self.kind = kind
        self.items = _table(rows, DIM)
        wide = {"dnn": 3, "din": 5, "bst": 3, "egin": 8}[kind] * DIM
        if kind == "din":
            self.unit = nn.Sequential(nn.Linear(4 * DIM, ATTENTION), nn.PReLU(), nn.Linear(ATTENTION, 1))
        elif kind == "bst":
            width = DIM + TIME_DIM
            self.positions = nn.Embedding(PADDED + 1, TIME_DIM)
            self.block = nn.TransformerEncoderLayer(width, HEADS, FEED_FORWARD, dropout=0.0, batch_first=True)
            wide += width
        elif kind == "egin":
            self.graph, self.bias = _table(rows, DIM), _table(rows, 1)
            self.bins, self.places = nn.Embedding(BINS + 2, SLOT_DIM), nn.Embedding(PADDED, SLOT_DIM)
            wide += TOP_K * SLOT_DIM
        layers: list[nn.Module] = []
        for width in HIDDEN:
            layers += [nn.Linear(wide, width), nn.LayerNorm(width), nn.ReLU()]
            wide = width
        self.mlp = nn.Sequential(*layers, nn.Linear(wide, 1))

    def forward(self, target: Tensor, history: Tensor) -> Tensor:
        """Return logits ``[C]`` of rows ``[C]`` and ``[C, L]``."""
        q, k = self.items(target), self.items(history)
        mask = history != 0
        mean = _mean(k, mask)
        parts = [q, mean, q * mean]
        if self.kind == "din":
            wide = q.unsqueeze(1).expand_as(k)
            weight = self.unit(torch.cat([wide, k, wide - k, wide * k], 2)) * mask.unsqueeze(2)
            interest = (weight * k).sum(1)
            parts += [interest, interest * q]
        elif self.kind == "bst":
            entries = torch.cat([k, q.unsqueeze(1)], 1)
            places = self.positions.weight.unsqueeze(0).expand(len(q), -1, -1)
            hidden = torch.cat([~mask, torch.zeros(len(q), 1, dtype=torch.bool)], 1)
            parts.append(self.block(torch.cat([entries, places], 2), src_key_padding_mask=hidden)[:, -1])
        elif self.kind == "egin":
            parts += self._interests(target, history, mask)
        out: Tensor = self.mlp(torch.cat(parts, 1))
        return out.squeeze(1)

    def _interests(self, target: Tensor, history: Tensor, mask: Tensor) -> list[Tensor]:
        """Return SimExtract's slots, and target, mean and newest of the graph vectors and their products."""
        q, k = self.graph(target), self.graph(history)
        similar = (normalize(k.detach(), dim=2) * normalize(q.detach(), dim=1).unsqueeze(1)).sum(2)  # [C, L]
        top, at = similar.masked_fill(~mask, -2.0).topk(TOP_K, 1)
        bins = ((top + 1) / 2 * BINS).long().clamp(0, BINS - 1)
        bins = torch.where(history.gather(1, at) == target.unsqueeze(1), BINS, bins)
        slots = (self.bins(bins) + self.places(at)) * (top > -1.5).unsqueeze(2)  # [C, k, slot]
        last = (mask.sum(1) - 1).clamp(min=0)
        newest = k[torch.arange(len(k)), last] * mask.any(1, keepdim=True)
        mean = _mean(k, mask)
        return [slots.flatten(1), q, mean, newest, q * mean, q * newest]

    def edge_loss(self, clicks: Tensor, fresh: Tensor, negatives: Tensor) -> Tensor:
        """Return the mean softmax loss of the fresh i2i edges, both ways, with negatives ``[M]`` that all of them share."""
        ends = []
        for gap in range(1, WINDOW + 1):
            new, old = clicks[:, gap:], clicks[:, :-gap]
            kept = fresh[:, gap:] & (new != 0) & (old != 0) & (new != old)
            ends.append(torch.stack([new[kept], old[kept]]))
        one, other = torch.cat(ends, 1)
        anchor, positive = torch.cat([one, other]), torch.cat([other, one])
        starts = self.graph(anchor)
        of_positive = (starts * self.graph(positive)).sum(1) + self.bias(positive).squeeze(1)
        of_negatives = starts @ self.graph(negatives).T + self.bias(negatives).squeeze(1)  # [E, M]
        hits = (positive.unsqueeze(1) == negatives) | (anchor.unsqueeze(1) == negatives)
        logits = torch.cat([of_positive.unsqueeze(1), of_negatives.masked_fill(hits, -torch.inf)], 1)
        total: Tensor = (logits.logsumexp(1) - of_positive).sum()
        return total / max(len(anchor), 1)


class PlainLearner:
    """The usual loop around :class:`Plain`; call it with a block.

    Args:
        kind: of :data:`KINDS`.
        rows: of the tables.
        edges_once: EGIN's edges once per request rather than per impression.
    """

    def __init__(self, kind: str, rows: int, *, edges_once: bool = False) -> None:
        torch.manual_seed(0)
        self.rows, self.kind, self.edges_once = rows, kind, edges_once
        self.model = Plain(kind, rows)
        tables = [module for module in self.model.modules() if isinstance(module, nn.Embedding) and module.sparse]
        sparse = [table.weight for table in tables]
        dense = [p for p in self.model.parameters() if all(p is not weight for weight in sparse)]
        self.adam = torch.optim.Adam(dense, lr=1e-3, fused=True)
        self.adagrad = torch.optim.Adagrad(sparse, lr=0.1)
        self.queue, self.pushed = torch.zeros(QUEUE if kind == "egin" else 1, dtype=torch.long), 0

    def __call__(self, block: SampleBlock) -> Tensor:
        """Score and learn a block; return probabilities ``[C]``."""
        batch = self.prepare(block)
        logits: Tensor = self.model(batch.target, batch.history)
        loss = binary_cross_entropy_with_logits(logits, batch.labels)
        if self.kind == "egin" and self.pushed:
            drawn = self.queue[torch.randint(min(self.pushed, QUEUE), (NEGATIVES,))]
            graph = batch.clicks, batch.fresh
            if not self.edges_once:
                graph = batch.clicks[batch.request], batch.fresh[batch.request]  # [C, L + 1]
            loss = loss + EDGE_WEIGHT * self.model.edge_loss(*graph, drawn)
        self.adam.zero_grad()
        self.adagrad.zero_grad()
        torch.autograd.backward(loss)
        self.adam.step()
        self.adagrad.step()
        if self.kind == "egin":
            self._push(batch.clicks[:, :-1][batch.fresh[:, :-1]])
        return logits.detach().sigmoid()

    def prepare(self, block: SampleBlock) -> Padded:
        """Return the block padded, made once; on any thread, as a ``DataLoader`` would."""
        return block.once(("padded", self.kind, self.rows), lambda: self._padded(block))

    def _push(self, rows: Tensor) -> None:
        self.queue[(self.pushed + torch.arange(len(rows))) % QUEUE] = rows
        self.pushed += len(rows)

    def _padded(self, block: SampleBlock) -> Padded:
        candidates, history = block.ragged("candidate.item"), block.ragged("click.item")
        labels = np.array(block.ragged("candidate.label").values)
        clicks = np.zeros((len(block), PADDED + 1), np.int64)
        fresh = np.zeros((len(block), PADDED + 1), np.bool_)
        kept = history.lengths.clip(max=PADDED)
        places = np.arange(PADDED)
        back = places < kept[:, None]
        source = history.offsets[1:, None] - kept[:, None] + places
        clicks[:, :PADDED][back] = self._row(history.values[source[back]])
        fresh[:, :PADDED] = back & (places >= (kept - block.column("click.fresh"))[:, None])
        target = self._row(candidates.values)
        per_candidate = np.repeat(clicks[:, :PADDED], candidates.lengths, 0)
        request = np.repeat(np.arange(len(block)), candidates.lengths)
        if self.kind == "egin":  # the click being learned stands right behind the history
            clicked = request[labels > 0]
            clicks[clicked, kept[clicked]], fresh[clicked, kept[clicked]] = target[labels > 0], True
        arrays = (target, per_candidate, clicks, fresh, request, labels)
        return Padded(*(torch.from_numpy(array) for array in arrays))

    def _row(self, ids: np.ndarray) -> np.ndarray:
        return 1 + (ids.view(np.uint64) % np.uint64(self.rows - 1)).astype(np.int64)


def _table(rows: int, dim: int) -> nn.Embedding:
    table = nn.Embedding(rows, dim, sparse=True, padding_idx=0)
    nn.init.uniform_(table.weight, -0.01, 0.01)
    return table


def _mean(entries: Tensor, mask: Tensor) -> Tensor:
    return (entries * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
