"""The first run of an installation compiles its kernels, later ones load them: both must learn the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.logs import made_up_log

ROOT = Path(__file__).resolve().parents[2]


def digests(log: Path, kernels: Path) -> dict[str, Any]:
    models = [word for name in ("egin", "din", "dnn", "bst", "dien") for word in ("--model", name)]
    command = [sys.executable, "-m", "stream_app.cli", "replay", "--log", str(log), *models, "--threads", "2", "--json"]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(kernels)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1_800, check=False)
    assert done.returncode == 0, done.stderr
    return {name: model["digest"] for name, model in json.loads(done.stdout)["models"].items()}


@pytest.mark.slow
def test_a_run_that_compiles_its_kernels_learns_what_a_run_that_loads_them_does(tmp_path: Path) -> None:
    log = made_up_log(tmp_path / "log", 400)
    kernels = tmp_path / "kernels"
    compiled = digests(log, kernels)
    assert any(kernels.rglob("*.nbc")), "nothing was compiled"
    assert digests(log, kernels) == compiled
