"""Replay: what is scored when, what a stop and another start change (nothing), what is refused."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Thread, current_thread
from typing import Any

import hypothesis
import hypothesis.strategies as st
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from learners.checkpoint import CheckpointError, digest, latest, load
from learners.checkpoint.manifest import INITIALISATION, MANIFEST, encode_manifest, read_manifest
from learners.learner import Learner, Scores, State, Stats
from learners.metrics import MetricOptions
from learners.samples import SampleBlock, SampleError
from stream_app.config import Layer, RunConfig, resolve
from stream_app.entrant import Entrant
from stream_app.entrants import build_entrants
from stream_app.guard import GuardError
from stream_app.oracle import BEST, Oracle
from stream_app.prefetch import prefetch
from stream_app.profile import Profile
from stream_app.replay import Replay, Step
from stream_app.results import result_of
from stream_app.runs import CHECKPOINTS, RunError, RunFolder, differences
from stream_app.sample_sources import TopicSource
from stream_app.samples_reader import Batch, Range, SampleReader
from stream_app.topics import Message, Topic
from stream_app.topics.memory import MemoryLog

Make = Callable[..., SampleBlock]
WINDOW = 20
N_ITEMS = 21


class Counts(Learner):
    """Clicks per item so far; remembers in which order it was asked."""

    def __init__(self, name: str = "counts") -> None:
        self.name = name
        self.clicks = np.ones(N_ITEMS)
        self.shown = np.full(N_ITEMS, 2.0)
        self.steps = np.zeros(1, np.int64)
        self.calls: list[tuple[str, list[int], list[int]]] = []

    def _note(self, verb: str, block: SampleBlock) -> None:
        self.calls.append((verb, block.column("ts").tolist(), block.column("due").tolist()))

    def predict(self, block: SampleBlock) -> Scores:
        self._note("predict", block)
        items = block.ragged("candidate.item").values
        return np.asarray(self.clicks[items] / self.shown[items], np.float32)

    def learn(self, block: SampleBlock) -> Stats:
        self._note("learn", block)
        items, labels = block.ragged("candidate.item").values, block.ragged("candidate.label").values
        # Decay makes the state depend on how the stream is cut into steps.
        self.clicks *= 0.999
        np.add.at(self.clicks, items, labels)
        np.add.at(self.shown, items, 1.0)
        self.steps += 1
        return {"steps": float(self.steps[0]), "never": float("nan")}

    def state(self) -> State:
        return {"clicks": self.clicks, "shown": self.shown, "steps": self.steps}

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        self.clicks, self.shown, self.steps = (np.array(state[name]) for name in ("clicks", "shown", "steps"))


def config_of(**replay: Any) -> RunConfig:
    join = {"label_window_ms": WINDOW}
    return resolve([Layer("test", {"join": join, "replay": {"models": ["counts"], "batch_requests": 7, **replay}})])


def entrants_of(config: RunConfig, *names: str) -> list[Entrant]:
    options = MetricOptions(window_ms=config.replay.window_ms)
    slices = tuple(config.replay.slices)
    models = [Entrant(name, Counts(name), slices, options) for name in names or ("counts",)]
    return [*models, Entrant(BEST, Oracle(), slices, options)]


def topic_of(make: Make, n_requests: int = 200, n_partitions: int = 2, early: Sequence[int] = ()) -> Topic:
    """Return samples shown every 3 ms; those in ``early`` left when they were shown."""
    topic = MemoryLog().create("samples", n_partitions)
    for p in range(n_partitions):
        for first in range(0, n_requests, 16):
            seqs = range(first, min(first + 16, n_requests))
            ts = [3 * seq + p for seq in seqs]
            due = [t if seq in early else t + WINDOW for t, seq in zip(ts, seqs, strict=True)]
            block = make(seqs, due, ts=ts, partition=p)
            topic.append(p, [Message(int(block.column("due")[-1]), b"", block.to_ipc())])
    return topic


def run(topic: Topic, config: RunConfig, folder: RunFolder | None = None, stop_after: int | None = None) -> Replay:
    replay = Replay(config, TopicSource(topic), entrants_of(config), folder)
    if folder is not None and (checkpoint := folder.load()) is not None:
        replay.load(checkpoint)
    last = Step(0, 0, 0, None)

    def on_step(step: Step) -> None:
        nonlocal last
        last = step

    replay.run(on_step, lambda: stop_after is not None and last.batches >= stop_after)
    return replay


def counts(replay: Replay) -> Counts:
    learner = replay.entrants[0].learner
    assert isinstance(learner, Counts)
    return learner


def reported(replay: Replay) -> dict[str, Any]:
    """Return the result without its rates."""
    result = result_of(replay)
    del result["seconds"]
    for model in result["models"].values():
        del model["impressions_per_s"]
    return result


@pytest.mark.parametrize("early", [(), (5, 6, 50, 51, 52, 199)])
def test_delayed_scores_know_no_label_that_came_later(make_block: Make, early: Sequence[int]) -> None:
    replay = run(topic_of(make_block, early=early), config_of())
    learned_due, scored = -1, []
    for verb, ts, due in counts(replay).calls:
        if verb == "learn":
            learned_due = max(learned_due, *due)
        else:
            assert learned_due < min(ts)
            scored += ts
    assert sorted(scored) == sorted(3 * seq + p for p in range(2) for seq in range(200))


def test_delayed_scores_are_taken_with_the_weights_of_that_time(make_block: Make) -> None:
    """Before a batch is learned that was due at D, all that was shown up to D has been scored."""
    replay = run(topic_of(make_block), config_of())
    scored: set[int] = set()
    for verb, ts, due in counts(replay).calls:
        if verb == "predict":
            scored |= set(ts)
        else:
            assert {3 * seq + p for p in range(2) for seq in range(200) if 3 * seq + p <= due[-1]} <= scored


def test_immediate_scores_each_batch_just_before_it_is_learned(make_block: Make) -> None:
    replay = run(topic_of(make_block), config_of(eval="immediate"))
    calls = counts(replay).calls
    assert [verb for verb, _, _ in calls] == ["predict", "learn"] * (len(calls) // 2)
    assert all(before[1] == after[1] for before, after in zip(calls[::2], calls[1::2], strict=True))
    assert {len(ts) for _, ts, _ in calls[:-2]} == {7}


@hypothesis.settings(max_examples=8)
@hypothesis.given(
    stops=st.lists(st.integers(1, 58), min_size=1, max_size=2),
    evaluation=st.sampled_from(["immediate", "delayed"]),
    early=st.lists(st.integers(0, 199), max_size=8, unique=True),
)
def test_a_stop_and_another_start_change_nothing(
    make_block: Make,
    tmp_path_factory: pytest.TempPathFactory,
    stops: list[int],
    evaluation: str,
    early: list[int],
) -> None:
    topic = topic_of(make_block, early=early)
    config = config_of(eval=evaluation, window_ms=100)
    whole_path = tmp_path_factory.mktemp("run") / "whole"
    with RunFolder.create(whole_path, config) as folder:
        whole = run(topic, config, folder)
    path = tmp_path_factory.mktemp("run") / "parts"
    RunFolder.create(path, config).close()
    for stop in [*sorted(stops), None]:
        with RunFolder.open(path) as folder:
            parts = run(topic, config, folder, stop)
    assert reported(parts) == reported(whole)
    assert _without_rates(path) == _without_rates(whole_path)


def _without_rates(path: Path) -> list[dict[str, Any]]:
    lines = [msgspec.json.decode(line) for line in (path / "metrics.jsonl").read_bytes().splitlines()]
    return [{key: value for key, value in line.items() if key != "impressions_per_s"} for line in lines]


def test_what_a_killed_run_wrote_after_its_checkpoint_is_written_once(make_block: Make, tmp_path: Path) -> None:
    topic, config = topic_of(make_block), config_of(window_ms=50)
    with RunFolder.create(tmp_path / "run", config) as folder:
        run(topic, config, folder, 20)
        folder.append_metrics([{"model": "counts", "from": "the future that a kill cut off"}])
    with RunFolder.open(tmp_path / "run") as folder:
        run(topic, config, folder)
    lines = _without_rates(tmp_path / "run")
    assert all("from" not in line for line in lines)
    assert len({(line["model"], line["first_ts"]) for line in lines}) == len(lines) > 8


def test_windows_say_what_was_learned(make_block: Make, tmp_path: Path) -> None:
    config = config_of(window_ms=100, eval="immediate")
    with RunFolder.create(tmp_path / "run", config) as folder:
        run(topic_of(make_block), config, folder)
    lines = [line for line in _without_rates(tmp_path / "run") if line["model"] == "counts"]
    said = [set(line["stats"]) for line in lines if "stats" in line]
    assert said == [{"steps"}] * len(said)
    assert "stats" in lines[-1], "windows that close together say it once, with the newest"
    assert all(line["last_ts"] - line["first_ts"] < 100 for line in lines)
    assert all(line["figures"]["log_loss"] > 0 for line in lines)


def test_score_from_is_by_ts_and_leaves_learning_alone(make_block: Make) -> None:
    topic = topic_of(make_block)
    whole, late = run(topic, config_of()), run(topic, config_of(score_from=300))
    assert digest(counts(whole).state()) == digest(counts(late).state())
    of_late = result_of(late)["models"]["counts"]
    assert of_late["impressions"] == 3 * sum(3 * seq + p >= 300 for p in range(2) for seq in range(200))
    assert result_of(whole)["models"]["counts"]["impressions"] == 3 * 400


def test_a_feature_slices_by_its_values(make_block: Make) -> None:
    result = result_of(run(topic_of(make_block), config_of(slice_by=("odd",))))
    odd = result["slices"]["odd"]
    assert {value: found["models"]["counts"]["requests"] for value, found in odd.items()} == {"0": 200, "1": 200}
    assert sum(found["models"]["counts"]["impressions"] for found in result["slices"]["item"].values()) == 3 * 400
    only = result_of(run(topic_of(make_block), config_of(slice_by=("odd",), standard_slices=False)))
    assert only["slices"] == {"odd": odd}


def test_a_slice_has_figures_of_its_own(make_block: Make) -> None:
    result = result_of(run(topic_of(make_block), config_of(slices={"odd": {"odd": 1.0}})))
    assert result["slices"]["odd"]["models"]["counts"]["impressions"] == 3 * 200
    assert result["slices"]["odd"]["models"]["counts"]["auc"] != result["models"]["counts"]["auc"]


def test_a_slice_of_an_unknown_feature_is_refused(make_block: Make) -> None:
    with pytest.raises(SampleError, match=r"replay.slices.fair asks for the request feature 'even', the samples have odd"):
        run(topic_of(make_block), config_of(slices={"fair": {"even": 1.0}}))


def test_the_best_possible_is_better(make_block: Make) -> None:
    result = result_of(run(topic_of(make_block, 1_000), config_of()))
    assert 0.5 < result["models"]["counts"]["auc"] < result["best_auc"]
    assert result["best_log_loss"] < result["models"]["counts"]["log_loss"]
    assert list(result["models"]) == ["counts"]


def test_corrections_are_learned_and_not_scored(make_block: Make) -> None:
    topic = MemoryLog().create("samples", 1)
    block = make_block(range(60), range(60))
    topic.append(0, [Message(59, b"", block.to_ipc())])
    config = resolve([Layer("test", {"join": {"policy": "correct"}, "replay": {"models": ["counts"], "bootstrap": 0}})])
    replay = run(topic, config)
    labels = block.ragged("candidate.label")
    n_positive = sum(labels.values[a:b].any() for a, b in zip(labels.offsets, labels.offsets[1:], strict=False))
    assert 0 < n_positive < 60
    assert replay.entrants[0].learned == 180
    assert result_of(replay)["models"]["counts"]["impressions"] == 3 * (60 - n_positive)


def test_models_side_by_side_see_the_same(make_block: Make) -> None:
    config = config_of()
    replay = Replay(config, TopicSource(topic_of(make_block)), entrants_of(config, "a", "b"))
    replay.run()
    result = result_of(replay)
    assert result["models"]["a"]["digest"] == result["models"]["b"]["digest"]
    assert result["models"]["b"]["difference"]["auc"] == [0.0, 0.0, 0.0]
    assert "difference" not in result["models"]["a"]


def test_a_range_is_learned_alone(make_block: Make) -> None:
    replay = run(topic_of(make_block), config_of(**{"from": 90, "to": 300}))
    learned = [ts for verb, each, _ in counts(replay).calls if verb == "learn" for ts in each]
    assert sorted(learned) == sorted(3 * seq + p for p in range(2) for seq in range(200) if 90 <= 3 * seq + p < 300)


def test_another_generation_is_not_gone_on_with(make_block: Make, tmp_path: Path) -> None:
    config = config_of()
    with RunFolder.create(tmp_path / "run", config) as folder:
        run(topic_of(make_block), config, folder, 5)
    other = MemoryLog().create("samples", 2)
    schema = msgspec.structs.replace(make_block([0], [0]).schema, generation="other")
    other.append(0, [Message(0, b"", make_block([0], [0], schema=schema).to_ipc())])
    with RunFolder.open(tmp_path / "run") as folder, pytest.raises(SampleError, match="the run learned samples of generation"):
        run(other, config, folder)


def with_other_requests(topic: Topic) -> Topic:
    """Return samples of the same numbers, times and blocks, and other requests."""
    other = MemoryLog().create("samples", topic.n_partitions)
    for p in range(topic.n_partitions):
        for record in topic.read(p, 0):
            block = SampleBlock.from_ipc(record.value)
            at = block.batch.schema.get_field_index("request")
            batch = block.batch.set_column(at, block.batch.schema.field(at), pa.array(block.column("request") + 1_000))
            other.append(p, [Message(record.ts, b"", SampleBlock(batch, block.schema).to_ipc())])
    return other


def test_other_samples_of_the_same_generation_are_told_apart(make_block: Make, tmp_path: Path) -> None:
    topic, config = topic_of(make_block), config_of()
    with RunFolder.create(tmp_path / "run", config) as folder:
        run(topic, config, folder, 5)
    with RunFolder.open(tmp_path / "run") as folder, pytest.raises(SampleError, match="not the request that was learned last"):
        run(with_other_requests(topic), config, folder)
    with RunFolder.open(tmp_path / "run") as folder, pytest.raises(SampleError, match="ends at block 4, and had 13 when"):
        run(topic_of(make_block, 64), config, folder)


def test_a_run_of_other_first_vectors_does_not_go_on(make_block: Make, tmp_path: Path) -> None:
    topic, config = topic_of(make_block), config_of(window_ms=50)
    with RunFolder.create(tmp_path / "run", config) as folder:
        run(topic, config, folder, 20)
    newest = latest(tmp_path / "run" / CHECKPOINTS)
    assert newest is not None
    older = msgspec.structs.replace(read_manifest(newest), initialisation=INITIALISATION - 1)
    (newest / MANIFEST).write_bytes(encode_manifest(older))
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with RunFolder.open(tmp_path / "run") as folder, pytest.raises(CheckpointError, match="other first vectors"):
        run(topic, config, folder)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics, "the Freshet that wrote it can still go on"


def test_a_run_folder_is_one_runs(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", config_of()), pytest.raises(RunError, match="another process is at work"):
        RunFolder.open(tmp_path / "run")
    with pytest.raises(RunError, match="holds a run already: go on with it with --resume"):
        RunFolder.create(tmp_path / "run", config_of())
    with pytest.raises(RunError, match="there is no run in"):
        RunFolder.open(tmp_path / "nothing")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(RunError, match="is there and is no run"):
        RunFolder.create(tmp_path / "mine", config_of())


def test_differences_name_what_differs() -> None:
    found = differences(config_of(), config_of(seed=3, checkpoint_seconds=1.0, slices={"a": {"odd": 1.0}}))
    assert [(each.key, each.of_run, each.asked) for each in found] == [
        ("replay.seed", 0, 3),
        ("replay.slices.a.odd", None, 1.0),
    ]


@pytest.mark.parametrize("at_once", [1, 7, 25, 100])
def test_prefetch_keeps_order_and_hands_errors_over(at_once: int) -> None:
    def items() -> Any:
        yield from range(50)
        raise SampleError("broken")

    reading = prefetch(items(), Profile(), at_once=at_once)
    assert [next(reading) for _ in range(50)] == list(range(50))
    with pytest.raises(SampleError, match="broken"):
        next(reading)


@pytest.mark.parametrize("at_once", [1, 3])
def test_prefetch_ends_with_its_reader(at_once: int) -> None:
    made = []

    def items() -> Any:
        for i in range(1_000):
            made.append(i)
            yield i

    reading = prefetch(items(), Profile(), depth=2, at_once=at_once)
    assert next(reading) == 0
    reading.close()
    assert len(made) <= 4 * at_once + 1


class Preparing(Counts):
    """Says on which thread it prepares; fails on the samples of a time."""

    def __init__(self, bad_ts: int | None = None) -> None:
        super().__init__()
        self.threads: list[str] = []
        self.bad_ts = bad_ts

    def prepare(self, block: SampleBlock) -> None:
        self.threads.append(current_thread().name)
        if self.bad_ts is not None and self.bad_ts in block.column("ts"):
            raise SampleError(f"the sample of {self.bad_ts} is bad")
        self._note("prepare", block)


def test_batches_are_prepared_as_they_are_learned_on_the_thread_that_reads(make_block: Make) -> None:
    config, learner, profile = config_of(**{"eval": "delayed", "from": 50, "to": 400}), Preparing(), Profile()
    entrants = [Entrant("counts", learner, (), MetricOptions(window_ms=config.replay.window_ms))]
    Replay(config, TopicSource(topic_of(make_block)), entrants, profile=profile).run()
    prepared, learned = ([call[1:] for call in learner.calls if call[0] == verb] for verb in ("prepare", "learn"))
    assert prepared == learned != []
    assert set(learner.threads) == {"prefetch"}
    assert {name: calls for name, _, calls in profile.rows()}["prepare"] == len(prepared)


def test_what_preparing_raises_comes_where_the_samples_do(make_block: Make) -> None:
    config, learner = config_of(), Preparing(bad_ts=300)
    entrants = [Entrant("counts", learner, (), MetricOptions(window_ms=config.replay.window_ms))]
    with pytest.raises(SampleError, match="the sample of 300 is bad"):
        Replay(config, TopicSource(topic_of(make_block)), entrants).run()
    prepared, learned = ([call[1:] for call in learner.calls if call[0] == verb] for verb in ("prepare", "learn"))
    assert prepared == learned != []


class Unprepared(Replay):
    """Leaves all to the step."""

    def _prepared(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return batches


def test_prepared_ahead_or_not_the_digests_are_equal(make_block: Make) -> None:
    topic, names = topic_of(make_block), ("egin", "din", "popularity")
    config = config_of(models=names)

    def digests(how: str) -> list[str]:
        source = TopicSource(topic)
        entrants = [entrant for entrant in build_entrants(config, source.schema()) if entrant.name in names]
        for entrant in entrants:
            entrant.learner.prepares_ahead = True  # as on a GPU
        if how == "same thread":
            span = Range(config.replay.start, config.replay.stop)
            places = source.places(config.replay.start)
            reader = SampleReader(source, source.schema(), places, config.replay.batch_requests, span, config.window_ms())
            for batch in reader:
                for entrant in entrants:
                    entrant.learner.prepare(batch.block)
                for entrant in entrants:
                    entrant.predict_learn(batch.block)
        else:
            (Unprepared if how == "not at all" else Replay)(config, source, entrants).run()
        return [digest(entrant.learner.state()) for entrant in entrants]

    assert digests("other thread") == digests("same thread") == digests("not at all")


def test_a_checkpoint_written_beside_is_that_of_its_moment(make_block: Make, tmp_path: Path) -> None:
    """Learning goes on while checkpoints are written; one of them, gone on from, leads to the same end."""
    topic, config = topic_of(make_block), config_of(eval="delayed", window_ms=50, checkpoint_seconds=1e-6)
    threads: list[Thread] = []
    at: dict[int, str] = {}
    names: set[str] = set()
    copied: dict[str, Path] = {}
    path = tmp_path / "run"
    with RunFolder.create(path, config) as folder:
        replay = Replay(
            config, TopicSource(topic), entrants_of(config), folder, on_saved=lambda run: threads.append(current_thread())
        )

        def note(step: Step) -> None:
            while step.batches % 4 == 0 and folder.saving:
                time.sleep(1e-3)
            at[step.batches] = digest(counts(replay).state())
            newest = latest(path / CHECKPOINTS)
            if newest is not None:
                names.add(newest.name)
                if newest.name not in copied and len(copied) < 2:
                    copied[newest.name] = shutil.copytree(newest, tmp_path / newest.name)

        replay.run(note, lambda: replay.batches >= 40)
        assert len(names) > 4, "checkpoints were written while it learned"
    assert len(threads) >= len(names)
    assert set(threads) == {current_thread()}
    for folder_of in copied.values():
        checkpoint = load(folder_of)
        assert checkpoint.digests["counts"] == at[checkpoint.step]
        other = Replay(config, TopicSource(topic), entrants_of(config))
        other.load(checkpoint)
        other.run()
        assert reported(other) == reported(run(topic, config))


class Diverges(Counts):
    """Counts until a step, whose loss or weights are no numbers."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__("m")
        self._at, self._what = at, what

    def learn(self, block: SampleBlock) -> Stats:
        stats = super().learn(block)
        if self.steps[0] < self._at:
            return stats | {"loss.click": 0.5}
        if self._what == "weights":
            self.shown[0] = np.inf  # Scores of the item are 0, a number.
            return stats | {"loss.click": 0.5}
        return stats | {"loss.click": float(self._what)}


