"""Sweeps: the spec and its plan, runs as processes, going on after a kill, variants that fail or join otherwise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from learners.metrics import paired_intervals
from stream_app.cli import main
from stream_app.config import ConfigError
from stream_app.join import join_log
from stream_app.joiner.blocks import sample_schema
from stream_app.launch import launch
from stream_app.results import result_of
from stream_app.simulate.options import SimulateOptions
from stream_app.simulate.run import run_simulate
from stream_app.sweep.joins import JoinedElsewhere, samples_of
from stream_app.sweep.results import saved_buckets, table
from stream_app.sweep.running import Sweep, run_folder
from stream_app.sweep.spec import SweepError, SweepSpec, plan, read_spec
from stream_app.topics.embedded import EmbeddedLog, open_log

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small log that is joined."""
    folder = tmp_path_factory.mktemp("sweep") / "log"
    assert main(["simulate", "--log", str(folder), "--requests", "600", "--users", "60", "--json"]) == 0
    assert main(["join", "--log", str(folder), "--json"]) == 0
    return folder


def spec(text: str) -> SweepSpec:
    return msgspec.toml.decode(text, type=SweepSpec)


BASE = '[replay]\nmodels = ["popularity"]\nwindow_requests = 200\n'


def test_the_plan_is_every_variant_with_every_seed(log: Path) -> None:
    made = plan(
        spec(
            "seeds = [3, 4]\n" + BASE + "[models.egin]\ndim = 8\n"
            '[[variant]]\nname = "egin"\nreplay.models = ["egin"]\n'
            '[[variant]]\nname = "no graph"\nreplay.models = ["egin"]\nmodels.egin.graph = false\n'
            '[grid]\nreplay.models = [["egin"]]\nmodels.egin.top_k = [1, 5]\n"models.egin.queue" = [10]\n'
        ),
        log,
    )
    assert [run.key for run in made[:4]] == [
        "egin.3",
        "no-graph.3",
        "models=-egin-top_k=1-queue=10.3",
        "models=-egin-top_k=5-queue=10.3",
    ]
    assert [run.config.replay.seed for run in made] == [3] * 4 + [4] * 4
    options = [run.config.models["egin"] for run in made[:4]]
    assert [(each["dim"], each["graph"], each["top_k"]) for each in options] == [
        (8, True, 10),
        (8, False, 10),
        (8, True, 1),
        (8, True, 5),
    ]
    assert options[3]["queue"] == 10
    assert made[0].config.join.label_window_ms == 600_000  # as the log has it


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no variants"),
        ("[[variant]]\nmodels.egin.graph = false\n", "number 1 needs a name"),
        ('[[variant]]\nname = "a"\ngraph = false\n', "variant 'a': unknown key 'graph'; write changes as"),
        ('[[variant]]\nname = "a b"\n[[variant]]\nname = "a-b"\n', "'a b' and 'a-b' would share a folder"),
        ("[grid]\nmodels.egin.top_k = 3\n", r"\[grid\] models.egin.top_k = 3: a list"),
        ('[[variant]]\nname = "a"\nmodels.egin.topk = 3\nreplay.models = ["egin"]\n', "variant 'a': .*topk"),
        ("[grid]\nreplay.seed = [1, 2, 3, 4, 5, 6, 7]\nreplay.batch_requests = " + str(list(range(1, 40))), "273 variants"),
    ],
)
def test_specs_that_cannot_be(log: Path, text: str, message: str) -> None:
    with pytest.raises(SweepError, match=message):
        plan(spec(text), log)


def test_a_wrong_key_names_its_variant(log: Path) -> None:
    with pytest.raises(ConfigError, match=r"variant 'a': unknown key 'replay\.batch'"):
        plan(spec('[[variant]]\nname = "a"\nreplay.batch = 3\n'), log)


