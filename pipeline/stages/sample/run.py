"""Samples answers of checkpoints to prompts, and pairs them; `config.py` names the references."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipeline.endpoints.answering import FAILURES, EndpointAnswer, Rule, ask_endpoints, write_failures
from pipeline.endpoints.answers import EndpointPass
from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.models.generate.sampling import Sampling
from pipeline.models.load.pretrained import load_tokenizer
from pipeline.plain_data import JsonObject, ShapedRow
from pipeline.preferences.candidates import SCORES, chosen_pairs, pair_row, ranked_row
from pipeline.preferences.model_names import names_model
from pipeline.records.pair_choice import ChosenPair, PairRule
from pipeline.rl.rewards.texts import Answered, scores_by_model, unreadable
from pipeline.stage import StageContext, StageResult
from pipeline.stages.sample.config import FEWER, Config, drawn, endpoint_passes
from pipeline.training.arguments import prepare_torch
from pipeline.training.data.encoding import RowFault, encode_prompts, nothing_encoded
from pipeline.training.data.sources import set_faults_aside
from pipeline.training.sampler import FinishReason, Request, Response, Sampler, Scoring

CANDIDATES, PAIRS, GROUPS = "candidates.jsonl", "pairs.jsonl", "groups.jsonl"
"""Files of the artifact."""


@dataclass(frozen=True)
class Candidate:
    """One answer to a prompt.

    Attributes:
        text: the answer.
        model: name of the checkpoint or endpoint.
        ref: ref of the checkpoint; model and revision of an endpoint.
        temperature: sampling temperature.
        sample: number of the answer among those of its model and temperature, from 0.
        seed: seed of its random numbers.
        tokens: length, the end token or the stop string included.
        finish_reason: why it ends.
        names_model: whether it names a model.
        log_probability: sum over its tokens; None unless asked for, for an empty answer, and where a server gives none.
        also: other samples with the same text, as `model/temperature/sample`.
    """

    text: str
    model: str
    ref: str
    temperature: float
    sample: int
    seed: int
    tokens: int
    finish_reason: FinishReason
    names_model: bool
    log_probability: float | None = None
    also: tuple[str, ...] = ()


class Pass(NamedTuple):
    """One answer of one model at one temperature to every prompt.

    Attributes:
        request: what the model is asked.
        sample: number of the answer.
    """

    request: Request
    sample: int


def run(ctx: StageContext, config: Config) -> StageResult:
    """Sample, collapse equal answers, pair, and write."""
    ctx = prepare_torch(ctx)
    started = time.perf_counter()
    prompts, places = _prompts(ctx, config)
    asked = endpoint_passes(config, prompts, places, ctx.seed)
    told = ask_endpoints(ctx, asked, Rule(places, config.max_errors, FEWER, config.stop))
    passes, reused = _sampled(ctx, config, prompts, places)
    passes += [_endpoint_candidates(one, own) for one, own in zip(asked, told.by_pass, strict=True)]
    answers = [[candidate for one in passes if (candidate := one[i]) is not None] for i in range(len(prompts))]
    candidates = [_collapsed(own) for own in answers]
    rows = _rows(prompts, places, candidates)
    if config.reward:
        _add_scores(ctx, rows)
    if not ctx.is_first:
        return StageResult()
    pairs = [chosen_pairs(row, config.rule, ctx.seed, place) for row, place in zip(rows, places, strict=True)]
    _write(ctx.out, rows, pairs)
    if told.failures:
        write_failures(ctx.out / FAILURES, told.failures)
    if config.pair_choice == "rank":
        _write_groups(ctx, config.rule, rows)
    flat = [candidate for own in candidates for candidate in own]
    named = sum(candidate.names_model for candidate in flat)
    if named:
        names = agreeing(named, "names a model and is", "name a model and are")
        ctx.note(f"{counted(named, 'answer')} {names} in no pair: the comparison is blind")
    alone = sum(not own for own in pairs)
    if alone:
        lack = "fewer than three" if config.pair_choice == "rank" else "no two"
        ctx.note(f"{counted(alone, 'prompt')} {agreeing(alone, 'has', 'have')} {lack} different answers to compare")
    count = sum(map(len, pairs))
    if not count:
        raise PipelineError(Problem("no prompt has enough different answers", remedy="raise n, or the temperatures"))
    tokens = sum(one.tokens for own in answers for one in own)
    samples = sum(map(len, answers))
    is_reused = reused or told.cached
    return StageResult(
        metrics={
            "candidates": float(len(flat)),
            "pairs": float(count),
            "equal": float(samples - len(flat)),
            "names_model": float(named),
            "mean_tokens": tokens / samples,
            "ended": sum(one.finish_reason in ("eos", "stop") for own in answers for one in own) / samples,
            **({"errors": float(len(told.failures))} if config.endpoints else {}),
        },
        tokens=tokens,
        trainer_seconds=0.0 if is_reused else time.perf_counter() - started,  # reused tokens took no time to sample
        rows={"prompts": len(prompts), "pairs": count},
        summary=(
            f"{counted(count, 'pair')} of {counted(len(flat), 'different answer')} to {counted(len(prompts), 'prompt')}"
        ),
    )


def _prompts(ctx: StageContext, config: Config) -> tuple[list[ShapedRow], list[int]]:
    """Return the prompts that every model and reward model can render, and their places in the data.

    Raises:
        PipelineError: there is no prompt, or one cannot be rendered, and the source stops at bad rows.
    """
    rows = ctx.load_rows("data")
    prompts = [*rows.train, *rows.held_out]
    if not prompts:
        raise PipelineError(Problem("no prompts", "at least one", "check the data source"))
    faults: tuple[dict[int, RowFault], dict[int, RowFault]] = {}, {}
    for source in ctx.inputs.get("models", []):
        tokenizer = load_tokenizer(source, ctx.trust_remote_code)
        for side, own in zip((rows.train, rows.held_out), faults, strict=True):
            for fault in encode_prompts(tokenizer, side).faults:
                own.setdefault(fault.index, replace(fault, reason=f"{fault.reason} (model {source.name})"))
    for side, own in zip((rows.train, rows.held_out), faults, strict=True):
        for index, fault in unreadable(ctx, "reward", side).items():
            own.setdefault(index, fault)
    train, held_out = (nothing_encoded()._replace(faults=[own[i] for i in sorted(own)]) for own in faults)
    set_faults_aside(ctx, "data", rows, train, held_out)
    faulty = {*faults[0], *(place + len(rows.train) for place in faults[1])}
    places = [place for place in range(len(prompts)) if place not in faulty]
    places = drawn(places, config.limit, ctx.seed)
    return [prompts[place] for place in places], places


def _sampled(
    ctx: StageContext, config: Config, prompts: Sequence[ShapedRow], places: Sequence[int]
) -> tuple[list[list[Candidate | None]], int]:
    """Return the checkpoints' answers of each pass, sampled on all ranks or reused, and the number of reused ones."""
    if not config.models:
        return [], 0
    passes = list(_passes(ctx, config, prompts, places))
    sampler = Sampler(ctx, [one.request for one in passes])
    sampled: list[list[Candidate | None]] = []
    for first in range(0, len(config.models), ctx.ranks):  # about one model for each rank, so that it is loaded once
        now = ctx.inputs["models"][first : first + ctx.ranks]
        own = [one for one in passes if one.request.source in now]
        responses = sampler.answer([one.request for one in own])
        sums: list[list[float | None]] = [[None] * len(prompts) for _ in own]
        if config.log_probabilities:
            scorings = [_scoring(one.request, answers) for one, answers in zip(own, responses, strict=True)]
            values = sampler.logprobs(scorings)
            sums = [[float(sum(row)) if row else None for row in rows] for rows in values]
        sampled += [_candidates(one, said, some) for one, said, some in zip(own, responses, sums, strict=True)]
    sampler.report()
    return sampled, sampler.reused


