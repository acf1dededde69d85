"""Shows labels: their number, the agreement of annotators, and the exported pairs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli.terminal import print_json, print_line
from pipeline.errors import PipelineError, Problem, counted
from pipeline.evaluation.stats.intervals import wilson
from pipeline.machine.disk import writing
from pipeline.preferences.agreement import agreement, exported
from pipeline.preferences.labels import Batch, State
from pipeline.preferences.ledger import LedgerEvent


def status(batch: Batch, state: State, *, as_json: bool) -> None:
    """Print the number of labels, in total and by annotator."""
    done, full = batch.progress(state)
    people = {name: {"labels": 0, "skipped": 0, "flagged": 0} for name in state.tokens}
    for (_, who), answer in state.answers.items():
        word = {"label": "labels", "skip": "skipped", "flag": "flagged"}[answer.kind]
        people[who][word] += 1
    if as_json:
        totals = {"labels": done, "wanted": full, "pairs": len(batch.items), "annotators": people}
        print_json({**totals, "event": state.number, "head": state.head})
        return
    print_line(f"{done} of {counted(full, 'label')} of {counted(len(batch.items), 'pair')}, event {state.number}")
    for name, counts in sorted(people.items()):
        print_line(f"  {name}: " + ", ".join(f"{count} {word}" for word, count in counts.items()))


def agreed(batch: Batch, state: State, *, as_json: bool) -> None:
    """Print the agreement of annotators on the pairs that several of them labelled."""
    result = agreement(batch.items, state)
    rate = wilson(result.same, result.pairs) if result.pairs else None
    if as_json:
        interval = [rate.low, rate.high] if rate is not None else None
        told = {
            "pairs": result.items,
            "compared": result.pairs,
            "same": result.same,
            "interval": interval,
        }
        print_json({**told, "krippendorff_alpha": result.alpha})
        return
    if rate is None:
        print_line("no pair has two labels: set `overlap` or `labels_per_item` of the stage to measure agreement")
        return
    share = f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]"
    print_line(f"{share} of {counted(result.pairs, 'comparison')} agree, on {counted(result.items, 'pair')}")
    alpha = "has no value: all labels are equal" if result.alpha is None else f"{result.alpha:.3f}"
    print_line(f"Krippendorff's alpha (nominal): {alpha}")


def export(batch: Batch, state: State, out: Path | None) -> None:
    """Write preference rows to a file or standard output; print on standard error how many pairs gave none, and why.

    Raises:
        PipelineError: the file cannot be written.
    """
    rows, without = exported(batch.items, state)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    if out is None:
        sys.stdout.writelines(lines)
    else:
        try:
            with writing(out):
                out.write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            raise PipelineError(
                Problem(f"cannot write {out}: {error.strerror}", "a file in a folder that exists")
            ) from error
    said = "".join(f", {count} {why}" for why, count in sorted(without.items()))
    print_line(f"{counted(len(rows), 'preference')} as of event {state.number}{said}", stream=sys.stderr)


def verified(events: Sequence[LedgerEvent], problems: Sequence[str], *, as_json: bool) -> None:
    """Print the problems of the ledger's hash chain, or that there are none."""
    if as_json:
        print_json({"events": len(events), "head": events[-1].hash if events else "", "problems": list(problems)})
        return
    for problem in problems:
        print_line(problem)
    if not problems:
        print_line(
            f"{counted(len(events), 'event')}, each follows the one before it"
            + (f"; head {events[-1].hash[:12]}" if events else "")
        )
