"""Configuration and traits of kinds whose trainers sample their own responses (GRPO, RLOO). No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.errors import Problem
from pipeline.kind.traits import Reading, Traits, Workload
from pipeline.models.load.adapter_config import Adapter
from pipeline.rl.rewards.fields import RewardFields
from pipeline.stage import Added, Data, Input
from pipeline.training.data.row_counts import fill_a_batch_of_responses
from pipeline.training.fields import CommonTrain

OF_TRL_SAMPLING = (
    "cache_implementation",
    "generation_kwargs",
    "min_p",
    "repetition_penalty",
    "transformers_continuous_batching_config",
    "use_transformers_continuous_batching",
    "use_vllm",
)
"""Fields of trl's sampling that our engines do not have; `temperature`, `top_k` and `top_p` they have."""

ON_POLICY = Traits(
    reads={"data": Reading(long_prompts="left_out")},
    workload=Workload(over="responses", head="weight", reference="with_beta"),
    row_check=fill_a_batch_of_responses,
)
"""Traits of a kind whose `train:` is an `OnPolicyTrain`."""


class OnPolicyTrain(CommonTrain):
    """Fields of `train:` that GRPO and RLOO share.

    Attributes:
        batch_size: responses per optimizer step over all processes, `num_generations` for each prompt.
        num_generations: responses sampled per prompt; their rewards are compared with one another.
        generation_batch_size: responses sampled at a time; default `batch_size`. More take several optimizer steps.
        num_iterations: times each batch of responses is trained on.
        max_new_tokens: longest response in tokens; trl calls it `max_completion_length`.
        max_length: longest prompt and response in tokens; prompts that leave too little room are left out. Without it
            a prompt that does not fit the model's context is an error.
        temperature: sampling temperature.
        epsilon: distance from 1 at which the ratio of new to old probabilities is clipped.
        disable_dropout: disable dropout, so that the policy is the same in sampling and in training.
    """

    learning_rate: float = Field(default=1e-6, gt=0)
    num_generations: int = Field(default=8, ge=2)
    generation_batch_size: int | None = Field(default=None, gt=0)
    num_iterations: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=128, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    epsilon: float = Field(default=0.2, gt=0)
    disable_dropout: bool = True

    @property
    def responses_at_once(self) -> int:
        """Responses sampled at a time: `generation_batch_size`, or its default."""
        return self.generation_batch_size or self.batch_size

    def check(self) -> list[Problem]:
        """Return contradictions between fields."""
        problems = super().check()
        if self.responses_at_once % self.batch_size:
            statement = f"train.generation_batch_size is {self.generation_batch_size}"
            problems.append(Problem(statement, f"a multiple of train.batch_size ({self.batch_size})"))
        elif self.responses_at_once % self.num_generations:
            word = "generation_batch_size" if self.generation_batch_size else "batch_size"
            statement = f"train.{word} is {self.responses_at_once}"
            expected = f"a multiple of train.num_generations ({self.num_generations})"
            problems.append(Problem(statement, expected, f"train.{word} counts responses, not prompts"))
        each = self.passthrough().get("num_generations_eval")
        if each and self.responses_at_once % each:
            statement = f"train.num_generations_eval is {each}"
            expected = f"a divisor of {self.responses_at_once}, the responses sampled at a time"
            problems.append(Problem(statement, expected, "leave it out, or set train.generation_batch_size"))
        return problems


class OnPolicyConfig(RewardFields):
    """Configuration that GRPO and RLOO share; `train` is their own.

    Attributes:
        data: prompts; further columns reach Python reward functions.
        model: the policy's start and its reference.
        adapter: LoRA instead of full fine-tuning.
        rollout_engine: `trl` lets trl's trainer sample, with vLLM if `train.use_vllm` is set; `batched` is our own loop
            and `generate` that of transformers, as PPO has them.
    """

    data: Annotated[str, Data("prompt")]
    model: Annotated[str, Input(external=True)]
    adapter: Adapter | None = None
    rollout_engine: Annotated[Literal["trl", "batched", "generate"], Added()] = "trl"

    def check(self) -> list[Problem]:
        """Return contradictions between fields, and fields of trl's sampling beside an engine that is not trl's."""
        train = getattr(self, "train", None)
        given = train.passthrough() if isinstance(train, OnPolicyTrain) and self.rollout_engine != "trl" else {}
        return [
            *super().check(),
            *(
                Problem(
                    f"train.{name} has no effect with rollout_engine: {self.rollout_engine}",
                    remedy="leave it out, or set rollout_engine: trl",
                )
                for name in given
                if name in OF_TRL_SAMPLING or name.startswith("vllm_")
            ),
        ]
