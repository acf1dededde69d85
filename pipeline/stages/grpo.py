"""Group relative policy optimisation (GRPO): several responses of a prompt are measured against one another, with trl.

Reference: Shao et al. 2024, arXiv:2402.03300, equations 3 and 4. trl's default loss is DAPO's (`loss_type: dapo`).
`beta` is 0 by default, so there is no reference model; set `train.beta` to add the KL penalty. A group whose responses
all get the same reward has no gradient (`frac_reward_zero_std` in the metrics). Rewards are reward models, Python
functions with trl's signature, or a weighted sum of them. On one CPU process the same seed gives the same weights, also
if the run was interrupted and resumed.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.errors import Problem, counted
from pipeline.models.adapter_config import Adapter
from pipeline.stage import Data, Input, StageContext, StageResult, stage
from pipeline.training.fields import unknown_word
from pipeline.training.on_policy_fields import OnPolicyTrain
from pipeline.training.reward_fields import RewardFields

LOSSES = ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo", "luspo")
"""Losses of trl's GRPOTrainer, which differ in the weights of tokens and in clipping."""


class Train(OnPolicyTrain):
    """`train:` of GRPO; other keys are fields of trl's GRPOConfig.

    Attributes:
        beta: strength of the pull towards the start (β of equation 3); 0 needs no reference.
        loss_type: one of `LOSSES`.
    """

    trainer: ClassVar[str] = "GRPOConfig"
    beta: float = Field(default=0.0, ge=0)
    loss_type: str = "dapo"

    def check(self) -> list[Problem]:
        """Return contradictions between fields, and a loss trl does not have."""
        unknown = [] if self.loss_type in LOSSES else [unknown_word("loss_type", self.loss_type, LOSSES)]
        return [*super().check(), *unknown]


class Config(RewardFields):
    """Configuration of a GRPO stage.

    Attributes:
        data: prompts; further columns reach Python reward functions.
        model: the policy's start and its reference.
        adapter: LoRA instead of full fine-tuning.
        train: how to train.
    """

    data: Annotated[str, Data("prompt")]
    model: Annotated[str, Input(external=True)]
    adapter: Adapter | None = None
    train: Train = Train()

    def check(self) -> list[Problem]:
        """Return contradictions in `reward` and `train`."""
        return [*self.reward_problems(), *self.train.check()]


@stage("grpo", version=2, config=Config, makes="model", parallel=True)
def run(ctx: StageContext, config: Config) -> StageResult:
    """Optimise the policy on its own responses."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import GRPOConfig, GRPOTrainer

    from pipeline.models.adapters import lora_config
    from pipeline.models.load import load_causal_lm, load_tokenizer
    from pipeline.parallel.consolidation import consolidated_model
    from pipeline.training.arguments import prepare_torch, starting_weights
    from pipeline.training.finish import finish, save_trained
    from pipeline.training.fitting import fit
    from pipeline.training.learning import on_policy_summary, with_rewards
    from pipeline.training.loop import run_trainer
    from pipeline.training.on_policy import (
        Generated,
        OnPolicy,
        fitting_prompts,
        on_policy_arguments,
        trl_rewards,
    )
    from pipeline.training.reward_sources import load_rewards

    class Trainer(OnPolicy, GRPOTrainer):  # type: ignore[misc]
        """trl's GRPOTrainer with our order of prompts, and checkpoints that include its rollouts."""

    prepare_torch(ctx)
    set_seed(ctx.seed)
    train, source = config.train, ctx.input("model")
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    weights = starting_weights(ctx, config.adapter)
    model = load_causal_lm(source, trust_remote_code=ctx.trust_remote_code, **weights)
    fit(ctx, model, tokenizer, weights)
    prompts = fitting_prompts(ctx, train, model, tokenizer)
    ctx.phase("loading the rewards")
    sources = load_rewards(ctx, config, tokenizer)
    own = {"beta": train.beta, "loss_type": train.loss_type}
    arguments, batches, steps = on_policy_arguments(GRPOConfig, ctx, train, prompts, sources, source, **own)
    trainer = Trainer(
        model=model,
        reward_funcs=trl_rewards(sources, prompts),
        args=arguments,
        train_dataset=Dataset.from_list(prompts.train_rows),
        eval_dataset=Dataset.from_list(prompts.held_out_rows) if prompts.held_out_rows else None,
        processing_class=tokenizer,
        peft_config=lora_config(config.adapter, "causal", model) if config.adapter else None,
    )
    trainer.learn_from(ctx, prompts, batches)
    ctx.phase(f"training on {counted(prompts.train, 'prompt')}")
    trained = with_rewards(run_trainer(ctx, trainer, Generated(trainer), steps, config.adapter), trainer.watch)
    lineage = save_trained(ctx, consolidated_model(trainer), tokenizer, source, config.adapter, prompts.prompt_ids)
    return finish(
        ctx,
        trained,
        metrics={},
        rows=prompts.counts,
        lineage=lineage,
        summary=on_policy_summary(trained),
    )
