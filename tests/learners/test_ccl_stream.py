"""CCL beside SEMI: which pairs wait, when it steps, what it changes, and that nothing is lost by a restart."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.ccl_pairs import PairBuffer, under_one_name
from learners.ccl_stream import cadence
from learners.checks import CHECKS, Case, random_block, replaced
from learners.learner import State, Stats
from learners.models import ModelContext, build
from learners.models.semi import SEMILearner
from learners.samples import SampleBlock, SampleSchema

SCHEMA = SampleSchema(generation="two", item_sequences=("video", "product"), has_query=False)
HOUR = 3_600_000
OPTIONS: dict[str, Any] = {
    "hidden": [16],
    "dim": 8,
    "heads": 2,
    "feed_forward": 16,
    "ccl": "on",
    "ccl_batch": 12,
    "ccl_min_sessions": [2, 3],
    "ccl_capacity": 64,
    "ccl_rate": 0.01,
}


def blocks(n: int = 12, requests: int = 10, users: int = 60) -> Iterator[SampleBlock]:
    for seed in range(n):
        rng = np.random.default_rng(seed)
        block = random_block(SCHEMA, requests, seed=seed, max_history=12)
        yield replaced(block, user=rng.integers(1, users, requests), ts=block.column("ts") + seed * 1_000_000)


def learner(live: bool = False, **options: object) -> SEMILearner:
    built = build("semi", {**OPTIONS, **options}, ModelContext(schema=SCHEMA, name="semi", live=live))
    assert isinstance(built, SEMILearner)
    return built


def copied(state: State) -> State:
    return {name: np.array(array) for name, array in state.items()}


def differing(one: State, two: State) -> set[str]:
    return {name for name in one | two if name not in one or name not in two or not np.array_equal(one[name], two[name])}


def steps_of(stats: list[Stats]) -> list[int]:
    return [at for at, each in enumerate(stats) if "ccl.loss.first" in each]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_semi_with_ccl_runs_the_check_suite(check: Callable[[Case], None]) -> None:
    check(Case("semi", {**OPTIONS, "ccl_batch": 4}, SCHEMA))


@settings(max_examples=40)
@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=8), st.integers(2, 9))
def test_the_buffer_holds_the_newest_user_by_user(seeds: list[int], batch: int) -> None:
    """Against a dict: all pairs that came, one a user, the longest of a user's, and none of what was given out."""
    buffer, seen = PairBuffer(("video", "product"), batch, (2, 1)), set[int]()
    for seed in seeds:
        rng = np.random.default_rng(seed)
        block = replaced(random_block(SCHEMA, 6, seed=seed % 97, max_history=5), user=rng.integers(0, 12, 6))
        buffer.add(block)
        video, product = (block.ragged(f"{name}.item").lengths for name in ("video", "product"))
        seen |= {int(u) for u, v, p in zip(block.column("user"), video, product, strict=True) if u and v >= 2 and p >= 1}
        assert len(buffer) <= 2 * batch + 6
        assert buffer.full == (len(buffer) >= batch)
        if buffer.full:
            rows = buffer.take()
            users = rows.column("user").tolist()
            assert len(set(users)) == len(users) == batch
            assert set(users) <= seen
            assert rows.n_candidates == 0
            assert (rows.ragged("video.item").lengths >= 2).all()
            assert len(buffer) == 0
            seen = set()
        else:
            assert len(buffer) == len(seen)


def test_a_users_longest_pair_is_the_one_that_waits() -> None:
    block = replaced(random_block(SCHEMA, 8, seed=3, max_history=9), user=np.array([1, 1, 1, 1, 2, 2, 2, 2]))
    buffer = PairBuffer(("video", "product"), 2, (1, 1))
    buffer.add(block)
    rows = buffer.take()
    lengths = block.ragged("video.item").lengths + block.ragged("product.item").lengths
    found = rows.ragged("video.item").lengths + rows.ragged("product.item").lengths
    held = (block.ragged("video.item").lengths >= 1) & (block.ragged("product.item").lengths >= 1)
    best = [int((lengths * held)[:4].max()), int((lengths * held)[4:].max())]
    assert dict(zip(rows.column("user").tolist(), found.tolist(), strict=True)) == dict(zip([1, 2], best, strict=True))


def test_a_pair_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ccl_batch must be 2 or more, got 1"):
        PairBuffer(("video", "product"), 1, (1, 1))


