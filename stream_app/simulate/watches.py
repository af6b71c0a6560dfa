"""Videos that are begun and left: watches whose value, the share that was watched, is below the half from which one labels.

Shapes: ``R`` requests of a chunk, ``C`` candidates of each.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from .draws import Purpose, uniforms
from .options import SimulateOptions
from .pages import Pages

__all__ = ["WHOLE", "shares"]

WHOLE: Final = 0.5
"""The least share of a watch that labels."""
_STEPS: Final = 500
"""Shares of each half that are told apart."""


def shares(options: SimulateOptions, pages: Pages, clicked: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return the share that is watched of each shown video, ``[R, C]``, NaN of none and on pages of products.

    It is :data:`WHOLE` or more where a click was drawn, and less for ``short_watches`` of the others.
    """
    width = clicked.shape[1]
    draws = uniforms(options.seed, Purpose.WATCH, int(pages.n[0]), len(pages.n), 2 * width)
    part = np.floor(draws[:, :width] * _STEPS) / (2 * _STEPS)  # [0, 0.499]
    begun = draws[:, width:] < options.short_watches
    share = np.where(clicked, WHOLE + part, np.where(begun, part, np.nan))
    share[pages.domain != 0] = np.nan
    return share
