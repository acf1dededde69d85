"""Builds DeepSpeed's ZeRO configuration from the parallel dimensions; the stage's manifest records it. No torch.

References: Rajbhandari et al. 2020, arXiv:1910.02054 (stages 1 to 3); 2021, arXiv:2104.07857 (offload).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import Problem
from pipeline.estimate.buckets import bucket_sizes
from pipeline.parallel.dims import ParallelDims
from pipeline.plain_data import JsonObject

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def deepspeed_config(dims: ParallelDims, precision: str) -> JsonObject:
    """Return DeepSpeed's configuration; fields that transformers' Trainer fills in are ``auto``.

    Args:
        dims: parallel dimensions, of which `zero` and `offload` are used.
        precision: fp32, bf16 or fp16.
    """
    stage, offload = dims.zero, dims.offload
    zero: JsonObject = {"stage": stage, "contiguous_gradients": True, "overlap_comm": stage > 1}
    cpu_memory = {"device": "cpu", "pin_memory": True}
    if offload in ("optimizer", "all"):
        zero["offload_optimizer"] = cpu_memory
    if offload == "all":
        zero["offload_param"] = cpu_memory
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def fit_buckets(config: JsonObject, hidden: int) -> dict[str, int]:
    """Set the communication bucket sizes in a DeepSpeed configuration before the engine starts; return them.

    Args:
        config: DeepSpeed's configuration, whose `zero_optimization` is changed.
        hidden: hidden size of the model.
    """
    zero = config["zero_optimization"]
    sizes = bucket_sizes(int(zero["stage"]), hidden)
    zero.update(sizes)
    return sizes


def bucket_problem(stage: int, hidden: int, bucket: int | None) -> Problem | None:
    """Return the problem of a running engine whose bucket size is not that of `fit_buckets`; None if it is.

    Args:
        stage: ZeRO stage, 1 to 3.
        hidden: hidden size of the model.
        bucket: elements of the engine's buckets; None if DeepSpeed does not run.
    """
    expected = bucket_sizes(stage, hidden)["reduce_bucket_size"]
    if bucket == expected:
        return None
    remedy = "see `trueup doctor` for what is installed, or leave it out"
    return Problem(f"DeepSpeed's buckets have {bucket} elements", f"{expected}, from the model's width", remedy)


def width_of(model: PreTrainedModel | PeftModel) -> int:
    """Return the hidden size of a transformers model, with or without an adapter."""
    return int(model.config.get_text_config().hidden_size)