def _scoring(request: Request, answers: Sequence[Response]) -> Scoring:
    ids = [answer.ids for answer in answers]
    return Scoring(request.source, request.tokenizer, request.prompts, ids, request.sampling.temperature)


def _passes(ctx: StageContext, config: Config, prompts: Sequence[ShapedRow], places: Sequence[int]) -> Iterator[Pass]:
    """Yield the passes of each model, each with a seed of its own: two models do not share their random numbers."""
    for source in ctx.inputs["models"]:
        tokenizer = load_tokenizer(source, ctx.trust_remote_code)
        encoded = [row["prompt_ids"] for row in encode_prompts(tokenizer, prompts).rows]
        for temperature in config.temperatures:
            sampling = Sampling(temperature=temperature, top_k=config.top_k, top_p=config.top_p)
            for sample in range(config.n):
                text = f"{ctx.seed}/{source.fingerprint}/{temperature}/{sample}"
                seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
                stop = tuple(config.stop)
                yield Pass(
                    Request(
                        source, tokenizer, encoded, places, sampling, config.max_new_tokens, seed, stop, config.engine
                    ),
                    sample,
                )


def _candidates(one: Pass, answers: Sequence[Response], sums: Sequence[float | None]) -> list[Candidate | None]:
    """Return the answers of a pass as candidates; ``sums`` has their log-probabilities."""
    source = one.request.source
    version = source.manifest.get("version")
    return [
        Candidate(
            text=answer.text,
            model=source.name,
            ref=f"{source.name}@v{version}" if version else source.ref,
            temperature=one.request.sampling.temperature,
            sample=one.sample,
            seed=one.request.seed,
            tokens=len(answer.ids),
            finish_reason=answer.finish_reason,
            names_model=names_model(answer.text),
            log_probability=log_probability,
        )
        for answer, log_probability in zip(answers, sums, strict=True)
    ]


