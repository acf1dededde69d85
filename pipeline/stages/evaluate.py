"""Evaluation: let checkpoints answer held-out prompts and compare them, with intervals.

Reference: win rate over paired prompts as in Rafailov et al. 2023, section 6, ties counting one half, with a bootstrap
interval over prompts; KL by the k1 and k3 estimators of Schulman 2020. The judge is a gold function where there is
one, a reward model otherwise. Greedy decoding of the baseline is a second baseline: win rate alone flatters.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline.errors import PipelineError, Problem, listed, nearest
from pipeline.stage import Code, Data, Input, ResolvedInput, StageConfig, StageContext, StageResult, stage

if TYPE_CHECKING:
    from pipeline.evaluation.comparison import Answers
    from pipeline.evaluation.divergence import Divergence


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
        temperature: of sampling.
        max_new_tokens: longest answer.
        limit: only the first prompts.
        resamples: of every bootstrap.
        title: of the report.
    """

    data: Annotated[str, Data("prompt")]
    models: Annotated[list[str], Input(external=True), Field(min_length=1)]
    baseline: str
    reward: Annotated[str | None, Input("reward", external=True)] = None
    gold: Annotated[str | None, Code()] = None
    correct: Annotated[str | None, Code()] = None
    judge: Literal["gold", "reward"] | None = None
    group_by: str = "task"
    greedy: list[str] | None = None
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=128, ge=1)
    limit: int | None = Field(default=None, ge=1)
    resamples: int = Field(default=2000, ge=100)
    title: str = "Evaluation"

    def check(self) -> list[Problem]:
        """Ask for a known baseline and for a judge."""
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
    """What one model answered.

    Attributes:
        name: in the report.
        ref: how the store names the checkpoint.
        texts: one answer per prompt.
        lengths: tokens of each answer, its end token included.
        ended: whether each answer ended by itself.
        divergence: from the baseline; none for the baseline and for greedy answers.
    """

    name: str
    ref: str
    texts: list[str]
    lengths: list[int]
    ended: list[bool]
    divergence: Divergence | None


@stage("evaluate", version=3, config=Config, makes="report")
def run(ctx: StageContext, config: Config) -> StageResult:
    """Sample, score, compare, and write the report."""
    from pipeline.evaluation.comparison import Prompt, compare, samples
    from pipeline.evaluation.report import headline, write
    from pipeline.training.arguments import prepare_torch

    prepare_torch(ctx)
    started = time.perf_counter()
    loaded = ctx.load_rows("data")
    rows = (loaded.held_out or loaded.train)[: config.limit]
    if not rows:
        raise PipelineError(Problem("no prompts", "at least one", "check the data source", stage=ctx.name))
    sampled = _sample_all(ctx, config, rows)
    ctx.phase("scoring")
    answers = _score_all(ctx, config, rows, sampled)
    prompts = [Prompt(_shown(row["prompt"]), str(row.get(config.group_by) or "")) for row in rows]
    ctx.phase("comparing")
    settings: dict[str, Any] = {"baseline": config.baseline, "judge": config.judge}
    report = compare(answers, prompts, seed=ctx.seed, resamples=config.resamples, **settings)
    write(report, ctx.out, samples(answers, prompts, **settings), title=config.title)
    best = max(
        (name for name, model in report.models.items() if model.win_rate),
        key=lambda name: report.models[name].win_rate.value,  # type: ignore[union-attr]
        default=config.baseline,
    )
    header, *table = headline(report)
    shown = dict(zip(header[1:], next(row for row in table if row[0] == best)[1:], strict=True))
    return StageResult(
        metrics=_metrics(report),
        tokens=sum(sum(each.lengths) for each in sampled),
        trainer_seconds=time.perf_counter() - started,
        rows={"prompts": len(rows)},
        summary=f"{best}: win rate {shown.get(f'win rate vs {config.baseline}', '–')} against {config.baseline}",
    )


