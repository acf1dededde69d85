"""The fields of a trainer's own configuration that `train:` may pass on.

Owns the table `trainer_fields.json` (made from the installed trl and transformers by `python -m
pipeline.trainer_fields`), which of those fields trueup itself decides, and which cannot change a result. Knows nothing
of recipes or of any single kind. Imports neither trl nor transformers, except to make the table.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from pipeline.errors import Problem, nearest
from pipeline.stage import Runtime, StageConfig

TABLE = Path(__file__).with_suffix(".json")
TRAINERS = ("TrainingArguments", "SFTConfig", "RewardConfig", "DPOConfig", "KTOConfig", "GRPOConfig", "RLOOConfig")

_SAVE_FIELDS = frozenset({"save_steps", "save_strategy", "save_total_limit", "save_on_each_node"})
RUNTIME_TRAIN_FIELDS: frozenset[str] = _SAVE_FIELDS | {
    "dataloader_in_order",
    "dataloader_multiprocessing_context",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "dataset_num_proc",
    "ddp_backend",
    "ddp_broadcast_buffers",
    "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters",
    "ddp_static_graph",
    "ddp_timeout",
    "disable_tqdm",
    "log_completions",
    "log_level",
    "log_level_replica",
    "log_multimodal",
    "log_on_each_node",
    "log_unique_prompts",
    "logging_first_step",
    "logging_nan_inf_filter",
    "logging_steps",
    "logging_strategy",
    "num_completions_to_print",
    "per_device_eval_batch_size",
    "project",
    "report_to",
    "run_name",
    "skip_memory_metrics",
    "torch_empty_cache_steps",
    "trackio_bucket_id",
    "trackio_space_id",
    "trackio_static_space_id",
}
"""Fields that cannot change the weights or the metrics; they stay out of the fingerprint."""

_BATCH = "use `train.batch_size` (rows per step in all) and `compute.micro_batch` (rows a device works on at once)"
_PRECISION = "use `compute.precision`"
_CHECKPOINTING = "use `compute.activation_checkpointing`"
_LAYOUT = "the stage decides how rows are laid out in a batch"
_HUB = "a recipe does not upload; use `trueup push`"
_PROCESSES = "use `compute:`"
_TOKENS = "special tokens and chat template belong to the tokenizer stage"
CONTROLLED: Mapping[str, str] = {
    "accelerator_config": _PROCESSES,
    "activation_checkpointing": _CHECKPOINTING,
    "activation_checkpointing_kwargs": _CHECKPOINTING,
    "assistant_only_loss": "the stage learns from the assistant's tokens only",
    "auto_find_batch_size": "use `compute.micro_batch: auto`",
    "bf16": _PRECISION,
    "bf16_full_eval": _PRECISION,
    "chat_template_kwargs": _TOKENS,
    "chat_template_path": _TOKENS,
    "completion_only_loss": "the stage learns from the assistant's tokens only",
    "data_seed": "use the stage's `seed`",
    "dataset_kwargs": "the stage prepares the rows",
    "dataset_text_field": "rename the column in the data source: `columns: {old: text}`",
    "debug": "",
    "deepspeed": "use `compute.zero` and `compute.offload`",
    "do_eval": "",
    "do_predict": "",
    "do_train": "",
    "enable_jit_checkpoint": "checkpoints are written as they are needed",
    "eos_token": _TOKENS,
    "eval_packing": _LAYOUT,
    "fp16": _PRECISION,
    "fp16_full_eval": _PRECISION,
    "fsdp": "use `compute.fsdp`",
    "fsdp_config": "use `compute.fsdp`",
    "full_determinism": "runs are deterministic where the hardware allows it",
    "gradient_accumulation_steps": _BATCH,
    "gradient_checkpointing": _CHECKPOINTING,
    "gradient_checkpointing_kwargs": _CHECKPOINTING,
    "hub_always_push": _HUB,
    "hub_model_id": _HUB,
    "hub_private_repo": _HUB,
    "hub_revision": _HUB,
    "hub_strategy": _HUB,
    "hub_token": _HUB,
    "ignore_data_skip": "a resumed run reads on where it stopped",
    "liger_kernel_config": "use `compute.liger`",
    "local_rank": _PROCESSES,
    "max_completion_length": "use `train.max_new_tokens`",
    "model_init_kwargs": "use `model:`, `adapter:` and `compute.precision`",
    "num_train_epochs": "use `train.epochs`",
    "output_dir": "a stage writes into the store; use `--store`",
    "packing": _LAYOUT,
    "packing_strategy": _LAYOUT,
    "pad_token": _TOKENS,
    "padding_free": _LAYOUT,
    "parallelism_config": _PROCESSES,
    "per_device_train_batch_size": _BATCH,
    "precompute_ref_batch_size": "use `compute.micro_batch`",
    "precompute_ref_log_probs": "the stage computes them once",
    "push_to_hub": _HUB,
    "remove_unused_columns": "the stage prepares the rows",
    "restore_callback_states_from_checkpoint": "a resumed run reads on where it stopped",
    "resume_from_checkpoint": "a stage that was cut off resumes by itself",
    "save_only_model": "checkpoints keep what a resumed run needs",
    "reward_weights": "write `weight` in `reward:`",
    "seed": "use the stage's `seed`",
    "steps_per_generation": "use `train.generation_batch_size` (responses sampled at a time)",
    "trust_remote_code": "use `trust_remote_code` of the recipe",
    "use_liger_kernel": "use `compute.liger`",
    "use_cpu": "use `compute.device`",
}
"""Fields trueup decides itself, with what to write instead."""

_TYPES: Mapping[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


@functools.cache
def table() -> dict[str, dict[str, dict[str, Any]]]:
    """Return ``{class: {field: {"type": …, "optional": …}}}``."""
    data: dict[str, dict[str, dict[str, Any]]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return data


class TrainFields(StageConfig):
    """Base of a kind's `train:`: its own words are fields; any other key must be one of the trainer's own fields.

    Attributes:
        trainer: name of the trainer's config class, one of `TRAINERS`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    trainer: ClassVar[str] = "TrainingArguments"

    @classmethod
    def allowed(cls) -> dict[str, dict[str, Any]]:
        """Return the trainer's fields that may be passed on."""
        own = cls.model_fields
        return {k: v for k, v in table()[cls.trainer].items() if k not in own and k not in CONTROLLED}

    @classmethod
    def problems_in(cls, given: Mapping[str, Any]) -> dict[str, Problem]:
        """Return what is wrong with the keys of ``given`` that are not own fields, by key."""
        bad = {}
        for key, value in given.items():
            if key not in cls.model_fields:
                problem = cls._problem(key, value)
                if problem is not None:
                    bad[key] = problem
        return bad

    @classmethod
    def _problem(cls, key: str, value: Any) -> Problem | None:
        if key in CONTROLLED and key in table()[cls.trainer]:
            return Problem(f"`{key}` is decided by trueup", remedy=CONTROLLED[key])
        allowed = cls.allowed()
        if key not in allowed:
            words = [*cls.model_fields, *allowed]
            return Problem(
                f"unknown key `{key}`", f"a word of this stage or a field of {cls.trainer}", nearest(key, words)
            )
        kind, optional = allowed[key]["type"], allowed[key]["optional"]
        if kind == "any" or (value is None and optional) or _fits(kind, value):
            return None
        return Problem(f"{key} is {value!r}", f"must be {_WORDS[kind]}{' or null' if optional else ''}")

    @model_validator(mode="after")
    def _check_passthrough(self) -> Self:
        extra = self.__pydantic_extra__ or {}
        bad = self.problems_in(extra)
        if bad:
            raise ValidationError.from_exception_data(
                type(self).__name__,
                [
                    InitErrorDetails(type=_custom_error(problem), loc=(key,), input=extra[key])
                    for key, problem in bad.items()
                ],
            )
        for key, value in extra.items():  # 1 and 1.0 are one setting: they must give one fingerprint
            kind = self.allowed()[key]["type"]
            if kind in {"int", "float"} and value is not None:
                extra[key] = int(value) if kind == "int" else float(value)
        return self

    def passthrough(self) -> dict[str, Any]:
        """Return the keys given that are the trainer's own fields."""
        return dict(self.__pydantic_extra__ or {})

    def fingerprint_data(self) -> dict[str, Any]:
        """Return all that can change a result, as JSON data.

        When the best checkpoint is loaded at the end, how often checkpoints are saved decides which it can be.
        """
        data = self.model_dump(mode="json")
        runtime = set(RUNTIME_TRAIN_FIELDS) | set(self.markers(Runtime))
        if data.get("load_best_model_at_end"):
            runtime -= _SAVE_FIELDS
        return {key: value for key, value in data.items() if key not in runtime}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Add the trainer's fields with their types."""
        schema = handler.resolve_ref_schema(handler(core))
        names = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
        properties = schema.setdefault("properties", {})
        for key, info in sorted(cls.allowed().items()):
            entry: dict[str, Any] = {"description": f"Field of {cls.trainer}."}
            if info["type"] != "any":
                name = names[info["type"]]
                entry["type"] = [name, "null"] if info["optional"] else name
            properties[key] = entry
        schema["additionalProperties"] = False
        return schema