def _endpoint_candidates(one: EndpointPass, answers: Sequence[EndpointAnswer | None]) -> list[Candidate | None]:
    """Return the answers of an endpoint as candidates; None where it failed."""
    return [
        answer
        and Candidate(
            text=answer.text,
            model=one.name,
            ref=one.endpoint.ref,
            temperature=one.sampling.temperature,
            sample=one.sampling.sample,
            seed=answer.seed,
            tokens=answer.tokens,
            finish_reason=answer.finish_reason,
            names_model=names_model(answer.text),
            log_probability=answer.log_probability,
        )
        for answer in answers
    ]


def _collapsed(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the first of each group of answers that are equal but for white space, with the others' origins."""
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(" ".join(candidate.text.split()), []).append(candidate)
    return [
        Candidate(**{**asdict(first), "also": tuple(f"{one.model}/{one.temperature:g}/{one.sample}" for one in others)})
        for first, *others in groups.values()
    ]


def _rows(
    prompts: Sequence[ShapedRow], places: Sequence[int], candidates: Sequence[Sequence[Candidate]]
) -> list[JsonObject]:
    """Return a row for each prompt, with its candidates."""
    return [
        {**prompt, "row": place, "candidates": [asdict(candidate) for candidate in own]}
        for prompt, place, own in zip(prompts, places, candidates, strict=True)
    ]


def _add_scores(ctx: StageContext, rows: Sequence[JsonObject]) -> None:
    """Add to each row what each reward model says of its candidates."""
    answers = [(row, candidate["text"]) for row in rows for candidate in row["candidates"]]
    asked, texts = zip(*answers, strict=True)
    scores = {name: iter(own) for name, own in scores_by_model(ctx, "reward", Answered(asked, texts)).items()}
    for row in rows:
        row[SCORES] = {name: [next(own) for _ in row["candidates"]] for name, own in scores.items()}


def _write_groups(ctx: StageContext, rule: PairRule, rows: Sequence[JsonObject]) -> None:
    """Write the answers to rank."""
    groups = [ranked_row(row, rule, ctx.seed, row["row"]) for row in rows]
    with (ctx.out / GROUPS).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(group, ensure_ascii=False) + "\n" for group in groups if group is not None)


def _write(out: Path, rows: Sequence[JsonObject], pairs: Sequence[Sequence[ChosenPair]]) -> None:
    with (out / CANDIDATES).open("w", encoding="utf-8") as all_file, (out / PAIRS).open("w", encoding="utf-8") as file:
        for row, chosen in zip(rows, pairs, strict=True):
            named = [pair._asdict() for pair in chosen]
            all_file.write(json.dumps({**row, "pairs": named}, ensure_ascii=False) + "\n")
            file.writelines(json.dumps(pair_row(row, pair), ensure_ascii=False) + "\n" for pair in chosen)
