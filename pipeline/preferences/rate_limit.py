"""Token buckets: how often somebody may do something."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable


class RateLimit:
    """One bucket of tokens for each key; a bucket fills up at a constant rate.

    Args:
        per_second: tokens that a bucket gains a second.
        burst: tokens of a full bucket.
        clock: returns seconds; another one for tests.
        most: number of buckets that are remembered; the one unused for longest is forgotten first.
    """

    def __init__(
        self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic, most: int = 10_000
    ) -> None:
        self.per_second, self.burst, self._clock, self._most = per_second, burst, clock, most
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._turn = threading.Lock()

    def take(self, key: str) -> bool:
        """Take a token from a bucket; return whether there was one."""
        with self._turn:
            now = self._clock()
            left = self._left(key, now)
            is_there = left >= 1
            self._buckets[key] = (left - 1 if is_there else left, now)
            self._buckets.move_to_end(key)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
            return is_there

    def is_left(self, key: str) -> bool:
        """Return whether a bucket has a token."""
        with self._turn:
            return self._left(key, self._clock()) >= 1

    def _left(self, key: str, now: float) -> float:
        tokens, since = self._buckets.get(key, (self.burst, now))
        return min(self.burst, tokens + (now - since) * self.per_second)
