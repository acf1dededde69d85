"""Samples answers of checkpoints to prompts, and pairs them; `config.py` names the references."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.machine.disk import keep_if_possible
from pipeline.models.generate.sampling import Sampling
from pipeline.models.load.pretrained import load_causal_lm, load_tokenizer
from pipeline.plain_data import JsonObject, ShapedRow
from pipeline.preferences.model_names import names_model
from pipeline.stage import ResolvedInput, StageContext, StageResult
from pipeline.stages.sample.config import Config
from pipeline.training.arguments import frozen_weights, prepare_torch
from pipeline.training.data.encoding import RowFault, encode_prompts, nothing_encoded
from pipeline.training.data.sources import set_faults_aside
from pipeline.training.fitting import fit
from pipeline.training.sampler import FinishReason, Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CANDIDATES, PAIRS = "candidates.jsonl", "pairs.jsonl"
"""Files of the artifact."""


@dataclass(frozen=True)
class Candidate:
    """One answer to a prompt.

    Attributes:
        text: the answer.
        model: name of the checkpoint.
        ref: ref of the checkpoint.
        temperature: sampling temperature.
        sample: number of the answer among those of its model and temperature, from 0.
        seed: seed of its random numbers.
        tokens: length, the end token included.
        finish_reason: why it ends.
        names_model: whether it names a model.
        log_probability: sum over its tokens; None unless asked for, and for an empty answer.
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
        model: the checkpoint.
        temperature: sampling temperature.
        sample: number of the answer.
        seed: seed of its random numbers.
    """

    model: ResolvedInput
    temperature: float
    sample: int
    seed: int


def run(ctx: StageContext, config: Config) -> StageResult:
    """Sample, collapse equal answers, pair, and write."""
    ctx = prepare_torch(ctx)
    started = time.perf_counter()
    prompts, places = _prompts(ctx, config)
    answers: list[list[Candidate]] = [[] for _ in prompts]
    for sampled in _sampled(ctx, config, prompts, places):
        for own, candidate in zip(answers, sampled, strict=True):
            own.append(candidate)
    candidates = [_collapsed(own) for own in answers]
    pairs = [
        _pairs(own, config.pairs_per_prompt, ctx.seed, place) for own, place in zip(candidates, places, strict=True)
    ]
    _write(ctx.out, prompts, places, candidates, pairs)
    flat = [candidate for own in candidates for candidate in own]
    named = sum(candidate.names_model for candidate in flat)
    if named:
        names = agreeing(named, "names a model and is", "name a model and are")
        ctx.note(f"{counted(named, 'answer')} {names} in no pair: the comparison is blind")
    alone = sum(not own for own in pairs)
    if alone:
        ctx.note(f"{counted(alone, 'prompt')} {agreeing(alone, 'has', 'have')} no two different answers to compare")
    count = sum(map(len, pairs))
    if not count:
        raise PipelineError(Problem("no prompt has two different answers", remedy="raise n, or the temperatures"))
    tokens = sum(one.tokens for own in answers for one in own)
    samples = len(prompts) * len(answers[0])
    return StageResult(
        metrics={
            "candidates": float(len(flat)),
            "pairs": float(count),
            "equal": float(samples - len(flat)),
            "names_model": float(named),
            "mean_tokens": tokens / samples,
            "ended": sum(one.finish_reason in ("eos", "stop") for own in answers for one in own) / samples,
        },
        tokens=tokens,
        trainer_seconds=time.perf_counter() - started,
        rows={"prompts": len(prompts), "pairs": count},
        summary=(
            f"{counted(count, 'pair')} of {counted(len(flat), 'different answer')} to {counted(len(prompts), 'prompt')}"
        ),
    )


def _prompts(ctx: StageContext, config: Config) -> tuple[list[ShapedRow], list[int]]:
    """Return the prompts that every model can render, and their places in the data.

    Raises:
        PipelineError: there is no prompt, or one cannot be rendered, and the source stops at bad rows.
    """
    rows = ctx.load_rows("data")
    prompts = [*rows.train, *rows.held_out]
    if not prompts:
        raise PipelineError(Problem("no prompts", "at least one", "check the data source"))
    faults: tuple[dict[int, RowFault], dict[int, RowFault]] = {}, {}
    for source in ctx.inputs["models"]:
        tokenizer = load_tokenizer(source, ctx.trust_remote_code)
        for side, own in zip((rows.train, rows.held_out), faults, strict=True):
            for fault in encode_prompts(tokenizer, side).faults:
                own.setdefault(fault.index, replace(fault, reason=f"{fault.reason} (model {source.name})"))
    train, held_out = (nothing_encoded()._replace(faults=[own[i] for i in sorted(own)]) for own in faults)
    set_faults_aside(ctx, "data", rows, train, held_out)
    faulty = {*faults[0], *(place + len(rows.train) for place in faults[1])}
    places = [place for place in range(len(prompts)) if place not in faulty]
    if config.limit is not None and config.limit < len(places):
        places = sorted(random.Random(ctx.seed).sample(places, config.limit))
    return [prompts[place] for place in places], places


def _sampled(
    ctx: StageContext, config: Config, prompts: Sequence[ShapedRow], places: Sequence[int]
) -> Iterator[list[Candidate]]:
    """Yield the answers of each pass; a pass that an earlier attempt finished is read from the work folder."""
    device, weights = frozen_weights(ctx)
    passes_per_model = len(config.temperatures) * config.n
    total, done = len(prompts) * passes_per_model * len(config.models), 0
    for name, source in zip(config.models, ctx.inputs["models"], strict=True):
        tokenizer = load_tokenizer(source, ctx.trust_remote_code)
        encoded = [row["prompt_ids"] for row in encode_prompts(tokenizer, prompts).rows]
        model: PreTrainedModel | None = None
        for one in _passes(ctx, config, source):
            file = ctx.work / "passes" / f"{_key(one, places)}.json"
            kept = _read(file)
            if kept is None:
                if model is None:
                    times = counted(passes_per_model, "time")
                    ctx.phase(f"{name} answers {counted(len(prompts), 'prompt')}, {times} each")
                    model = load_causal_lm(source, trust_remote_code=ctx.trust_remote_code, **weights)
                    fit(ctx, model, tokenizer, weights)
                    model = model.to(device)
                kept = _answer(ctx, config, one, (model, tokenizer), encoded, places, (done, total))
                file.parent.mkdir(exist_ok=True)
                keep_if_possible(file, json.dumps([asdict(candidate) for candidate in kept]))
            done += len(prompts)
            ctx.progress(done, total)
            ctx.stop_if_asked()
            yield kept


def _passes(ctx: StageContext, config: Config, source: ResolvedInput) -> Iterator[Pass]:
    """Yield the passes of a model, each with a seed of its own: two models do not share their random numbers."""
    for temperature in config.temperatures:
        for sample in range(config.n):
            text = f"{ctx.seed}/{source.fingerprint}/{temperature}/{sample}"
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
            yield Pass(source, temperature, sample, seed)


def _key(one: Pass, places: Sequence[int]) -> str:
    return hashlib.sha256(repr((one.model.fingerprint, one.temperature, one.sample, list(places))).encode()).hexdigest()


def _read(file: Path) -> list[Candidate] | None:
    """Return the answers of a pass that was finished before; None if there are none."""
    if not file.is_file():
        return None
    return [Candidate(**{**row, "also": tuple(row["also"])}) for row in json.loads(file.read_text(encoding="utf-8"))]


def _answer(
    ctx: StageContext,
    config: Config,
    one: Pass,
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    prompts: Sequence[list[int]],
    places: Sequence[int],
    progress: tuple[int, int],
) -> list[Candidate]:
    """Return the answers of one pass; ``progress`` has the answers before it, and of all passes."""
    before, total = progress

    def answered(done: int, _: int) -> None:
        ctx.progress(before + done, total)
        ctx.stop_if_asked()

    sampling = Sampling(temperature=one.temperature, top_k=config.top_k, top_p=config.top_p)
    sampler = Sampler(*loaded, config.max_new_tokens, sampling, one.seed, config.stop)
    responses = sampler.sample(prompts, places, on_progress=answered, say=ctx.note)
    sums: dict[int, float] = {}
    if config.log_probabilities:
        spoken = [i for i, response in enumerate(responses) if response.ids]
        values = sampler.log_probabilities([prompts[i] for i in spoken], [responses[i].ids for i in spoken])
        sums = {i: float(sum(row)) for i, row in zip(spoken, values, strict=True)}
    version = one.model.manifest.get("version")
    return [
        Candidate(
            text=response.text,
            model=one.model.name,
            ref=f"{one.model.name}@v{version}" if version else one.model.ref,
            temperature=one.temperature,
            sample=one.sample,
            seed=one.seed,
            tokens=len(response.ids),
            finish_reason=response.finish_reason,
            names_model=names_model(response.text),
            log_probability=sums.get(i),
        )
        for i, response in enumerate(responses)
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


def _pairs(candidates: Sequence[Candidate], wanted: int, seed: int, place: int) -> list[tuple[int, int, float]]:
    """Return pairs of a prompt's answers, as their places, and the probability with which each was chosen.

    Which of the two stands first is random. Answers that are empty or name a model are in no pair.
    """
    usable = [i for i, candidate in enumerate(candidates) if candidate.text and not candidate.names_model]
    possible = list(combinations(usable, 2))
    rng = random.Random(f"{seed}/{place}")
    chosen = possible if not wanted or wanted >= len(possible) else rng.sample(possible, wanted)
    propensity = len(chosen) / len(possible) if possible else 0.0
    return [(*(pair if rng.random() < 0.5 else pair[::-1]), propensity) for pair in chosen]


def _write(
    out: Path,
    prompts: Sequence[ShapedRow],
    places: Sequence[int],
    candidates: Sequence[Sequence[Candidate]],
    pairs: Sequence[Sequence[tuple[int, int, float]]],
) -> None:
    with (out / CANDIDATES).open("w", encoding="utf-8") as all_file, (out / PAIRS).open("w", encoding="utf-8") as file:
        for prompt, place, own, chosen in zip(prompts, places, candidates, pairs, strict=True):
            named = [{"first": first, "second": second, "propensity": share} for first, second, share in chosen]
            answers = [asdict(candidate) for candidate in own]
            row: JsonObject = {**prompt, "row": place, "candidates": answers, "pairs": named}
            all_file.write(json.dumps(row, ensure_ascii=False) + "\n")
            for first, second, _ in chosen:
                sides = {"chosen": _turns(own[first]), "rejected": _turns(own[second])}
                file.write(json.dumps({"prompt": prompt["prompt"], **sides}, ensure_ascii=False) + "\n")


def _turns(candidate: Candidate) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": candidate.text}]
