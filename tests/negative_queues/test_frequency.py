"""The streaming estimate of frequency: known gaps, collisions, state."""

from __future__ import annotations

import numpy as np
import pytest

from negative_queues import FrequencyStateError, StreamingFrequency


def test_a_steady_id_has_the_frequency_of_its_gap() -> None:
    frequency = StreamingFrequency(4_096, alpha=0.1)
    for step in range(1, 2_001):
        frequency.update([value for value, gap in ((11, 1), (22, 4), (33, 50)) if step % gap == 0])
    np.testing.assert_allclose(frequency.probability([11, 22, 33]), [1, 1 / 4, 1 / 50])


def test_by_hand() -> None:
    """Met at steps 2, 3 and 7: gaps 2, 1, 4; alpha 1/4: 2, 1.75, 2.3125."""
    frequency = StreamingFrequency(64, alpha=0.25)
    for step in range(1, 8):
        frequency.update([5, 5] if step in (2, 3, 7) else [])
    assert frequency.probability([5]).tolist() == [1 / 2.3125]
    assert frequency.steps == 7
    assert frequency.probability([6]).tolist() == [1 / 8]


def test_it_follows_a_change_and_random_arrivals() -> None:
    rng = np.random.default_rng(0)
    frequency = StreamingFrequency(4_096, alpha=0.02)
    for p in (0.5, 0.05):
        for _ in range(6_000):
            frequency.update([7] if rng.random() < p else [])
        # the average gap of about 50 meetings: a standard error of a tenth
        assert 1 / frequency.probability([7])[0] == pytest.approx(1 / p, rel=0.4)


def test_more_hashes_undo_collisions() -> None:
    """300 ids, each in every 300th step, in 64 buckets: one hash sees them far too often; several do better."""
    shares = []
    for n_hashes in (1, 4):
        frequency = StreamingFrequency(64, alpha=0.05, n_hashes=n_hashes)
        for step in range(3_000):
            frequency.update([step % 300])
        shares.append(frequency.probability(np.arange(300)))
    assert shares[1].mean() < shares[0].mean()


def test_state_goes_on_exactly() -> None:
    rng = np.random.default_rng(1)
    one, other = StreamingFrequency(32), StreamingFrequency(32)
    for _ in range(50):
        one.update(rng.integers(0, 40, 5))
    other.load_state({name: array.copy() for name, array in one.state().items()})
    for _ in range(50):
        ids = rng.integers(0, 40, 5)
        one.update(ids)
        other.update(ids)
    np.testing.assert_array_equal(one.probability(np.arange(50)), other.probability(np.arange(50)))
    assert one.steps == other.steps == 100


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="alpha must be in"):
        StreamingFrequency(8, alpha=0)
    with pytest.raises(ValueError, match="n_buckets and n_hashes must be at least 1, got 0"):
        StreamingFrequency(0)
    with pytest.raises(ValueError, match="one dimension"):
        StreamingFrequency(8).update([[1]])
    frequency = StreamingFrequency(8)
    with pytest.raises(FrequencyStateError, match=r"needs int64 \(2, 8\)"):
        frequency.load_state(StreamingFrequency(16).state())
    with pytest.raises(FrequencyStateError, match="this one has"):
        frequency.load_state({})
