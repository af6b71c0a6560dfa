"""Progress and profile: what is said, and how often."""

from __future__ import annotations

import pytest

from stream_app.profile import Profile
from stream_app.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (7, "7 s"), (75, "1 min 15 s"), (3599.7, "1 h 0 min"), (7300, "2 h 1 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_rate_and_time_left() -> None:
    progress = Progress("join", "events", 1_000)
    progress.update(200)  # Work that an earlier process did.
    assert progress.line(600, 2.0, "fine") == "join: 600 of 1,000 events (60%), 200/s, 2 s left, fine"
    assert Progress("join", "events").line(600, 2.0) == "join: 600 events, 300/s"


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
