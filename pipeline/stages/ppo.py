"""PPO: optimise a policy against a reward with proximal policy optimisation, by our own trainer (`pipeline/ppo/`).

Reference: Schulman et al. 2017, arXiv:1707.06347; for language models Ouyang et al. 2022, arXiv:2203.02155. The
reference policy is the model the stage starts from; the KL penalty is applied per token. The result is the policy with
the best held-out reward minus β·KL, which need not be the last.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.models.adapter_config import Adapter
from pipeline.ppo.settings import PPOSettings
from pipeline.stage import Code, Data, Input, Runtime, StageContext, StageResult, stage
from pipeline.trainer_fields.trackers import tracker_problems
from pipeline.training.reward_fields import SHORT, RewardFields

if TYPE_CHECKING:
    from pipeline.ppo.trainer import PPOTrainer


class Train(PPOSettings):
    """`train:` of PPO.

    Attributes:
        report_to: trackers of transformers that get every metric, e.g. `[tensorboard]`.
    """

    report_to: Annotated[list[str], Runtime()] = Field(default=[])

    def check(self) -> list[Problem]:
        """Return contradictions between fields, and unknown trackers."""
        return [*super().check(), *tracker_problems(self.report_to)]


class Config(RewardFields):
    """Configuration of a PPO stage.

    Attributes:
        data: prompts.
        model: the policy's start and its reference.
        layout: `shared` puts the value function's head on the policy's trunk, `separate` gives it a model of its own,
            which starts from the reward model where there is one with the policy's tokenizer.
        adapter: LoRA instead of full fine-tuning; with `layers: top-half` the lower half is computed once per rollout.
        value: with an adapter and the shared layout, `adapter` gives the value function one of its own beside its head,
            for a second forward pass; `head` reads the policy's trunk.
        ptx_data: conversations for PPO-ptx (`train.ptx_coef`).
        watch: a reward model or Python function that is not trained on, written as `reward` is: it scores held-out
            responses, and a reward that rises while it falls is being gamed.
        rollout_engine: `batched` is our own loop, `generate` that of transformers, `vllm` samples with vLLM on the
            training GPU; `auto` takes the first on a CPU, and on a GPU vLLM where it is installed.
        train: how to train.
    """

    data: Annotated[str, Data("prompt")]
    model: Annotated[str, Input(external=True)]
    layout: Literal["shared", "separate"] = "shared"
    adapter: Adapter | None = None
    value: Literal["head", "adapter"] = "head"
    ptx_data: Annotated[str | None, Data("messages")] = None
    watch: Annotated[list[str], Input("reward", external=True), SHORT] = Field(default=[])
    watch_functions: Annotated[list[str], Code()] = Field(default=[])
    rollout_engine: Literal["auto", "batched", "generate", "vllm"] = "auto"
    train: Train = Train()

    def check(self) -> list[Problem]:
        """Return contradictions between fields."""
        problems = [*self.reward_problems(), *self.train.check()]
        if (self.train.ptx_coef > 0) != (self.ptx_data is not None):
            statement = "ptx_data without train.ptx_coef" if self.ptx_data else "train.ptx_coef without ptx_data"
            problems.append(Problem(statement, "both or neither"))
        if self.value == "adapter" and (self.adapter is None or self.layout == "separate"):
            statement = "value is adapter" + (
                " without an adapter" if self.adapter is None else " with layout: separate"
            )
            problems.append(
                Problem(statement, "an adapter on a shared trunk", "set `adapter: {r: 16}`, or value: head")
            )
        return problems


@stage("ppo", version=2, config=Config, makes="model", parallel=True)
def run(ctx: StageContext, config: Config) -> StageResult:
    """Train the policy and save its best state."""
    from pipeline.models.load import load_tokenizer
    from pipeline.ppo.guards import Stopped
    from pipeline.ppo.state import load_state, newest_state
    from pipeline.training.arguments import prepare_torch
    from pipeline.training.audit import check_prepared
    from pipeline.training.finish import save_trained
    from pipeline.training.ppo_run import RunLog

    prepare_torch(ctx)
    source = ctx.input("model")
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    trainer = _trainer(ctx, config, tokenizer)
    policy = trainer.policy
    check_prepared(ctx, policy.model, trainer.train_engine.optimizer, config.adapter, policy.whole)
    log = RunLog(ctx, trainer, tokenizer)
    state_path = newest_state(ctx.work / "state")
    if state_path is not None:
        log.restore(load_state(trainer, state_path))
        ctx.note(f"resumes at iteration {trainer.iteration} of {config.train.iterations}")
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


def _trainer(ctx: StageContext, config: Config, tokenizer: Any) -> PPOTrainer:
    """Build the trainer from models, prompts and rewards, and check the policy before training."""
    from pipeline.models.contract import end_ids
    from pipeline.models.forward import context_limit
    from pipeline.models.kernels import apply_liger
    from pipeline.parallel.ranks import Ranks
    from pipeline.ppo.build import build_policy, check_policy
    from pipeline.ppo.trainer import PPOTrainer
    from pipeline.training.arguments import liger_kernels
    from pipeline.training.reward_sources import load_rewards, load_watched

    precision = _precision(ctx)  # resolved before weights are loaded
    model, reference = _start(ctx, config, tokenizer)
    if liger_kernels(ctx):
        apply_liger(model)
    eos_ids = end_ids(tokenizer, model)
    prompts, held_out = _prompts(ctx, config, model, tokenizer)
    policy = build_policy(
        model,
        layout=config.layout,
        adapter=config.adapter,
        value_start=_value_start(ctx, config, tokenizer) if config.layout == "separate" else None,
        reference=reference,
        temperature=config.train.temperature,
        value_gradient=config.train.value_gradient,
        value=config.value,
        precision=precision,
        recompute=ctx.compute.get("activation_checkpointing") is True,
        seed=ctx.seed,
    )
    rewards = load_rewards(
        ctx, config, tokenizer, lambda source: _on_trunk(ctx, policy, source, tokenizer.pad_token_id)
    )
    watched = load_watched(ctx, config.watch, config.watch_functions, tokenizer)
    ranks = Ranks.current()
    train_engine = _train_engine(ctx, config, policy, ranks)
    longest = max(len(prompt.ids) for prompt in [*prompts, *held_out])
    engine = _engine(ctx, config, policy, tokenizer.pad_token_id, eos_ids, longest)
    note = check_policy(policy, engine, prompts, eos_ids, train_engine)
    if note:
        ctx.note(note)
    return PPOTrainer(
        policy=policy,
        settings=config.train,
        prompts=prompts,
        score=_score_of(rewards),
        engine=engine,
        eos_ids=eos_ids,
        decode_text=lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)).strip(),
        held_out=held_out,
        seed=ctx.seed,
        ranks=ranks,
        language_loss=_language_loss(ctx, config, tokenizer, context_limit(policy.model)),
        sharded_engine=train_engine,
        watch=_score_of(watched) if watched.names else None,
        ends_are_taught=not tokenizer.chat_template or _ends_are_taught(tokenizer, prompts[0].row),
    )


def _ends_are_taught(tokenizer: Any, row: dict[str, Any]) -> bool:
    """Return whether the chat template ends an answer with a token that the model can learn to generate."""
    from pipeline.models.contract import eos_is_learned
    from pipeline.training.encode import ANSWER

    return eos_is_learned(tokenizer, [*row["prompt"], ANSWER], row.get("tools"))


def _start(ctx: StageContext, config: Config, tokenizer: Any) -> tuple[Any, Any | None]:
    """Return the policy's initial model, and with ZeRO-3 a second one as reference, since shards cannot be copied."""
    from pipeline.models.load import load_causal_lm
    from pipeline.training.arguments import device_of, starting_weights
    from pipeline.training.fitting import fit

    weights = starting_weights(ctx, config.adapter)
    load = functools.partial(load_causal_lm, ctx.input("model"), trust_remote_code=ctx.trust_remote_code, **weights)
    model = load()
    fit(ctx, model, tokenizer, weights)
    if weights.get("zero3") is not None:
        return model, load() if config.adapter is None else None
    if config.adapter is None or config.adapter.quantize is None:  # quantised weights are loaded onto the device
        model.to(device_of(ctx))
    return model, None


