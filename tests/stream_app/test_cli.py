"""The command line: verbs, flags that repeat, errors in one line, one object for programs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stream_app.cli import VERBS, main
from tests.logs import made_up_log

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("--model", "popularity", "--model", "trend")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 300 made-up requests that was not joined."""
    return made_up_log(tmp_path_factory.mktemp("raw") / "log", 300, rate=0.05, items=60, join=False)


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, joined."""
    return made_up_log(tmp_path_factory.mktemp("joined") / "log", 300, rate=0.05, items=60)


def freshet(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run ``freshet`` in this process; return its exit code, stdout and stderr."""
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def replayed(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    code, out, _ = freshet(capsys, "replay", *words, "--json")
    assert code == 0
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


def digests(result: dict[str, Any]) -> dict[str, str]:
    return {name: model["digest"] for name, model in result["models"].items()}


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_verb(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, out, err = freshet(capsys, *words)
    assert (code, err) == (0, "")
    assert all(f"  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize(
    "words",
    [[verb] for verb in VERBS if verb not in ("import", "config")]
    + [["import", kind] for kind in ("globo", "rows", "trivago")]
    + [["config", kind] for kind in ("show", "validate")],
    ids=" ".join,
)
def test_every_help_has_an_example(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    assert re.search(rf"xample:\s+freshet {' '.join(words)}", capsys.readouterr().out)


@pytest.mark.parametrize("verb", [*VERBS])
def test_help_of_a_verb_imports_nothing_heavy(verb: str) -> None:
    code = (
        "import sys\nfrom stream_app.cli import main\n"
        f"try: main([{verb!r}, '--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'numba', 'pyarrow', 'rocksdict') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["replya"], "no verb 'replya': did you mean 'replay'?"),
        (["import", "globe"], "no kind of import 'globe': did you mean 'globo'?"),
        (["replay"], "--log DIR is missing"),
        (["replay", "--log", "nowhere"], "/nowhere; check the path"),
        (["inspect", "nowhere"], "there is no log at nowhere"),
        (["join", "--log", "nowhere"], "there is no log at nowhere"),
        (
            ["join", "--log", "LOG", "--cache-entries", "0"],
            "cache_entries = 0: a join keeps 1 entry of each kind at least; give",
        ),
        (["join", "--kafka", "h:1", "--cache-entries", "-3"], "(--cache-entries; 200,000 where nothing is said)"),
        (
            ["join", "--log", "LOG", "--rocksdb-mb", "7"],
            "rocksdb_mb = 7: RocksDB needs 8 MB at least; give 8 or more (--rocksdb-mb)",
        ),
        (["replay", "--log", "LOG", "--model", "egni"], "no model 'egni': did you mean 'egin'?"),
        (["replay", "--log", "LOG", "--set", "replay.sed=1"], "unknown key 'replay.sed': did you mean 'seed'?"),
        (["replay", "--log", "LOG", "--from", "soon"], "the command line: time 'soon'"),
        (["replay", "--log", "LOG", "--resume"], "--resume needs --run"),
        (["replay", "--log", "LOG", "--set", "join.label_window_ms=1", *MODELS], "the log was joined with other options"),
        (["config", "validate", "nowhere.toml"], "there is no config file 'nowhere.toml'"),
        (["import", "rows", "nowhere.jsonl", "--log", "TMP/log"], "there is no file 'nowhere.jsonl'"),
        (["simulate", "--log", "TMP/log", "--users", "0"], "freshet simulate: Expected `int` >= 1"),
        (["demo", "--folder", "LOG"], "is not empty"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    capsys: pytest.CaptureFixture[str], joined: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    code, out, err = freshet(capsys, *(word.replace("LOG", str(joined)).replace("TMP", str(tmp_path)) for word in words))
    assert (code, out) == (2, "")
    assert err.startswith("freshet: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stream_app.cli", "inspect", str(tmp_path / "nowhere")]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"FRESHET_DEBUG": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_models_repeat(capsys: pytest.CaptureFixture[str], joined: Path) -> None:
    result = replayed(capsys, "--log", joined, "--model", "trend", "--model", "popularity")
    assert list(result["models"]) == ["trend", "popularity"]
    figures = {"auc", "gauc", "gauc_user", "log_loss", "ne", "mrr", "impressions", "impressions_per_s", "digest"}
    assert figures <= set(result["models"]["trend"])
    assert result["models"]["trend"]["impressions"] == 3_000
    assert result["best_auc"] > result["models"]["trend"]["auc"]
    assert result["evaluation"] == "delayed"


def test_options_reach_the_models(capsys: pytest.CaptureFixture[str], joined: Path) -> None:
    plain = replayed(capsys, "--log", joined, "--model", "popularity")
    words = ("--model", "mine", "--set", "models.mine.type=popularity", "--set", "models.mine.prior=1.0")
    mine = replayed(capsys, "--log", joined, *words)
    assert list(mine["models"]) == ["mine"]
    assert mine["models"]["mine"]["log_loss"] != plain["models"]["popularity"]["log_loss"]


def test_a_log_that_was_not_joined_is_joined_on_the_fly(capsys: pytest.CaptureFixture[str], raw: Path, joined: Path) -> None:
    of_raw, of_joined = (replayed(capsys, "--log", log, *MODELS) for log in (raw, joined))
    for model in (*of_raw["models"].values(), *of_joined["models"].values()):
        del model["impressions_per_s"]
    assert of_raw["models"] == of_joined["models"]


@pytest.mark.parametrize(
    ("words", "megabytes"),
    [((), (256, 96)), (("--rocksdb-mb", "40", "--cache-entries", "1"), (40, 40))],
    ids=["untold", "told"],
)
def test_a_join_of_a_log_keeps_to_the_memory_that_it_is_given(
    capsys: pytest.CaptureFixture[str], raw: Path, tmp_path: Path, words: tuple[str, ...], megabytes: tuple[int, int]
) -> None:
    log = tmp_path / "log"
    shutil.copytree(raw, log)
    code, out, _ = freshet(capsys, "join", "--log", log, "--json", *words)
    assert (code, json.loads(out)["rows"]) == (0, 300)
    # RocksDB's own log says how large the cache is that a database was opened with.
    told = [re.findall(r" capacity : (\d+)", (log / of / "0" / "LOG").read_text()) for of in ("joiner", "topics/samples")]
    assert told == [[str(n << 20)] for n in megabytes]


def test_a_run_is_kept_and_looked_into(capsys: pytest.CaptureFixture[str], joined: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = replayed(capsys, "--log", joined, *MODELS, "--run", run)
    assert {path.name for path in run.iterdir()} >= {"config.toml", "metrics.jsonl", "checkpoints", "result.json"}
    assert json.loads((run / "result.json").read_text()) == result

    code, out, _ = freshet(capsys, "inspect", run, "--json")
    found = json.loads(out)
    assert (code, found["kind"], found["requests"]) == (0, "run", 300)
    assert {name: model["digest"] for name, model in found["models"].items()} == digests(result)
    assert found["models"]["popularity"]["tables"]["item"]["rows"] > 0
    code, out, _ = freshet(capsys, "inspect", run)
    assert code == 0
    assert digests(result)["trend"][:16] in out

    code, _, err = freshet(capsys, "replay", "--log", joined, *MODELS, "--run", run)
    assert code == 2
    assert "holds a run already" in err
    code, _, err = freshet(capsys, "replay", "--log", joined, *MODELS, "--run", run, "--resume", "--seed", "3")
    assert code == 2
    assert "replay.seed was 0, now 3" in err
    again = replayed(capsys, "--run", run, "--resume")
    assert digests(again) == digests(result)
    assert again["models"]["trend"]["auc"] == result["models"]["trend"]["auc"]


def test_a_log_is_looked_into(capsys: pytest.CaptureFixture[str], joined: Path) -> None:
    code, out, _ = freshet(capsys, "inspect", joined, "--json")
    found = json.loads(out)
    assert (code, found["kind"]) == (0, "log")
    assert found["topics"]["impressions"]["records"] == 300
    assert sum(seq + 1 for seq in found["samples"]["marks"].values()) == 300
    assert sum(joiner["counters"]["rows"] for joiner in found["joiner"]) == 300
    assert found["imports"][0]["kind"] == "simulate"
    code, out, _ = freshet(capsys, "inspect", joined)
    assert code == 0
    assert "impressions" in out


def test_simulate_join_replay(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    sizes = ("--requests", 60, "--users", 20, "--items", 40, "--queries", 10, "--categories", 4, "--partitions", 1)
    assert freshet(capsys, "simulate", "--log", log, *sizes)[0] == 0
    code, out, _ = freshet(capsys, "join", "--log", log, "--json", "--set", "join.label_window_ms=1000000")
    assert (code, json.loads(out)["rows"]) == (0, 60)
    # How it was joined is remembered.
    assert replayed(capsys, "--log", log, "--model", "popularity", "--eval", "immediate")["requests"] == 60
    code, _, err = freshet(capsys, "join", "--log", log)
    assert code == 2
    assert "options or the partition count have changed" in err


def test_import_rows_by_a_mapping(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [
        {
            "visitor": f"u{n % 3}",
            "page": f"p{n}",
            "sku": f"i{(n + k) % 5}",
            "ts": 1_700_000_000_000 + 1_000 * n,
            "clicked": k == 0,
        }
        for n in range(20)
        for k in range(3)
    ]
    file, mapping = tmp_path / "log.jsonl", tmp_path / "mapping.toml"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mapping.write_text('layout = "flat"\nuser = "visitor"\nrequest = "page"\nitem = "sku"\nlabel = "clicked"\n')
    log = tmp_path / "log"
    code, out, _ = freshet(capsys, "import", "rows", file, "--mapping", mapping, "--partitions", 2, "--log", log, "--json")
    assert code == 0
    assert json.loads(out)["events"] == {"impressions": 20, "actions": 20}
    assert replayed(capsys, "--log", log, "--model", "popularity")["models"]["popularity"]["impressions"] == 60
    code, out, _ = freshet(capsys, "import", "rows", file, "--mapping", mapping, "--partitions", 2, "--log", log)
    assert code == 0
    assert "complete before" in out


def test_config_show_resolves_everything(capsys: pytest.CaptureFixture[str], joined: Path, tmp_path: Path) -> None:
    code, out, _ = freshet(capsys, "config", "show", "--log", joined, "--set", "models.popularity.prior=3.0")
    assert code == 0
    (tmp_path / "shown.toml").write_text(out)
    assert "prior = 3.0" in out
    assert "label_window_ms = 600000" in out
    code, out, _ = freshet(capsys, "config", "validate", tmp_path / "shown.toml")
    assert code == 0
    assert "is valid" in out
    (tmp_path / "bad.toml").write_text("[models.popularity]\npriro = 3.0\n")
    code, _, err = freshet(capsys, "config", "validate", tmp_path / "bad.toml")
    assert code == 2
    assert "priro" in err
    assert "prior" in err


def test_profile_goes_to_stderr(capsys: pytest.CaptureFixture[str], joined: Path) -> None:
    code, out, err = freshet(capsys, "replay", "--log", joined, "--model", "popularity", "--profile", "--json")
    assert code == 0
    assert json.loads(out)["requests"] == 300
    assert "learn popularity" in err
    assert "metrics" in err


def test_a_reader_that_has_had_enough_is_no_error(joined: Path) -> None:
    command = f"{sys.executable} -m stream_app.cli inspect {joined} --json | head -c 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "{"
    assert "Traceback" not in done.stderr