@pytest.mark.parametrize("evaluation", ["immediate", "delayed"])
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nan", r"m: loss.click is nan at step 9, requests 57 to 63 of the run\. No checkpoint .* learning rates"),
        ("inf", r"m: loss.click is inf at step 9, requests 57 to 63 of the run\."),
        ("weights", r"m: shown is not finite any more after \d+ requests of the run\. No checkpoint"),
    ],
)
def test_a_model_that_diverges_ends_the_run_and_leaves_the_checkpoint_before(
    make_block: Make, tmp_path: Path, evaluation: str, what: str, said: str
) -> None:
    config, topic = config_of(eval=evaluation), topic_of(make_block, 60)

    def replay(folder: RunFolder, at: int) -> Replay:
        entrants = [Entrant("m", Diverges(at, what), (), MetricOptions(window_ms=config.replay.window_ms))]
        return Replay(config, TopicSource(topic), entrants, folder)

    with RunFolder.create(tmp_path / "run", config) as folder:
        kept, again = None, replay(folder, 9)
        if evaluation == "delayed":  # Immediate scores are counted so rarely that a stop is after the end here.
            first = replay(folder, 1_000)
            first.run(stop=lambda: first.batches >= 5)
            kept = latest(folder.path / CHECKPOINTS)
            assert kept is not None
            again.load(load(kept, learn=True))
        with pytest.raises(GuardError, match=said):
            again.run()
        assert latest(folder.path / CHECKPOINTS) == kept
