"""Detects runs of GRPO or RLOO whose rewards carry no learning signal: notes it once, and ends the run if it persists.

Both algorithms learn from the differences between the rewards of a prompt's responses. If no group has a difference, or
no response has a reward, the gradient is zero, and the run would end normally with unchanged weights. As in PPO
(`pipeline/rl/ppo/guards.py`), a notice is given once, and a condition that lasts for several rollouts ends the run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from pipeline.errors import ExitCode, PipelineError, Problem, counted
from pipeline.plain_data import JsonObject
from pipeline.rl.ppo.guards import PATIENCE
from pipeline.stage import StageContext
from pipeline.training.loop import Trained

IDLE_PATIENCE = 20
"""Consecutive rollouts without reward differences that end a run; a few are normal if success is rare."""
ROUNDING = 1e-6
"""Fraction of the largest reward below which a difference counts as rounding."""

_NONE_REMEDY = "return numbers: None says that a reward does not apply to a response"
_SAME_REMEDY = (
    "check the reward, raise train.num_generations or train.temperature, or start from a model that succeeds sometimes"
)


@dataclass
class RewardWatch:
    """Counts rollouts with and without a learning signal; its state goes into checkpoints.

    Attributes:
        idle: consecutive rollouts without a learning signal.
        unscored: consecutive rollouts in which no response had a reward.
        taught: rollouts with a learning signal.
        told: notices already given.
    """

    idle: int = 0
    unscored: int = 0
    taught: int = 0
    told: list[str] = field(default_factory=list)

    def plain(self) -> JsonObject:
        """Return the state as plain data for JSON."""
        return asdict(self)

    def look(self, rewards_N: Tensor, group: int, ctx: StageContext) -> None:
        """Check the rewards of a rollout over all processes.

        Args:
            rewards_N: weighted sum of rewards per response, NaN without one; a prompt's responses are consecutive.
            group: responses per prompt.
            ctx: the stage's context.

        Raises:
            PipelineError: too many consecutive rollouts had no learning signal.
        """
        if teaches(rewards_N, group):
            self.idle = self.unscored = 0
            self.taught += 1
            return
        self.idle += 1
        is_unscored = bool(torch.isnan(rewards_N).all())
        self.unscored = self.unscored + 1 if is_unscored else 0
        self._notify(rewards_N, ctx)
        if self.unscored >= PATIENCE or self.idle >= IDLE_PATIENCE:
            raise self._no_signal(f"in {counted(self.unscored if is_unscored else self.idle, 'rollout')} in a row")

    def check_end(self) -> None:
        """Check at the end that some rollout had a learning signal.

        Raises:
            PipelineError: no rollout had one.
        """
        if self.idle and not self.taught:
            raise self._no_signal("in any rollout")

    def _notify(self, rewards_N: Tensor, ctx: StageContext) -> None:
        kind = "unscored" if self.unscored else "same"
        if kind in self.told:
            return
        self.told.append(kind)
        if kind == "unscored":
            ctx.note(f"no response of this rollout has a reward: nothing is learnt from it; {_NONE_REMEDY}")
            return
        known = rewards_N[~torch.isnan(rewards_N)]
        low, high = float(known.min()), float(known.max())
        what = f"{low:.3g}" if high - low <= ROUNDING * max(1.0, abs(high)) else f"{low:.3g} to {high:.3g}"
        ctx.note(
            f"the responses to each prompt of this rollout got the same reward ({what}): nothing is learnt from it; "
            f"{_SAME_REMEDY}"
        )

    def _no_signal(self, when: str) -> PipelineError:
        if self.unscored:
            problem = Problem(f"no response had a reward {when}", "a number for some of them", _NONE_REMEDY)
        else:
            statement = f"the responses to a prompt all got the same reward {when}"
            problem = Problem(statement, "rewards that differ: nothing is learnt without", _SAME_REMEDY)
        return PipelineError(problem, exit_code=ExitCode.FAILED)


def teaches(rewards_N: Tensor, group: int) -> bool:
    """Return whether the rewards of any prompt's responses differ by more than rounding."""
    rewards_GR = rewards_N.double().view(-1, group)
    high = torch.nan_to_num(rewards_GR, nan=-torch.inf).amax(dim=1)
    low = torch.nan_to_num(rewards_GR, nan=torch.inf).amin(dim=1)
    scale = torch.nan_to_num(rewards_GR, nan=0.0).abs().amax(dim=1)
    return bool((high - low > ROUNDING * scale).any())


def with_rewards(trained: Trained, watch: RewardWatch) -> Trained:
    """Return a run's measurements with short names for lengths, and with its best reward instead of its lowest loss.

    The loss of these objectives is close to 0 whatever the policy has learned.

    Raises:
        PipelineError: no rollout had a learning signal.
    """
    watch.check_end()
    last = trained.metrics
    names = {"length": "completions/mean_length", "truncated": "completions/clipped_ratio"}
    short = {name: last[long] for name, long in names.items() if long in last}
    key = "eval_reward" if "eval_reward" in last else "reward"
    rows = [row for row in trained.history if key in row]
    top = max(rows, key=lambda row: row[key], default=None)
    best = {key: top[key], "step": top["step"]} if top else {}
    if trained.keeps_best:
        best = trained.best
    return replace(trained, metrics={**last, **short}, best=best)


def on_policy_summary(trained: Trained) -> str:
    """Return a sentence on how the reward changed."""
    rewards = [row["reward"] for row in trained.history if "reward" in row]
    moved = f"reward from {rewards[0]:.3f} to {rewards[-1]:.3f}" if rewards else "no reward logged"
    kl = trained.metrics.get("kl")
    return moved if kl is None else f"{moved}, {kl:.3f} nats per token from the start"
