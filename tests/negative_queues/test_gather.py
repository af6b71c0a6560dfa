"""Two processes over gloo on the loopback: their queues and losses are those of one process with the joined batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from negative_queues import InfoNCE, InfoNCEOptions, KeyQueue, LossNotFiniteError, all_gather_rows

SIZES = [(3, 3), (2, 5), (0, 4), (9, 1)]
"""Rows of each rank, step by step; ranks need not bring the same."""
BAD_STEP = 2
"""At this step the second rank's first loss is NaN: neither rank lets the batch in, and both try again."""


LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
"""Else the ranks meet where the machine's name leads, if it leads anywhere."""


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    n = sum(SIZES[step])
    query, key = torch.randn(2, n, 3, generator=generator)
    return query, key, torch.randint(0, 9, (n,), generator=generator)


def contrast(order: str, gather: bool) -> InfoNCE:
    in_batch = order == "after"
    options = InfoNCEOptions(temperature=0.5, order="after" if in_batch else "before", in_batch=in_batch)
    return InfoNCE(KeyQueue(11, 3), options, gather=gather)


def rank_steps(rank: int, order: str) -> dict[str, Any]:
    """What one rank computes: its losses, and the queue at the end."""
    nce, losses, failed = contrast(order, gather=True), [], 0
    for step, sizes in enumerate(SIZES):
        query, key, item = batch(step)
        mine = slice(0, sizes[0]) if rank == 0 else slice(sizes[0], None)
        if step == BAD_STEP:
            try:
                nce(query[mine] * (1.0 if rank == 0 else torch.nan), key[mine], {"item": item[mine]})
            except LossNotFiniteError:
                failed += 1
        losses.append(float(nce(query[mine], key[mine], {"item": item[mine]})))
    return {"losses": losses, "failed": failed, "queue": {name: a.tolist() for name, a in nce.queue.state().items()}}


def main(rank: int, meeting: str, order: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    print(json.dumps(rank_steps(rank, order)))
    torch.distributed.destroy_process_group()


def two_processes(order: str, meeting: Path) -> list[dict[str, Any]]:
    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_gather; "
        "test_gather.main(int(sys.argv[2]), sys.argv[3], sys.argv[4])"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(meeting), order],
            cwd=root,
            env=os.environ | {"GLOO_SOCKET_IFNAME": LOOPBACK},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        answers = [rank.communicate(timeout=600) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], answers[0][1] + answers[1][1]
    return [json.loads(out.splitlines()[-1]) for out, _ in answers]


@pytest.mark.parametrize("order", ["after", "before"])
def test_two_ranks_are_one_process_with_the_joined_batch(order: str, tmp_path: Path) -> None:
    first, second = two_processes(order, tmp_path / "meeting")
    one = contrast(order, gather=False)
    for step, sizes in enumerate(SIZES):
        query, key, item = batch(step)
        expected = float(one(query, key, {"item": item}))
        joined = sum(loss * n for loss, n in zip((first["losses"][step], second["losses"][step]), sizes, strict=True))
        assert joined / sum(sizes) == pytest.approx(expected, abs=1e-5)
    assert first["failed"] == second["failed"] == 1
    assert first["queue"] == second["queue"]
    assert first["queue"] == {name: array.tolist() for name, array in one.queue.state().items()}


def test_alone_the_rows_are_the_joined_rows() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    joined, first = all_gather_rows(rows)
    assert first == 0
    assert not joined.requires_grad
    torch.testing.assert_close(joined, rows.detach())
