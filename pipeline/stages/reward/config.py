"""Reward model: learn which of two responses people prefer, with trl's RewardTrainer, and say how far to trust it.

Reference: Ouyang et al. 2022 (InstructGPT), equation 1 (Bradley-Terry); the margin is that of Touvron et al. 2023
(Llama 2), equation 2. The held-out report has accuracy, calibration, margins, and the effect of length.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.kind.traits import ComputeSupport, Reading, Traits, Workload
from pipeline.models.load.adapter_config import Adapter
from pipeline.stage import Added, Data, Input, StageConfig, register_kind
from pipeline.training.fields import CommonTrain


class Train(CommonTrain):
    """`train:` of a reward model; other keys are fields of trl's RewardConfig.

    Attributes:
        use_margin: whether a row's `margin` enters the loss.
    """

    trainer: ClassVar[str] = "RewardConfig"
    learning_rate: float = Field(default=1e-5, gt=0)
    use_margin: bool = False


class Config(StageConfig):
    """Configuration of a reward-model stage.

    Attributes:
        data: preference pairs.
        test: held-out pairs for the report; default are those the data source splits off.
        model: what to start from.
        group_by: column to report accuracy by. Columns `gold_chosen` and `gold_rejected`, where the rows have them,
            are true scores: agreement with them is reported.
        property_column: column that names the one property in which the answers of a pair differ, such as `answer` or
            `polite`; empty or null where they differ in several. The report has the accuracy by property.
        adapter: LoRA instead of full fine-tuning.
        train: how to train.
    """

    data: Annotated[str, Data("preference")]
    test: Annotated[str | None, Data("preference")] = None
    model: Annotated[str, Input(external=True)]
    group_by: str | None = None
    property_column: Annotated[str | None, Added()] = None
    adapter: Adapter | None = None
    train: Train = Train()


register_kind(
    "reward",
    version=2,
    config=Config,
    run="pipeline.stages.reward.train:run",
    makes="reward",
    doc=__doc__,
    traits=Traits(
        parallel=True,
        reads={
            "data": Reading({"preference": "scored_pairs"}, columns=frozenset({"gold_chosen", "gold_rejected"})),
            "test": Reading(
                {"preference": "scored_pairs"}, columns=frozenset({"gold_chosen", "gold_rejected"}), is_test=True
            ),
        },
        compute=ComputeSupport(model_parallel=frozenset({"tensor_parallel"})),
        workload=Workload(sequences_per_row=2, head="none", dropout=False),
    ),
)
