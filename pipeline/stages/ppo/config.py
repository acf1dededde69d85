"""PPO: optimise a policy against a reward with proximal policy optimisation, by our own trainer (`pipeline/rl/ppo/`).

Reference: Schulman et al. 2017, arXiv:1707.06347; for language models Ouyang et al. 2022, arXiv:2203.02155. The
reference policy is the model the stage starts from; the KL penalty is applied per token. The result is the policy with
the best held-out reward minus β·KL, which need not be the last.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.errors import Problem
from pipeline.kind.traits import ComputeSupport, Reading, Traits, Workload
from pipeline.models.load.adapter_config import Adapter
from pipeline.rl.ppo.settings import PPOSettings
from pipeline.rl.rewards.fields import SHORT, TOKEN_REWARDS_REMEDY, RewardFields
from pipeline.stage import Code, Data, Input, Runtime, register_kind
from pipeline.trainer_fields.trackers import tracker_problems
from pipeline.training.data.row_counts import learn_and_hold_out


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
        problems = super().check()
        if (self.train.ptx_coef > 0) != (self.ptx_data is not None):
            statement = "ptx_data without train.ptx_coef" if self.ptx_data else "train.ptx_coef without ptx_data"
            problems.append(Problem(statement, "both or neither"))
        if self.train.token_rewards and not self.reward:
            statement = "train.token_rewards is true, and no reward is a model"
            problems.append(Problem(statement, "a stage of kind implicit_reward in `reward`", TOKEN_REWARDS_REMEDY))
        if self.train.token_rewards and self.reward_combine != "sum":
            statement = f"train.token_rewards is true, and reward_combine is {self.reward_combine}"
            problems.append(Problem(statement, "sum: only a sum can be given token by token"))
        if self.train.best_by == "watch" and not (self.watch or self.watch_functions):
            statement = "train.best_by is watch, and nothing is watched"
            remedy = "add `watch:` with a reward model or {function: FILE.py:NAME} that PPO does not learn from"
            problems.append(Problem(statement, "a score to choose the best weights by", remedy))
        if self.value == "adapter" and (self.adapter is None or self.layout == "separate"):
            statement = "value is adapter" + (
                " without an adapter" if self.adapter is None else " with layout: separate"
            )
            problems.append(
                Problem(statement, "an adapter on a shared trunk", "set `adapter: {r: 16}`, or value: head")
            )
        return problems


register_kind(
    "ppo",
    version=3,
    config=Config,
    run="pipeline.stages.ppo.train:run",
    makes="model",
    doc=__doc__,
    traits=Traits(
        parallel=True,
        reads={"ptx_data": Reading(bound="context")},
        compute=ComputeSupport(
            rows_per_pass="train.token_budget",
            divided=(),
            transformers_trainer=False,
            activation_checkpointing=False,
            sharded_fp16=False,
            unsharded_fields={"ema_decay": "the average"},
        ),
        workload=Workload(over="rollouts", dropout=False, reference="always"),
        row_check=learn_and_hold_out,
    ),
)
