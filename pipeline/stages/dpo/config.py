"""Direct preference optimisation (DPO): align the policy to preference pairs without a reward model, with trl.

Reference: Rafailov et al. 2023, equation 7. `train: {loss_type: NAME}` takes any loss of trl (`LOSSES` has their
papers), or a list of losses that are summed with `loss_weights`; the meaning of `beta` depends on the loss.

The reference model is the model the stage starts from (with LoRA: the adapter disabled). Its log-probabilities are
computed once, in length buckets, and saved for a resumed run. Its weights are not in memory during training.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.errors import Problem, counted
from pipeline.kind.traits import ComputeSupport, Traits, Workload
from pipeline.models.load.adapter_config import Adapter
from pipeline.stage import Data, Input, StageConfig, register_kind
from pipeline.training.fields import CommonTrain, unknown_word

LOSSES = {
    "sigmoid": "DPO, arXiv:2305.18290",
    "hinge": "SLiC, arXiv:2305.10425",
    "ipo": "IPO, arXiv:2310.12036; beta is its τ",
    "exo_pair": "EXO, arXiv:2402.00856; wants label_smoothing above 0",
    "nca_pair": "NCA, arXiv:2402.05369",
    "robust": "robust DPO, arXiv:2403.00409; wants label_smoothing below 0.5",
    "bco_pair": "BCO, arXiv:2404.04656",
    "sppo_hard": "SPPO, arXiv:2405.00675",
    "aot": "AOT, arXiv:2406.05882",
    "aot_unpaired": "AOT, unpaired, arXiv:2406.05882",
    "apo_zero": "APO, arXiv:2408.06266; for pairs better than the model's own answers",
    "apo_down": "APO, arXiv:2408.06266; for pairs worse than the model's own answers",
    "discopop": "DiscoPOP, arXiv:2406.08414",
    "sft": "cross-entropy of the chosen response alone, to be added to another loss",
    "sigmoid_norm": "DPO with log-probabilities per token, as in TÜLU 3, arXiv:2411.15124",
}
"""Losses of trl's DPOTrainer and their papers."""


class Train(CommonTrain):
    """`train:` of DPO; other keys are fields of trl's DPOConfig.

    Attributes:
        beta: strength of the pull towards the reference (β of equation 7).
        loss_type: a loss of `LOSSES`, or a list of them.
    """

    trainer: ClassVar[str] = "DPOConfig"
    learning_rate: float = Field(default=1e-6, gt=0)
    beta: float = Field(default=0.1, gt=0)
    loss_type: str | list[str] = "sigmoid"

    def check(self) -> list[Problem]:
        """Return contradictions between fields, and losses trl does not have."""
        names = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        problems = [
            *super().check(),
            *(unknown_word("loss_type", name, LOSSES) for name in names if name not in LOSSES),
        ]
        weights = self.passthrough().get("loss_weights")
        if weights is not None and len(weights) != len(names):
            # `train.loss_type` is named, so that nothing is said of its default where its value is wrong.
            statement = (
                f"{len(weights)} train.loss_weights for {counted(len(names), 'loss', 'losses')} of train.loss_type"
            )
            problems.append(Problem(statement, "one for each"))
        return problems


class Config(StageConfig):
    """Configuration of a DPO stage.

    Attributes:
        data: preference pairs.
        model: the policy's start and its reference.
        adapter: LoRA instead of full fine-tuning.
        train: how to train.
    """

    data: Annotated[str, Data("preference")]
    model: Annotated[str, Input(external=True)]
    adapter: Adapter | None = None
    train: Train = Train()


register_kind(
    "dpo",
    version=2,
    config=Config,
    run="pipeline.stages.dpo.train:run",
    makes="model",
    doc=__doc__,
    traits=Traits(
        parallel=True,
        compute=ComputeSupport(model_parallel=frozenset({"tensor_parallel"})),
        workload=Workload(sequences_per_row=2, head="weight", dropout=False),
    ),
)
