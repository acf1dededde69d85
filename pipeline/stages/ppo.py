"""PPO: optimise a policy against a reward with proximal policy optimisation, by our own trainer (`pipeline/ppo/`).

Reference: Schulman et al. 2017, arXiv:1707.06347; for language models Ouyang et al. 2022, arXiv:2203.02155. The
reference policy
is the model the stage starts from; its divergence is priced per token. The result is the best policy by held-out
reward minus β·KL, which need not be the last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.errors import ExitCode, Interrupted, PipelineError, Problem
from pipeline.models.adapter_config import Adapter
from pipeline.ppo.settings import PPOSettings
from pipeline.stage import Data, Input, Runtime, StageContext, StageResult, stage
from pipeline.training.reward_fields import RewardFields

SAMPLES = 8
"""Held-out answers kept at each evaluation."""
SHOWN = ("reward", "kl", "entropy", "length", "eos_rate", "explained_variance")


class Train(PPOSettings):
    """`train:` of PPO.

    Attributes:
        report_to: trackers of transformers that get every metric, e.g. `[tensorboard]`.
    """

    report_to: Annotated[list[str], Runtime()] = Field(default=[])


class Config(RewardFields):
    """Configuration of a PPO stage.

    Attributes:
        data: prompts.
        model: the policy's start and its reference.
        layout: `shared` puts the value function's head on the policy's trunk, `separate` gives it a model of its own,
            which starts from the reward model where there is one with the policy's tokenizer.
        adapter: LoRA instead of full fine-tuning; with `layers: top-half` the lower half is computed once per rollout.
        ptx_data: conversations for PPO-ptx (`train.ptx_coef`).
        rollout_engine: `batched` is our own loop, `generate` that of transformers; `auto` takes the first on a CPU
            and the second on a GPU.
        train: how to train.
    """

    data: Annotated[str, Data("prompt")]
    model: Annotated[str, Input("pretrain", "sft", "dpo", "ppo", external=True)]
    layout: Literal["shared", "separate"] = "shared"
    adapter: Adapter | None = None
    ptx_data: Annotated[str | None, Data("messages")] = None
    rollout_engine: Literal["auto", "batched", "generate"] = "auto"
    train: Train = Train()

    def check(self) -> list[Problem]:
        """Return contradictions between fields."""
        problems = [*self.reward_problems(), *self.train.check()]
        if (self.train.ptx_coef > 0) != (self.ptx_data is not None):
            found = "ptx_data without train.ptx_coef" if self.ptx_data else "train.ptx_coef without ptx_data"
            problems.append(Problem(found, "both or neither"))
        return problems


@stage("ppo", version=1, config=Config, makes="model")
def run(ctx: StageContext, config: Config) -> StageResult:
    """Train the policy and keep its best state."""
    from pipeline.models.contract import end_ids
    from pipeline.models.load import load_causal_lm, load_tokenizer
    from pipeline.ppo.build import build_policy, check_policy
    from pipeline.ppo.guards import Stopped
    from pipeline.ppo.ranks import Ranks
    from pipeline.ppo.state import load_state, newest_state
    from pipeline.ppo.trainer import PPOTrainer
    from pipeline.training.arguments import set_threads, starting_weights
    from pipeline.training.finish import save_trained
    from pipeline.training.reward_sources import load_rewards

    set_threads(ctx)
    train, source = config.train, ctx.input("model")
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    weights = starting_weights(ctx, config.adapter)
    model = load_causal_lm(source, trust_remote_code=ctx.trust_remote_code, **weights)
    eos_ids = end_ids(tokenizer, model)
    prompts, held_out = _prompts(ctx, config, model, tokenizer)
    rewards = load_rewards(ctx, config, tokenizer)
    policy = build_policy(
        model,
        layout=config.layout,
        adapter=config.adapter,
        value_start=_value_start(ctx, config, tokenizer) if config.layout == "separate" else None,
        temperature=train.temperature,
        value_gradient=train.value_gradient,
        seed=ctx.seed,
    )
    engine = _engine(ctx, config, model, tokenizer, eos_ids)
    note = check_policy(policy, engine, prompts, eos_ids)
    if note:
        ctx.note(note)
    trainer = PPOTrainer(
        policy=policy,
        settings=train,
        prompts=prompts,
        score=_score_of(rewards),
        engine=engine,
        eos_ids=eos_ids,
        decode_text=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)).strip(),
        held_out=held_out,
        seed=ctx.seed,
        ranks=Ranks.current(),
        language_loss=_language_loss(ctx, config, tokenizer),
    )
    log = RunLog(ctx, trainer, tokenizer)
    found = newest_state(ctx.work / "state")
    if found is not None:
        log.restore(load_state(trainer, found))
        ctx.note(f"resumes at iteration {trainer.iteration} of {train.iterations}")
    ctx.phase(f"training on {len(prompts):,} prompts")
    try:
        log.watch(trainer)
    except Stopped as stopped:
        log.note(f"stopped at iteration {trainer.iteration}: {stopped.problem.found}; {stopped.problem.remedy}")
    log.take_best()
    lineage = save_trained(ctx, policy.model, tokenizer, source)
    return log.finish(config, lineage)


def _prompts(ctx: StageContext, config: Config, model: Any, tokenizer: Any) -> tuple[list[Any], list[Any]]:
    """Return prompts to train on and held-out ones, encoded; all must leave room for an answer."""
    import random

    from pipeline.models.forward import context_limit
    from pipeline.ppo.episodes import Prompt
    from pipeline.training.encode import encode_prompt

    rows = ctx.load_rows("data")
    ctx.phase("tokenizing")
    limit, room = context_limit(model), config.train.max_new_tokens
    encoded: list[list[Prompt]] = []
    for part in (rows.train, rows.held_out):
        found = [Prompt(row, tuple(encode_prompt(tokenizer, row["prompt"]))) for row in part]
        for number, prompt in enumerate(found, start=1):
            if limit is not None and len(prompt.ids) + room > limit:
                raise PipelineError(
                    Problem(
                        f"prompt {number} has {len(prompt.ids)} tokens, with max_new_tokens {room} more than fit",
                        f"at most {limit - room} tokens, for the model's context is {limit}",
                        "shorten or drop the prompt, or lower train.max_new_tokens",
                        stage=ctx.name,
                    )
                )
        encoded.append(found)
    train, held_out = encoded
    if not held_out and len(train) > 1:
        count = min(config.train.eval_prompts, max(1, len(train) // 10))
        random.Random(f"{ctx.seed}/held out").shuffle(train)
        train, held_out = train[count:], train[:count]
    if not train:
        raise PipelineError(Problem("no prompts", "at least two", "check the data source", stage=ctx.name))
    return train, held_out[: config.train.eval_prompts]


def _engine(ctx: StageContext, config: Config, model: Any, tokenizer: Any, eos_ids: Sequence[int]) -> Any:
    from pipeline.ppo.rollout import BatchedEngine, GenerateEngine

    name = config.rollout_engine
    if name == "auto":
        name = "generate" if model.device.type == "cuda" else "batched"
    engine_class = BatchedEngine if name == "batched" else GenerateEngine
    ctx.note(f"responses are sampled by the `{name}` engine")
    return engine_class(
        config.train.max_new_tokens, tuple(eos_ids), tokenizer.pad_token_id, temperature=config.train.temperature
    )


def _score_of(rewards: Any) -> Any:
    from pipeline.training.reward_sources import Sample

    def score(episodes: Sequence[Any]) -> list[float]:
        values: list[float] = rewards([Sample(e.row, e.prompt_ids, e.response_ids, e.text) for e in episodes])
        return values

    return score


def _value_start(ctx: StageContext, config: Config, tokenizer: Any) -> Any:
    """Return what a separate value function starts from: the reward model if it reads the same tokens."""
    from pipeline.models.contract import disagreements, facts
    from pipeline.models.load import load_reward_model, load_tokenizer

    for source in ctx.inputs.get("reward", []):
        own = load_tokenizer(source, ctx.trust_remote_code)
        if not disagreements(facts(tokenizer, "policy"), facts(own, source.name)):
            return load_reward_model(source, tokenizer, seed=ctx.seed, trust_remote_code=ctx.trust_remote_code)
    start = ctx.input("model")
    classifier = load_reward_model(start, tokenizer, seed=ctx.seed, trust_remote_code=ctx.trust_remote_code)
    classifier.score.weight.data.zero_()
    return classifier


def _language_loss(ctx: StageContext, config: Config, tokenizer: Any) -> Any:
    """Return the loss of PPO-ptx: mean cross-entropy on the assistant's tokens of a few conversations."""
    if config.ptx_data is None:
        return None
    import torch

    from pipeline.ppo.rollout import prompt_order
    from pipeline.training.encode import IGNORE, encode_conversation

    rows = [encode_conversation(tokenizer, row["messages"]) for row in ctx.load_rows("ptx_data").train]
    size = min(config.train.ptx_batch, len(rows))

    def loss(model: Any, step: int) -> Any:
        chosen = [rows[i] for i in prompt_order(len(rows), step * size, size, ctx.seed)]
        width = max(len(row.ids) for row in chosen)
        ids = torch.tensor([[*row.ids, *[0] * (width - len(row.ids))] for row in chosen], device=model.device)
        labels = torch.tensor(
            [[*row.labels, *[IGNORE] * (width - len(row.labels))] for row in chosen], device=model.device
        )
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())

    return loss


