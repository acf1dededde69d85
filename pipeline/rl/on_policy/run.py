"""Trains a policy on its own responses with a trl trainer: the run of GRPO and RLOO, which differ in their trainer."""

from __future__ import annotations

from typing import Any

from pipeline.errors import counted
from pipeline.models.generate.engines.batched import BatchedEngine
from pipeline.models.generate.engines.engine import Engine
from pipeline.models.generate.engines.generate import GenerateEngine
from pipeline.parallel.consolidation import consolidated_model
from pipeline.rl.on_policy.fields import OnPolicyConfig, OnPolicyTrain
from pipeline.rl.on_policy.hooks import OnPolicyHooks, Rollouts
from pipeline.rl.on_policy.learning import on_policy_summary, with_rewards
from pipeline.rl.on_policy.trainer import Generated, fitting_prompts, on_policy_arguments, trl_rewards
from pipeline.rl.rewards.sources import load_rewards
from pipeline.stage import StageContext, StageResult
from pipeline.training.composition import composed
from pipeline.training.data.sources import TrainerRows
from pipeline.training.finish import save_and_finish
from pipeline.training.loop import run_trainer
from pipeline.training.setup import build_trainer, open_causal_lm, prepare


def train_on_policy(
    ctx: StageContext,
    config: OnPolicyConfig,
    train: OnPolicyTrain,
    trainer_class: type[Any],
    arguments_class: type[Any],
    **own: Any,
) -> StageResult:
    """Optimise the policy on its own responses, and save it.

    Args:
        ctx: the stage's context.
        config: the stage's configuration.
        train: its `train` block.
        trainer_class: trl's trainer.
        arguments_class: configuration class of the trainer.
        own: fields of ``arguments_class`` that only this algorithm has.

    Raises:
        Interrupted: the user asked to stop; a checkpoint was saved.
        PipelineError: models, prompts or rewards cannot be used, or no rollout had a learning signal.
    """
    ctx = prepare(ctx)
    opened = open_causal_lm(ctx, config.adapter, train.max_length)
    prompts = fitting_prompts(ctx, train, opened.model, opened.tokenizer)
    ctx.phase("loading the rewards")
    sources = load_rewards(ctx, config, opened.tokenizer)
    arguments, batches, steps = on_policy_arguments(
        arguments_class, ctx, train, prompts, sources, ctx.input("model"), **own
    )
    data = TrainerRows(prompts.train_rows, prompts.held_out_rows)
    rewards = trl_rewards(sources, prompts)
    rollouts = Rollouts(ctx, prompts, batches, engine=_engine(ctx, config))
    composed_class = composed(trainer_class, OnPolicyHooks)
    trainer = build_trainer(composed_class, opened, arguments, data, rollouts.parts(), reward_funcs=rewards)
    rollouts.fit_reference(trainer)
    ctx.phase(f"training on {counted(prompts.train, 'prompt')}")
    trained = with_rewards(run_trainer(ctx, trainer, Generated(trainer), steps, config.adapter), rollouts.watch)
    return save_and_finish(
        ctx,
        trained,
        consolidated_model(trainer),
        opened,
        prompts.prompt_ids,
        rows=prompts.counts,
        summary=on_policy_summary(trained),
    )


def _engine(ctx: StageContext, config: OnPolicyConfig) -> Engine | None:
    """Return the engine of the rollouts, the one of PPO of that name; None if trl samples."""
    ctx.report(rollout_engine=config.rollout_engine)
    if config.rollout_engine == "trl":
        return None
    return BatchedEngine(say=ctx.note) if config.rollout_engine == "batched" else GenerateEngine(ctx.note)