def _sample_all(ctx: StageContext, config: Config, rows: list[dict[str, Any]]) -> list[Sampled]:
    """Let every model answer every prompt; the baseline stays loaded, since KL is measured to it."""
    from pipeline.models.contract import disagreements, facts
    from pipeline.models.load import load_causal_lm, load_tokenizer
    from pipeline.training.arguments import frozen_weights

    where, weights = frozen_weights(ctx)

    def loaded(source: ResolvedInput) -> Any:
        return load_causal_lm(source, trust_remote_code=ctx.trust_remote_code, **weights).to(where)

    inputs = dict(zip(config.models, ctx.inputs["models"], strict=True))
    greedy = [config.baseline] if config.greedy is None else config.greedy
    base_input = inputs[config.baseline]
    base_tokenizer = load_tokenizer(base_input, ctx.trust_remote_code)
    baseline = loaded(base_input)
    total, done = (len(inputs) + len(greedy)) * len(rows), 0
    found = []
    for name, source in inputs.items():
        is_baseline = name == config.baseline
        tokenizer = base_tokenizer if is_baseline else load_tokenizer(source, ctx.trust_remote_code)
        model = baseline if is_baseline else loaded(source)
        differs = disagreements(facts(base_tokenizer, config.baseline), facts(tokenizer, name))
        if differs:
            ctx.note(f"no KL for {name}: {differs[0]}")
        reference = None if is_baseline or differs else baseline
        ctx.phase(f"{name} answers {len(rows)} prompts")
        speaker = Speaker(ctx, config, model, tokenizer, done, total)
        found.append(speaker.answer(name, _ref(source), rows, reference, greedy=False))
        done += len(rows)
        if name in greedy:
            ctx.phase(f"{name} answers {len(rows)} prompts greedily")
            speaker = Speaker(ctx, config, model, tokenizer, done, total)
            found.append(speaker.answer(f"{name} (greedy)", _ref(source), rows, None, greedy=True))
            done += len(rows)
        del model, speaker  # before the next one is loaded: beside the baseline there is one at a time
    return found


@dataclass(frozen=True)
class Speaker:
    """A loaded model with its tokenizer; `done` of `total` prompts were answered before it."""

    ctx: StageContext
    config: Config
    model: Any
    tokenizer: Any
    done: int
    total: int

    def answer(
        self, name: str, ref: str, rows: list[dict[str, Any]], reference: Any | None, *, greedy: bool
    ) -> Sampled:
        """Answer every prompt once, and measure KL to ``reference`` where one is given."""
        from pipeline.models.contract import end_ids
        from pipeline.models.decode import decode
        from pipeline.training.encode import encode_prompt

        prompts = [encode_prompt(self.tokenizer, row["prompt"]) for row in rows]
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
            on_progress=self._answered,
            say=self.ctx.note,
        )
        return Sampled(
            name=name,
            ref=ref,
            texts=[self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in responses],
            lengths=[len(ids) for ids in responses],
            ended=[bool(ids) and ids[-1] in eos for ids in responses],
            divergence=self._divergence(prompts, responses, reference) if reference is not None else None,
        )

    def _answered(self, done: int, _: int) -> None:
        self.ctx.progress(self.done + done, self.total)
        self.ctx.stop_if_asked()

    def _divergence(self, prompts: list[list[int]], responses: list[list[int]], reference: Any) -> Divergence:
        import numpy as np

        from pipeline.evaluation.divergence import divergence
        from pipeline.models.logprobs import response_logprobs

        rows = [i for i, response in enumerate(responses) if response]
        prompts, responses = [prompts[i] for i in rows], [responses[i] for i in rows]
        longest = max(map(len, responses))
        padded = {}
        for side, model in (("policy", self.model), ("reference", reference)):
            values = response_logprobs(model, prompts, responses, temperature=self.config.temperature)
            padded[side] = np.array([[*row, *[0.0] * (longest - len(row))] for row in values])
        mask = np.array([[t < len(response) for t in range(longest)] for response in responses])
        return divergence(
            padded["policy"], padded["reference"], mask, seed=self.ctx.seed, resamples=self.config.resamples
        )


def _score_all(ctx: StageContext, config: Config, rows: list[dict[str, Any]], sampled: list[Sampled]) -> list[Answers]:
    """Score every answer by the functions and by the reward model."""
    from pipeline.evaluation.comparison import Answers
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
            ended=each.ended,
            divergence=each.divergence,
            **scores[each.name],
        )
        for each in sampled
    ]


def _score_by_model(
    ctx: StageContext, rows: list[dict[str, Any]], sampled: list[Sampled], scores: dict[str, dict[str, list[float]]]
) -> None:
    """Score with the reward model, each answer as text through the reward model's own chat template."""
    from pipeline.models.load import load_reward_model, load_tokenizer
    from pipeline.models.scoring import score
    from pipeline.training.arguments import frozen_weights
    from pipeline.training.encode import render

    source = ctx.input("reward")
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    where, weights = frozen_weights(ctx)
    judge = load_reward_model(source, tokenizer, seed=ctx.seed, trust_remote_code=ctx.trust_remote_code, **weights).to(
        where
    )
    for each in sampled:
        spoken = [{"role": "assistant", "content": text} for text in each.texts]
        sequences = [render(tokenizer, [*row["prompt"], message]) for row, message in zip(rows, spoken, strict=True)]
        scores[each.name]["reward"] = score(judge, sequences, tokenizer.pad_token_id)


def _metrics(report: Any) -> dict[str, float]:
    """Flatten the figures worth having in the manifest: `dpo/win_rate`, `dpo/correct`, …."""
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
    """Render a prompt for people: the text alone when it is one user turn, else with roles."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
