"""The `adapter:` block of a training stage in a recipe.

Owns the fields; `adapters.py` turns them into a `peft` configuration. Torch-free, because recipes are checked with it.

Reference: LoRA, Hu et al. 2021, arXiv:2106.09685; QLoRA, Dettmers et al. 2023, arXiv:2305.14314.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.stage import StageConfig


class Adapter(StageConfig):
    """A low-rank adapter (LoRA): only two thin matrices per layer are trained.

    Attributes:
        r: rank of the two matrices.
        alpha: the update is scaled by ``alpha / r``; ``2 * r`` when omitted.
        dropout: dropout rate on the adapter's input.
        targets: ``all-linear``, or names of the layers that get an adapter.
        layers: ``all``, or ``top-half``: the lower half stays frozen, and PPO computes it once per rollout.
        quantize: load the frozen weights in 4 or 8 bits (needs bitsandbytes; works on a CPU, slowly).
    """

    r: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(ge=1)] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | list[str] = "all-linear"
    layers: Literal["all", "top-half"] = "all"
    quantize: Literal["4bit", "8bit"] | None = None

    @property
    def scale_alpha(self) -> int:
        """`alpha`, or its default."""
        return 2 * self.r if self.alpha is None else self.alpha