def _on_trunk(ctx: StageContext, policy: Any, source: Any, pad_id: int) -> Any:
    """Return a scorer for a reward model that is an adapter on the policy's trunk; None if it must be loaded."""
    from pathlib import Path

    from pipeline.ppo.adapters import reward_on_trunk, start_value_from_reward
    from pipeline.training.trunk_scorer import trunk_scorer

    reward = reward_on_trunk(policy.model, Path(source.path)) if Path(source.path).is_dir() else None
    if reward is None:
        return None
    ctx.note(f"reward model {source.ref} is an adapter on the policy's own trunk")
    if policy.value_adapter and start_value_from_reward(policy.model, policy.value.linear, reward):
        ctx.note("the value function starts as the reward model")
    return trunk_scorer(policy, reward, pad_id)


def _precision(ctx: StageContext) -> Any:
    """Return the dtype of the computation if it differs from that of the weights; else None."""
    from pipeline.models.precision import HALF
    from pipeline.training.arguments import precision_of
    from pipeline.training.precision_problems import ppo_problem

    picked = precision_of(ctx)
    if picked == "fp16" and (ctx.compute.get("zero") or ctx.compute.get("fsdp")):
        problem = ppo_problem(ctx.compute)
        if problem is not None:
            raise PipelineError(replace(problem, stage=ctx.name))
        ctx.runtime_report["precision"] = picked = "fp32"
        ctx.note("this GPU has no bf16, and PPO with sharded weights takes no fp16: computes in fp32")
    return HALF.get(picked)


