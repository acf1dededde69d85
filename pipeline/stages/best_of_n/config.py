"""Best of n: of several answers to a prompt the best is a demonstration, and with a worse one a preference pair.

    data:
      compared: {artifact: candidates, file: candidates.jsonl}   # answers of a `sample` stage
      best:     {artifact: choice, file: demos.jsonl}
      pairs:    {artifact: choice, file: pairs.jsonl}
    stages:
      choice: {kind: best_of_n, data: compared, reward: rm}
      better: {kind: sft, data: best, model: sft}                # rejection sampling

The answers are those of a `sample` stage, whose sampler has the engines, checkpoints and temperatures, and reuses what
was sampled. Nothing is sampled here. `reward` is a reward model, a Python function, or several of them. `demos.jsonl`
has each prompt with its best answer, `pairs.jsonl` the best against the worst (or a random worse one) with the
difference of their scores as margin. The report shows the mean score of the best of n for every n, and with `gold`
whether what the score stands for rises too. Empty answers and answers that name a model are never chosen: the model
would learn to give itself another name.

References: Nakano et al. 2021, arXiv:2112.09332, section 3 (rejection sampling) and appendix I (the estimator); Touvron
et al. 2023, arXiv:2307.09288, section 3.2.3 (fine-tuning on the best answers).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.kind.traits import Traits, Workload
from pipeline.rl.rewards.fields import RewardFields
from pipeline.stage import Code, Data, register_kind


class Config(RewardFields):
    """Configuration of the choice.

    Attributes:
        data: candidates, several answers to each prompt.
        reward_combine: `mean`, `sum`, `min` or `uwo` of several rewards.
        gold: a Python function that scores the answers too; it chooses nothing, the report shows it beside the score.
        against: which answer is paired with the best: the `worst`, or a `random` one that is worse.
        resamples: number of resamples of every bootstrap.
    """

    data: Annotated[str, Data("candidates")]
    reward_combine: Literal["sum", "mean", "min", "uwo"] = "mean"
    gold: Annotated[str | None, Code()] = None
    against: Literal["worst", "random"] = "worst"
    resamples: int = Field(default=2000, ge=100)


register_kind(
    "best_of_n",
    version=2,
    config=Config,
    run="pipeline.stages.best_of_n.run:run",
    makes="demonstrations",
    doc=__doc__,
    traits=Traits(workload=Workload(over="candidates", head="none", dropout=False)),
)