class RunLog:
    """What a run says and keeps: metrics, held-out samples, the best state, checkpoints by the clock."""

    def __init__(self, ctx: StageContext, trainer: Any, tokenizer: Any) -> None:
        from pipeline.training.loop import SessionClock

        self.ctx, self.trainer, self.tokenizer = ctx, trainer, tokenizer
        self.rows: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.best: dict[str, float] = {}
        self.tokens = 0.0
        self.saved_at = time.perf_counter()
        self.clock = SessionClock(ctx.work / "seconds.json", fresh=not (ctx.work / "state").exists())
        self.trackers = Trackers(ctx, trainer.settings)

    def restore(self, extra: dict[str, Any]) -> None:
        """Take up where a saved run was."""
        self.rows, self.samples, self.notes = extra["rows"], extra["samples"], extra["notes"]
        self.best, self.tokens = extra["best"], extra["tokens"]

    def watch(self, trainer: Any) -> None:
        """Train to the end.

        Raises:
            Interrupted: asked to stop; the state was saved.
            Stopped: a guard ended the run.
        """
        self.clock.start()
        total = trainer.settings.iterations
        if not self.rows:
            self.evaluate({"step": 0})
        for metrics in trainer.iterations():
            done = trainer.iteration
            self.tokens += metrics["tokens"]
            row = {"step": done, **metrics}
            for text in trainer.guards.look(metrics, trainer.settings, done - 1):
                self.note(text)
            if done % trainer.settings.eval_every == 0 or done == total:
                self.evaluate(row)
            else:
                self.keep(row)
            self.ctx.progress(done, total, **{name: row[name] for name in SHOWN})
            self.save_when_due(done, total)
        self.trackers.close()

    def evaluate(self, row: dict[str, Any]) -> None:
        """Add held-out metrics to a row, keep some answers, and keep the policy if it is the best so far."""
        from pipeline.ppo.state import save_weights

        metrics, episodes = self.trainer.evaluate()
        row.update(metrics)
        self.keep(row)
        for episode in episodes[:SAMPLES]:
            self.samples.append(
                {
                    "step": row["step"],
                    "prompt": self.tokenizer.decode(episode.prompt_ids),
                    "response": episode.text,
                    "reward": round(episode.score, 4),
                }
            )
        objective = metrics.get("eval_objective", row.get("objective", 0.0))
        if not self.best or objective > self.best["eval_objective"]:
            self.best = {"eval_objective": objective, "step": row["step"]}
            save_weights(self.trainer.policy, self.ctx.work / "best.safetensors")

    def keep(self, row: dict[str, Any]) -> None:
        """Keep a row of metrics and pass it to the trackers."""
        self.rows.append({name: value for name, value in row.items() if not name.startswith("seconds_")})
        self.trackers.log(row)

    def note(self, text: str) -> None:
        """Tell the user and remember it."""
        self.notes.append(text)
        self.ctx.note(text)

    def save_when_due(self, done: int, total: int) -> None:
        """Save the state by the clock, and when asked to stop."""
        from pipeline.ppo.state import save_state

        stopping = self.ctx.stopping() and done < total
        due = time.perf_counter() - self.saved_at > float(self.ctx.compute.get("checkpoint_every_s", 30.0))
        if not stopping and not due:
            return
        extra = {
            "rows": self.rows,
            "samples": self.samples,
            "notes": self.notes,
            "best": self.best,
            "tokens": self.tokens,
        }
        save_state(self.trainer, self.ctx.work / "state", extra)
        self.clock.save()
        self.saved_at = time.perf_counter()
        if stopping:
            raise Interrupted(Problem(f"stopped as asked at iteration {done} of {total}", stage=self.ctx.name))

    def take_best(self) -> None:
        """Put the best state back.

        Raises:
            PipelineError: nothing was learnt before a guard ended the run.
        """
        from pipeline.ppo.state import load_weights

        load_weights(self.trainer.policy, self.ctx.work / "best.safetensors")
        if self.best["step"] == 0 and self.trainer.iteration < self.trainer.settings.iterations:
            raise PipelineError(
                Problem(
                    f"the run ended at iteration {self.trainer.iteration} and never got better than its start",
                    "a held-out reward minus KL above that of the reference",
                    self.notes[-1] if self.notes else "",
                ),
                exit_code=ExitCode.FAILED,
            )

    def finish(self, config: Config, lineage: dict[str, Any]) -> StageResult:
        """Write metrics, pictures, samples and the value function into the artifact."""
        from safetensors.torch import save_file

        from pipeline.evaluation.curves import metric_rows, write_curve
        from pipeline.evaluation.training_curves import draw_training

        ctx = self.ctx
        write_curve(self.rows, ctx.out, title=ctx.name)
        draw_training(metric_rows(self.rows), ctx.out / "training.svg", title=ctx.name)
        _write_lines(ctx.out / "samples.jsonl", self.samples)
        value = {
            name.removeprefix("value."): tensor.contiguous()
            for name, tensor in self.trainer.policy.trained_tensors().items()
            if name.startswith("value.")
        }
        (ctx.out / "value").mkdir()
        save_file(value, ctx.out / "value" / "value.safetensors")
        last = next(row for row in reversed(self.rows) if "reward" in row)
        metrics = {name: float(value) for name, value in last.items() if name != "step"}
        at_best = next(row for row in self.rows if row["step"] == self.best["step"])
        metrics |= {name: value for name, value in at_best.items() if name.startswith("eval_")}
        first = self.rows[0].get("eval_reward")
        gained = f"held-out reward {first:.2f} to {metrics['eval_reward']:.2f}" if first is not None else "trained"
        return StageResult(
            metrics=metrics,
            best=self.best,
            tokens=int(self.tokens),
            trainer_seconds=self.clock.total(),
            rows={"train": len(self.trainer.prompts), "held_out": len(self.trainer.held_out)},
            lineage=lineage,
            summary=f"{gained} at {metrics.get('eval_kl', 0.0):.2f} nats, best at iteration {self.best['step']}",
        )


