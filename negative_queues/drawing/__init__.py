"""Which slots of a queue serve as negatives: one strategy per file, each a function of a counter-based key.

A strategy reads a queue's geometry alone, so it serves :class:`~negative_queues.IdQueue` and
:class:`~negative_queues.KeyQueue` alike, on any device: ``queue.at(slots)`` or ``queue.entries(slots)`` gives what is there.
"""

from negative_queues.drawing.category import CategorySlots, category_slots
from negative_queues.drawing.mixed import MixedDraw, mixed_draw, mixed_log_probability
from negative_queues.drawing.recent import recent_log_probability, recent_slots
from negative_queues.drawing.ring import Ring, Slots
from negative_queues.drawing.uniform import uniform_slots

__all__ = [
    "CategorySlots",
    "MixedDraw",
    "Ring",
    "Slots",
    "category_slots",
    "mixed_draw",
    "mixed_log_probability",
    "recent_log_probability",
    "recent_slots",
    "uniform_slots",
]
