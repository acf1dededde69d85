"""Verdicts of a reward model or of a user's function, which score each response alone or compare two."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.errors import PipelineError, Problem, counted
from pipeline.evaluation.judges.measures import JudgedPair
from pipeline.evaluation.judges.pairs import Pair
from pipeline.evaluation.judges.verdicts import PREFERRED, bradley_terry, joined, verdict_of
from pipeline.evaluation.judging import judge_warning
from pipeline.evaluation.stats.estimate import rounded
from pipeline.models.load.pretrained import load_tokenizer
from pipeline.models.prompted_response import PromptedResponse
from pipeline.models.scoring import finite, score
from pipeline.plain_data import ShapedRow
from pipeline.records.shapes.turns import Turn
from pipeline.rl.rewards.functions import call_reward
from pipeline.stage import StageContext
from pipeline.stages.judge.config import Config
from pipeline.training.arguments import prepare_torch
from pipeline.training.data.encoding import encode_labelled
from pipeline.training.reward_models import open_scorer

Response = tuple[ShapedRow, Sequence[Turn]]
"""A row with its prompt, and a response."""


def judge_by_scores(ctx: StageContext, config: Config, pairs: Sequence[Pair]) -> list[JudgedPair]:
    """Judge pairs by the difference of their scores, as a probability by Bradley and Terry.

    Scores are rounded before they are compared, so that rounding errors make no difference.
    """
    index: dict[tuple[int, str], int] = {}
    responses: list[Response] = []
    places = []
    for pair in pairs:
        for turns in (pair.first, pair.second):
            place = index.setdefault((pair.place, str(turns)), len(responses))
            if place == len(responses):
                responses.append((pair.row, turns))
            places.append(place)
    ctx.phase(f"scoring {counted(len(responses), 'response')}")
    if config.function is not None:
        rows = [row for row, _ in responses]
        scores = call_reward(
            _function(ctx, config.function), config.function, rows, [list(turns) for _, turns in responses]
        )
    else:
        scores = _reward_scores(ctx, responses)
    values = [rounded(value) for value in scores]
    judged = []
    for pair, first, second in zip(pairs, places[::2], places[1::2], strict=True):
        if pair.is_equal:
            judged.append(JudgedPair(pair, "equal"))
            continue
        probability = bradley_terry(values[first] - values[second])
        outcome = PREFERRED[verdict_of(probability).choice]
        judged.append(JudgedPair(pair, outcome, probability, scores=(values[first], values[second])))
    return judged


def judge_by_comparing(ctx: StageContext, config: Config, pairs: Sequence[Pair]) -> list[JudgedPair]:
    """Judge pairs by a function that compares two responses; it is called for both orders.

    Raises:
        PipelineError: it raises, or returns anything but one number between 0 and 1 for each pair.
    """
    assert config.function is not None, "the configuration names a function"
    function, asked = _function(ctx, config.function), [pair for pair in pairs if not pair.is_equal]
    ctx.phase(f"comparing {counted(len(asked), 'pair')}")
    rows = [pair.row for pair in asked]
    both = []
    for order in (1, -1):
        completions = [[list(turns) for turns in (pair.first, pair.second)[::order]] for pair in asked]
        values = call_reward(function, config.function, rows, completions) if asked else []
        wrong = next((value for value in values if not 0 <= value <= 1), None)
        if wrong is not None:
            statement = f"function {config.function} returned {wrong:g}"
            remedy = "return a probability, or leave `pairwise` out if it scores one response"
            raise PipelineError(Problem(statement, "the probability that the first response is better", remedy))
        both.append([verdict_of(rounded(value)) for value in values])
    verdicts = iter(zip(*both, strict=True))
    judged = []
    for pair in pairs:
        if pair.is_equal:
            judged.append(JudgedPair(pair, "equal"))
            continue
        orders = next(verdicts)
        outcome, probability = joined(*orders)
        judged.append(JudgedPair(pair, outcome, probability, orders))
    return judged


def _function(ctx: StageContext, spec: str) -> Callable[..., object]:
    if ctx.functions is None:
        raise PipelineError(Problem(f"no way to load {spec}", stage=ctx.name))
    return ctx.functions(spec)


def _reward_scores(ctx: StageContext, responses: Sequence[Response]) -> list[float]:
    """Return a reward model's scores of responses, rendered with its own chat template.

    Raises:
        PipelineError: the chat template cannot render one of them.
    """
    ctx = prepare_torch(ctx)
    source = ctx.input("reward")
    consequence = "Its scores decide which response is preferred here: check a sample of the pairs by hand."
    warning = judge_warning(source.name, source.manifest.get("metrics", {}), judges=True, consequence=consequence)
    if warning:
        ctx.note(f"warning: {warning}")
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    encoded = encode_labelled(
        tokenizer, [{**row, "completion": list(turns), "label": True} for row, turns in responses]
    )
    if encoded.faults:
        fault = encoded.faults[0]
        remedy = "leave its row out of the data, or mend the chat template of the reward model"
        raise PipelineError(Problem(f"a response of the data {fault.reason}", "", remedy, stage=ctx.name))
    model = open_scorer(ctx, source, tokenizer)
    answers = [PromptedResponse.of(row["prompt_ids"], row["completion_ids"]) for row in encoded.rows]
    return finite(score(model, answers, tokenizer.pad_token_id), source.name)
