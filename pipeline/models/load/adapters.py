"""LoRA adapters: attaches one to a model, and merges it into the weights.

Translates an `Adapter` block for `peft`. Knows nothing of training. A stage always writes full, merged weights with
the adapter next to them, so no artifact depends on an adapter of an adapter.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import check_target_module_exists
from torch.distributed.tensor import DTensor

from pipeline.artifacts.manifest import SHORT
from pipeline.artifacts.provenance import HUB
from pipeline.errors import PipelineError, Problem
from pipeline.models.load.adapter_config import Adapter
from pipeline.models.save.verification import refuse_other, witness
from pipeline.parallel.zero.zero3 import is_partitioned
from pipeline.stage import ResolvedInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Task = Literal["causal", "reward"]
"""A language model, or a model that scores sequences."""

_TASKS = {"causal": TaskType.CAUSAL_LM, "reward": TaskType.SEQ_CLS}


def lora_config(adapter: Adapter, task: Task, model: PreTrainedModel) -> LoraConfig:
    """Return the `peft` configuration of an adapter on ``model``; a reward model's head is trained in full.

    A weight that two layers share is untied if the adapter targets one of them (`untie`).
    """
    targets, upper = adapter.targets, None
    if adapter.layers == "top-half":
        count = int(model.config.get_text_config().num_hidden_layers)
        upper = list(range(count // 2, count))
        if isinstance(targets, str):  # peft needs layer names together with `layers_to_transform`
            head = model.get_output_embeddings() if task == "causal" else getattr(model, "score", None)
            linear = [name for name, part in model.named_modules() if _is_linear(part) and part is not head]
            targets = sorted({name.rpartition(".")[2] for name in linear})
    config = LoraConfig(
        task_type=_TASKS[task],
        r=adapter.r,
        lora_alpha=adapter.scale_alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets,
        layers_to_transform=upper,
        bias="none",
        modules_to_save=["score"] if task == "reward" else None,
    )
    if model is not None:
        untie(model, config)
    return config


def untie(model: PreTrainedModel, config: PeftConfig) -> bool:
    """Untie the input embedding and the output layer if either of them gets an adapter.

    An adapter belongs to one of the two layers. Merged into a weight that both share, it would change both.

    Returns:
        Whether a weight was untied.

    Raises:
        PipelineError: two other layers share the weight, or the weight is sharded over the processes.
    """
    sharing: dict[int, list[tuple[str, str]]] = {}
    for name, part in model.named_modules():
        for own, weight in part.named_parameters(recurse=False):
            sharing.setdefault(id(weight), []).append((name, own))
    untied = False
    for users in (users for users in sharing.values() if len(users) > 1):
        if any(check_target_module_exists(config, name) for name, _ in users):
            _untie(model, [name for name, _ in users])
            untied = True
    return untied


def _untie(model: PreTrainedModel, names: list[str]) -> None:
    """Give the output layer a copy of the input embedding's weight."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    weight = embedding.weight
    is_known = head is not None and {id(model.get_submodule(name)) for name in names} == {id(embedding), id(head)}
    if not is_known or isinstance(weight, DTensor) or is_partitioned(model):
        statement = f"adapter.targets names a layer that shares its weight ({' = '.join(names)})"
        why = "" if not is_known else ", and these are sharded over the processes"
        expected = f"a layer with weights of its own{why}"
        raise PipelineError(Problem(statement, expected, "leave it out of adapter.targets"))
    head.weight = torch.nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    for settings in {id(each): each for each in (model.config, model.config.get_text_config())}.values():
        settings.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def attach(model: PreTrainedModel, adapter: Adapter, task: Task, *, seed: int) -> PeftModel:
    """Attach a new adapter to ``model``; one of its matrices is zero, so the outputs do not change yet.

    Raises:
        PipelineError: ``targets`` names no layer of the model, or a layer that takes no adapter.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, lora_config(adapter, task, model))
        except ValueError as error:
            if "arget module" not in str(error):  # `Target modules … not found`, `Target module … is not supported`
                raise
            names = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if _is_linear(part)})
            statement = f"adapter.targets is {adapter.targets}, which names no layer, or one that takes no adapter"
            expected = f"some of {', '.join(names)}"
            raise PipelineError(Problem(statement, expected, "or leave it at `all-linear`")) from error


def without_adapter(model: PreTrainedModel | PeftModel) -> AbstractContextManager[Any]:
    """Disable the adapter inside the context, so that the model acts as its own reference."""
    return model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()


def merge_adapter(model: PeftModel) -> Any:
    """Merge the adapter into the weights and return the plain model; the `peft` wrapper must not be used afterwards.

    Quantised weights are dequantised first, because rounding to 4 or 8 bits would lose the adapter's update. A model
    without an adapter is returned as it is.
    """
    if not isinstance(model, PeftModel):
        return model
    if getattr(model.get_base_model(), "is_quantized", False):
        model = _with_dequantised_base(model)
    return model.merge_and_unload(safe_merge=True)


def _with_dequantised_base(model: PeftModel) -> PeftModel:
    """Move the active adapter onto the dequantised weights of its base model."""
    active = model.active_adapter
    state, config = get_peft_model_state_dict(model, adapter_name=active), model.peft_config[active]
    plain = model.to("cpu").unload().dequantize()  # a GPU may hold a model in 4 bits but not in 16
    # Saving would reverse the conversions that unpacked quantised files; those that cannot be reversed are dropped.
    loading = getattr(plain, "_weight_conversions", None) or []
    plain._weight_conversions = [step for step in loading if _is_reversible(step)]
    moved = get_peft_model(plain, config)
    set_peft_model_state_dict(moved, state)
    return moved


def _is_reversible(step: Any) -> bool:
    try:
        step.reverse_transform()
    except NotImplementedError:
        return False
    return True


class Base(NamedTuple):
    """The base model of an adapter, as `adapter_config.json` names it.

    Attributes:
        place: hub id; relative path from the artifact's folder to that of the base; or `./NAME` of an outside folder.
        revision: revision of a hub id.
    """

    place: str
    revision: str | None = None


def base_of_adapter(source: ResolvedInput) -> Base:
    """Return the base that an adapter trained on ``source`` records, the same on every machine.

    An artifact lies at `<store>/<name>/<fingerprint12>`, so another artifact of the same store is
    `../../<name>/<fingerprint12>`, wherever the store is. A path that begins with a dot is never taken for a hub id.
    """
    if source.manifest:
        name = source.manifest.get("name", source.name)
        return Base(f"../../{name}/{source.fingerprint[:SHORT]}")
    if source.fingerprint.startswith(HUB):
        place, _, revision = source.fingerprint.removeprefix(HUB).partition("@")
        return Base(place, revision or None)
    return Base(f"./{source.name}")


def save_adapter_and_merge(model: PeftModel, folder: Path, base: Base | None = None) -> Any:
    """Write the adapter alone into ``folder``, and return the plain model with the adapter merged (`merged`)."""
    for config in model.peft_config.values():
        # Sorted, and without this machine's path, so that the same adapter gives the same bytes.
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)
        config.base_model_name_or_path = base.place if base is not None else ""
        config.revision = base.revision if base is not None else None
    model.save_pretrained(folder, selected_adapters=[model.active_adapter])
    # peft's model card has only empty headings, and the artifact has its own card.
    (folder / "README.md").unlink(missing_ok=True)
    return merge_adapter(model)


def _is_linear(part: torch.nn.Module) -> bool:
    return isinstance(part, torch.nn.Linear) or type(part).__name__ == "Conv1D"


def load_and_merge(model: PreTrainedModel, adapter: ResolvedInput) -> Any:
    """Load an adapter from files and merge it into ``model``; return the merged model.

    Args:
        model: plain model in full precision.
        adapter: an artifact with an adapter next to its weights, a folder with only an adapter, or a hub id.

    Raises:
        PipelineError: there is no adapter, it does not fit the model, or the merged model's logits differ from those
            of the model with the adapter attached.
    """
    place, revision = _place_of(adapter)
    untie(model, config_of(adapter))
    try:
        adapted = PeftModel.from_pretrained(model, place, revision=revision, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PipelineError(
            Problem(f"the adapter {adapter.ref} does not fit: {reason}", "one of this model")
        ) from error
    unmerged = witness(adapted)
    plain = merge_adapter(adapted)
    refuse_other(plain, unmerged, f"the model with {adapter.ref} folded in", "report it with the model's type")
    return plain


def config_of(adapter: ResolvedInput) -> PeftConfig:
    """Read an adapter's `adapter_config.json`.

    Raises:
        PipelineError: it is missing or cannot be read.
    """
    place, revision = _place_of(adapter)
    try:
        return PeftConfig.from_pretrained(place, revision=revision)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        statement = f"cannot read the adapter {adapter.ref}: {reason}"
        raise PipelineError(Problem(statement, "a folder or a reachable hub id with an adapter_config.json")) from error


def _place_of(adapter: ResolvedInput) -> tuple[str, str | None]:
    """Return the folder of an adapter, or its hub id and revision.

    Raises:
        PipelineError: a folder without an adapter.
    """
    place, _, revision = adapter.path.partition("@")
    if Path(adapter.path).is_dir():
        beside = Path(adapter.path) / "adapter"
        place, revision = str(beside if beside.is_dir() else adapter.path), ""
        if not (Path(place) / "adapter_model.safetensors").is_file():
            statement = f"{adapter.ref} holds no adapter"
            raise PipelineError(Problem(statement, "adapter_model.safetensors", "name a stage trained with `adapter:`"))
    return place, revision or None
