"""Configs: layers over one another, and errors that name the file, the key, the value and what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_app.config import ConfigError, Layer, RunConfig, flag_layer, read_layer, resolve, set_layer, time_ms, to_toml
from stream_app.log_config import joined_layers, log_layers, write_joined, write_log_config


def test_later_layers_win_key_by_key() -> None:
    config = resolve(
        [
            Layer("a", {"join": {"label_window_ms": 1, "lateness_ms": 2}, "models": {"egin": {"top_k": 3, "dim": 4}}}),
            Layer("b", {"join": {"lateness_ms": 5}, "models": {"egin": {"top_k": 6}}}),
        ]
    )
    assert (config.join.label_window_ms, config.join.lateness_ms) == (1, 5)
    assert config.models == {"egin": {"top_k": 6, "dim": 4}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replay": {"batch_request": 3}}, r"f.toml: unknown key 'replay.batch_request': did you mean 'batch_requests'\?"),
        ({"joins": {}}, r"f.toml: unknown key 'joins': did you mean 'join'\? there are log, kafka, join, replay, train"),
        ({"replay": {"batch_requests": 0}}, r"f.toml: replay.batch_requests = 0: expected `int` >= 1"),
        ({"replay": {"eval": "late"}}, r"f.toml: replay.eval = 'late': invalid enum value"),
        ({"replay": {"from": "yesterday"}}, r"f.toml: time 'yesterday': write UTC ms or ISO 8601"),
        (
            {"join": {"item_sequences": {"click": {"lenght": 3}}}},
            r"unknown key 'join.item_sequences.\*.lenght': did you mean 'length'",
        ),
        (
            {"join": {"item_sequences": {"click": {"length": "x"}}}},
            r"f.toml: join.item_sequences.\*.length = 'x': expected `int`",
        ),
        ({"join": {"label_kinds": ["a", 3]}}, r"f.toml: join.label_kinds.1 = 3: expected `str`"),
    ],
)
def test_an_error_names_file_key_value_and_near_miss(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve([Layer("good.toml", {}), Layer("f.toml", values)])


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("models.egin.top_k=5", {"models": {"egin": {"top_k": 5}}}),
        ("replay.device=cuda", {"replay": {"device": "cuda"}}),
        ("join.label_kinds=['buy']", {"join": {"label_kinds": ["buy"]}}),
        ("replay.slices.fair.in_window=1.0", {"replay": {"slices": {"fair": {"in_window": 1.0}}}}),
    ],
)
def test_set_takes_toml_values_and_plain_text(assignment: str, expected: dict[str, Any]) -> None:
    assert set_layer(assignment).values == expected
    resolve([set_layer(assignment)])


@pytest.mark.parametrize("assignment", ["top_k", "=5", "a..b=1"])
def test_set_without_key_or_value_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match="write KEY=VALUE"):
        set_layer(assignment)


def test_flags_that_were_not_given_change_nothing() -> None:
    assert flag_layer({"seed": None, "models": (), "deterministic": False, "eval": "delayed", "threads": 0}).values == {
        "replay": {"eval": "delayed", "threads": 0}
    }


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (1507593600000, 1507593600000),
        ("1507593600000", 1507593600000),
        ("2017-10-10", 1507593600000),
        ("2017-10-10T02:00+02:00", 1507593600000),
        ("2017-10-10T00:00:00.250Z", 1507593600250),
    ],
)
def test_times(value: int | str, ms: int) -> None:
    assert time_ms(value) == ms


def test_times_of_a_toml_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[replay]\nfrom = 2017-10-10\nto = 2017-10-10T01:00:00Z\nscore_from = '2017-10-10T00:30'\n")
    replay = resolve([read_layer(path)]).replay
    assert (replay.start, replay.stop, replay.score_from) == (1507593600000, 1507597200000, 1507595400000)


def test_what_is_printed_reads_back() -> None:
    config = resolve(
        [
            set_layer("replay.slices.fair.country=fr"),
            set_layer("replay.from=1507593600000"),
            set_layer("models.mine.type=egin"),
            set_layer("join.item_sequences.buy.kinds=['buy']"),
        ]
    )
    assert resolve([Layer("printed", msgspec.toml.decode(to_toml(config)))]) == config
    assert to_toml(RunConfig()).count("models") > 0


@pytest.mark.parametrize(
    ("text", "message"), [("a = = 1", "not a TOML file"), (None, "there is no config file"), ("\x80", "not a TOML file")]
)
def test_files_that_cannot_be_read(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "c.toml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message):
        read_layer(path)


def test_auto_is_delayed_where_labels_take_time() -> None:
    def delayed(**join: Any) -> bool:
        return resolve([Layer("", {"join": join})]).delayed()

    assert delayed(label_window_ms=1)
    assert not delayed(label_window_ms=0)
    assert not delayed(label_window_ms=1, policy="correct")
    assert resolve([set_layer("replay.eval=delayed"), set_layer("join.label_window_ms=0")]).delayed()


def test_a_logs_own_files(tmp_path: Path) -> None:
    assert log_layers(tmp_path) == joined_layers(tmp_path) == []
    join = resolve([set_layer("join.label_window_ms=7")]).join
    assert write_log_config(tmp_path, join, ("given_away",))
    assert not write_log_config(tmp_path, resolve([]).join)
    config = resolve(log_layers(tmp_path))
    assert config.join == join
    assert config.replay.ignored_features == ("given_away",)
    write_joined(tmp_path, resolve([set_layer("join.label_window_ms=9")]).join)
    assert resolve(joined_layers(tmp_path)).join.label_window_ms == 9
