"""A bucket of tokens empties, fills up at its rate, and is one for each key."""

from __future__ import annotations

from pipeline.preferences.rate_limit import RateLimit


def test_a_burst_is_let_through_and_then_the_rate() -> None:
    now = [0.0]
    limit = RateLimit(per_second=0.5, burst=3, clock=lambda: now[0])
    assert [limit.take("a") for _ in range(5)] == [True, True, True, False, False]
    assert limit.is_left("b") and not limit.is_left("a")
    now[0] += 2.0  # one token more
    assert [limit.take("a") for _ in range(2)] == [True, False]
    now[0] += 1000.0  # not above the burst
    assert [limit.take("a") for _ in range(4)] == [True, True, True, False]


def test_the_key_unused_for_longest_is_forgotten_first() -> None:
    limit = RateLimit(per_second=0, burst=1, clock=lambda: 0.0, most=2)
    assert limit.take("a") and limit.take("b") and limit.take("c")  # "a" is forgotten
    assert limit.take("a") and not limit.take("c")
