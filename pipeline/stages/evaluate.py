"""Evaluation: let checkpoints answer held-out prompts and compare them, with intervals.

Reference: win rate over paired prompts as in Rafailov et al. 2023, section 6, ties counting one half, with a bootstrap
interval over prompts; KL by the k1 and k3 estimators of Schulman 2020. The judge is the gold function if there is one,
else the reward model. The greedily decoded baseline is a second baseline, because a win rate over samples flatters.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline.errors import Problem, counted, listed, nearest
from pipeline.evaluation.prompts import DEFAULT_GROUP
from pipeline.stage import Code, Data, Input, ResolvedInput, StageConfig, StageContext, StageResult, stage

if TYPE_CHECKING:
    from pipeline.evaluation.answers import Answers
    from pipeline.evaluation.prompts import Asked
    from pipeline.evaluation.report import Report
    from pipeline.evaluation.samples import StopReason


class Config(StageConfig):
    """Configuration of an evaluation.

    Attributes:
        data: held-out prompts; further columns go to the functions.
        models: checkpoints to compare.
        baseline: one of `models`; the others are compared with it, and KL is measured to it.
        reward: a reward model that scores the answers.
        gold: a Python function that scores the answers, with trl's signature of reward functions.
        correct: a Python function that says which answers are right (1 or 0).
        judge: whose scores decide a win; by default `gold` where there is one.
        group_by: column that names the task of a prompt.
        greedy: models also decoded greedily and listed as `NAME (greedy)`; by default the baseline.
        temperature: sampling temperature.
        max_new_tokens: longest answer.
        reference: column with the right answer, kept beside the answers; by default the first of the usual names
            (`answer`, `reference`, `solution`, …), else what follows the prompt in `messages`.
        limit: only so many prompts: a sample drawn with the seed, in which every task keeps its share.
        resamples: number of resamples of every bootstrap.
        title: title of the report.
    """

    data: Annotated[str, Data("prompt")]
    models: Annotated[list[str], Input(external=True), Field(min_length=1)]
    baseline: str
    reward: Annotated[str | None, Input("reward", external=True)] = None
    gold: Annotated[str | None, Code()] = None
    correct: Annotated[str | None, Code()] = None
    judge: Literal["gold", "reward"] | None = None
    group_by: str = DEFAULT_GROUP
    greedy: list[str] | None = None
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=128, ge=1)
    reference: str | None = None
    limit: int | None = Field(default=None, ge=1)
    resamples: int = Field(default=2000, ge=100)
    title: str = "Evaluation"

    @property
    def judges_by_reward(self) -> bool:
        """Whether the reward model's scores decide who wins."""
        return self.judge == "reward" or (self.judge is None and self.gold is None)

    def check(self) -> list[Problem]:
        """Return problems of an unknown baseline or greedy model, and of a missing judge."""
        problems = [
            Problem(f"{what} `{name}`", f"one of models: {listed(self.models)}", nearest(name, self.models))
            for what, names in (("baseline", [self.baseline]), ("greedy", self.greedy or []))
            for name in names
            if name not in self.models
        ]
        if self.gold is None and self.reward is None:
            problems.append(Problem("no judge", "`gold` or `reward`", "name a reward model or a Python function"))
        if self.judge is not None and getattr(self, self.judge) is None:
            problems.append(
                Problem(f"judge is {self.judge}", f"a `{self.judge}` to judge with", f"add `{self.judge}:`")
            )
        return problems


@dataclass(frozen=True)
class Sampled:
    """The answers of one model.

    Attributes:
        name: name in the report.
        ref: ref of the checkpoint in the store.
        texts: one answer per prompt.
        lengths: tokens of each answer, its end token included.
        stops: reason why each answer ends.
        kl: k1 estimate of the KL to the baseline, per answer; None for the baseline and for greedy answers.
        kl_k3: k3 estimate of the same KL.
        is_variant: whether it is the baseline's checkpoint with another decoding.
    """

    name: str
    ref: str
    texts: list[str]
    lengths: list[int]
    stops: list[StopReason]
    kl: list[float] | None
    kl_k3: list[float] | None
    is_variant: bool


