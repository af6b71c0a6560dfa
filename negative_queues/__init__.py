"""Queues of negatives that outlive the batch. Knows nothing of models; useful on its own."""

from negative_queues.draws import DrawKey, draw_below, draw_key, draw_uniform, fold
from negative_queues.frequency import FrequencyStateError, StreamingFrequency
from negative_queues.id_queue import IdQueue, QueueStateError

__all__ = [
    "DrawKey",
    "FrequencyStateError",
    "IdQueue",
    "QueueStateError",
    "StreamingFrequency",
    "draw_below",
    "draw_key",
    "draw_uniform",
    "fold",
]
