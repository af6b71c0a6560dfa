"""Train a two-tower model on a stream of clicks with nothing but negative_queues. Run: python examples/train_with_queue.py.

A user's taste and an item's style are numbers; users click what suits them, popular items more often. Recall is asked on clicks
that were never learned from, among all items: chance is 0.05.
"""

import torch
from torch import nn

from negative_queues import InfoNCE, InfoNCEOptions, KeyQueue, StreamingFrequency, telemetry

torch.manual_seed(0)
users, items, popular = torch.randn(500, 8), torch.randn(400, 8), torch.randn(400)
user_tower, item_tower = nn.Linear(8, 16), nn.Linear(8, 16)
queue = KeyQueue(capacity=4096, dim=16, columns=("item", "user"))  # hits are masked by both
options = InfoNCEOptions(temperature=0.2, in_batch=True, log_q="corrected", warm_up_share=0.1)
contrast = InfoNCE(queue, options, frequency=StreamingFrequency(10_000))
optimiser = torch.optim.Adam([*user_tower.parameters(), *item_tower.parameters()], lr=0.01)


def clicks(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return users and the item that each clicks, int64 [n] both."""
    user = torch.randint(0, 500, (n,))
    return user, torch.multinomial((2 * users[user] @ items.T + popular).softmax(1), 1)[:, 0]


def recall() -> float:
    """Return the share of new clicks whose item is among the user's best 20."""
    user, item = clicks(1_000)
    top = (user_tower(users[user]) @ nn.functional.normalize(item_tower(items), dim=1).T).topk(20).indices
    return float((top == item[:, None]).any(1).float().mean())


before = recall()
for step in range(200):
    user, item = clicks(128)
    ids = {"item": item + 1, "user": user + 1}  # 0 means unknown
    loss = contrast(user_tower(users[user]), item_tower(items[item]), ids, ts_ms=step * 1_000)
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    optimiser.step()
seen = {name: round(value, 2) for name, value in telemetry(queue, now_ms=200_000).items()}
print(f"recall@20 {before:.3f} -> {recall():.3f}; the queue: {seen}")