@stage("evaluate", version=3, config=Config, makes="report")
def run(ctx: StageContext, config: Config) -> StageResult:
    """Sample, score, compare, and write the report."""
    from pipeline.evaluation.answers import Prompt, samples
    from pipeline.evaluation.comparison import compare
    from pipeline.evaluation.conclusion import summary
    from pipeline.evaluation.prompts import ask
    from pipeline.evaluation.writing import write
    from pipeline.training.arguments import prepare_torch

    prepare_torch(ctx)
    started = time.perf_counter()
    warnings = _warnings(ctx, config)
    asked = ask(
        _prompts(ctx),
        group_by=config.group_by,
        reference=config.reference,
        limit=config.limit,
        seed=ctx.seed,
    )
    sampled = _sample_all(ctx, config, asked)
    ctx.phase("scoring")
    answers = _score_all(ctx, config, asked.rows, sampled)
    prompts = [
        Prompt(_shown(row["prompt"]), group, place, ctx.seed, right)
        for row, group, place, right in zip(asked.rows, asked.groups, asked.places, asked.references, strict=True)
    ]
    ctx.phase("comparing")
    settings: dict[str, Any] = {"baseline": config.baseline, "judge": config.judge}
    report = compare(answers, prompts, seed=ctx.seed, resamples=config.resamples, **settings)
    is_stratified = asked.is_grouped and len(prompts) < asked.available
    sample = {"available": asked.available, "sampled_by": config.group_by if is_stratified else ""}
    report = report.model_copy(update={**sample, "warnings": warnings})
    write(report, ctx.out, samples(answers, prompts, **settings), title=config.title)
    return StageResult(
        metrics=_metrics(report),
        tokens=sum(sum(each.lengths) for each in sampled),
        trainer_seconds=time.perf_counter() - started,
        rows={"prompts": len(prompts)},
        summary=summary(report),
    )


def _warnings(ctx: StageContext, config: Config) -> list[str]:
    """Return the plan's warnings and one on the reward model as a judge, which is also noted while the stage runs."""
    from pipeline.evaluation.judging import judge_warning

    if config.reward is None:
        return list(ctx.warnings)
    source = ctx.input("reward")
    warning = judge_warning(source.name, source.manifest.get("metrics", {}), judges=config.judges_by_reward)
    if warning:
        ctx.note(f"warning: {warning}")
    return [*ctx.warnings, *([warning] if warning else [])]


def _prompts(ctx: StageContext) -> list[dict[str, Any]]:
    """Return the prompts that all models and the judge can render; write the others to the rejects file.

    Raises:
        PipelineError: a prompt cannot be rendered, and the source stops at bad rows.
    """
    from pipeline.models.load import load_tokenizer
    from pipeline.training.encode import ANSWER, RowFault, encode_labelled, encode_prompts, nothing_encoded
    from pipeline.training.encoded import set_faults_aside

    rows = ctx.load_rows("data")
    prompts = rows.held_out or rows.train
    asked = [{**row, "completion": [ANSWER], "label": True} for row in prompts]
    faults: dict[int, RowFault] = {}
    for field in ("models", "reward"):
        for source in ctx.inputs.get(field, []):
            tokenizer = load_tokenizer(source, ctx.trust_remote_code)
            encoded = encode_prompts(tokenizer, prompts) if field == "models" else encode_labelled(tokenizer, asked)
            for fault in encoded.faults:
                faults.setdefault(fault.index, replace(fault, reason=f"{fault.reason} (model {source.name})"))
    faulty = nothing_encoded()._replace(faults=[faults[i] for i in sorted(faults)])
    sides = (nothing_encoded(), faulty) if rows.held_out else (faulty, nothing_encoded())
    set_faults_aside(ctx, "data", rows, *sides)
    return [row for i, row in enumerate(prompts) if i not in faults]


