"""Consolidates sharded weights: to save a model, or to score with it on one process.

Knows the trainers of transformers, which hold their state through accelerate. Knows nothing of files.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pipeline.parallel.dtensors import whole_weights
from pipeline.parallel.tensor.sharding import size_of


def is_sharded(trainer: Any) -> bool:
    """Return whether a trainer's weights are sharded over the processes: with ZeRO-3, FSDP and tensor parallelism."""
    if size_of(trainer.model) > 1:
        return True
    kind = str(trainer.accelerator.distributed_type).rpartition(".")[2]
    if kind == "DEEPSPEED":
        return int(trainer.accelerator.state.deepspeed_plugin.zero_stage) == 3
    return kind == "FSDP"


def consolidated_model(trainer: Any) -> Any | None:
    """Return a trainer's model with all its weights on the first process, None on the others; every process calls it.

    Weights that are sharded are gathered layer by layer into the first process's memory, beside the trainer's own.
    """
    first = trainer.accelerator.is_main_process
    if not is_sharded(trainer):
        return trainer.model if first else None
    if size_of(trainer.model) > 1:
        state = whole_weights(trainer.model.state_dict(), keep=first)
    else:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return rebuilt(trainer.model, state) if first else None


def rebuilt(model: Any, state: dict[str, torch.Tensor]) -> Any:
    """Return a model of the same make on the CPU, whose weights are the tensors of ``state``: there are no others."""
    unset_hf_deepspeed_config()  # with ZeRO-3 in force a new model would be dealt out to processes that are not here
    plain: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    dtype, config = next(iter(state.values())).dtype, copy.deepcopy(plain.config)
    if hasattr(config, "distributed_config"):
        del config.distributed_config  # whole again
    with no_init_weights():  # memory that nobody writes to is not there yet
        made = type(plain)._from_config(config, dtype=dtype)
    if getattr(plain, "generation_config", None) is not None:
        made.generation_config = copy.deepcopy(plain.generation_config)
    if isinstance(model, PeftModel):
        made = get_peft_model(made, model.peft_config[model.active_adapter])
    # A tied output layer is in the state once; what is really missing would be an error of ours.
    # Taken, not copied: the first process holds the whole once.
    missing, unexpected = made.load_state_dict({k: v.to(dtype) for k, v in state.items()}, strict=False, assign=True)
    lost = [name for name in missing if not name.endswith(("lm_head.weight", "rotary_emb.inv_freq"))]
    if lost or unexpected:
        raise RuntimeError(f"gathered weights do not fit the model: {[*lost, *unexpected][:3]}")
    made.tie_weights()
    return made
