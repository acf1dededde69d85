"""Kahneman-Tversky optimisation (KTO): align the policy to responses that are good or bad each by itself, with trl.

Reference: Ethayarajh et al. 2024, arXiv:2402.01306, equations 7 and 8; `loss_type: apo_zero_unpaired` is APO's,
arXiv:2408.06266. Rows are labelled good or bad, or come as preference pairs: each pair gives a good row and a bad one,
which stay in one batch. If good responses are longer, buckets by length alone would hold one label only. Labelled rows
are therefore sorted by the quantile of their length among the rows of their label.

The KL to the reference, the loss's reference point, is estimated on mismatched responses, those to other prompts. trl
matches rows by their position in a micro-batch. Here the seed draws one mismatched response per row, once, so that the
reference log-probabilities can be computed beforehand. The estimate is averaged over `kl_batch` rows; it changes the
result, so it is a recipe setting, and `compute.micro_batch` does not apply.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.errors import Problem
from pipeline.kind.traits import ComputeSupport, Traits, Workload
from pipeline.models.load.adapter_config import Adapter
from pipeline.stage import Data, Input, StageConfig, register_kind
from pipeline.training.data.row_counts import fill_a_batch_of_sides
from pipeline.training.fields import CommonTrain, unknown_word

LOSSES = ("kto", "apo_zero_unpaired")
"""Losses of trl's KTOTrainer."""


class Train(CommonTrain):
    """`train:` of KTO; other keys are fields of trl's KTOConfig.

    Attributes:
        batch_size: rows per optimizer step over all processes; a pair makes two.
        beta: strength of the pull towards the reference (β of equation 7).
        loss_type: `kto` or `apo_zero_unpaired`.
        kl_batch: rows the divergence from the reference is averaged over, and rows per forward of all processes
            together; an even number.
    """

    trainer: ClassVar[str] = "KTOConfig"
    learning_rate: float = Field(default=1e-6, gt=0)
    beta: float = Field(default=0.1, gt=0)
    loss_type: str = "kto"
    kl_batch: int = Field(default=8, ge=2, multiple_of=2)

    def check(self) -> list[Problem]:
        """Return contradictions between fields, and losses trl does not have."""
        problems = super().check()
        if self.loss_type not in LOSSES:
            problems.append(unknown_word("loss_type", self.loss_type, LOSSES))
        if self.batch_size % self.kl_batch:
            problems.append(
                Problem(f"train.batch_size is {self.batch_size}", f"a multiple of train.kl_batch ({self.kl_batch})")
            )
        return problems


class Config(StageConfig):
    """Configuration of a KTO stage.

    Attributes:
        data: labelled rows, or preference pairs: the chosen response is a good row, the rejected one a bad row.
        model: the policy's start and its reference.
        adapter: LoRA instead of full fine-tuning.
        train: how to train.
    """

    data: Annotated[str, Data(("preference", "labelled"))]
    model: Annotated[str, Input(external=True)]
    adapter: Adapter | None = None
    train: Train = Train()


register_kind(
    "kto",
    version=2,
    config=Config,
    run="pipeline.stages.kto.train:run",
    makes="model",
    doc=__doc__,
    traits=Traits(
        parallel=True,
        compute=ComputeSupport(
            model_parallel=frozenset({"tensor_parallel"}),
            rows_per_pass="train.kl_batch",
            divided=("batch_size", "kl_batch"),
        ),
        workload=Workload(head="weight", dropout=False),
        row_check=fill_a_batch_of_sides,
    ),
)
