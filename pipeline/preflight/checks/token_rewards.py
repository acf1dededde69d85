"""Checks of rewards that PPO is to give token by token: an implicit reward with the policy's tokenizer can. No torch.

A stage that finds more than is known here, such as a model of the hub, refuses by itself with the same problem.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipeline.artifacts.implicit_reward import SETTINGS_FILE
from pipeline.errors import Problem
from pipeline.models.tokenizer.contract import disagreements, facts_of_folder
from pipeline.plan import Plan, PlannedInput, PlannedStage
from pipeline.preflight.checks.tokenizers import tokenizer_of
from pipeline.rl.rewards.fields import no_token_rewards
from pipeline.stage import KINDS


def token_reward_problems(plan: Plan) -> Iterator[Problem]:
    """Yield a problem for each stage with `train.token_rewards` none of whose reward models can be given so."""
    for stage in plan.pending:
        models = stage.inputs.get("reward", [])
        if not getattr(getattr(stage.spec.config, "train", None), "token_rewards", False) or not models:
            continue  # that there is no model is a problem of the configuration
        if not any(_may_be_implicit(item) and not _is_foreign(plan, stage, item) for item in models):
            where = plan.recipe.where("stages", stage.spec.name, "train", "token_rewards")
            yield replace(no_token_rewards(), where=where, stage=stage.spec.name)


def _may_be_implicit(item: PlannedInput) -> bool:
    """Return whether a reward model is an implicit one, or may be: a model of the hub is seen when the stage runs."""
    if item.artifact is not None:
        return (item.artifact / SETTINGS_FILE).is_file()
    return item.external or bool(KINDS[item.kind].traits.holds)


def _is_foreign(plan: Plan, stage: PlannedStage, item: PlannedInput) -> bool:
    """Return whether a model is known to have another tokenizer than the policy."""
    tokenizers = [tokenizer_of(plan, one, None) for one in (*stage.inputs["model"], item)]
    known = [  # a chat template that a pending stage replaces is compared when the stage runs
        facts_of_folder(one.folder, one.name) for one in tokenizers if one is not None and one.chat_template is None
    ]
    if len(known) != 2 or known[0] is None or known[1] is None:
        return False
    return bool(disagreements(known[0], known[1]))