def _sample_all(ctx: StageContext, config: Config, asked: Asked) -> list[Sampled]:
    """Let every model answer every prompt; the baseline stays loaded, because KL is measured to it."""
    from pipeline.models.contract import disagreements, facts
    from pipeline.models.load import load_causal_lm, load_tokenizer
    from pipeline.training.arguments import frozen_weights
    from pipeline.training.fitting import fit

    device, weights = frozen_weights(ctx)

    def loaded(source: ResolvedInput, tokenizer: Any) -> Any:
        model = load_causal_lm(source, trust_remote_code=ctx.trust_remote_code, **weights)
        fit(ctx, model, tokenizer, weights)
        return model.to(device)

    inputs = dict(zip(config.models, ctx.inputs["models"], strict=True))
    greedy = [config.baseline] if config.greedy is None else config.greedy
    base_input = inputs[config.baseline]
    base_tokenizer = load_tokenizer(base_input, ctx.trust_remote_code)
    baseline = loaded(base_input, base_tokenizer)
    total, done = (len(inputs) + len(greedy)) * len(asked.rows), 0
    sampled = []
    for name, source in inputs.items():
        is_baseline = name == config.baseline
        tokenizer = base_tokenizer if is_baseline else load_tokenizer(source, ctx.trust_remote_code)
        model = baseline if is_baseline else loaded(source, tokenizer)
        differs = disagreements(facts(base_tokenizer, config.baseline), facts(tokenizer, name))
        if differs:
            ctx.note(f"no KL for {name}: {differs[0]}")
        reference = None if is_baseline or differs else baseline
        is_variant = source.fingerprint == base_input.fingerprint
        ctx.phase(f"{name} answers {counted(len(asked.rows), 'prompt')}")
        generator = ResponseGenerator(ctx, config, model, tokenizer, done, total)
        own = generator.answer(name, source, asked, reference, greedy=False)
        sampled.append(replace(own, is_variant=is_variant and not is_baseline))
        done += len(asked.rows)
        if name in greedy:
            ctx.phase(f"{name} answers {counted(len(asked.rows), 'prompt')} greedily")
            generator = ResponseGenerator(ctx, config, model, tokenizer, done, total)
            own = generator.answer(f"{name} (greedy)", source, asked, None, greedy=True)
            sampled.append(replace(own, is_variant=is_variant))
            done += len(asked.rows)
        del model, generator  # only one model beside the baseline is loaded at a time
    return sampled


@dataclass(frozen=True)
class ResponseGenerator:
    """A loaded model with its tokenizer; `done` of `total` prompts were answered before it."""

    ctx: StageContext
    config: Config
    model: Any
    tokenizer: Any
    done: int
    total: int

    def answer(self, name: str, source: ResolvedInput, asked: Asked, reference: Any | None, *, greedy: bool) -> Sampled:
        """Answer every prompt once, and measure the KL to ``reference`` if one is given.

        The random numbers of a prompt depend on its index in the data, so a subset of prompts gets the same answers.
        """
        from pipeline.models.contract import end_ids
        from pipeline.models.decode import decode
        from pipeline.training.encode import encode_prompts

        prompts = [row["prompt_ids"] for row in encode_prompts(self.tokenizer, asked.rows).rows]
        eos = end_ids(self.tokenizer, self.model)
        responses = decode(
            self.model,
            prompts,
            max_new_tokens=self.config.max_new_tokens,
            eos_ids=eos,
            pad_id=self.tokenizer.pad_token_id,
            temperature=self.config.temperature,
            greedy=greedy,
            seed=self.ctx.seed,
            row_ids=asked.places,
            on_progress=self._answered,
            say=self.ctx.note,
        )
        k1, k3 = self._kl(prompts, responses, reference) if reference is not None else (None, None)
        return Sampled(
            name=name,
            ref=_ref(source),
            texts=[self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in responses],
            lengths=[len(ids) for ids in responses],
            stops=[self._stop(ids, eos) for ids in responses],
            kl=k1,
            kl_k3=k3,
            is_variant=False,
        )

    def _stop(self, response: list[int], eos: list[int]) -> StopReason:
        if response and response[-1] in eos:
            return "eos"
        return "max_new_tokens" if len(response) >= self.config.max_new_tokens else "context"

    def _answered(self, done: int, _: int) -> None:
        self.ctx.progress(self.done + done, self.total)
        self.ctx.stop_if_asked()

    def _kl(
        self, prompts: list[list[int]], responses: list[list[int]], reference: Any
    ) -> tuple[list[float], list[float]]:
        """Return k1 and k3 of each response, rounded as in the samples file; NaN for an empty response."""
        import numpy as np

        from pipeline.evaluation.divergence import per_sequence
        from pipeline.evaluation.estimate import rounded
        from pipeline.models.logprobs import response_logprobs

        rows = [i for i, response in enumerate(responses) if response]
        prompts, nonempty = [prompts[i] for i in rows], [responses[i] for i in rows]
        longest = max(map(len, nonempty))
        padded = {}
        for side, model in (("policy", self.model), ("reference", reference)):
            values = response_logprobs(model, prompts, nonempty, temperature=self.config.temperature)
            padded[side] = np.array([[*row, *[0.0] * (longest - len(row))] for row in values])
        mask = np.array([[t < len(response) for t in range(longest)] for response in nonempty])
        sums = per_sequence(padded["policy"], padded["reference"], mask)
        k1, k3 = [[float("nan")] * len(responses) for _ in range(2)]
        for i, own_k1, own_k3 in zip(rows, sums.k1_B.tolist(), sums.k3_B.tolist(), strict=True):
            k1[i], k3[i] = rounded(own_k1), rounded(own_k3)
        return k1, k3


