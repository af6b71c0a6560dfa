"""Checkpoints: what goes in comes out, what is broken is refused with the way out."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from learners.checkpoint import CheckpointError, checkpoints, digest, latest, load, point_to, save
from learners.checkpoint.manifest import FORMAT, INITIALISATION, encode_manifest, read_manifest
from learners.checkpoint.tensors import read_tensors, write_tensors

State = dict[str, npt.NDArray[Any]]
DTYPES = [np.float64, np.float32, np.float16, np.int64, np.uint64, np.int32, np.uint32, np.int16, np.uint16, np.int8, np.uint8]
ARRAYS = st.sampled_from([*DTYPES, np.bool_]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
STATES = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), ARRAYS, max_size=5)


def state(seed: int = 0) -> State:
    rng = np.random.default_rng(seed)
    return {
        "table/rows": rng.random((50, 8)).astype(np.float32),
        "table/keys": rng.integers(0, 2**64, 50, dtype=np.uint64),
        "step": np.array(seed, np.int64),
        "alive": rng.random(50) < 0.5,
        "queue": np.zeros((0, 3), np.int64),
    }


def same(left: State, right: State) -> bool:
    return sorted(left) == sorted(right) and all(
        left[k].dtype == right[k].dtype and left[k].shape == right[k].shape and left[k].tobytes() == right[k].tobytes()
        for k in left
    )


def save_some(root: Path, step: int, *, keep: int = 2) -> Path:
    models = {"egin": state(step), "mine/v2 é": state(step + 1), "rule": {}}
    arrays = {"metrics/egin": state(step + 2), "none": {}}
    return save(
        root, step, models, marks={"learn": {0: step, 3: 7}}, extra={"seed": 1, "x": [0.1, None]}, arrays=arrays, keep=keep
    )


@settings(max_examples=50, deadline=None)
@given(before=STATES)
def test_arrays_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, before: State) -> None:
    path = tmp_path_factory.mktemp("tensors") / "a.safetensors"
    written = write_tensors(path, before)
    after = read_tensors(path, written)
    assert same(before, after)
    assert all(array.flags.writeable and array.flags.owndata for array in after.values())
    assert written.sha256 == digest(before) == digest(after)
    assert same(before, safetensors.numpy.load_file(path))


def test_layout_in_memory_is_invisible(tmp_path: Path) -> None:
    grid = np.arange(24, dtype=np.int64).reshape(4, 6)
    views = {"t": grid.T, "s": grid[::2, 1::3], "r": grid[::-1], "b": grid.astype(">i8")}
    copies = {name: np.array(array, np.int64, order="C") for name, array in reversed(views.items())}
    assert digest(views) == digest(copies)
    assert same(copies, read_tensors(tmp_path / "x", write_tensors(tmp_path / "x", views)))


def test_digest_sees_name_dtype_shape_and_bytes() -> None:
    base = np.arange(6, dtype=np.int64)
    zeros = np.zeros(4, np.int32)
    states: list[State] = [{}, {"a": base}, {"b": base}, {"a": base.reshape(2, 3)}, {"a": base + 1}]
    states += [
        {"a": base.view(np.uint64)},
        {"a": zeros},
        {"a": zeros.view(np.float32)},
        {"a": np.array(-0.0)},
        {"a": np.array(0.0)},
    ]
    assert len({digest(each) for each in states}) == len(states)


def test_dtypes_that_a_checkpoint_cannot_hold_are_refused(tmp_path: Path) -> None:
    for array in (np.array(["x"]), np.array([object()]), np.zeros(1, np.complex128), np.zeros(1, "datetime64[ms]")):
        with pytest.raises(CheckpointError, match=r"array 'odd' is .*; a checkpoint holds float64, float32"):
            save(tmp_path, 1, {"m": {"odd": array}}, marks={}, extra={}, arrays={})
    assert latest(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_everything_survives(tmp_path: Path) -> None:
    path = save_some(tmp_path / "run" / "checkpoints", 120)
    assert latest(path.parent) == path
    loaded = load(path)
    assert (loaded.step, loaded.path) == (120, path)
    assert list(loaded.models) == ["egin", "mine/v2 é", "rule"]
    assert same(loaded.models["egin"], state(120))
    assert same(loaded.models["mine/v2 é"], state(121))
    assert loaded.models["rule"] == {}
    assert same(loaded.arrays["metrics/egin"], state(122))
    assert loaded.arrays["none"] == {}
    assert loaded.marks == {"learn": {0: 120, 3: 7}}
    assert loaded.extra == {"seed": 1, "x": [0.1, None]}
    assert loaded.digests["egin"] == digest(state(120))


def test_numpy_integers_are_marks_like_any_other(tmp_path: Path) -> None:
    path = save(tmp_path, 0, {}, marks={"learn": {np.int32(2): np.int64(2**40)}}, extra={}, arrays={})  # type: ignore[dict-item]
    assert load(path).marks == {"learn": {2: 2**40}}


def test_old_checkpoints_go(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save_some(tmp_path, step, keep=3)
    assert [p.name for p in checkpoints(tmp_path)] == ["000000000002", "000000000003", "000000000010"]
    save_some(tmp_path, 11, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000000011", "LATEST"]


def test_a_step_saved_again_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    names = [save_some(tmp_path, 5, keep=2).name for _ in range(12)]
    assert names[0] == "000000000005"
    assert names[1:3] == ["000000000005-1", "000000000005-2"]
    assert [p.name for p in checkpoints(tmp_path)] == names[-2:]
    assert save_some(tmp_path, 6).name == "000000000006"


def test_turning_back_drops_the_future(tmp_path: Path) -> None:
    paths = [save_some(tmp_path, step, keep=3) for step in (10, 20, 30)]
    point_to(paths[0])
    assert latest(tmp_path) == paths[0]
    save_some(tmp_path, 15, keep=3)
    assert [p.name for p in checkpoints(tmp_path)] == ["000000000010", "000000000015"]


@pytest.mark.parametrize("step", range(1, 7))
def test_a_failure_at_any_step_leaves_a_whole_checkpoint(tmp_path: Path, step: int) -> None:
    def fail(at: int) -> None:
        if at == step:
            raise OSError("no space left on device")

    def models(seed: int) -> dict[str, State]:
        return {"m": state(seed)}

    before = save(tmp_path, 1, models(1), marks={}, extra={}, arrays={})
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, 2, models(2), marks={}, extra={}, arrays={}, keep=1, on_step=fail)
    counts = latest(tmp_path)
    assert counts is not None
    assert load(counts).step == (2 if step == 6 else 1)
    assert all(same(load(path).models["m"], state(load(path).step)) for path in checkpoints(tmp_path))
    assert before.exists()
    after = save(tmp_path, 2, models(3), marks={}, extra={}, arrays={}, keep=1)
    assert same(load(after).models["m"], state(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([after.name, "LATEST"])


def test_what_is_not_json_is_refused(tmp_path: Path) -> None:
    for extra in ({"x": float("nan")}, {"x": object()}, {"x": {1, object()}}):
        with pytest.raises(CheckpointError, match="extra cannot be written as JSON"):
            save(tmp_path, 1, {}, marks={}, extra=extra, arrays={})
    with pytest.raises(CheckpointError, match="step must be 0 or more and keep 1 or more, not 1 and 0"):
        save(tmp_path, 1, {}, marks={}, extra={}, arrays={}, keep=0)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "not there") is None


def test_a_pointer_to_nowhere_is_refused_with_the_way_out(tmp_path: Path) -> None:
    save_some(tmp_path, 1)
    shutil.rmtree(save_some(tmp_path, 2))
    with pytest.raises(CheckpointError, match=r"LATEST names '000000000002', which is no checkpoint in .*") as refused:
        latest(tmp_path)
    assert f"000000000001 is intact; to go on from it: echo 000000000001 > {tmp_path / 'LATEST'}" in str(refused.value)
    (tmp_path / "LATEST").write_text("000000000001\n")  # what the message says
    found = latest(tmp_path)
    assert found is not None
    assert load(found).step == 1


def test_a_lost_pointer_is_refused_where_there_is_a_choice(tmp_path: Path) -> None:
    first = save_some(tmp_path, 1)
    (tmp_path / "LATEST").unlink()
    assert latest(tmp_path) == first
    point_to(first)
    save_some(tmp_path, 2)
    (tmp_path / "LATEST").unlink()
    with pytest.raises(
        CheckpointError, match=r"LATEST is missing, and there are 2 checkpoints beside it. 000000000002 is intact"
    ):
        latest(tmp_path)


def corrupt(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[: len(data) * 2 // 3])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize(("how", "says"), [("missing", "missing"), ("truncated", "truncated|damaged"), ("flipped", "damaged")])
@pytest.mark.parametrize("file", ["model-egin.safetensors", "arrays.safetensors", "manifest.json"])
def test_a_broken_file_is_named_with_the_way_out(tmp_path: Path, file: str, how: str, says: str) -> None:
    save_some(tmp_path, 1)
    newest = save_some(tmp_path, 2)
    corrupt(newest / file, how)
    with pytest.raises(CheckpointError, match=f"{file} .*({says})") as refused:
        load(newest)
    assert "000000000001 is intact; to go on from it: echo 000000000001 > " in str(refused.value)
    corrupt(tmp_path / "000000000001" / "model-egin.safetensors", "flipped")
    with pytest.raises(CheckpointError, match=r"No other checkpoint in .* is intact: start again with a new run folder"):
        load(newest)


@settings(max_examples=40, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_manifest_goes_unseen(tmp_path_factory: pytest.TempPathFactory, where: float, bit: int) -> None:
    path = save_some(tmp_path_factory.mktemp("run"), 3) / "manifest.json"
    before = read_manifest(path.parent)
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        unseen = read_manifest(path.parent)
    except CheckpointError:
        return
    assert unseen == before  # the flip turned one white space into another


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = save_some(tmp_path, 1)
    whole = read_manifest(path)
    newer = {name: getattr(whole, name) for name in whole.__struct_fields__} | {"format": FORMAT + 1}
    (path / "manifest.json").write_bytes(encode_manifest(type(whole)(**newer)))
    with pytest.raises(CheckpointError, match=f"has format {FORMAT + 1}, this Freshet reads up to {FORMAT}: update Freshet"):
        load(path)


def as_of_format_1(path: Path) -> None:
    """Make a checkpoint one of the first format, which does not say how first vectors were made."""
    body = json.loads((path / "manifest.json").read_text())["manifest"]
    del body["initialisation"]
    body["format"] = 1
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    (path / "manifest.json").write_text(json.dumps({"sha256": hashlib.sha256(canonical).hexdigest(), "manifest": body}))


def test_models_of_other_first_vectors_are_looked_at_and_do_not_learn_on(tmp_path: Path) -> None:
    save_some(tmp_path, 1)
    path = save_some(tmp_path, 2)
    assert load(path, learn=True).initialisation == INITIALISATION
    as_of_format_1(path)
    before = load(path)
    assert before.initialisation == 1
    assert digest(before.models["egin"]) == digest(state(2))
    with pytest.raises(CheckpointError, match=r"first vectors.*Replay its log into a new run folder") as refused:
        load(path, learn=True)
    assert "is intact" not in str(refused.value), "another checkpoint of the run is no way out"


def test_the_manifest_is_for_people_too(tmp_path: Path) -> None:
    path = save_some(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())["manifest"]
    assert manifest["models"]["egin"]["sha256"] == digest(state(1))
    assert manifest["marks"] == {"learn": {"0": 1, "3": 7}}
    sizes = {file["name"]: file["size"] for file in [manifest["arrays"], *manifest["models"].values()]}
    assert sizes == {p.name: p.stat().st_size for p in path.iterdir() if p.name != "manifest.json"}
