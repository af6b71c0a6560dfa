"""Queues of negatives that outlive the batch. Knows nothing of models; useful on its own.

- :class:`IdQueue`, :class:`KeyQueue`: the last K ids, the last K encoded keys. :class:`Reservoir`: a uniform sample of all ids.
- :mod:`negative_queues.drawing`: uniform, recency-weighted, mixed, easy and hard by category.
- :func:`info_nce`, :class:`InfoNCE`, :func:`bidirectional`: the loss, the loss with its queue, two of them face to face.
- :func:`accidental_hits`, :class:`StreamingFrequency`, :func:`log_draw_probability`: masks and the logQ correction.
- :class:`MomentumEncoder`: the key encoder. :func:`telemetry`, :func:`cosine`: fill, ages, drift.
- :func:`draw_key`, :func:`fold`, :func:`draw_below`, :func:`draw_uniform`: draws that are a function of their key.

What needs torch is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from negative_queues.draws import DrawKey, draw_below, draw_key, draw_uniform, fold
from negative_queues.frequency import FrequencyStateError, StreamingFrequency
from negative_queues.id_queue import IdQueue, QueueStateError
from negative_queues.reservoir import Reservoir

if TYPE_CHECKING:
    from negative_queues.contrast import InfoNCE, InfoNCEOptions, LossNotFiniteError, Pair, bidirectional
    from negative_queues.gather import all_gather_rows
    from negative_queues.health import cosine, telemetry
    from negative_queues.infonce import Negatives, info_nce
    from negative_queues.key_queue import KeyQueue
    from negative_queues.logq import log_draw_probability
    from negative_queues.masks import accidental_hits
    from negative_queues.momentum import MomentumEncoder

__all__ = [
    "DrawKey",
    "FrequencyStateError",
    "IdQueue",
    "InfoNCE",
    "InfoNCEOptions",
    "KeyQueue",
    "LossNotFiniteError",
    "MomentumEncoder",
    "Negatives",
    "Pair",
    "QueueStateError",
    "Reservoir",
    "StreamingFrequency",
    "accidental_hits",
    "all_gather_rows",
    "bidirectional",
    "cosine",
    "draw_below",
    "draw_key",
    "draw_uniform",
    "fold",
    "info_nce",
    "log_draw_probability",
    "telemetry",
]

_IN = {
    "contrast": ("InfoNCE", "InfoNCEOptions", "LossNotFiniteError", "Pair", "bidirectional"),
    "gather": ("all_gather_rows",),
    "infonce": ("Negatives", "info_nce"),
    "key_queue": ("KeyQueue",),
    "logq": ("log_draw_probability",),
    "masks": ("accidental_hits",),
    "momentum": ("MomentumEncoder",),
    "health": ("cosine", "telemetry"),
}
_MODULE_OF = {name: module for module, names in _IN.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'negative_queues' has no attribute {name!r}")
    value = getattr(import_module(f"negative_queues.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
