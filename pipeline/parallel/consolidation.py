"""Consolidates sharded weights on the first rank, to save a model or to score with it on one process.

Works with transformers' trainers, whose state accelerate holds. Reads and writes no files.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pipeline.parallel.dtensors import full_state_dict
from pipeline.parallel.tensor.sharding import size_of

if TYPE_CHECKING:
    from transformers import Trainer


def is_sharded(trainer: Trainer) -> bool:
    """Return whether a trainer's weights are sharded over the ranks: by ZeRO-3, FSDP or tensor parallelism."""
    if size_of(trainer.model) > 1:
        return True
    kind = str(trainer.accelerator.distributed_type).rpartition(".")[2]
    if kind == "DEEPSPEED":
        return int(trainer.accelerator.state.deepspeed_plugin.zero_stage) == 3
    return kind == "FSDP"


def consolidated_model(trainer: Trainer) -> PreTrainedModel | PeftModel | None:
    """Return a trainer's model with full weights on the first rank, None on the others; every rank must call it.

    Sharded weights are gathered layer by layer into the first rank's memory, in addition to the trainer's own shards.
    """
    first = trainer.accelerator.is_main_process
    if not is_sharded(trainer):
        return trainer.model if first else None
    if size_of(trainer.model) > 1:
        state = full_state_dict(trainer.model.state_dict(), keep=first)
    else:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return model_from_state(trainer.model, state) if first else None


def model_from_state(model: PreTrainedModel | PeftModel, state: dict[str, torch.Tensor]) -> PreTrainedModel | PeftModel:
    """Build a CPU model of the same class and configuration, whose weights are the tensors of ``state``, not copies."""
    unset_hf_deepspeed_config()  # under ZeRO-3 DeepSpeed would shard the new model over ranks that do not take part
    plain: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    dtype, config = next(iter(state.values())).dtype, copy.deepcopy(plain.config)
    if hasattr(config, "distributed_config"):
        del config.distributed_config  # the new model is not sharded
    with no_init_weights():  # pages that nothing writes to take no memory
        full_model = type(plain)._from_config(config, dtype=dtype)
    if getattr(plain, "generation_config", None) is not None:
        full_model.generation_config = copy.deepcopy(plain.generation_config)
    if isinstance(model, PeftModel):
        full_model = get_peft_model(full_model, model.peft_config[model.active_adapter])
    # The state holds a tied output layer once, under the embedding's name; any other missing name is a bug of ours.
    # `assign` takes the tensors instead of copying them, so the first rank holds the weights once.
    missing, unexpected = full_model.load_state_dict(
        {k: v.to(dtype) for k, v in state.items()}, strict=False, assign=True
    )
    missing_weights = [name for name in missing if not name.endswith(("lm_head.weight", "rotary_emb.inv_freq"))]
    if missing_weights or unexpected:
        raise RuntimeError(f"gathered weights do not fit the model: {[*missing_weights, *unexpected][:3]}")
    full_model.tie_weights()
    return full_model
