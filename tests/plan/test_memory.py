"""The memory of a plan: what lives at the same time lies apart, and no more is taken than is needed."""

import numpy as np
import pytest

from minires.plan.memory import ALIGNED, Memory, laid_out


def _alive(lives, now):
    return [number for number, (_, since, until) in enumerate(lives) if since <= now < until]


@pytest.mark.parametrize("seed", range(20))
def test_what_lives_at_the_same_time_lies_apart(seed):
    rng = np.random.default_rng(seed)
    since = rng.integers(0, 100, 150)
    lives = list(zip(rng.integers(0, 1000, 150), since, since + rng.integers(1, 40, 150), strict=True))
    places, whole = laid_out(lives)
    most = 0
    for now in range(140):
        spans = sorted(
            (places[one], places[one] + lives[one][0]) for one in _alive(lives, now) if lives[one][0]
        )
        assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:], strict=False))
        assert not spans or spans[-1][1] <= whole
        most = max(most, sum(lives[one][0] for one in _alive(lives, now)))
    assert most <= whole < 1.25 * most


def test_values_that_end_in_turn_take_what_lives_at_once():
    """As forward and back: the activations stay, and what is between them comes and goes."""
    lives, end = [], 1000
    for number in range(50):
        lives += [(64, 2 * number, end - number), (200 + number, 2 * number + 1, 2 * number + 2)]
    assert laid_out(lives)[1] == 50 * 64 + 249


def test_no_place_is_given_back_twice():
    memory = Memory()
    at = memory.take(100)
    memory.give_back(at)
    with pytest.raises(AssertionError, match="twice"):
        memory.give_back(at)


def test_places_that_were_promised_are_found():
    memory = Memory()
    first, stays = memory.take(20), memory.add(5)
    memory.give_back(first)
    second = memory.take(30)
    assert memory.numbers(3, np.float32).size == memory.size + 3 == 2 * ALIGNED + ALIGNED + 3
    found = memory.all_real(np.array([[first + 7, -1], [second, stays]]))
    assert found.tolist() == [[ALIGNED + 7, -1], [ALIGNED, stays]]
    assert [memory.real(at) for at in (first + 7, -1, second, stays)] == [ALIGNED + 7, -1, ALIGNED, stays]