def test_files_that_are_no_spec(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="there is no sweep spec"):
        read_spec(tmp_path / "none.toml")
    for text, message in (
        ("seeds = 3", "no sweep spec: .*a spec has log, seeds"),
        ("sed = [1]", "sed"),
        ("seeds = []", "at least one"),
    ):
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(SweepError, match=message):
            read_spec(tmp_path / "bad.toml")


def test_a_sweep_over_seeds(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "spec.toml", tmp_path / "out"
    variants = '[[variant]]\nname = "popularity"\n[[variant]]\nname = "trend"\nreplay.models = ["trend"]\n'
    path.write_text(f"log = {str(log)!r}\nseeds = [0, 1]\n{BASE}{variants}")
    assert main(["sweep", str(path), "--out", str(out), "--jobs", "2", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results == json.loads((out / "results.json").read_text())
    runs = plan(read_spec(path), log)
    buckets = {run.key: saved_buckets(out, run) for run in runs}
    pairs = [{"first": buckets[f"popularity.{seed}"], "trend": buckets[f"trend.{seed}"]} for seed in (0, 1)]
    aucs = [paired_intervals(pair, replicates=1)["trend"]["auc"][0] for pair in pairs]
    difference, low, high = results["variants"]["trend"]["difference"]["auc"]
    assert difference == pytest.approx(sum(aucs) / 2)
    assert low < difference < high
    figures = [json.loads((run_folder(out, run) / "result.json").read_text())["models"] for run in runs]
    assert results["variants"]["popularity"]["figures"]["auc"]["mean"] == figures[0]["popularity"]["auc"]
    assert "popularity" in (out / "index.html").read_text()

    # Again: refused without --resume; with it nothing is run again, and another spec is not taken for this one.
    assert main(["sweep", str(path), "--out", str(out)]) == 2
    assert "holds a sweep already" in capsys.readouterr().err
    at = (run_folder(out, runs[0]) / "result.json").stat().st_mtime_ns
    assert main(["sweep", str(path), "--out", str(out), "--resume"]) == 0
    assert (run_folder(out, runs[0]) / "result.json").stat().st_mtime_ns == at
    assert "trend" in capsys.readouterr().out
    path.write_text(path.read_text().replace("window_requests = 200", "window_requests = 100"))
    assert main(["sweep", str(path), "--out", str(out), "--resume"]) == 2
    assert "'popularity', seed 0, was run with replay.window_requests = 200, the spec now says 100" in capsys.readouterr().err


FAILING = """
[[variant]]
name = "popularity"
[[variant]]
name = "broken"
replay.models = ["egin"]
models.egin.top_k = 0
[[variant]]
name = "short window"
join.label_window_ms = 20000
"""


def test_a_variant_that_fails_stops_no_other(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "spec.toml", tmp_path / "out"
    path.write_text(BASE + FAILING)
    assert main(["sweep", str(path), "--log", str(log), "--out", str(out), "--jobs", "2", "--json"]) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)["variants"]
    assert (found["broken"]["seeds"], found["short window"]["seeds"]) == ([], [0])
    assert "k must be at least 1" in found["broken"]["failed"]["0"]
    assert "broken.0 failed: ValueError: k must be" in printed.err
    # A shorter window gives other labels: other samples, joined for this variant alone, and no interval.
    assert "not scored on the same requests" in found["short window"]["not_compared"]
    config = plan(read_spec(path), log)[2].config
    assert [folder.name for folder in (out / "joins").iterdir()] == [sample_schema(config.join, 4).generation]
    assert [row[2] for row in table(json.loads(printed.out))[1:]] == ["", "", "other samples"]


def test_a_join_elsewhere_is_the_join_of_the_log(log: Path, tmp_path: Path) -> None:
    config = plan(spec('[[variant]]\nname = "a"\n'), log)[0].config.join
    with open_log(log) as raw, EmbeddedLog(tmp_path / "made") as made:
        join_log(JoinedElsewhere(raw, made), tmp_path / "state", config)
        for partition in range(4):
            own, other = (each.topic("samples").read(partition, 0, 1 << 30, 1 << 40) for each in (raw, made))
            assert [record.value for record in other] == [record.value for record in own]


def test_a_sweep_that_was_ended_goes_on(log: Path, tmp_path: Path) -> None:
    """The digest is that of a replay in one go."""
    path = tmp_path / "spec.toml"
    path.write_text(f'log = {str(log)!r}\n{BASE}batch_requests = 1\n[[variant]]\nname = "a"\n')
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for n in range(9):  # It may be done before it is ended, where the machine lets it run and not the test.
        out = tmp_path / f"out{n}"
        command = [sys.executable, "-m", "stream_app.cli", "sweep", str(path), "--jobs", "1", "--json", "--out", str(out)]
        sweep = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while not list(out.glob("runs/a/0/config.toml")):
            assert sweep.poll() is None
            time.sleep(0.01)
        sweep.send_signal(signal.SIGTERM)
        said = sweep.communicate()[1].decode()
        if sweep.returncode:
            break
    assert sweep.returncode == 128 + signal.SIGTERM
    assert f"--out {out} --resume" in said
    assert main(["sweep", str(path), "--out", str(out), "--resume"]) == 0
    (run,) = plan(read_spec(path), log)
    with open_log(log) as samples:
        whole = launch(samples, run.config, quiet=True).replay
    result = json.loads((run_folder(out, run) / "result.json").read_text())
    assert result["models"]["popularity"]["digest"] == result_of(whole)["models"]["popularity"]["digest"]


def test_lines_say_how_far(log: Path, tmp_path: Path) -> None:
    runs = plan(spec(BASE + '[[variant]]\nname = "a"\n[[variant]]\nname = "b"\n'), log)
    said: list[list[str]] = []
    sweep = Sweep(runs, {run.key: log for run in runs}, tmp_path, jobs=2, threads=1)
    outcomes = sweep.run(said.append)
    assert {outcome.run.key: outcome.error for outcome in outcomes} == {"a.0": None, "b.0": None}
    assert said[0][0] == "sweep: 0 of 2 runs done"
    assert [line.partition(":")[0] for line in said[0][1:]] == ["a.0", "b.0"]
    assert said[-1][0].startswith("sweep: 2 of 2 runs done")
    again = Sweep(runs, {run.key: log for run in runs}, tmp_path, jobs=2, threads=1).run()
    assert all(outcome.skipped for outcome in again)


def test_a_log_that_is_not_joined_is_joined_beside(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    with EmbeddedLog(raw) as made:
        run_simulate(SimulateOptions(requests=100), made, None)
    runs = plan(spec(BASE + '[[variant]]\nname = "a"\n[[variant]]\nname = "b"\n'), raw)
    found = samples_of(raw, runs, out)
    assert found["a.0"] == found["b.0"] == next((out / "joins").iterdir())
    with open_log(raw) as made, open_log(found["a.0"]) as joined:
        assert ("samples" in made.topics(), "samples" in joined.topics()) == (False, True)


SPECS = sorted((ROOT / "benchmarks" / "sweeps").glob("*.toml"))


@pytest.mark.parametrize("path", SPECS, ids=[path.stem for path in SPECS])
def test_the_benchmarks_specs_can_be_planned(log: Path, path: Path) -> None:
    """But for variants of Vowpal Wabbit, which is a peer and not installed here."""
    whole = read_spec(path)
    ours = tuple(table for table in whole.variant if table.get("replay", {}).get("models") != ["vw"])
    models = {name: options for name, options in whole.models.items() if name != "vw"}
    runs = plan(msgspec.structs.replace(whole, variant=ours, models=models), log)
    assert any("egin" in run.config.replay.models for run in runs)
    replays = [(run.config.models, run.config.replay) for run in runs]
    told = {
        msgspec.json.encode((models, replay.models, replay.ignored_features, replay.batch_requests))
        for models, replay in replays
    }
    assert len(told) >= min(4, len(ours) or 4)
