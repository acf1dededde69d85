"""Shows the report of a check as a table and as data, and the progress of a check as a status line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.cli.display.variants import merged, under_plain_names
from pipeline.cli.terminal import Column, console, print_line, print_table
from pipeline.errors import counted
from pipeline.plain_data import JsonObject
from pipeline.plan import Plan
from pipeline.preflight import CheckReport
from pipeline.preflight.checks.sources import Progress, SourceCount
from pipeline.preflight.checks.tokens import StageTokens

COLUMNS = (
    Column("data"),
    Column("stages", fold=True),
    Column("rows are", style="dim"),
    Column("to learn from", right=True),
    Column("held out", right=True),
    Column("bad, left out", right=True),
)

TOKEN_COLUMNS = (
    Column("stage"),
    Column("tokenizer of", fold=True),
    Column("at most", right=True),
    Column("fit", right=True),
    Column("longer", right=True),
    Column("equal sides", right=True),
    Column("not rendered", right=True),
)


@contextmanager
def check_progress() -> Iterator[Progress]:
    """Show the progress of a check as a status line on a terminal; the line is removed at the end."""
    out = console(sys.stderr)
    if not out.is_terminal:
        yield lambda text: None
        return
    with out.status("checking") as status:
        yield lambda text: status.update(text)


def print_check(recipe: Path, plan: Plan, report: CheckReport) -> None:
    """Print the counts of rows and tokens of each data source, the notes, and a summary line."""
    by_source = _by_source(report)
    variants = {name: stage for stage, names in plan.recipe.variants.items() for name in names}
    rows = [
        [
            count.source,
            ", ".join(under_plain_names(stages, variants)),
            count.shape,
            f"{count.train:,}",
            f"{count.held_out:,}",
            f"{count.rejected:,}",
        ]
        for count, stages in by_source
    ]
    if rows:
        print_table(COLUMNS, rows)
        print()
    if report.tokens:
        print_table(TOKEN_COLUMNS, merged([_token_row(tokens) for tokens in report.tokens], variants, names=2))
        print()
    for line in _detections(report):
        print_line(line)
    for note in dict.fromkeys([*_notes(report), *plan.notes]):
        print_line(f"note: {note}")
    sources = len({count.source for count, _ in by_source})
    usable = sum({count.source: count.kept for count, _ in by_source}.values())
    known = f", {counted(usable, 'row')} to use in {counted(sources, 'data source')}" if sources else ""
    stages = counted(len(plan.stages), "stage")
    print_line(f"{recipe}: {stages}{known}: no problems")


def _detections(report: CheckReport) -> list[str]:
    """Return a line for each source whose row format was detected, not named by the recipe."""
    detections = (
        (count.source, each) for count, _ in _by_source(report) for each in count.detected.split("; ") if each
    )
    lines = [f"data {source} is read as {each.removeprefix('format ')}" for source, each in detections]
    return list(dict.fromkeys(line for line in lines if not line.endswith(": the recipe names it")))


def _token_row(tokens: StageTokens) -> list[str]:
    count = tokens.count
    longest = f"{tokens.max_length:,} tokens" if tokens.max_length else "not known"
    numbers = (
        count.rows - count.too_long - count.same - count.unrendered,
        count.too_long,
        count.same,
        count.unrendered,
    )
    return [tokens.use.stage, tokens.tokenizer, longest, *(f"{number:,}" for number in numbers)]


def check_data(plan: Plan, report: CheckReport) -> JsonObject:
    """Return the report of a check as plain data for `--json`."""
    return {
        "stages": len(plan.stages),
        "sources": [
            {
                "source": use.source_name,
                "stage": use.stage,
                "field": use.field,
                "shape": count.shape,
                "train": count.train,
                "held_out": count.held_out,
                "kept": count.kept,
                "rejected": count.rejected,
                "detected": count.detected,
                "unused": list(count.unused),
            }
            for use, count in report.sources.items()
        ],
        "tokens": [
            {
                "stage": tokens.use.stage,
                "source": tokens.use.source_name,
                "tokenizer": tokens.tokenizer,
                "max_length": tokens.max_length,
                **tokens.count.model_dump(exclude={"problems", "faults", "first_too_long"}),
            }
            for tokens in report.tokens
        ],
        "notes": list(dict.fromkeys([*_notes(report), *plan.notes])),
    }


def _notes(report: CheckReport) -> Iterator[str]:
    for count, _ in _by_source(report):
        yield from count.notes
    for tokens in report.tokens:
        yield from tokens.notes
    yield from report.notes


def _by_source(report: CheckReport) -> list[tuple[SourceCount, list[str]]]:
    """Return each distinct count of a source, with the stages that share it."""
    stages: dict[SourceCount, list[str]] = {}
    for use, count in report.sources.items():
        stages.setdefault(count, []).append(use.stage)
    return [(count, list(dict.fromkeys(names))) for count, names in stages.items()]
