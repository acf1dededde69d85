"""Encodes a data source for a stage: reports progress, notes what became of every row, and handles faulty rows.

Connects a data source with `pipeline/training/data/encoding.py`: a faulty row stops the stage with file and line, or
joins the source's rejected rows. Knows nothing of objectives. Torch-free.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipeline.errors import PipelineError, Problem, agreeing
from pipeline.plain_data import Row
from pipeline.stage import Rejected, Rows, StageContext
from pipeline.training.data.encoding import EncodedRow, EncodedRows

LISTED = 20
"""Most faults that are listed one by one."""

LEFT_OUT = "left out"
"""What happens to rows that are too long, unless they are cut."""

FEW = 3
"""Up to this many faults are listed one by one, even if all rows have the same one."""


@dataclass(frozen=True)
class EncodedSource:
    """The encoded rows of a data source.

    Attributes:
        train: training rows.
        held_out: held-out rows.
        counts: numbers of training and held-out rows read, and what became of the training rows.
    """

    train: EncodedRows
    held_out: EncodedRows
    counts: dict[str, int]


class EncodedData(NamedTuple):
    """Encoded rows.

    Attributes:
        train: training rows.
        held_out: held-out rows.
        counts: numbers of rows for the manifest: read, and left out by reason.
    """

    train: list[EncodedRow]
    held_out: list[EncodedRow]
    counts: dict[str, int]


class TrainerRows(NamedTuple):
    """Rows as a trainer reads them, of whatever columns.

    Attributes:
        train: training rows.
        held_out: held-out rows.
    """

    train: Sequence[Row]
    held_out: Sequence[Row]


def encode_source(
    ctx: StageContext,
    field: str,
    rows: Rows,
    encode: Callable[..., EncodedRows],
    *,
    what: str = "rows",
    max_length: int | None = None,
    fate: str = LEFT_OUT,
) -> EncodedSource:
    """Encode all rows of a data source.

    Args:
        ctx: the stage's context.
        field: field of the stage's configuration that names the source.
        rows: rows of the source.
        encode: encodes rows, given ``max_length`` and ``progress``.
        what: name of the rows, for messages.
        max_length: longest row in tokens; None without a limit.
        fate: what happens to longer rows, for messages.

    Raises:
        PipelineError: a row cannot be encoded, and the source stops at bad rows; or there is no chat template.
    """
    ctx.phase("tokenizing")
    total = len(rows.train) + len(rows.held_out)
    encode = functools.partial(encode, max_length=max_length)
    train = encode(rows.train, progress=lambda done: ctx.progress(done, total))
    held_out = encode(rows.held_out, progress=lambda done: ctx.progress(len(rows.train) + done, total))
    set_faults_aside(ctx, field, rows, train, held_out)
    spelled = len(train.spelled) + len(held_out.spelled)
    if spelled:
        spell, their = agreeing(spelled, "spells", "spell"), agreeing(spelled, "its", "their")
        ctx.note(f"{spelled} of {total} {what} {spell} a control token in {their} text: there it stays text")
    for part, given, whose in ((train, rows.train, what), (held_out, rows.held_out, f"held-out {what}")):
        if part.too_long:
            longer = agreeing(len(part.too_long), "is longer", "are longer")
            were = agreeing(len(part.too_long), "was", "were")
            ctx.note(
                f"{len(part.too_long)} of {len(given)} {whose} {longer} than {max_length} tokens and {were} {fate}"
            )
        if part.same:
            have, were = agreeing(len(part.same), "has", "have"), agreeing(len(part.same), "was", "were")
            ctx.note(
                f"{len(part.same)} of {len(given)} {whose} {have} two sides of the same tokens and {were} left out"
            )
        told = {*part.kept, *part.same, *(fault.index for fault in part.faults)}
        lost = len({*range(len(given))} - told - set(part.too_long if fate == LEFT_OUT else ()))
        if lost:
            have, were = agreeing(lost, "has", "have"), agreeing(lost, "was", "were")
            ctx.note(f"{lost} of {len(given)} {whose} {have} nothing left to learn and {were} left out")
    split = len(train.kept) - len(set(train.kept))
    if split:
        ctx.note(
            f"{len(set(train.kept)):,} {what} became {len(train.kept):,}: the chat template writes earlier turns anew, "
            "so such answers are trained each as it is when it is generated"
        )
    return EncodedSource(train, held_out, _counts(rows, train))


def set_faults_aside(ctx: StageContext, field: str, rows: Rows, train: EncodedRows, held_out: EncodedRows) -> None:
    """Add rows that cannot be encoded to the source's rejected rows.

    Raises:
        PipelineError: the source stops at bad rows, or no other row is left.
    """
    first = len(rows.train)
    faults = [*train.faults, *(replace(fault, index=first + fault.index) for fault in held_out.faults)]
    if not faults:
        return
    all_rows = [*rows.train, *rows.held_out]
    rejected = [Rejected(rows.places[fault.index], fault.reason, all_rows[fault.index]) for fault in faults]
    can_skip = len(rejected) < len(all_rows)
    if can_skip and ctx.set_aside is not None and ctx.set_aside(field, rejected):
        return
    raise PipelineError(*_problems(ctx, rejected, len(all_rows), can_skip=can_skip))


def _problems(ctx: StageContext, rejected: Sequence[Rejected], total: int, *, can_skip: bool) -> list[Problem]:
    remedy = "mend the data or the template"
    if can_skip:
        remedy += ", or set `on_bad_row: skip` of the data source to leave such rows out and keep them in a file"
    if len(rejected) == 1:
        return [Problem(f"row {rejected[0].reason}", "", remedy, rejected[0].where, ctx.name)]
    if len(rejected) == total > FEW and len({one.reason for one in rejected}) == 1:  # the cause is not a single row
        alike = Problem(f"all {total} rows cannot be rendered for this reason", "", remedy, stage=ctx.name)
        return [Problem(f"row {rejected[0].reason}", where=rejected[0].where, stage=ctx.name), alike]
    problems = [Problem(f"row {one.reason}", where=one.where, stage=ctx.name) for one in rejected[:LISTED]]
    more = f" (the first {LISTED} are listed)" if len(rejected) > LISTED else ""
    return [*problems, Problem(f"{len(rejected)} of {total} rows cannot be rendered{more}", "", remedy, stage=ctx.name)]


def _counts(rows: Rows, train: EncodedRows) -> dict[str, int]:
    counts: dict[str, int] = {
        "train": len(rows.train),
        "held_out": len(rows.held_out),
        "same": len(train.same),
        "unrendered": len(train.faults),
    }
    return {name: count for name, count in counts.items() if count or name in ("train", "held_out")}
