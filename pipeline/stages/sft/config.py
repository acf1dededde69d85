"""Instruction tuning (SFT): learn the assistant's turns of demonstrations, with trl's SFTTrainer.

Reference: Ouyang et al. 2022 (InstructGPT), section 3.5, step 1. The loss is computed on the assistant's tokens only,
end-of-turn token included, so that the model learns to stop. Rows are bucketed by length (fastest on a CPU), or packed
into full rows whose conversations do not attend to one another (best on a GPU: every step has the same shape).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.errors import Problem
from pipeline.kind.traits import MODEL_PARALLEL, ComputeSupport, Reading, Traits, Workload
from pipeline.models.load.adapter_config import Adapter
from pipeline.stage import Data, Input, StageConfig, register_kind
from pipeline.training.fields import CommonTrain, unknown_word

LOSSES = ("nll", "dft")
"""Losses of trl's SFTTrainer: cross-entropy of the next token, and dynamic fine-tuning (arXiv:2508.05629)."""

if TYPE_CHECKING:
    pass


class Train(CommonTrain):
    """`train:` of instruction tuning; other keys are fields of trl's SFTConfig.

    Attributes:
        mode: `rows`, or `packed`: conversations joined to rows of `max_length` tokens; `batch_size` counts those.
    """

    trainer: ClassVar[str] = "SFTConfig"
    learning_rate: float = Field(default=2e-5, gt=0)
    mode: Literal["rows", "packed"] = "rows"

    def check(self) -> list[Problem]:
        """Return contradictions between fields, and a loss trl does not have."""
        loss = self.passthrough().get("loss_type", LOSSES[0])
        unknown = [] if loss in LOSSES else [unknown_word("loss_type", loss, LOSSES)]
        return [*super().check(), *unknown]


class Config(StageConfig):
    """Configuration of an instruction-tuning stage.

    Attributes:
        data: conversations.
        model: what to start from.
        adapter: LoRA instead of full fine-tuning.
        chat_template: Jinja text that renders conversations, for a base model that has none, or in place of its own;
            with `{% generation %}` markers around what the assistant says. Later stages inherit it with the tokenizer.
        train: how to train.
    """

    data: Annotated[str, Data("messages")]
    model: Annotated[str, Input(external=True)]
    adapter: Adapter | None = None
    chat_template: str | None = Field(default=None, min_length=1)
    train: Train = Train()


register_kind(
    "sft",
    version=2,
    config=Config,
    run="pipeline.stages.sft.train:run",
    makes="model",
    doc=__doc__,
    traits=Traits(
        parallel=True,
        reads={"data": Reading(splits_rows=True)},
        compute=ComputeSupport(model_parallel=frozenset(MODEL_PARALLEL)),
        workload=Workload(head="weight"),
    ),
)
