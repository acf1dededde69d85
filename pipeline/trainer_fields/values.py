"""Checks the value of a trainer's field by type, allowed words and range, which a trainer would do hours later."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.errors import Problem, listed, nearest
from pipeline.trainer_fields.table import FieldInfo

WORDS: Mapping[str, tuple[str, ...]] = {
    "cache_implementation": ("dynamic", "static", "offloaded", "offloaded_static", "quantized"),
    "dataloader_multiprocessing_context": ("fork", "forkserver", "spawn"),
    "f_divergence_type": ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
    "importance_sampling_level": ("token", "sequence"),
    "log_level": ("debug", "info", "warning", "error", "critical", "passive"),
    "log_level_replica": ("debug", "info", "warning", "error", "critical", "passive"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none"),
    "torch_compile_backend": ("inductor", "eager", "aot_eager", "cudagraphs", "onnxrt", "tensorrt", "tvm"),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("vllm", "transformers"),
}
"""Allowed words of fields whose types do not list them; `table.json` has those of the others."""

_ABOVE, _LEAST, _BELOW, _MOST = "> ", ">= ", "< ", "<= "
RANGES: Mapping[str, tuple[tuple[str, float], ...]] = {
    **dict.fromkeys(("adam_beta1", "adam_beta2"), ((_LEAST, 0), (_BELOW, 1))),
    **dict.fromkeys(("min_p", "ref_model_mixup_alpha"), ((_LEAST, 0), (_MOST, 1))),
    **dict.fromkeys(("top_p", "top_entropy_quantile", "vllm_gpu_memory_utilization"), ((_ABOVE, 0), (_MOST, 1))),
    **dict.fromkeys(("label_smoothing", "label_smoothing_factor"), ((_LEAST, 0), (_BELOW, 1))),
    **dict.fromkeys(
        (
            *("adam_epsilon", "discopop_tau", "repetition_penalty", "sapo_temperature_neg", "sapo_temperature_pos"),
            *("vespo_k_neg", "vespo_k_pos", "vespo_lambda_neg", "vespo_lambda_pos", "epsilon_high"),
            *("eval_steps", "logging_steps", "save_steps", "vllm_server_timeout", "off_policy_mask_threshold"),
            *("temperature", "vllm_importance_sampling_clip_max"),
        ),
        ((_ABOVE, 0),),
    ),
    "delta": ((_ABOVE, 1),),  # at 1 and below, no response with a positive advantage would be trained on
    **dict.fromkeys(
        (
            *("center_rewards_coefficient", "desirable_weight", "undesirable_weight", "entropy_coef_delta"),
            *("eval_delay", "neftune_noise_alpha", "router_aux_loss_coef", "dataloader_num_workers", "top_k"),
            *("max_grad_norm", "weight_decay", "warmup_steps", "entropy_target"),
            *("vllm_importance_sampling_clip_min",),
        ),
        ((_LEAST, 0),),
    ),
    **dict.fromkeys(
        (
            *("dataloader_prefetch_factor", "ddp_bucket_cap_mb", "num_completions_to_print", "num_generations_eval"),
            *("per_device_eval_batch_size", "ref_model_sync_steps", "torch_empty_cache_steps", "vllm_group_port"),
            *("vllm_max_model_length", "vllm_server_port", "vllm_tensor_parallel_size"),
        ),
        ((_LEAST, 1),),
    ),
}
"""Field to the bounds of its number."""

WHOLE_ABOVE_1 = ("eval_steps", "logging_steps", "save_steps")
"""Fields that are a share of all steps below 1, and a number of steps above."""

MAPPINGS = ("generation_kwargs", "lr_scheduler_kwargs", "transformers_continuous_batching_config")
NUMBERS = ("loss_weights", "reward_clip_range")

_TYPES: Mapping[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
_TYPE_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def words_of(field: str, info: FieldInfo) -> tuple[str, ...]:
    """Return the words a field takes; empty if it takes any text, or no text."""
    return WORDS.get(field) or tuple(info.get("values", ()))


def value_problem(field: str, value: object, info: FieldInfo) -> Problem | None:
    """Return a problem if a field does not take a value; else None.

    Args:
        field: name of the field.
        value: value in the recipe.
        info: the field's entry in the table.
    """
    if value is None and info["optional"]:
        return None
    or_null = " or null" if info["optional"] else ""
    kind = info["type"]
    if kind != "any" and not fits(kind, value):
        return Problem(f"{field} is {value!r}", f"must be {_TYPE_WORDS[kind]}{or_null}")
    words = words_of(field, info)
    if words and value not in words:
        return Problem(f"{field} is {value!r}", f"must be one of {listed(words)}", nearest(str(value), words))
    return _range_problem(field, value) or _shape_problem(field, value)


def _range_problem(field: str, value: object) -> Problem | None:
    bounds = RANGES.get(field, ())
    if not bounds or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    holds = {
        _ABOVE: lambda bound: value > bound,
        _LEAST: lambda bound: value >= bound,
        _BELOW: lambda bound: value < bound,
        _MOST: lambda bound: value <= bound,
    }
    if not all(holds[sign](bound) for sign, bound in bounds):
        return Problem(f"{field} is {value:g}", "must be " + " and ".join(f"{sign}{bound:g}" for sign, bound in bounds))
    if field in WHOLE_ABOVE_1 and value > 1 and value != int(value):
        return Problem(f"{field} is {value:g}", "must be a whole number of steps, or below 1 a share of all steps")
    return None


def _shape_problem(field: str, value: object) -> Problem | None:
    if field in MAPPINGS and not isinstance(value, dict):
        return Problem(f"{field} is {value!r}", "must be a mapping, e.g. `{name: 0.1}`")
    if field in NUMBERS:
        numbers = value if isinstance(value, list) else []
        if not numbers or not all(fits("float", one) for one in numbers):
            return Problem(f"{field} is {value!r}", "must be a list of numbers")
        if field == "reward_clip_range" and not (len(numbers) == 2 and numbers[0] < numbers[1]):
            return Problem(f"{field} is {value!r}", "must be the lowest and the highest reward, e.g. `[-1, 1]`")
    return None


def fits(kind: str, value: object) -> bool:
    """Return whether a YAML value has a type of the table; a whole float counts as an int."""
    if isinstance(value, bool):
        return kind == "bool"
    if kind == "int" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[kind])
