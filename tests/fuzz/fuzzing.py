"""The loop of a fuzzer: cases by seed and number, what they raised, and how to see one again.

Owns counting, the time limit and the report. Knows nothing of recipes or rows: a `Target` makes a case and tries it.
"""

from __future__ import annotations

import hashlib
import random
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

LONGEST_S = 20
"""Seconds a case may take; a longer one is a finding."""


class Target(Protocol):
    """Something that is fuzzed."""

    def make(self, rng: random.Random, number: int) -> str:
        """Return a case as text."""
        ...

    def attempt(self, case: str) -> str:
        """Try a case; return one word for how it ended. What it raises is a finding."""
        ...


@dataclass(frozen=True)
class Finding:
    """A case that ended as none may."""

    number: int
    case: str
    error: str
    trace: str

    @property
    def cause(self) -> str:
        """What findings of one cause share: the error's class and the line that raised it."""
        lines = [line.strip() for line in self.trace.splitlines() if line.strip().startswith("File ")]
        return f"{self.error.partition(':')[0]} at {lines[-1] if lines else '?'}"


@dataclass
class Outcomes:
    """How the cases ended: words with counts, and the findings."""

    counts: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0


class TooLongError(BaseException):
    """A case took longer than `LONGEST_S`; no handler of errors may swallow it."""


def case_of(target: Target, seed: int, number: int) -> str:
    """Return one case; it hangs on nothing but seed and number."""
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return target.make(random.Random(digest), number)


def fuzz(target: Target, seed: int, numbers: range) -> Outcomes:
    """Try cases; a bare exception, or a case that takes too long, is a finding."""
    outcomes, started = Outcomes(), time.perf_counter()
    for number in numbers:
        case = case_of(target, seed, number)
        try:
            with _limited():
                word = target.attempt(case)
        except (Exception, TooLongError, SystemExit) as error:
            word = "findings"
            text = f"{type(error).__name__}: {str(error)[:300]}"
            outcomes.findings.append(Finding(number, case, text, traceback.format_exc()))
        outcomes.counts[word] = outcomes.counts.get(word, 0) + 1
    outcomes.seconds = time.perf_counter() - started
    return outcomes


def report(outcomes: Outcomes, again: str) -> str:
    """Return the counts, and each cause with its first case.

    Args:
        outcomes: of a run.
        again: command that tries one case, with `{number}` in it.
    """
    total = sum(outcomes.counts.values())
    ended = ", ".join(f"{count:,} {word}" for word, count in sorted(outcomes.counts.items()))
    lines = [f"{total:,} cases in {outcomes.seconds:.0f} s: {ended}"]
    causes: dict[str, list[Finding]] = {}
    for finding in outcomes.findings:
        causes.setdefault(finding.cause, []).append(finding)
    for cause, findings in causes.items():
        first = findings[0]
        lines += [
            f"\n{len(findings)} × {cause}",
            f"  {first.error}",
            f"  again: {again.format(number=first.number)}",
            *(f"  | {line[:200]}" for line in first.trace.splitlines()[-12:]),
        ]
    return "\n".join(lines)


@contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: Any) -> None:
        raise TooLongError(f"took more than {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