def _custom_error(problem: Problem) -> PydanticCustomError:
    context = {"found": problem.found, "expected": problem.expected, "remedy": problem.remedy}
    return PydanticCustomError("trainer_field", "{found}, {expected}; {remedy}", context)


def _fits(kind: str, value: Any) -> bool:
    """Say whether a YAML value is of a table's type; a whole float may stand for an int."""
    if isinstance(value, bool):
        return kind == "bool"
    if kind == "int" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[kind])


def build_table() -> dict[str, dict[str, dict[str, Any]]]:
    """Read the fields of the installed trainers' configs; imports trl."""
    import dataclasses

    import transformers
    import trl

    built = {}
    for name in TRAINERS:
        cls = getattr(trl, name, None) or getattr(transformers, name)
        built[name] = {
            f.name: _describe(f.type) for f in sorted(dataclasses.fields(cls), key=lambda f: f.name) if f.init
        }
    return built


def _describe(hint: Any) -> dict[str, Any]:
    """Reduce a type hint to one of the table's types."""
    import types
    import typing

    union = typing.get_origin(hint) in {typing.Union, types.UnionType}
    parts = list(typing.get_args(hint)) if union else [hint]
    optional = type(None) in parts
    kinds = {_kind(part) for part in parts if part is not type(None)}
    return {"type": kinds.pop() if len(kinds) == 1 else "any", "optional": optional}


def _kind(part: Any) -> str:
    """Name one member of a hint; an enumeration of strings is written as text."""
    import enum

    if isinstance(part, type) and issubclass(part, enum.Enum):
        return "str"
    return {int: "int", float: "float", bool: "bool", str: "str"}.get(part, "any")


def render(built: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table as JSON with one field on a line."""
    classes = []
    for name in sorted(built):
        lines = [f'  "{field}": {json.dumps(info, sort_keys=True)}' for field, info in sorted(built[name].items())]
        classes.append(f' "{name}": {{\n' + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(classes) + "\n}\n"


def main() -> None:
    """Write the table next to this module."""
    TABLE.write_text(render(build_table()), encoding="utf-8")


if __name__ == "__main__":
    main()
