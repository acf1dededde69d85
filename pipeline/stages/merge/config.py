"""Merge: adapters folded into full weights, each exactly once, in the order given.

The weights of a model that trueup trained contain its adapters already, so `adapters` names only further ones: folders
or hub ids of a LoRA adapter, or stages trained with one. Only a stage's own adapter is folded in, and it must have been
trained on exactly the weights it is added to. An adapter trained on top of another needs its parent before it:

    full: {kind: merge, model: base, adapters: [sft, dpo]}    # the weights of dpo, from base

The base is loaded in full precision, even if an adapter was trained on a quantised base (QLoRA). The merged weights
then differ from the trained model by the quantisation error of the base, which the stage notes.

Reference: Hu et al. 2021 (LoRA), arXiv:2106.09685, section 4.1: W = W0 + alpha / r · B A.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.kind.traits import Traits
from pipeline.stage import Input, StageConfig, register_kind


class Config(StageConfig):
    """Configuration of a merge.

    Attributes:
        model: what the adapters are put on.
        adapters: in the order they are folded in.
        dtype: number format of the written weights.
    """

    model: Annotated[str, Input(external=True)]
    adapters: Annotated[list[str], Input(external=True), Field(min_length=1)]
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"


register_kind(
    "merge",
    version=2,
    config=Config,
    run="pipeline.stages.merge.run:run",
    makes="model",
    doc=__doc__,
    traits=Traits(folds_adapters=True),
)
