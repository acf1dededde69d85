"""What transformers' Trainer needs for FSDP2: the fields of its `TrainingArguments`. No torch."""

from __future__ import annotations

from pipeline.plain_data import KeywordArguments

CONFIG = {"version": 2, "reshard_after_forward": True, "state_dict_type": "FULL_STATE_DICT"}
"""transformers' `fsdp_config`; the stage's manifest records it."""


def trainer_fields() -> KeywordArguments:
    """Return the fields of `TrainingArguments` that turn FSDP2 on, and those of its `accelerator_config`."""
    # Otherwise the gradients of all but the last pass of a step would stay unsharded on every process.
    accelerator_config = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    return {"fsdp": True, "fsdp_config": dict(CONFIG), "accelerator_config": accelerator_config}