def test_ccl_beside_the_click_model_is_clicks_and_then_a_step_of_ccl() -> None:
    """The same bits as a learner without CCL whose encoders CCL's own ``step`` trains in between, by hand."""
    whole, parts = learner(), learner()
    by_hand, contrast = learner(ccl="off"), parts.network.contrast
    assert contrast is not None
    for block in blocks():
        whole.learn(block)
        by_hand.load_state({n: a for n, a in copied(parts.state()).items() if not n.startswith("memory.contrast")})
        by_hand.learn(block)
        parts.network.load_state_dict(by_hand.network.state_dict())
        clicked = copied(by_hand.state())
        parts.load_state({**copied(parts.state()), **clicked})
        contrast.pairs.add(block)
        if contrast.pairs.full:
            rows = contrast.pairs.take()
            contrast.ccl.step(*parts.network.pair_sessions(rows), rows.column("user"), int(rows.column("ts").max()))
    ours, theirs = copied(whole.state()), copied(parts.state())
    assert contrast.ccl.steps > 3
    # The probe and the pace are bookkeeping of the stream, which the hand does not keep.
    own = ("memory.contrast.probe", "memory.contrast.pace")
    assert {name for name in differing(ours, theirs) if not name.startswith(own)} == set()


def test_clicks_move_everything_and_ccl_the_encoders_and_times_alone() -> None:
    with_ccl, without = learner(), learner(ccl="off")
    first = next(iter(blocks(1, 40)))
    for each in (with_ccl, without):
        stats = each.learn(first)
    assert "ccl.loss.first" not in stats
    moved = differing(_weights(with_ccl), _weights(without))
    assert moved
    assert all(name.startswith(("encoders.", "times.")) for name in moved)


def _weights(of: SEMILearner) -> State:
    return {name: tensor.numpy().copy() for name, tensor in of.network.state_dict().items()}


def test_the_cadence_is_held_and_the_statistics_say_it() -> None:
    stats = _learned(learner(ccl_every=4), list(blocks(20)))
    steps = steps_of(stats)
    assert len(steps) >= 3
    assert all(later - earlier >= 4 for earlier, later in itertools.pairwise(steps))
    assert steps[0] >= 3
    last = stats[steps[-1]]
    assert last["ccl.every"] == 4
    assert 0 < last["ccl.time_share"] < 1
    assert 0 < last["ccl.filled"] <= 1
    assert -1 <= last["ccl.drift"] <= 1
    assert last["ccl.age"] >= 0
    assert last["ccl.age_s"] > 0


def _learned(of: SEMILearner, given: list[SampleBlock]) -> list[Stats]:
    return [of.learn(block) for block in given]


def test_without_a_cadence_a_replay_steps_with_every_full_batch() -> None:
    stats = _learned(learner(), list(blocks(20)))
    waiting = [each["ccl.waiting"] for each in stats]
    assert len(steps_of(stats)) > 4
    assert max(waiting) < 12 + 10


def test_a_run_by_budget_is_the_run_of_the_cadence_that_it_came_to() -> None:
    given = list(blocks(30))
    live = learner(live=True, ccl_budget=0.2)
    stats = _learned(live, given)
    contrast = live.network.contrast
    assert contrast is not None
    decided = contrast.every
    assert decided >= 1
    assert [stats[at]["ccl.every"] for at in steps_of(stats)] == [decided] * len(steps_of(stats))
    fixed, repeated = learner(ccl_every=decided), learner()
    repeated.take_decisions(live.state())
    for each in (fixed, repeated):
        _learned(each, given)
        assert differing(copied(each.state()), copied(live.state())) == set()


@pytest.mark.parametrize(("click", "ccl", "budget"), [(0.01, 0.1, 0.3), (0.02, 0.5, 0.05), (1.0, 0.1, 0.3), (0.004, 2.0, 0.9)])
def test_the_cadence_is_the_least_within_the_budget(click: float, ccl: float, budget: float) -> None:
    n = cadence(click, ccl, budget)
    assert ccl / (n * click + ccl) <= budget + 1e-12
    assert n == 1 or ccl / ((n - 1) * click + ccl) > budget


def test_a_restart_at_any_step_changes_nothing() -> None:
    """Dictionaries, key encoders, waiting pairs, Adam, probe, cadence: all of it, to the bit."""
    given = list(blocks(14))
    whole = learner(ccl_every=2)
    statistics = _learned(whole, given)
    for cut in (1, 5, 9, 13):
        first, second = learner(ccl_every=2), learner(ccl_every=2)
        _learned(first, given[:cut])
        second.load_state(copied(first.state()))
        assert differing(copied(first.state()), copied(second.state())) == set()
        again = _learned(second, given[cut:])
        assert differing(copied(whole.state()), copied(second.state())) == set()
        for one, two in zip(statistics[cut:], again, strict=True):
            assert {n: v for n, v in one.items() if n != "ccl.time_share"} == {
                n: v for n, v in two.items() if n != "ccl.time_share"
            }


