"""The leaderboard on a recorded console."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from learners.metrics import FIGURES, Interval
from stream_app.report.leaderboard import BEST, Standing, as_json, leaderboard

UNDEFINED = dict.fromkeys(FIGURES, math.nan) | {"impressions": 0.0, "requests": 0.0, "positives": 0.0}


def figures(auc: float) -> dict[str, float]:
    known = {"auc": auc, "gauc": auc - 0.01, "gauc_user": auc - 0.02, "log_loss": 1 - auc, "ne": 0.9, "mrr": 0.5}
    return UNDEFINED | known | {"impressions": 600_000.0}


STANDINGS = [
    Standing("din", figures(0.7612), 51_234.5, "ab12"),
    Standing("egin", figures(0.78), 101_234.0, "cd34"),
    Standing("popularity", figures(0.6), 2_000_000.0, "ef56"),
    Standing("dnn", figures(0.7613), 120_000.0, "0178"),
]
INTERVALS = {
    "egin": {"auc": Interval(0.0188, 0.0151, 0.0225)},
    "popularity": {"auc": Interval(-0.1612, -0.17, -0.15)},
    "dnn": {"auc": Interval(0.0001, -0.0003, 0.0005)},
}


def recorded(width: int) -> Console:
    return Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="standard")


def lines(console: Console) -> list[str]:
    return console.export_text(clear=False).splitlines()


def test_the_best_comes_first_and_the_best_possible_last() -> None:
    console = recorded(120)
    leaderboard(console, STANDINGS, INTERVALS, best=figures(0.8), title="from 2017-10-10 on")
    text = lines(console)
    names = [line.split("0.")[0].strip() for line in text if "0." in line and "impressions" not in line]
    assert names == ["egin", "dnn", "din", "popularity", BEST]
    assert "from 2017-10-10 on" in text[0]
    header = next(line for line in text if "AUC" in line)
    assert header.split() == ["model", "AUC", "vs", "din", "gAUC", "by", "user", "log", "loss", "NE", "MRR", "impr./s"]


def test_differences_to_the_first_model() -> None:
    console = recorded(120)
    leaderboard(console, STANDINGS, INTERVALS)
    rows = {line.split()[0]: line for line in lines(console) if line.strip()}
    assert "+.0188 [+.0151, +.0225]" in rows["egin"]
    assert "-.1612 [-.1700, -.1500]" in rows["popularity"]
    assert "[" not in rows["din"]
    assert "600,000 impressions; vs din: AUC with its 95% interval, bootstrap by user" in console.export_text(clear=False)
    coloured = console.export_text(styles=True, clear=False)
    assert "\x1b[32m+.0188" in coloured
    assert "\x1b[31m-.1612" in coloured
    assert "m+.0001" not in coloured


@pytest.mark.parametrize(
    ("width", "header"),
    [
        (80, ["model", "AUC", "vs", "din", "gAUC", "log", "loss", "MRR"]),
        (60, ["model", "AUC", "vs", "din", "log", "loss"]),
        (48, ["model", "AUC", "vs", "din"]),
        (23, ["model", "AUC"]),
    ],
)
def test_less_important_columns_go_where_it_is_narrow(width: int, header: list[str]) -> None:
    console = recorded(width)
    leaderboard(console, STANDINGS, INTERVALS, best=figures(0.8))
    text = lines(console)
    assert next(line for line in text if line.lstrip().startswith("model")).split() == header
    assert all(len(line) <= width for line in text)
    assert ("vs din:" in " ".join(text)) == ("vs" in header)
    assert not any("…" in line for line in text)


def test_json_is_that_of_the_command() -> None:
    printed = leaderboard(recorded(80), STANDINGS, INTERVALS, best=figures(0.8))
    assert json.loads(json.dumps(printed, allow_nan=False)) == printed
    assert list(printed["models"]) == ["din", "egin", "popularity", "dnn"]
    assert printed["best_auc"] == 0.8
    assert printed["models"]["egin"] == {
        "auc": 0.78,
        "gauc": 0.77,
        "gauc_user": 0.76,
        "log_loss": pytest.approx(0.22),
        "ne": 0.9,
        "mrr": 0.5,
        "impressions": 600_000,
        "impressions_per_s": 101_234.0,
        "digest": "cd34",
    }


def test_what_is_not_defined_is_a_dash_and_null_and_comes_last() -> None:
    standings = [Standing("new", UNDEFINED, math.nan, "00"), *STANDINGS]
    unknown = {"din": {"auc": Interval(math.nan, math.nan, math.nan)}}
    console = recorded(120)
    printed = leaderboard(console, standings, unknown)
    rows = [line.split() for line in lines(console) if line.strip()]
    assert [row[0] for row in rows[-6:-1]] == ["egin", "dnn", "din", "popularity", "new"]
    assert rows[-2][1:] == ["-", "-", "-", "-", "-", "-"]
    assert printed["models"]["new"]["auc"] is None
    assert printed["models"]["new"]["impressions_per_s"] is None
    assert "best_auc" not in printed


def test_without_intervals_or_models() -> None:
    console = recorded(120)
    leaderboard(console, STANDINGS[:1], {})
    assert "vs" not in console.export_text(clear=False)
    assert as_json([]) == {"models": {}}
    empty = recorded(80)
    assert leaderboard(empty, [], {}) == {"models": {}}
    assert empty.export_text() == ""


def test_names_are_not_markup() -> None:
    console = recorded(80)
    leaderboard(console, [Standing("[red]egin[/red]", figures(0.7), 1.0, "")], {}, title=None)
    assert "[red]egin[/red]" in console.export_text()