class Trackers:
    """The trackers of transformers (tensorboard, wandb, …), fed with PPO's metrics."""

    def __init__(self, ctx: StageContext, settings: Any) -> None:
        self.callbacks: list[Any] = []
        if not settings.report_to:
            return
        from transformers import TrainerControl, TrainerState, TrainingArguments
        from transformers.integrations import get_reporting_integration_callbacks

        self.arguments = TrainingArguments(output_dir=str(ctx.work), report_to=settings.report_to, run_name=ctx.name)
        self.state = TrainerState(max_steps=settings.iterations, is_world_process_zero=True)
        self.control = TrainerControl()
        self.callbacks = [each() for each in get_reporting_integration_callbacks(settings.report_to)]
        for callback in self.callbacks:
            callback.on_train_begin(self.arguments, self.state, self.control, model=None)

    def log(self, row: dict[str, Any]) -> None:
        """Pass on one row."""
        for callback in self.callbacks:
            self.state.global_step = int(row["step"])
            callback.on_log(self.arguments, self.state, self.control, logs=dict(row))

    def close(self) -> None:
        """Finish the trackers' files."""
        for callback in self.callbacks:
            callback.on_train_end(self.arguments, self.state, self.control)


def _write_lines(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
    file.write_text(text, encoding="utf-8")
