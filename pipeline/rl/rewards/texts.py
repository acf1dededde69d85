"""Scores of answers that are given as text: by reward models, each with its own tokenizer and chat template.

Owns the loading of a reward model for scoring, and the scores that a stopped stage had already. Knows nothing of
policies and of what the scores are for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import counted
from pipeline.evaluation.stats.estimate import rounded
from pipeline.machine.disk import keep_if_possible
from pipeline.models.load.pretrained import load_tokenizer
from pipeline.models.scoring import finite, score
from pipeline.parallel.ranks import Ranks
from pipeline.plain_data import Row
from pipeline.stage import ResolvedInput, StageContext
from pipeline.training.data.encoding import ANSWER, RowFault, encode_answers, encode_labelled
from pipeline.training.reward_models import open_scorer

AT_ONCE = 256
"""Answers between two reports of progress; what is scored by then is kept for a stage that is stopped."""

TextScorer = Callable[[Sequence[Row], Sequence[str]], list[float]]
"""Returns one score for each row with a `prompt` and the answer to it."""


class Answered(NamedTuple):
    """Prompts and an answer to each.

    Attributes:
        rows: rows with a `prompt` (messages).
        texts: answers, one for each row.
    """

    rows: Sequence[Row]
    texts: Sequence[str]


def text_scorer(ctx: StageContext, source: ResolvedInput) -> TextScorer:
    """Load a reward model, and return the function that scores answers with it.

    Raises:
        PipelineError: the model cannot be loaded; later, the chat template cannot render a prompt.
    """
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    judge = open_scorer(ctx, source, tokenizer)
    pad = tokenizer.pad_token_id
    return lambda rows, texts: finite(score(judge, encode_answers(tokenizer, rows, texts), pad), source.name)


def unreadable(ctx: StageContext, field: str, rows: Sequence[Row]) -> dict[int, RowFault]:
    """Return the prompts that a reward model of a stage's input cannot render with an answer, by index."""
    asked = [{**row, "completion": [ANSWER], "label": True} for row in rows]
    faults: dict[int, RowFault] = {}
    for source in ctx.inputs.get(field, []):
        for fault in encode_labelled(load_tokenizer(source, ctx.trust_remote_code), asked).faults:
            faults.setdefault(fault.index, replace(fault, reason=f"{fault.reason} (model {source.name})"))
    return faults


def scores_by_model(ctx: StageContext, field: str, answered: Answered) -> dict[str, list[float]]:
    """Return the scores of answers by each reward model of a stage's input, by the model's name.

    The answers are divided over the ranks; all ranks must call this with the same answers, and all get all scores.
    Scores are rounded as they are written. A stage that was stopped goes on with what it has not scored, and ends in
    the same scores.

    Args:
        ctx: the stage's context.
        field: field of the reward models.
        answered: the answers.

    Raises:
        PipelineError: a model cannot be loaded, or its chat template cannot render a prompt.
        Interrupted: the run was asked to stop.
    """
    sources = ctx.inputs.get(field, [])
    names = [source.name for source in sources]
    total = len(answered.texts) * len(sources)
    scores: dict[str, list[float]] = {}
    for place, source in enumerate(sources):
        name = source.name if names.count(source.name) == 1 else f"{source.name}.{place}"
        scores[name] = _scores(ctx, source, name, answered, (place * len(answered.texts), total))
    return scores


def _scores(
    ctx: StageContext, source: ResolvedInput, name: str, answered: Answered, progress: tuple[int, int]
) -> list[float]:
    """Return one model's scores; ``progress`` has the number of scores before them, and of all."""
    ranks, parts, (before, total) = Ranks.current(), list(_parts(answered)), progress
    files = [_file(ctx.work, source, part) for part in parts]
    kept: dict[int, list[float]] = {}
    if ranks.is_first:
        kept = {i: json.loads(file.read_text(encoding="utf-8")) for i, file in enumerate(files) if file.is_file()}
    (kept,) = ranks.all_gather([kept] if ranks.is_first else [])
    missing = [i for i in range(len(parts)) if i not in kept]
    if missing:
        ctx.phase(f"{name} scores {counted(len(answered.texts), 'answer')}")
        scorer = text_scorer(ctx, source)
    for first in range(0, len(missing), ranks.count):
        own = ranks.shard(missing[first : first + ranks.count])  # a part for each rank
        fresh = [(i, [rounded(value) for value in scorer(parts[i].rows, parts[i].texts)]) for i in own]
        for i, values in ranks.all_gather(fresh):
            kept[i] = values
            if ranks.is_first:
                files[i].parent.mkdir(exist_ok=True)
                keep_if_possible(files[i], json.dumps(values))
        ctx.progress(before + sum(map(len, kept.values())), total)
        ctx.stop_if_asked()
    return [value for i in range(len(parts)) for value in kept[i]]


def _parts(answered: Answered) -> Iterator[Answered]:
    for first in range(0, len(answered.texts), AT_ONCE):
        yield Answered(answered.rows[first : first + AT_ONCE], answered.texts[first : first + AT_ONCE])


def _file(work: Path, source: ResolvedInput, part: Answered) -> Path:
    """Return where the scores of some answers are kept: named by the model and by what it scores."""
    asked = [[row["prompt"], row.get("tools"), text] for row, text in zip(part.rows, part.texts, strict=True)]
    key = hashlib.sha256(json.dumps([source.fingerprint, asked]).encode()).hexdigest()
    return work / "scores" / f"{key}.json"