def _score_all(ctx: StageContext, config: Config, rows: list[dict[str, Any]], sampled: list[Sampled]) -> list[Answers]:
    """Score every answer with the functions and the reward model.

    Scores are rounded as in the samples file *before* they are used, so that a report, its ties included, can be
    computed from the samples file.
    """
    from pipeline.evaluation.answers import Answers
    from pipeline.evaluation.estimate import rounded
    from pipeline.training.rewards import call_reward

    scores: dict[str, dict[str, list[float]]] = {each.name: {} for each in sampled}
    for column, spec in (("gold", config.gold), ("correct", config.correct)):
        if spec is None or ctx.functions is None:
            continue
        function = ctx.functions(spec)
        for each in sampled:
            completions = [[{"role": "assistant", "content": text}] for text in each.texts]
            scores[each.name][column] = call_reward(function, spec, rows, completions)
    if config.reward is not None:
        _score_by_model(ctx, rows, sampled, scores)
    return [
        Answers(
            name=each.name,
            ref=each.ref,
            responses=each.texts,
            lengths=each.lengths,
            ended=[stop == "eos" for stop in each.stops],
            stop_reasons=each.stops,
            kl=each.kl,
            kl_k3=each.kl_k3,
            is_variant=each.is_variant,
            **{column: [rounded(value) for value in values] for column, values in scores[each.name].items()},
        )
        for each in sampled
    ]


def _score_by_model(
    ctx: StageContext, rows: list[dict[str, Any]], sampled: list[Sampled], scores: dict[str, dict[str, list[float]]]
) -> None:
    """Score each answer's text with the reward model, rendered with its own chat template."""
    from pipeline.models.load import load_reward_model, load_tokenizer
    from pipeline.models.scoring import score
    from pipeline.training.arguments import frozen_weights
    from pipeline.training.encode import encode_answers
    from pipeline.training.fitting import fit

    source = ctx.input("reward")
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    device, weights = frozen_weights(ctx)
    judge = load_reward_model(source, tokenizer, seed=ctx.seed, trust_remote_code=ctx.trust_remote_code, **weights)
    fit(ctx, judge, tokenizer, weights)
    judge.to(device)
    for each in sampled:
        sequences = encode_answers(tokenizer, rows, each.texts)
        scores[each.name]["reward"] = score(judge, sequences, tokenizer.pad_token_id)


def _metrics(report: Report) -> dict[str, float]:
    """Return the report's main figures as flat metrics for the manifest: `dpo/win_rate`, `dpo/correct`, …."""
    figures = ("win_rate", "gold", "reward", "correct", "kl", "length", "eos_rate")
    return {
        f"{name}/{figure}": getattr(model, figure).value
        for name, model in report.models.items()
        for figure in figures
        if getattr(model, figure) is not None
    }


def _ref(source: ResolvedInput) -> str:
    version = source.manifest.get("version")
    return f"{source.name}@v{version}" if version else source.ref


def _shown(prompt: list[dict[str, str]]) -> str:
    """Return a prompt as text for readers: a single turn without its role, several turns with roles."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
