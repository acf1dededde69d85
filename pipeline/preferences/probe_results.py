"""What people said of gold items and of pairs shown again: how often they are right, and agree with themselves."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evaluation.stats.estimate import Estimate
from pipeline.evaluation.stats.intervals import wilson
from pipeline.preferences.labels import Answer, State
from pipeline.preferences.probes import KNOWN, REPEAT, ProbePlan, repeated


@dataclass(frozen=True)
class ProbeResults:
    """One person's labels of probes.

    Attributes:
        accuracy: share of the labels of gold items that are the known verdict, with Wilson's interval; a tie is not.
            None without one.
        consistency: share of the repeats with the verdict that the person gave before; None without one.
        same_left: number of repeats on which the person preferred the left side both times, so the two verdicts
            contradict each other.
        same_right: the same for the right side.
    """

    accuracy: Estimate | None
    consistency: Estimate | None
    same_left: int
    same_right: int


def probe_results(plan: ProbePlan, state: State) -> dict[str, ProbeResults]:
    """Return the results of everybody who labelled a probe, by name."""
    results = {}
    for name, answers in state.answers.items():
        labels = {item: one for item, one in answers.items() if one.kind == "label"}
        right = [one.verdict == KNOWN for item, one in labels.items() if item in plan.by_id]
        twice = [(labels[repeated(item)], one) for item, one in labels.items() if _is_repeat(item, labels)]
        if not right and not twice:
            continue
        sides = [_left(first) for first, again in twice if _left(first) is not None and _left(first) == _left(again)]
        same = sum(first.verdict == again.verdict for first, again in twice)
        results[name] = ProbeResults(
            wilson(sum(right), len(right)) if right else None,
            wilson(same, len(twice)) if twice else None,
            sides.count(True),
            sides.count(False),
        )
    return results


def _is_repeat(item: str, labels: dict[str, Answer]) -> bool:
    return item.startswith(REPEAT) and repeated(item) in labels


def _left(answer: Answer) -> bool | None:
    """Return whether a label prefers the response that was on the left; None if it prefers neither, or does not say."""
    if answer.verdict not in ("first", "second") or answer.swapped is None:
        return None
    return (answer.verdict == "second") == answer.swapped
