"""Progress and profile: what is said, and how often."""

from __future__ import annotations

import pytest

from stream_app.profile import Profile, Spent
from stream_app.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (7, "7 s"), (75, "1 min 15 s"), (3599.7, "1 h 0 min"), (7300, "2 h 1 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


class Clock:
    """A clock that stands still unless told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_says_rate_and_time_left() -> None:
    assert (
        Progress("join", "events", 1_000).line(600, 200.0, "fine") == "join: 600 of 1,000 events (60%), 200/s, 2 s left, fine"
    )
    assert Progress("join", "events").line(600, 300.0) == "join: 600 events, 300/s"
    assert Progress("join", "events", 1_000).line(0, 0.0) == "join: 0 of 1,000 events (0%), 0/s"


def test_the_rate_is_without_what_an_earlier_process_did_and_without_the_first_step(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress("replay", "requests", 6_000, plain_seconds=0.0, clock=clock)
    clock.now += 40  # Kernels compile in the first step.
    progress.update(1_000)
    assert progress.rate(1_000) == 0.0
    for n in range(1, 5):
        clock.now += 0.25
        progress.update(1_000 + 50 * n)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "freshet: replay: 1,000 of 6,000 requests (17%), 0/s"
    assert said[-1] == "freshet: replay: 1,200 of 6,000 requests (20%), 200/s, 24 s left"


def test_the_rate_forgets_steps_in_which_kernels_compiled() -> None:
    clock = Clock()
    progress = Progress("replay", "requests", clock=clock)
    for n in range(5):  # five slow ones
        clock.now += 20
        progress.update(100 * (n + 1))
    assert progress.rate(500) == pytest.approx(5, rel=0.01)
    for n in range(120):  # 12 seconds of quick ones
        clock.now += 0.1
        progress.update(500 + 100 * (n + 1))
    assert progress.rate(12_500) == pytest.approx(1_000, rel=0.01)


def test_the_rate_of_work_that_says_little() -> None:
    clock = Clock()
    progress = Progress("import", "rows", clock=clock)
    for n in range(4):  # Less often than what counts as recent.
        clock.now += 60
        progress.update(600 * n)
    assert progress.rate(1_800) == pytest.approx(10)


def test_quiet_and_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (True, False):
        with Progress("join", "events", 10, quiet=quiet) as progress:
            progress.update(5)
    assert capsys.readouterr() == ("", "")


def test_profile_counts_calls_also_of_what_failed() -> None:
    profile = Profile()
    for _ in range(3):
        with profile.stage("read"):
            pass
    with pytest.raises(KeyError), profile.stage("decode"):
        raise KeyError
    assert {name: calls for name, _, calls in profile.rows()} == {"read": 3, "decode": 1}
    assert all(0 <= seconds <= profile.elapsed() for _, seconds, _ in profile.rows())
    # What another process has measured counts as well, and goes over once.
    other = Profile()
    other.add([Spent("join", 1.5, 2), Spent("read", 100.0, 1)])
    profile.add(other.take())
    assert other.take() == []
    assert profile.rows()[0].stage == "read"
    assert {name: calls for name, _, calls in profile.rows()} == {"read": 4, "decode": 1, "join": 2}
