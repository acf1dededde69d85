"""ZeRO's configuration, written from `compute:`; the stage's manifest keeps it. No torch.

References: Rajbhandari et al. 2020, arXiv:1910.02054 (stages 1 to 3); 2021, arXiv:2104.07857 (offload).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.estimate.buckets import bucket_sizes


def deepspeed_config(compute: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """Return DeepSpeed's configuration; what the trainer knows better is ``auto``.

    Args:
        compute: the stage's: `zero` and `offload`.
        precision: fp32, bf16 or fp16.
    """
    stage, offload = int(compute["zero"]), compute["offload"]
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": stage > 1}
    in_memory = {"device": "cpu", "pin_memory": True}
    if offload in ("optimizer", "all"):
        zero["offload_optimizer"] = in_memory
    if offload == "all":
        zero["offload_param"] = in_memory
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


def fit_buckets(config: dict[str, Any], hidden: int) -> dict[str, int]:
    """Set in a configuration of DeepSpeed, before it starts, how much it sends at once; return what was set.

    Args:
        config: of DeepSpeed; its `zero_optimization` is changed.
        hidden: width of the model.
    """
    zero = config["zero_optimization"]
    sizes = bucket_sizes(int(zero["stage"]), hidden)
    zero.update(sizes)
    return sizes


def width_of(model: Any) -> int:
    """Return the width of a model of transformers, with or without an adapter."""
    return int(model.config.get_text_config().hidden_size)
