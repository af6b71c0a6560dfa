"""The run's page in a real browser, without a network: it draws everything, and nothing fails in the console."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from stream_app.cli import main
from stream_app.report.page import page
from stream_app.report.run_data import read_run

OFFLINE = ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"]


def opened(chromium: str, path: Path, profile: Path, *options: str, width: int = 1280) -> tuple[str, list[str]]:
    """Open a page; return the document after its scripts ran, and the lines of the console."""
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
    command += ["--enable-logging=stderr", f"--window-size={width},2000", "--virtual-time-budget=8000", *OFFLINE, *options]
    done = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo with the models that have most to show, and another one over the same samples."""
    folder = tmp_path_factory.mktemp("runs")
    named = [word for model in ("egin", "din", "popularity") for word in ("--model", model)]
    assert main(["demo", "--requests", "1500", *named, "--folder", str(folder / "demo")]) == 0
    score_from = json.loads((folder / "demo" / "run" / "report.json").read_text())["score_from"]
    words = ["replay", "--log", str(folder / "demo" / "log"), "--model", "trend", "--score-from", str(score_from)]
    assert main([*words, "--run", str(folder / "second")]) == 0
    return folder


@pytest.mark.parametrize("width", [1280, 500])
def test_a_run_is_drawn_without_a_network(chromium: str, runs: Path, tmp_path: Path, width: int) -> None:
    document, console = opened(chromium, runs / "demo" / "run" / "index.html", tmp_path / "profile", width=width)
    assert console == []
    titles = re.findall(r"<h2>(.*?)</h2>", document)
    assert titles == [
        "Leaderboard", "Over time", "AUC by slice", "Calibration", "Parts of the loss", "Throughput and lag",
        "Queues and edges", "What embeddings know of categories", "What the models looked at", "What the run was told",
    ]  # fmt: skip
    drawn, captions = re.findall(r"<svg[^>]*role=\"img\"[^>]*aria-label=\"([^\"]*)\"", document), document.count("<figcaption>")
    assert len(drawn) == captions >= 20  # every figure has its plot
    assert document.count("<option") == 20
    for name in ("egin", "din", "popularity", "best possible"):
        assert name in document
    # What EGIN compared, what DIN weighed, which edges the request adds.
    for said in (
        "cosine of graph vectors",
        "attention.click",
        "Edges that learning this request adds",
        "vectors of the click loss",
    ):
        assert said in document
    assert "NaN" not in re.sub(r"<script.*?</script>", "", document, flags=re.DOTALL)


def test_several_runs_are_drawn_side_by_side(chromium: str, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "several.html"
    assert main(["report", str(runs / "demo" / "run"), str(runs / "second"), "--out", str(out)]) == 0
    document, console = opened(chromium, out, tmp_path / "profile")
    assert console == []
    assert "All runs were scored on the same requests" in document
    assert "second/trend" in document


def drawn(document: str, title: str) -> str:
    found = re.search(rf'<svg[^>]*aria-label="{re.escape(title)}".*?</svg>', document, re.DOTALL)
    assert found is not None, title
    return found[0]


def test_hours_are_in_order_and_lines_reach_over_windows_without_a_statistic(chromium: str, runs: Path, tmp_path: Path) -> None:
    """A browser gives the key "10" of an object before "09"; losses come once in so many steps, windows may come faster."""
    run = read_run(runs / "demo" / "run")
    some = next(iter(run["slices"]["position"].values()))
    run["slices"]["hour"] = dict.fromkeys(["00", "08", "09", "10", "23"], some)
    egin = {name: (values * 9)[:9] for name, values in run["series"]["egin"].items()}
    known = [0.5, None, None, 0.4, None, None, None, 0.3, None]
    run["series"]["egin"] = egin | {"ts": [1_700_000_000_000 + 3_600_000 * n for n in range(9)], "loss.click": known}
    run["series"]["din"] |= {"loss.click": [None] * len(run["series"]["din"]["ts"])}
    out = tmp_path / "gaps.html"
    out.write_text(page([run]))
    document, console = opened(chromium, out, tmp_path / "profile")
    assert console == []
    assert re.findall(r">(\d\d)</text>", drawn(document, "By hour of the day (UTC)")) == ["00", "08", "09", "10", "23"]
    lines = re.findall(r' d="(M[^"]*L[^"]*)"', drawn(document, "Click loss"))
    assert [line.count("M") for line in lines if line.count("L") == 2] == [1], lines


def test_a_picture_can_be_taken(chromium: str, runs: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    opened(chromium, runs / "demo" / "run" / "index.html", tmp_path / "profile", f"--screenshot={picture}")
    assert len(picture.read_bytes()) > 50_000  # an empty page is a few kB


def test_a_script_that_fails_would_be_seen(chromium: str, runs: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    html = (runs / "demo" / "run" / "index.html").read_text()
    broken.write_text(html.replace("build();", "missing();", 1))
    _, console = opened(chromium, broken, tmp_path / "profile")
    assert any("missing is not defined" in line for line in console)
