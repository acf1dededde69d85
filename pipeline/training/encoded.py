"""A stage's data as tokens: read, encode with a word of progress, and say what became of every row.

Owns the seam between a data source and `pipeline/training/encode.py`: faults stop the stage with file and line, or
join the source's rejects. Knows nothing of objectives. Torch-free.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import PipelineError, Problem
from pipeline.stage import Rejected, Rows, StageContext
from pipeline.training.encode import EncodedRows

LISTED = 20
"""Faults that are listed one by one."""

LEFT_OUT = "left out"
"""What happens to rows that are too long, unless they are cut."""

FEW = 3
"""So many are listed though all rows have one fault."""


@dataclass(frozen=True)
class EncodedSource:
    """The rows of a source as tokens.

    Attributes:
        train: rows to learn from.
        held_out: rows split off.
        counts: of rows to learn from and held-out ones that came, and what became of those to learn from.
    """

    train: EncodedRows
    held_out: EncodedRows
    counts: dict[str, int]


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
    """Encode all rows of a source.

    Args:
        ctx: of the stage.
        field: the configuration's field that names the source.
        rows: of the source.
        encode: given rows, ``max_length`` and ``progress``, returns them encoded.
        what: the rows are, for messages.
        max_length: of a row in tokens, None without a limit.
        fate: of rows that are longer, for messages.

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
        ctx.note(f"{spelled} of {total} {what} spell a control token in their text: there it stays text")
    for part, given, whose in ((train, rows.train, what), (held_out, rows.held_out, f"held-out {what}")):
        if part.too_long:
            ctx.note(
                f"{len(part.too_long)} of {len(given)} {whose} are longer than {max_length} tokens and were {fate}"
            )
        if part.same:
            ctx.note(f"{len(part.same)} of {len(given)} {whose} have two sides of the same tokens and were left out")
        told = {*part.kept, *part.same, *(fault.index for fault in part.faults)}
        lost = len({*range(len(given))} - told - set(part.too_long if fate == LEFT_OUT else ()))
        if lost:
            ctx.note(f"{lost} of {len(given)} {whose} have nothing left to learn and were left out")
    split = len(train.kept) - len(set(train.kept))
    if split:
        ctx.note(
            f"{len(set(train.kept)):,} {what} became {len(train.kept):,}: the chat template writes earlier turns anew, "
            "so such answers are trained each as it is when it is generated"
        )
    return EncodedSource(train, held_out, _counts(rows, train))


def set_faults_aside(ctx: StageContext, field: str, rows: Rows, train: EncodedRows, held_out: EncodedRows) -> None:
    """Put rows that cannot be encoded with the source's rejects.

    Raises:
        PipelineError: the source stops at bad rows, or nothing else is left.
    """
    first = len(rows.train)
    faults = [*train.faults, *(replace(fault, index=first + fault.index) for fault in held_out.faults)]
    if not faults:
        return
    everything = [*rows.train, *rows.held_out]
    found = [Rejected(rows.places[fault.index], fault.reason, everything[fault.index]) for fault in faults]
    can_skip = len(found) < len(everything)
    if can_skip and ctx.set_aside is not None and ctx.set_aside(field, found):
        return
    raise PipelineError(*_problems(ctx, found, len(everything), can_skip=can_skip))


def _problems(ctx: StageContext, found: Sequence[Rejected], total: int, *, can_skip: bool) -> list[Problem]:
    remedy = "mend the data or the template"
    if can_skip:
        remedy += ", or set `on_bad_row: skip` of the data source to leave such rows out and keep them in a file"
    if len(found) == 1:
        return [Problem(f"row {found[0].reason}", "", remedy, found[0].where, ctx.name)]
    if len(found) == total > FEW and len({one.reason for one in found}) == 1:  # not a matter of a row
        alike = Problem(f"all {total} rows cannot be rendered for this reason", "", remedy, stage=ctx.name)
        return [Problem(f"row {found[0].reason}", where=found[0].where, stage=ctx.name), alike]
    problems = [Problem(f"row {one.reason}", where=one.where, stage=ctx.name) for one in found[:LISTED]]
    more = f" (the first {LISTED} are listed)" if len(found) > LISTED else ""
    return [*problems, Problem(f"{len(found)} of {total} rows cannot be rendered{more}", "", remedy, stage=ctx.name)]


def _counts(rows: Rows, train: EncodedRows) -> dict[str, int]:
    counts: dict[str, Any] = {
        "train": len(rows.train),
        "held_out": len(rows.held_out),
        "same": len(train.same),
        "unrendered": len(train.faults),
    }
    return {name: count for name, count in counts.items() if count or name in ("train", "held_out")}
