"""Trains a policy against a reward with trueup's PPO (`pipeline/rl/ppo/`); `config.py` names the papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pipeline.errors import PipelineError, Problem, counted
from pipeline.models.forward import context_limit
from pipeline.models.generate.continuation import decoded_response
from pipeline.models.generate.decode import GenerationSettings
from pipeline.models.generate.engines.batched import BatchedEngine
from pipeline.models.generate.engines.engine import Engine
from pipeline.models.generate.engines.generate import GenerateEngine
from pipeline.models.generate.engines.vllm import VLLMEngine, why_no_vllm
from pipeline.models.generate.sampling import Sampling
from pipeline.models.load.kernels import INSTALL, apply_liger
from pipeline.models.load.pretrained import load_tokenizer
from pipeline.models.tokenizer.contract import end_ids
from pipeline.parallel.ranks import Ranks
from pipeline.rl.policy.build import build_policy, check_policy
from pipeline.rl.ppo.guards import Stopped
from pipeline.rl.ppo.run_log import RunLog
from pipeline.rl.ppo.state import load_state, newest_state
from pipeline.rl.ppo.trainer import PPOTrainer, Score
from pipeline.rl.rewards.fields import no_token_rewards
from pipeline.rl.rewards.sources import RewardSources, Sample, load_rewards, load_watched
from pipeline.stage import StageContext, StageResult
from pipeline.stages.ppo.config import Config
from pipeline.stages.ppo.data import ends_are_taught, language_loss, load_prompts
from pipeline.stages.ppo.models import (
    compute_dtype,
    load_start,
    load_value_start,
    resolve_ppo_precision,
    scorer_on_trunk,
    sharded_engine,
)
from pipeline.training.arguments import liger_kernels, prepare_torch
from pipeline.training.audit import check_prepared
from pipeline.training.finish import save_trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.rl.policy.policy import Policy
    from pipeline.rl.rollout.episodes import Episode


def run(ctx: StageContext, config: Config) -> StageResult:
    """Train the policy and save its best state."""
    ctx = resolve_ppo_precision(prepare_torch(ctx))
    source = ctx.input("model")
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    trainer = _trainer(ctx, config, tokenizer)
    policy = trainer.policy
    check_prepared(ctx, policy.model, trainer.train_engine.optimizer, config.adapter, policy.module)
    log = RunLog(ctx, trainer, tokenizer)
    state_path = newest_state(ctx.work / "state")
    if state_path is not None:
        log.restore(load_state(trainer, state_path))
    ctx.phase(f"training on {counted(len(trainer.prompts), 'prompt')}")
    try:
        log.watch(trainer)
    except Stopped as stopped:
        log.note(f"stopped at iteration {trainer.iteration}: {stopped.problem.found}; {stopped.problem.remedy}")
    log.take_best()
    value = log.value_weights()
    consolidated, seen = trainer.train_engine.consolidated_model(), [prompt.ids for prompt in trainer.prompts[:3]]
    lineage = save_trained(ctx, consolidated, tokenizer, source, config.adapter, seen)
    return log.finish(lineage, value)


def _trainer(ctx: StageContext, config: Config, tokenizer: PreTrainedTokenizerBase) -> PPOTrainer:
    """Build the trainer from models, prompts and rewards, and check the policy before training."""
    model, reference = load_start(ctx, config, tokenizer)
    if liger_kernels(ctx):
        apply_liger(model)
    eos_ids = end_ids(tokenizer, model)
    prompts, held_out = load_prompts(ctx, config, model, tokenizer)
    policy = build_policy(
        model,
        layout=config.layout,
        adapter=config.adapter,
        value_start=load_value_start(ctx, config, tokenizer) if config.layout == "separate" else None,
        reference=reference,
        temperature=config.train.temperature,
        value_gradient=config.train.value_gradient,
        value=config.value,
        precision=compute_dtype(ctx),
        recompute=ctx.compute.recomputes,
        seed=ctx.seed,
    )
    rewards = load_rewards(
        ctx, config, tokenizer, lambda source: scorer_on_trunk(ctx, policy, source, tokenizer.pad_token_id)
    )
    if config.train.token_rewards and not rewards.has_token_rewards:
        raise PipelineError(replace(no_token_rewards(), stage=ctx.name))
    watched = load_watched(ctx, config.watch, config.watch_functions, tokenizer)
    ranks = Ranks.current()
    train_engine = sharded_engine(ctx, config, policy, ranks)
    longest = max(len(prompt.ids) for prompt in [*prompts, *held_out])
    sampling = Sampling(temperature=config.train.temperature)
    generation = GenerationSettings(config.train.max_new_tokens, eos_ids, tokenizer.pad_token_id, sampling)
    engine = _engine(ctx, config, policy, longest)
    note = check_policy(policy, engine, prompts, generation, train_engine)
    if note:
        ctx.note(note)
    return PPOTrainer(
        policy=policy,
        settings=config.train,
        prompts=prompts,
        score=_score_of(rewards, by_token=config.train.token_rewards),
        engine=engine,
        generation=generation,
        decode_text=lambda ids, prompt_ids: decoded_response(ids, prompt_ids, tokenizer),
        held_out=held_out,
        seed=ctx.seed,
        ranks=ranks,
        language_loss=language_loss(ctx, config, tokenizer, context_limit(policy.model)),
        sharded_engine=train_engine,
        watch=_score_of(watched) if watched.names else None,
        ends_are_taught=not tokenizer.chat_template or ends_are_taught(tokenizer, prompts[0].row),
    )


def _engine(ctx: StageContext, config: Config, policy: Policy, longest: int) -> Engine:
    """Return the rollout engine for prompts of up to ``longest`` tokens, and note which one `auto` chose.

    Raises:
        PipelineError: vLLM was requested and is not available.
    """
    on_gpu, is_quantized = policy.device.type == "cuda", getattr(policy.model, "is_quantized", False)
    missing = why_no_vllm(policy.device.type, is_quantized=is_quantized)
    name = config.rollout_engine
    if name == "auto":
        name = "batched" if not on_gpu else "generate" if missing else "vllm"
        why = "a CPU" if not on_gpu else missing or "a GPU with vLLM"
        ctx.note(f"responses are sampled by the `{name}` engine ({why})")
    ctx.report(rollout_engine=name)
    if name == "vllm":
        if missing:
            raise PipelineError(Problem(f"rollout_engine is vllm, but {missing}", "vLLM", INSTALL["vllm"]))
        return VLLMEngine.of_policy(policy.model, longest + config.train.max_new_tokens)
    return BatchedEngine(say=ctx.note) if name == "batched" else GenerateEngine(ctx.note)


def _score_of(rewards: RewardSources, *, by_token: bool = False) -> Score:
    """Return the function that scores episodes; with ``by_token`` it also notes in them what each token earned."""

    def score(episodes: Sequence[Episode]) -> list[float]:
        samples = [Sample(e.row, e.prompt_ids, e.response_ids, e.text) for e in episodes]
        if not by_token:
            return rewards(samples)
        values, earned = rewards.by_token(samples)
        for episode, tokens in zip(episodes, earned, strict=True):
            episode.earned_T = torch.tensor(tokens)
        return values

    return score