def _train_engine(ctx: StageContext, config: Config, policy: Any, ranks: Any) -> Any:
    """Return the engine that shards the training state (ZeRO or FSDP2); None if it is not sharded."""
    from pipeline.parallel.zero.config import deepspeed_config, fit_buckets, width_of
    from pipeline.training.arguments import precision_of

    if config.train.ema_decay and (ctx.compute.get("zero") or ctx.compute.get("fsdp")):
        statement = "train.ema_decay with sharded weights (compute.zero or compute.fsdp)"
        raise PipelineError(
            Problem(statement, "whole weights in every process", "leave one of them out", stage=ctx.name)
        )
    if ctx.compute.get("zero"):
        from pipeline.ppo.sharding import ZeroEngine

        ctx.runtime_report["deepspeed"] = deepspeed_config(ctx.compute, precision_of(ctx))
        fit_buckets(ctx.runtime_report["deepspeed"], width_of(policy.model))
        return ZeroEngine(policy, config.train, ranks, ctx.runtime_report["deepspeed"])
    if ctx.compute.get("fsdp"):
        from pipeline.ppo.sharding import FsdpEngine

        return FsdpEngine(policy, config.train, ranks)
    return None


def _prompts(ctx: StageContext, config: Config, model: Any, tokenizer: Any) -> tuple[list[Any], list[Any]]:
    """Return encoded training and held-out prompts; raise if one leaves no room for a response in the context."""
    import random

    from pipeline.models.forward import context_limit
    from pipeline.ppo.episodes import Prompt
    from pipeline.training.encode import encode_prompts
    from pipeline.training.encoded import encode_source
    from pipeline.training.reward_sources import reward_readers

    rows = ctx.load_rows("data")
    limit, room = context_limit(model), config.train.max_new_tokens
    encode = functools.partial(encode_prompts, tokenizer, readers=reward_readers(ctx, tokenizer))
    encoded_source = encode_source(ctx, "data", rows, encode, what="prompts")
    train, held_out = (
        [Prompt(source_rows[i], tuple(one["prompt_ids"])) for i, one in zip(part.kept, part.rows, strict=True)]
        for source_rows, part in ((rows.train, encoded_source.train), (rows.held_out, encoded_source.held_out))
    )
    indices = [*encoded_source.train.kept, *(len(rows.train) + i for i in encoded_source.held_out.kept)]
    for prompt, where in zip([*train, *held_out], [rows.places[i] for i in indices], strict=True):
        if limit is not None and len(prompt.ids) + room > limit:
            raise PipelineError(
                Problem(
                    f"the prompt has {counted(len(prompt.ids), 'token')}, with max_new_tokens {room} more than fit",
                    f"at most {limit - room} tokens, for the model's context is {limit}",
                    "shorten or drop the prompt, or lower train.max_new_tokens",
                    where,
                    ctx.name,
                )
            )
    if not held_out and len(train) > 1:
        count = min(config.train.eval_prompts, max(1, len(train) // 10))
        random.Random(f"{ctx.seed}/held out").shuffle(train)
        train, held_out = train[count:], train[:count]
    if not train:
        raise PipelineError(Problem("no prompts", "at least two", "check the data source", stage=ctx.name))
    return train, held_out[: config.train.eval_prompts]


def _engine(ctx: StageContext, config: Config, policy: Any, pad_id: int, eos_ids: Sequence[int], longest: int) -> Any:
    """Return the rollout engine for prompts of up to ``longest`` tokens, and note which one `auto` chose.

    Raises:
        PipelineError: vLLM was requested and is not available.
    """
    from pipeline.models.kernels import INSTALL
    from pipeline.ppo.rollout import BatchedEngine, GenerateEngine
    from pipeline.ppo.vllm_engine import VLLMEngine, why_no_vllm

    on_gpu, missing = policy.device.type == "cuda", why_no_vllm(policy)
    name = config.rollout_engine
    if name == "auto":
        name = "batched" if not on_gpu else "generate" if missing else "vllm"
        why = "a CPU" if not on_gpu else missing or "a GPU with vLLM"
        ctx.note(f"responses are sampled by the `{name}` engine ({why})")
    ctx.runtime_report["rollout_engine"] = name
    train = config.train
    if name == "vllm":
        if missing:
            raise PipelineError(Problem(f"rollout_engine is vllm, but {missing}", "vLLM", INSTALL["vllm"]))
        return VLLMEngine(policy.model, train.max_new_tokens, eos_ids, longest=longest, temperature=train.temperature)
    engine_class = BatchedEngine if name == "batched" else GenerateEngine
    return engine_class(train.max_new_tokens, tuple(eos_ids), pad_id, temperature=train.temperature, say=ctx.note)


def _score_of(rewards: Any) -> Any:
    from pipeline.training.reward_sources import Sample

    def score(episodes: Sequence[Any]) -> list[float]:
        values: list[float] = rewards([Sample(e.row, e.prompt_ids, e.response_ids, e.text) for e in episodes])
        return values

    return score


def _value_start(ctx: StageContext, config: Config, tokenizer: Any) -> Any:
    """Return the initial separate value model: a reward model with the policy's tokenizer, else the policy's start."""
    from pipeline.models.contract import disagreements, facts
    from pipeline.models.load import load_reward_model, load_tokenizer
    from pipeline.training.arguments import zero3_config
    from pipeline.training.fitting import fit

    load_options: dict[str, Any] = {
        "seed": ctx.seed,
        "trust_remote_code": ctx.trust_remote_code,
        "zero3": zero3_config(ctx),
    }
    for source in ctx.inputs.get("reward", []):
        own = load_tokenizer(source, ctx.trust_remote_code)
        if not disagreements(facts(tokenizer, "policy"), facts(own, source.name)):
            model = load_reward_model(source, tokenizer, **load_options)
            fit(ctx, model, tokenizer, load_options)
            return model
    classifier = load_reward_model(ctx.input("model"), tokenizer, **load_options)
    fit(ctx, classifier, tokenizer, load_options)
    classifier.score.weight.data.zero_()
    return classifier


def _language_loss(ctx: StageContext, config: Config, tokenizer: Any, limit: int | None) -> Any:
    """Return the loss of PPO-ptx: mean cross-entropy on the assistant's tokens of a batch of conversations.

    Conversations longer than the model's context of ``limit`` tokens are truncated.
    """
    if config.ptx_data is None:
        return None
    import torch

    from pipeline.models.labels import IGNORE
    from pipeline.ppo.rollout import prompt_order
    from pipeline.training.encode import encode_messages
    from pipeline.training.encoded import encode_source

    encode = functools.partial(encode_messages, tokenizer)
    what, fate = "conversations of ptx_data", "cut at the end"
    conversations = ctx.load_rows("ptx_data")
    rows = encode_source(ctx, "ptx_data", conversations, encode, what=what, max_length=limit, fate=fate).train.rows
    if not rows:
        statement = f"no conversation of ptx_data has an answer within {limit} tokens"
        raise PipelineError(Problem(statement, "at least one", "shorten the conversations", stage=ctx.name))
    if conversations.held_out:
        are = agreeing(len(conversations.held_out), "is", "are")
        ctx.note(f"{counted(len(conversations.held_out), 'held-out conversation')} of ptx_data {are} not used")
    size = min(config.train.ptx_batch, len(rows))

    def loss(model: Any, step: int) -> Any:
        chosen = [rows[i] for i in prompt_order(len(rows), step * size, size, ctx.seed)]
        width = max(len(row["input_ids"]) for row in chosen)

        def padded(column: str, filler: int) -> Any:
            rows = [[*row[column], *[filler] * (width - len(row[column]))] for row in chosen]
            return torch.tensor(rows, device=model.device)

        ids, labels = padded("input_ids", 0), padded("labels", IGNORE)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())

    return loss
