"""Scores of answers that are given as text: by reward models, each with its own tokenizer and chat template.

Owns the loading of a reward model for scoring, and the scores that a stopped stage had already. Knows nothing of
policies and of what the scores are for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import counted
from pipeline.evaluation.stats.estimate import rounded
from pipeline.machine.disk import keep_if_possible
from pipeline.models.load.pretrained import load_reward_model, load_tokenizer
from pipeline.models.scoring import score
from pipeline.parallel.ranks import Ranks
from pipeline.plain_data import Row
from pipeline.stage import ResolvedInput, StageContext
from pipeline.training.arguments import frozen_weights
from pipeline.training.data.encoding import ANSWER, RowFault, encode_answers, encode_labelled
from pipeline.training.fitting import fit

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
    device, weights = frozen_weights(ctx)
    judge = load_reward_model(source, tokenizer, seed=ctx.seed, trust_remote_code=ctx.trust_remote_code, **weights)
    fit(ctx, judge, tokenizer, weights)
    judge.to(device)
    return lambda rows, texts: score(judge, encode_answers(tokenizer, rows, texts), tokenizer.pad_token_id)


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

    Scores are rounded as they are written. A stage that was stopped goes on with what it has not scored, and ends in
    the same scores. Every rank calls it with the same answers, scores a share of them, and gets all scores.

    Args:
        ctx: the stage's context.
        field: field of the reward models.
        answered: the answers.

    Raises:
        PipelineError: a model cannot be loaded, or its chat template cannot render a prompt.
        Interrupted: the run was asked to stop.
    """
    sources, ranks = ctx.inputs.get(field, []), Ranks.current()
    names = [source.name for source in sources]
    total, done = len(answered.texts) * len(sources), 0
    scores: dict[str, list[float]] = {}
    for place, source in enumerate(sources):
        name = source.name if names.count(source.name) == 1 else f"{source.name}.{place}"
        ctx.phase(f"{name} scores {counted(len(answered.texts), 'answer')}")
        scorer = cache(partial(text_scorer, ctx, source))
        parts, own = list(_parts(answered)), list[float]()
        for first in range(0, len(parts), ranks.count):
            share = parts[first + ranks.index : first + ranks.index + 1]
            scored: list[list[float]] = ranks.all_gather([_scored(ctx, source, part, scorer) for part in share])
            for values in scored:
                own += values
                done += len(values)
            ctx.progress(done, total)
            ctx.stop_if_asked()
        scores[name] = own
    return scores


def _scored(ctx: StageContext, source: ResolvedInput, part: Answered, scorer: Callable[[], TextScorer]) -> list[float]:
    """Return the scores of a part: those of an earlier attempt, or new ones, which are kept."""
    file = _file(ctx.work, source, part)
    if file.is_file():
        kept: list[float] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    values = [rounded(value) for value in scorer()(part.rows, part.texts)]
    file.parent.mkdir(exist_ok=True)
    keep_if_possible(file, json.dumps(values))
    return values


def _parts(answered: Answered) -> Iterator[Answered]:
    for first in range(0, len(answered.texts), AT_ONCE):
        yield Answered(answered.rows[first : first + AT_ONCE], answered.texts[first : first + AT_ONCE])


def _file(work: Path, source: ResolvedInput, part: Answered) -> Path:
    """Return where the scores of some answers are kept: named by the model and by what it scores."""
    asked = [[row["prompt"], row.get("tools"), text] for row, text in zip(part.rows, part.texts, strict=True)]
    key = hashlib.sha256(json.dumps([source.fingerprint, asked]).encode()).hexdigest()
    return work / "scores" / f"{key}.json"
