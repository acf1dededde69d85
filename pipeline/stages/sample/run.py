"""Samples answers of checkpoints to prompts, and pairs them; `config.py` names the references."""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.machine.disk import keep_if_possible
from pipeline.models.generate.sampling import Sampling
from pipeline.models.load.pretrained import load_causal_lm, load_tokenizer
from pipeline.plain_data import JsonObject, ShapedRow
from pipeline.preferences.candidates import SCORES, chosen_pairs, pair_row, ranked_row
from pipeline.preferences.pair_choice import ChosenPair, PairRule
from pipeline.rl.rewards.texts import Answered, scores_by_model, unreadable
from pipeline.stage import ResolvedInput, StageContext, StageResult
from pipeline.stages.sample.config import Config
from pipeline.training.arguments import frozen_weights, prepare_torch
from pipeline.training.data.encoding import RowFault, encode_prompts, nothing_encoded
from pipeline.training.data.sources import set_faults_aside
from pipeline.training.fitting import fit
from pipeline.training.sampler import FinishReason, Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CANDIDATES, PAIRS, GROUPS = "candidates.jsonl", "pairs.jsonl", "groups.jsonl"
"""Files of the artifact."""

_MODEL_NAMES = re.compile(
    r"\b(chat\s?gpt|gpt-?[2-9]\w*|open\s?ai|anthropic|deepmind|mixtral|qwen\w*|deepseek|vicuna|smollm\w*|olmo|chatglm|"
    r"baichuan|hugging\s?face|llama[- ]?[1-9][\w.]*|as an? ai (language )?(model|assistant)|large language model)\b"
    r"|\b(i am|i'm|my name is|(made|trained|developed|created|built) by)\b[^.!?\n]{0,40}\b(claude|gemini|bard|llama|"
    r"mistral|falcon|alpaca|koala|dolly|grok|zephyr|palm|copilot|bing|ernie|google|meta|microsoft|xai|cohere)\b",
    re.IGNORECASE,
)
"""What gives the model away; names that are also words only where the text speaks of itself."""


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
    rows = _rows(prompts, places, candidates)
    if config.reward:
        _add_scores(ctx, rows)
    pairs = [chosen_pairs(row, config.rule, ctx.seed, place) for row, place in zip(rows, places, strict=True)]
    _write(ctx.out, rows, pairs)
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
    """Return the prompts that every model and reward model can render, and their places in the data.

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
    for side, own in zip((rows.train, rows.held_out), faults, strict=True):
        for index, fault in unreadable(ctx, "reward", side).items():
            own.setdefault(index, fault)
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
            names_model=bool(_MODEL_NAMES.search(response.text)),
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