def test_pre_training_fills_the_dictionaries_learns_and_leaves_the_click_model_alone() -> None:
    given = list(blocks(40))
    given[30] = given[30].take(np.argsort(given[30].column("ts"), kind="stable"))
    until = int(given[30].column("ts")[5])
    model = learner(ccl="pretrain", ccl_pretrain_until=until, ccl_capacity=24)
    fresh = _weights(model)
    stats = _learned(model, given[:30])
    filled = [each["ccl.filled"] for each in stats if "ccl.filled" in each]
    assert filled[0] == 0.5
    assert filled[-1] == 1.0
    assert steps_of(stats)
    assert all("loss.click" not in each for each in stats)
    moved = differing(fresh, _weights(model))
    assert moved
    assert all(name.startswith(("encoders.", "times.")) for name in moved)
    straddling = model.learn(given[30])
    assert "loss.click" in straddling
    contrast = model.network.contrast
    assert contrast is not None
    steps = contrast.ccl.steps
    assert not steps_of(_learned(model, given[31:]))
    assert contrast.ccl.steps == steps
    assert model.step == 10


def test_a_date_of_toml_is_a_time() -> None:
    noon = dt.datetime(2026, 1, 1, 12)
    assert (
        learner(ccl_pretrain_until=noon).until == learner(ccl_pretrain_until=noon.replace(tzinfo=dt.UTC)).until == 1767268800000
    )


@pytest.mark.parametrize("domain", ["video", "product"])
def test_a_model_of_one_domain_sees_nothing_of_the_other_and_ccl_sees_both(domain: str) -> None:
    model = learner(domains=domain)
    _learned(model, list(blocks(8)))
    contrast = model.network.contrast
    assert contrast is not None
    assert contrast.ccl.steps > 0
    block = random_block(SCHEMA, 10, seed=77, max_history=12)
    other = {"video": "product", "product": "video"}[domain]
    swapped = replaced(
        block, **{f"{other}__item": block.ragged(f"{other}.item")._replace(values=block.ragged(f"{other}.item").values + 9)}
    )
    assert np.array_equal(model.predict(block), model.predict(swapped))
    first, second = model.network.pair_sessions(block)
    assert first.mask.sum() == len(block.ragged("video.item").values)
    assert second.mask.sum() == len(block.ragged("product.item").values)


def test_sessions_of_ccl_are_those_of_the_click_model() -> None:
    both = learner()
    _learned(both, list(blocks(4)))
    block = random_block(SCHEMA, 10, seed=77, max_history=12)
    one = under_one_name(block, "product", "video")
    assert np.array_equal(one.ragged("video.item").values, block.ragged("product.item").values)
    swapped = both.network.pair_sessions(one)
    plain = both.network.pair_sessions(block)
    for part, expected in zip(swapped[0], plain[1], strict=True):
        assert torch.equal(part, expected)


@pytest.mark.parametrize("domains", ["both", "video", "product"])
def test_time_blocks_are_hours_back_from_the_pairs_own_request_and_shared_by_the_domains(domains: str) -> None:
    """SEMI, section 3.2.3: also for a pair that has waited behind later requests, and for a domain the click model skips."""
    model = learner(domains=domains, time_blocks=5, ccl_batch=4)
    waiting = PairBuffer(("video", "product"), 4, (1, 1))
    for block in blocks(3):
        waiting.add(block)
    rows = waiting.peek()
    ages = np.array([0, HOUR - 1, HOUR, HOUR + 1, 2 * HOUR, 5 * HOUR - 1, 5 * HOUR, 900 * HOUR])
    for name in ("video", "product"):
        ragged = rows.ragged(f"{name}.ts")
        now = np.repeat(rows.column("ts"), ragged.lengths)
        drawn = np.resize(ages, len(now)) if name == "video" else np.resize(ages[::-1], len(now))
        rows = replaced(rows, **{f"{name}__ts": ragged._replace(values=now - drawn)})
    assert len(np.unique(rows.column("ts"))) > 1
    sessions = model.network.pair_sessions(rows)
    for session, order in zip(sessions, (ages, ages[::-1]), strict=True):
        got = session.blocks[session.mask].numpy()
        assert got.tolist() == np.minimum(np.resize(order, len(got)) // HOUR, 4).tolist()
    times = {id(encoder.times) for encoder in model.network.encoders.values()}
    assert times == {id(model.network.times)}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="domains = 'film' is neither both nor one of video, product"):
        learner(domains="film")
    alone = SampleSchema(generation="one", has_query=False)
    with pytest.raises(ValueError, match="ccl needs two item sequences, one a domain, and there are click"):
        build("semi", OPTIONS, ModelContext(schema=alone, name="semi"))
