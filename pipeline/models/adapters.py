"""LoRA adapters: putting one on a model, and folding it into the weights.

Owns the step between an `Adapter` block and `peft`. Knows nothing of training. What a stage writes is always full,
merged weights with the adapter beside them, so no artifact ever stands on an adapter of an adapter.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model

from pipeline.errors import PipelineError, Problem
from pipeline.models.adapter_config import Adapter

Task = Literal["causal", "reward"]
"""A language model, or a model that scores sequences."""

_TASKS = {"causal": TaskType.CAUSAL_LM, "reward": TaskType.SEQ_CLS}


def lora_config(adapter: Adapter, task: Task, model: Any) -> LoraConfig:
    """Return the `peft` configuration of an adapter on ``model``; a reward model's head is trained beside it."""
    targets, upper = adapter.targets, None
    if adapter.layers == "top-half":
        count = int(model.config.get_text_config().num_hidden_layers)
        upper = list(range(count // 2, count))
        if isinstance(targets, str):  # peft wants names once layers are picked
            head = model.get_output_embeddings() if task == "causal" else getattr(model, "score", None)
            linear = [name for name, part in model.named_modules() if _is_linear(part) and part is not head]
            targets = sorted({name.rpartition(".")[2] for name in linear})
    return LoraConfig(
        task_type=_TASKS[task],
        r=adapter.r,
        lora_alpha=adapter.scale_alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        layers_to_transform=upper,
        bias="none",
        modules_to_save=["score"] if task == "reward" else None,
    )


def attach(model: Any, adapter: Adapter, task: Task, *, seed: int) -> PeftModel:
    """Put a fresh adapter on ``model``; its first output equals the model's own, since one of its matrices is zero.

    Raises:
        PipelineError: no layer has one of the names in ``targets``.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, lora_config(adapter, task, model))
        except ValueError as error:
            if "arget modules" not in str(error):
                raise
            names = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if _is_linear(part)})
            found = f"no layer is named as adapter.targets {adapter.targets} says"
            expected = f"some of {', '.join(names)}"
            raise PipelineError(Problem(found, expected, "or leave it at `all-linear`")) from error


def without_adapter(model: Any) -> AbstractContextManager[Any]:
    """Switch the adapter off inside the context: the model is then its own reference."""
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def merged(model: Any) -> Any:
    """Fold the adapter into the weights and return the plain model; the `peft` wrapper must not be used afterwards.

    Quantised weights come back in the compute precision first. A model without an adapter is returned as it is.
    """
    if not isinstance(model, PeftModel):
        return model
    plain = model.merge_and_unload(safe_merge=True)
    if getattr(plain, "is_quantized", False):
        plain = plain.dequantize()
    return plain


def save_adapter_and_merge(model: PeftModel, folder: Path) -> Any:
    """Write the adapter alone into ``folder`` and return the plain model with it folded in, as `merged` does."""
    for config in model.peft_config.values():
        # Sorted and without the path of this machine: the same adapter gives the same bytes.
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)
        config.base_model_name_or_path = ""
    model.save_pretrained(folder, selected_adapters=[model.active_adapter])
    # The model card of peft is all empty headings, and the artifact has one of its own.
    (folder / "README.md").unlink(missing_ok=True)
    return merged(model)


def _is_linear(part: torch.nn.Module) -> bool:
    return isinstance(part, torch.nn.Linear) or type(part).__name__ == "Conv1D"
