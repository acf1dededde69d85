"""Shows labels: their number, the agreement of annotators, and the exported pairs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli.terminal import print_json, print_line
from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.evaluation.stats.annotators import krippendorff_alpha, raw_agreement
from pipeline.machine.disk import writing
from pipeline.preferences.agreement import exported, label_table
from pipeline.preferences.assignment import Assignment
from pipeline.preferences.events import LedgerEvent
from pipeline.preferences.labels import Batch, State
from pipeline.preferences.probes import is_probe


def status(batch: Batch, state: State, *, as_json: bool) -> None:
    """Print the number of labels, in total and by annotator, and the pairs that nobody there can complete."""
    assignment = Assignment(batch, state)
    done, full = assignment.progress()
    stuck = assignment.stuck()
    people = {name: _counts(state, name) for name, person in state.people.items() if person.role == "annotator"}
    if as_json:
        totals = {"labels": done, "wanted": full, "pairs": len(batch.items), "annotators": people}
        left = [{"item": one.item.id, "missing": one.missing, "people": one.people} for one in stuck]
        more = {
            "closed": state.is_closed,
            "dropped": sorted(state.dropped),
            "adjudicated": len(state.adjudicated),
            "stuck": left,
        }
        print_json({**totals, **more, "event": state.number, "head": state.head})
        return
    closed = ", closed" if state.is_closed else ""
    print_line(
        f"{done} of {counted(full, 'label')} of {counted(len(batch.items), 'pair')}{closed}, event {state.number}"
    )
    for name, counts in sorted(people.items()):
        access = state.people[name].access
        note = "" if access == "active" else f" ({access})"
        print_line(f"  {name}{note}: " + ", ".join(f"{count} {word}" for word, count in counts.items()))
    if state.dropped:
        print_line(f"{counted(len(state.dropped), 'pair')} dropped")
    if state.adjudicated:
        print_line(f"{counted(len(state.adjudicated), 'pair')} adjudicated by a lead")
    if stuck:
        wants = agreeing(len(stuck), "wants", "want")
        print_line(
            f"{counted(len(stuck), 'pair')} {wants} labels that nobody here can give: add people, or see `labels drop "
            "--stuck` and `labels close`"
        )


def _counts(state: State, annotator: str) -> dict[str, int]:
    answers = state.answers.get(annotator, {})
    kinds = Counter(answer.kind for item, answer in answers.items() if not is_probe(item))
    counts = {"labels": kinds["label"], "skipped": kinds["skip"], "flagged": kinds["flag"]}
    probes = sum(map(is_probe, answers))
    return {**counts, "probes": probes} if probes else counts


def agreed(batch: Batch, state: State, *, as_json: bool) -> None:
    """Print the agreement of annotators on the pairs that several of them labelled."""
    verdict_NA = label_table(batch.items, state).verdict_NA
    rate = raw_agreement(verdict_NA, seed=0)
    alpha = krippendorff_alpha(verdict_NA)
    per_item = (verdict_NA >= 0).sum(1)
    compared = int((per_item * (per_item - 1) // 2).sum())
    if as_json:
        told = {
            "pairs": rate.n if rate else 0,
            "compared": compared,
            "same": round(rate.value * compared) if rate else 0,
        }
        print_json({**told, "interval": [rate.low, rate.high] if rate else None, "krippendorff_alpha": alpha})
        return
    if rate is None:
        print_line("no pair has two labels: set `overlap` or `labels_per_item` of the stage to measure agreement")
        return
    share = f"{rate.value:.1%} [{rate.low:.1%}, {rate.high:.1%}]"
    print_line(f"{share} of {counted(compared, 'comparison')} agree, on {counted(rate.n, 'pair')}")
    said = "has no value: all labels are equal" if alpha is None else f"{alpha:.3f}"
    print_line(f"Krippendorff's alpha (nominal): {said}")


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


def verified(events: Sequence[LedgerEvent], problems: Sequence[str], anchors: int, *, as_json: bool) -> None:
    """Print the problems of the ledger's hash chain, or that there are none.

    Args:
        events: events of the ledger.
        problems: what is wrong with them.
        anchors: number of heads that were noted outside the ledger, with which it was compared.
        as_json: whether to print JSON for programs.
    """
    if as_json:
        told = {"events": len(events), "head": events[-1].hash if events else "", "anchors": anchors}
        print_json({**told, "problems": list(problems)})
        return
    for problem in problems:
        print_line(problem)
    if not problems:
        print_line(
            f"{counted(len(events), 'event')}, each follows the one before it"
            + (f"; head {events[-1].hash[:12]}" if events else "")
            + (
                f"; {counted(anchors, 'note')} of earlier heads {agreeing(anchors, 'agrees', 'agree')}"
                if anchors
                else ""
            )
        )
