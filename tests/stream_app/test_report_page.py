"""The run's page: what it holds, how large it gets, what is said of several runs. How it looks is for a browser to tell
(tests/integration/test_report_chromium.py)."""

from __future__ import annotations

import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from stream_app.cli import main
from stream_app.events import hash_id
from stream_app.report.names import read_names
from stream_app.report.page import page
from stream_app.report.run_data import MOST_MOMENTS, read_run
from stream_app.report.series import MOST_POINTS, read_lines, series
from stream_app.report.slices import BINS


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of the generator with two runs over the same samples and one over a part of them."""
    folder = tmp_path_factory.mktemp("report")
    assert (
        main(["demo", "--requests", "400", "--model", "popularity", "--model", "trend", "--folder", str(folder / "demo")]) == 0
    )
    log = str(folder / "demo" / "log")
    score_from = json.loads((folder / "demo" / "run" / "report.json").read_text())["score_from"]
    for name, options in (("again", ["--score-from", str(score_from)]), ("part", ["--score-from", str(score_from + 600_000)])):
        assert main(["replay", "--log", log, "--model", "covisitation", "--run", str(folder / name), *options]) == 0
    return folder


def test_a_run_ends_with_its_page(folder: Path) -> None:
    html = (folder / "demo" / "run" / "index.html").read_text()
    run = data_of(html)["runs"][0]
    result = json.loads((folder / "demo" / "run" / "result.json").read_text())
    assert run["finished"] is True
    assert list(run["models"]) == ["popularity", "trend"]
    for name, model in run["models"].items():
        assert model["figures"]["auc"] == pytest.approx(result["models"][name]["auc"])
        assert sum(weight for weight, _, _ in model["reliability"]) == pytest.approx(model["figures"]["impressions"], rel=1e-4)
    assert run["models"]["trend"]["difference"] == result["models"]["trend"]["difference"]
    assert [moment["kind"] for moment in run["moments"]] == ["start", "checkpoint"]
    assert run["best"]["auc"] == pytest.approx(result["best_auc"])
    assert len(run["examples"]) == 20
    assert all(len(example["models"]["trend"]["scores"]) == 10 for example in run["examples"])


def test_the_result_has_figures_by_slice(folder: Path) -> None:
    result = json.loads((folder / "demo" / "run" / "result.json").read_text())
    assert set(result["slices"]) == {"item", "user", "position", "hour", "query", "domain"}
    for dimension, values in result["slices"].items():
        impressions = [value["models"]["trend"]["impressions"] for value in values.values()]
        # Requests without a query are in no slice of queries.
        assert (sum(impressions) == result["models"]["trend"]["impressions"]) is (dimension != "query")
        assert all(value["best"]["log_loss"] > 0 for value in values.values())
    assert result["scored"]["impressions"] == result["models"]["trend"]["impressions"]


def test_a_page_asks_nothing_of_the_network(folder: Path) -> None:
    html = (folder / "demo" / "run" / "index.html").read_text()
    assert re.findall(r"<(?:script|img|iframe|link)[^>]*(?:src|href)=\"(?!data:)", html) == []
    assert "@import" not in html
    assert "url(http" not in html


def test_names_cannot_break_out_of_the_page(folder: Path) -> None:
    run = read_run(folder / "demo" / "run") | {"name": "</script><script>alert(1)</script><!--"}
    html = page([run])
    assert "<script>alert" not in html
    assert data_of(html)["runs"][0]["name"] == run["name"]


def test_report_writes_the_page_of_one_run_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder / "demo" / "run"), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == (folder / "demo" / "run" / "index.html").read_text()


def test_several_runs_say_whether_they_were_scored_on_the_same(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(folder / "demo" / "run"), str(folder / "again"), "--out", str(out)]) == 0
    assert "all runs were scored on the same requests" in capsys.readouterr().out
    comparison = data_of(out.read_text())["comparison"]
    assert comparison["same_requests"] is True
    assert set(comparison["differences"]) == {"run/trend", "again/covisitation"}
    runs = data_of(out.read_text())["runs"]
    expected = runs[1]["models"]["covisitation"]["figures"]["auc"] - runs[0]["models"]["popularity"]["figures"]["auc"]
    difference, low, high = comparison["differences"]["again/covisitation"]["auc"]
    assert difference == pytest.approx(expected, abs=2e-3)
    assert low < difference < high

    assert main(["report", str(folder / "demo" / "run"), str(folder / "part"), "--out", str(out)]) == 0
    assert "not scored on the same requests" in capsys.readouterr().out
    comparison = data_of(out.read_text())["comparison"]
    assert comparison["differences"] == {}
    assert [check["same"] for check in comparison["checks"]] == [True, True, True, True, False, False]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs the folder of a run"),
        (["nowhere"], "is no folder of a run"),
        (["demo/run", "demo/run"], "given twice"),
    ],
)
def test_what_cannot_be_reported_is_said(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *(str(folder / word) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_runs_of_the_same_name_are_told_apart(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "other" / "run"
    again.parent.mkdir()
    (folder / "again").rename(again)
    try:
        assert main(["report", str(folder / "demo" / "run"), str(again), "--out", str(tmp_path / "page.html")]) == 0
        runs = data_of((tmp_path / "page.html").read_text())["runs"]
        assert [run["name"] for run in runs] == ["demo/run", "other/run"]
    finally:
        again.rename(folder / "again")


def windows(n: int, models: int) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    names = ("auc", "gauc", "log_loss", "ne", "calibration")
    stats = [f"{group}.{kind}" for group in ("loss", "edges") for kind in ("click", "i2i", "q2q", "q2i")]
    stats += [f"queue.{kind}.{what}" for kind in ("item", "query") for what in ("fill", "age")]
    return [
        {
            "model": f"model-{model}",
            "first_ts": 1_700_000_000_000 + 3_600_000 * at,
            "last_ts": 1_700_000_000_000 + 3_600_000 * at + 3_599_000,
            "figures": {
                **dict(zip(names, draw.random(5).tolist(), strict=True)),
                "impressions": float(draw.integers(1, 10_000)),
            },
            "stats": dict(zip(stats, draw.random(len(stats)).tolist(), strict=True)),
            "impressions_per_s": float(draw.random() * 1e4),
        }
        for at in range(n)
        for model in range(models)
    ]


def test_a_long_run_has_a_small_page(folder: Path) -> None:
    """3 M requests of six models with a window per 1,000 requests, a checkpoint a minute for a day."""
    run = read_run(folder / "demo" / "run")
    models = {f"model-{i}": run["models"]["trend"] for i in range(6)}
    examples = [{**each, "models": dict.fromkeys(models, next(iter(each["models"].values())))} for each in run["examples"]]
    moments = [{"kind": "checkpoint", "ts": 1_700_000_000_000 + i, "requests": i, "seconds": i * 60.0} for i in range(200)]
    long = run | {"models": models, "examples": examples, "series": series(windows(3_000, 6)), "moments": moments}
    assert len(page([long])) < 2_500_000
    assert len(page([long | {"name": str(i)} for i in range(3)])) < 5_000_000


def test_neighbouring_windows_become_one_point_weighed_by_impressions() -> None:
    lines = windows(1_000, 1)
    lines[1]["figures"]["auc"] = None
    lines[2]["stats"] = {}
    points = series(lines)["model-0"]
    assert {len(values) for values in points.values()} == {200}  # of 5 windows each, at most MOST_POINTS
    assert max(len(values) for values in points.values()) <= MOST_POINTS
    group = lines[:5]
    known = [line for line in group if line["figures"]["auc"] is not None]
    weights = [line["figures"]["impressions"] for line in known]
    assert points["auc"][0] == pytest.approx(np.average([line["figures"]["auc"] for line in known], weights=weights), rel=1e-4)
    assert points["impressions"][0] == sum(line["figures"]["impressions"] for line in group)
    assert (points["from"][0], points["ts"][0]) == (group[0]["first_ts"], group[-1]["last_ts"])
    assert series([]) == {}


def test_a_half_written_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b'{"a":1}\n{"a":2}\n{"a"')
    assert read_lines(tmp_path / "lines") == [{"a": 1}, {"a": 2}]
    assert read_lines(tmp_path / "none") == []


def test_of_a_file_that_grows_for_years_the_last_lines_are_read(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_text("".join(f'{{"a": {i}}}\n' for i in range(10, 90)))
    line = len('{"a": 10}\n')
    assert read_lines(file, 3 * line) == [{"a": 87}, {"a": 88}, {"a": 89}]
    assert read_lines(file, 3 * line + 1) == read_lines(file, 3 * line)
    assert read_lines(file, 4 * line - 1) == read_lines(file, 3 * line)
    assert read_lines(file, 80 * line) == read_lines(file) == [{"a": i} for i in range(10, 90)]


def test_restarts_are_kept_where_there_are_many_checkpoints(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.toml", "report.json"):
        (run / name).write_bytes((folder / "demo" / "run" / name).read_bytes())
    kinds = ["start", *["checkpoint"] * 700, "restart", *["checkpoint"] * 700]
    lines = [{"kind": kind, "ts": i, "requests": i, "seconds": float(i)} for i, kind in enumerate(kinds)]
    (run / "moments.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    found = read_run(run)["moments"]
    assert [each for each in found if each["kind"] != "checkpoint"] == [lines[0], lines[701]]
    assert MOST_MOMENTS // 2 < len(found) <= MOST_MOMENTS + 2
    assert found[-1] == lines[-1]


def test_vendored_scripts_are_those_that_are_written_down() -> None:
    vendor = files("stream_app.report") / "vendor"
    noted = dict(re.findall(r"\| `(\S+\.js)` \|.*`([0-9a-f]{64})`", (vendor / "README.md").read_text()))
    scripts = {each.name: each.read_bytes() for each in vendor.iterdir() if each.name.endswith(".js")}
    assert {name: hashlib.sha256(data).hexdigest() for name, data in scripts.items()} == noted
    assert {f"{name.split('.')[0]}.LICENSE" for name in scripts} <= {each.name for each in vendor.iterdir()}
    assert sum(map(len, scripts.values())) < 1_500_000


def test_a_page_says_names_where_the_log_knows_them(folder: Path) -> None:
    run = read_run(folder / "demo" / "run")
    example = run["examples"][-1]
    assert re.fullmatch(r"u\d+", example["user"])
    assert all(re.fullmatch(r"i\d+", item) for item in example["candidates"]["item"])
    assert all(re.fullmatch(r"c\d+", category) for category in example["candidates"]["category"])
    entries = [each for one in run["examples"] for each in one["sequences"]["click"]["ids"]]
    assert len(entries) > 50
    assert all(re.fullmatch(r"i\d+", each) for each in entries)


def test_names_are_those_of_the_hashes(folder: Path) -> None:
    data = msgspec.json.decode((folder / "demo" / "run" / "report.json").read_bytes())
    assert data["names"]
    for digits, name in data["names"].items():
        namespace = {"u": "user", "i": "item", "c": "category", "q": "query", "d": "domain"}[name[0]]
        assert f"{hash_id(namespace, name) & 0xFFFFFFFFFFFFFFFF:016x}".startswith(digits)
    again = read_names(data, Path(data["log"]))
    assert again == data["names"]
    assert read_names(data, folder / "there is none") == {}


def test_slices_of_ids_have_names_and_those_of_floats_bins(tmp_path: Path) -> None:
    prices = np.random.default_rng(0).lognormal(3, 1, 900)
    rows = (
        f"r{n // 3},u{n % 7},{1_700_000_000_000 + 60_000 * (n // 3)},i{n % 50},{int(n % 3 == 1)},shop {n % 4},{prices[n]:.4f}\n"
        for n in range(900)
    )
    (tmp_path / "log.csv").write_text("request_id,user_id,ts,item_id,label,shop,price\n" + "".join(rows))
    (tmp_path / "mapping.toml").write_text('layout = "flat"\nfeatures = { shop = "id", price = "float" }\n')
    log = str(tmp_path / "log")
    assert main(["import", "rows", str(tmp_path / "log.csv"), "--log", log, "--mapping", str(tmp_path / "mapping.toml")]) == 0
    assert main(["join", "--log", log]) == 0
    replay = ["replay", "--log", log, "--model", "popularity", "--run", str(tmp_path / "run"), "--slice", "shop"]
    assert main([*replay, "--slice", "price"]) == 0
    run = read_run(tmp_path / "run")
    assert set(run["slices"]["shop"]) == {"shop 0", "shop 1", "shop 2", "shop 3"}
    bins = run["slices"]["price"]
    assert len(bins) == BINS
    impressions = [each["models"]["popularity"]["impressions"] for each in bins.values()]
    assert sum(impressions) == 900
    bounds = [float(bound) for bound in re.findall(r"to ([\d.]+)", " ".join(bins))]
    assert bounds == sorted(bounds)
    counts = np.histogram(prices, [0, *bounds, np.inf])[0]
    assert np.abs(counts - impressions).max() <= 2, "midpoints are shown with four digits"
    assert max(impressions) < 3 * 900 / BINS


def test_a_trainer_notes_how_far_it_is_behind(folder: Path) -> None:
    words = ["train", "--log", str(folder / "demo" / "log"), "--model", "popularity", "--run", str(folder / "train"), "--drain"]
    words += ["--set", "replay.checkpoint_seconds=0.001", "--set", "replay.batch_requests=20"]
    assert main(words) == 0
    start, *others = read_run(folder / "train")["moments"]
    assert "lag" not in start
    assert others
    assert all(each["lag"] >= 0 for each in others)
    assert all(each["delay"] > 0 for each in others)
    assert all("lag" not in each for each in read_run(folder / "demo" / "run")["moments"])
