"""``taobao``: the shop's ``UserBehavior.csv`` (``user,item,category,behavior,timestamp``, no line of names, seconds).

=========================== ==============================================================================================
behaviour                   becomes
=========================== ==============================================================================================
``pv`` (an item's page)     a ``click``; after the warm-up a request, its other candidates drawn from the last views of all
``cart``, ``fav``, ``buy``  an action of that kind: the history ``intent``
=========================== ==============================================================================================

The file is in the order of users, a log is in that of time: rows are sorted on disk. The published set says 25 November to 3
December 2017 and holds some tens of thousands of rows of other times, 1902 and 2037 among them; they are left out and counted.

Source: H. Zhu et al., "Learning Tree-based Deep Model for Recommender Systems", KDD 2018 (the data: Tianchi, set 649).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import pyarrow.compute as pc

from .drawing import DrawOptions
from .interactions import CLICK, InteractionsImport, interactions, joined, milliseconds
from .lines import Block, Column, Layout, read_lines
from .source import ImporterKind, Tally

__all__ = ["KIND", "TaobaoOptions", "open_taobao"]

INTENT: Final = ("cart", "fav", "buy")
_SECONDS: Final = {"published": (1_511_539_200, 1_512_316_800), "any": (946_684_800, 4_102_444_800)}
"""25 November to 3 December 2017 in China, and the years 2000 to 2100."""
_LAYOUT: Final = Layout(
    ",",
    (
        Column("user"),
        Column("item"),
        Column("category"),
        Column("behavior", expected="one of pv, cart, fav, buy", words=("pv", *INTENT)),
        Column("timestamp", "int", "a time in whole seconds since 1970"),
    ),
    "UserBehavior.csv is user,item,category,behavior,timestamp without a line of names",
)


class TaobaoOptions(DrawOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``taobao``."""

    dates: Literal["published", "any"] = "published"
    """published: only rows of 25 November to 3 December 2017 (in China), the days that the set is of; any: of 2000 to 2100."""


def open_taobao(files: list[Path], options: TaobaoOptions, tally: Tally) -> InteractionsImport:
    """Open one import."""
    first, last = _SECONDS[options.dates]
    reason = (
        "rows of other days than 25 November to 3 December 2017"
        if options.dates == "published"
        else "rows of other years than 2000 to 2100"
    )

    def read(path: Path) -> Iterator[Block]:
        for rows, done in read_lines(path, _LAYOUT, tally):
            times = rows.column("timestamp")
            good = pc.and_(pc.greater_equal(times, first), pc.less(times, last))
            n_rows, rows = rows.num_rows, rows.filter(good)
            if n_rows > rows.num_rows:
                tally.left_out[reason] += n_rows - rows.num_rows
            ts, behavior = milliseconds(rows.column("timestamp"), "s"), rows.column("behavior")
            kind = pc.if_else(pc.equal(behavior, "pv"), CLICK, behavior)
            category = rows.column("category")
            yield Block(interactions(ts, rows.column("user"), rows.column("item"), kind, category=category), done)

    return InteractionsImport(files, options, tally, read, joined(categories=True, intent=INTENT))


KIND = ImporterKind(
    name="taobao",
    summary="user behaviour of the Taobao shop (UserBehavior.csv); candidates are drawn",
    options=TaobaoOptions,
    open=open_taobao,
)
