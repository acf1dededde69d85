"""Pretraining: next-token prediction from scratch, or continued, with transformers' Trainer.

Reference: Radford et al. 2019 (GPT-2). Architectures are those of transformers, built from their configuration.
There are two modes: `rows` has one document per row and buckets rows by length (no work on padding, no attention
between documents; fastest on a CPU); `packed` joins documents into full rows (best on a GPU).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.errors import Problem
from pipeline.estimate.shape import size_problems, type_problems
from pipeline.kind.traits import MODEL_PARALLEL, ComputeSupport, Traits
from pipeline.plain_data import JsonObject
from pipeline.stage import Data, Input, StageConfig, register_kind
from pipeline.training.data.row_counts import any_number
from pipeline.training.fields import CommonTrain


class Train(CommonTrain):
    """`train:` of pretraining.

    Attributes:
        mode: `rows` or `packed`.
        order: `shuffled`, or `file` to follow the file (a curriculum).
    """

    batch_size: int = Field(default=32, gt=0)
    learning_rate: float = Field(default=3e-4, gt=0)
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = Field(default=0.05, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    mode: Literal["rows", "packed"] = "rows"
    order: Literal["shuffled", "file"] = "shuffled"


class Config(StageConfig):
    """Configuration of a pretraining stage.

    Attributes:
        data: text to learn from.
        tokenizer: a tokenizer stage, a folder, or a hub id.
        model: architecture: `type` of transformers (llama, qwen3, gpt2, …) and any field of its config.
        init: weights to go on from, instead of `model`.
        control_tokens: how the name of a control token in a text, such as `<|user|>`, is tokenized: as `text` like any
            other, or `parsed` to the token, for texts that are conversations rendered beforehand.
        train: how to train.
    """

    data: Annotated[str, Data("text")]
    tokenizer: Annotated[str | None, Input("tokenizer", external=True)] = None
    model: JsonObject | None = None
    init: Annotated[str | None, Input(external=True)] = None
    control_tokens: Literal["text", "parsed"] = "text"
    train: Train = Train()

    def check(self) -> list[Problem]:
        """Return problems unless exactly one of `model` and `init` is set, and a new model has a tokenizer."""
        problems = super().check()
        if (self.model is None) == (self.init is None):
            problems.append(
                Problem(
                    "both `model` and `init`" if self.model else "neither `model` nor `init`", "exactly one of them"
                )
            )
        if self.model is not None:
            problems += type_problems(self.model) + size_problems(self.model)
        if self.model is not None and self.tokenizer is None:
            problems.append(Problem("no `tokenizer`", "a tokenizer for the new model", "add `tokenizer: NAME`"))
        return problems


register_kind(
    "pretrain",
    version=2,
    config=Config,
    run="pipeline.stages.pretrain.train:run",
    makes="model",
    doc=__doc__,
    traits=Traits(
        parallel=True,
        compute=ComputeSupport(model_parallel=frozenset(MODEL_PARALLEL)),
        row_check=any_number,
    ),
)
