"""Fields that have an effect beside another one only, and the arguments that optimizers and schedules take.

A field that would be passed over is refused, with what it needs: an ε of Adam with plain SGD changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import Problem, listed, nearest


@dataclass(frozen=True)
class Need:
    """What a field has to stand beside.

    Attributes:
        other: the other field.
        values: values of it that do; empty: any that is not null, false or 0.
        default: what it is where the recipe says nothing.
    """

    other: str
    values: tuple[Any, ...] = ()
    default: Any = None

    def is_met(self, given: Mapping[str, Any]) -> bool:
        """Say whether it stands there."""
        value = given.get(self.other, self.default)
        found = value if isinstance(value, list) else [value]
        return any(one in self.values for one in found) if self.values else bool(value)


_TORCH = ("adamw_torch_fused", "adamw_torch", "adamw_torch_xla", "adamw_torch_npu_fused")
_TORCHAO = ("adamw_torch_4bit", "adamw_torch_8bit")
_ADAM_BNB = ("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit")
_ADEMAMIX = ("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit")
_LION = ("lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit")
_RMS_BNB = ("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit")
_GALORE = (
    *("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise"),
    *("galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"),
)
_APOLLO = ("apollo_adamw", "apollo_adamw_layerwise")
_FREE = ("schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd")
_LOMO = ("lomo", "adalomo")
_WITH_EPS = (
    *(*_TORCH, *_TORCHAO, *_ADAM_BNB, *_ADEMAMIX, *_APOLLO, *_FREE[:2]),
    *("stable_adamw", "adamw_anyprecision"),
)
LOW_RANK = (*_GALORE, *_APOLLO)

_ADAPTIVE = Need("use_adaptive_entropy")
_STEPS = Need("eval_strategy", ("steps", "epoch"), "steps")
_COMPILED = Need("torch_compile")
_VLLM = Need("use_vllm")
_SERVER, _COLOCATED = Need("vllm_mode", ("server",), "colocate"), Need("vllm_mode", ("colocate",), "colocate")
_WORKERS, _SYNCED = Need("dataloader_num_workers"), Need("sync_ref_model")
_SAPO, _VESPO, _LOGGED = Need("loss_type", ("sapo",)), Need("loss_type", ("vespo",)), Need("log_completions")
_CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
_TRACKIO = Need("report_to", ("trackio", "all"))
NEEDS: Mapping[str, tuple[Need, ...]] = {
    "adam_beta1": (Need("optim", (*_WITH_EPS, *_LION)),),
    "adam_beta2": (Need("optim", (*_WITH_EPS, *_LION)),),
    "adam_epsilon": (Need("optim", _WITH_EPS),),
    "optim_target_modules": (Need("optim", LOW_RANK),),
    "dataloader_multiprocessing_context": (_WORKERS,),
    "dataloader_persistent_workers": (_WORKERS,),
    "dataloader_prefetch_factor": (_WORKERS,),
    "delta": (Need("loss_type", _CLIPPED),),
    "discopop_tau": (Need("loss_type", ("discopop",)),),
    "entropy_coef_delta": (_ADAPTIVE,),
    "entropy_coef_max": (_ADAPTIVE,),
    "entropy_coef_min": (_ADAPTIVE,),
    "entropy_target": (_ADAPTIVE,),
    "epsilon_high": (Need("loss_type", (*_CLIPPED, "cispo")),),
    "eval_delay": (_STEPS,),
    "eval_steps": (Need("eval_strategy", ("steps",), "steps"),),
    "f_alpha_divergence_coef": (Need("f_divergence_type", ("alpha_divergence",)),),
    "f_divergence_type": (
        Need("loss_type", ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")),
    ),
    "importance_sampling_level": (Need("loss_type", (*_CLIPPED, "cispo", "sapo")),),
    "label_smoothing": (Need("loss_type", ("robust", "exo_pair", "aot", "aot_unpaired")),),
    "label_smoothing_factor": (Need("loss_type", ("nll",), "nll"),),
    "log_unique_prompts": (_LOGGED,),
    "num_completions_to_print": (_LOGGED,),
    "project": (_TRACKIO,),
    "ref_model_mixup_alpha": (_SYNCED,),
    "ref_model_sync_steps": (_SYNCED,),
    "sapo_temperature_neg": (_SAPO,),
    "sapo_temperature_pos": (_SAPO,),
    "save_steps": (Need("save_strategy", ("steps",)),),
    "scale_rewards": (Need("multi_objective_aggregation", ("sum_then_normalize",), "sum_then_normalize"),),
    "sync_ref_model": (Need("beta"),),
    "torch_compile_backend": (_COMPILED,),
    "torch_compile_mode": (_COMPILED,),
    "trackio_bucket_id": (_TRACKIO,),
    "trackio_space_id": (_TRACKIO,),
    "trackio_static_space_id": (_TRACKIO,),
    "transformers_continuous_batching_config": (Need("use_transformers_continuous_batching"),),
    "use_bias_correction_kl": (Need("beta"),),
    "vespo_k_neg": (_VESPO,),
    "vespo_k_pos": (_VESPO,),
    "vespo_lambda_neg": (_VESPO,),
    "vespo_lambda_pos": (_VESPO,),
    "vllm_enable_sleep_mode": (_VLLM, _COLOCATED),
    "vllm_gpu_memory_utilization": (_VLLM, _COLOCATED),
    "vllm_group_port": (_VLLM, _SERVER),
    "vllm_importance_sampling_clip_max": (_VLLM,),
    "vllm_importance_sampling_clip_min": (_VLLM,),
    "vllm_importance_sampling_correction": (_VLLM,),
    "vllm_importance_sampling_mode": (_VLLM,),
    "vllm_max_model_length": (_VLLM, _COLOCATED),
    "vllm_mode": (_VLLM,),
    "vllm_model_impl": (_VLLM, _COLOCATED),
    "vllm_server_base_url": (_VLLM, _SERVER),
    "vllm_server_host": (_VLLM, _SERVER),
    "vllm_server_port": (_VLLM, _SERVER),
    "vllm_server_timeout": (_VLLM, _SERVER),
    "vllm_structured_outputs_regex": (_VLLM,),
    "vllm_tensor_parallel_size": (_VLLM, _COLOCATED),
}
"""Fields that are passed over unless another one stands beside them."""

PACKAGES: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys((*_ADAM_BNB, *_ADEMAMIX, *_LION, *_RMS_BNB), ("bitsandbytes", "pip install 'trueup[quantize]'")),
    **dict.fromkeys(_GALORE, ("galore_torch", "pip install galore-torch")),
    **dict.fromkeys(_APOLLO, ("apollo_torch", "pip install apollo-torch")),
    **dict.fromkeys(_FREE, ("schedulefree", "pip install schedulefree")),
    **dict.fromkeys(_LOMO, ("lomo_optim", "pip install lomo-optim")),
    **dict.fromkeys(_TORCHAO, ("torchao", "pip install torchao")),
    "adamw_anyprecision": ("torchdistx", "see https://github.com/pytorch/torchdistx"),
    "adamw_torch_npu_fused": ("torch_npu", "it is for Ascend NPUs"),
    "adamw_torch_xla": ("torch_xla", "it is for TPUs"),
    "grokadamw": ("grokadamw", "pip install grokadamw"),
    "stable_adamw": ("optimi", "pip install torch-optimi"),
}
"""Optimizers that stand in a package of their own: its module, and how to get it."""

_RANK = ("rank", "update_proj_gap", "scale", "proj_type")
OPTIM_ARGS: Mapping[str, tuple[str, ...]] = {
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "adagrad": ("lr_decay", "weight_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
    **dict.fromkeys(_ADEMAMIX, ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3")),
    **dict.fromkeys(_GALORE, _RANK),
    **dict.fromkeys(_APOLLO, (*_RANK, "proj", "scale_type")),
    **dict.fromkeys(_TORCHAO, ("block_size", "bf16_stochastic_round")),
    **dict.fromkeys(_FREE, ("weight_lr_power", "r")),
    "adamw_anyprecision": (*("use_kahan_summation", "momentum_dtype", "variance_dtype", "compensation_buffer_dtype"),),
    "grokadamw": ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"),
    "stable_adamw": ("max_lr", "kahan_sum", "decouple_lr"),
    **dict.fromkeys(_RMS_BNB, ("alpha", "eps", "momentum", "centered")),
}
"""Arguments that `optim_args` may hold; an optimizer that is not here reads none."""

SCHEDULE_KWARGS: Mapping[str, tuple[str, ...]] = {
    "linear": (),
    "cosine": ("num_cycles",),
    "cosine_with_restarts": ("num_cycles",),
    "polynomial": ("lr_end", "power"),
    "constant": (),
    "constant_with_warmup": (),
    "inverse_sqrt": ("timescale",),
    "reduce_lr_on_plateau": (
        *("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps"),
    ),
    "cosine_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"),
    "warmup_stable_decay": (
        *("num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"),
    ),
    "greedy": (
        *("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "warmup", "min_lr", "max_lr"),
        *("eps", "verbose", "smooth", "window_size", "reset_start"),
    ),
}
"""Arguments that `lr_scheduler_kwargs` may hold."""

WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow `metric_for_best_model`."""


def need_problems(given: Mapping[str, Any], asked: frozenset[str]) -> Iterator[Problem]:
    """Yield fields that are asked for and would be passed over.

    Args:
        given: all words of `train` with their values, defaults of the kind's own among them.
        asked: those the recipe has.
    """
    for field in sorted(asked):
        if given[field] is None or given[field] is False:
            continue
        for need in NEEDS.get(field, ()):
            if not need.is_met(given):
                words = listed(need.values)
                wanted = "" if not need.values else f" to be one of {words}" if len(need.values) > 1 else f": {words}"
                remedy = f"set train.{need.other}" + (f": {need.values[0]}" if len(need.values) == 1 else "")
                found = f"train.{field} has no effect here"
                yield Problem(found, f"it needs train.{need.other}{wanted}", f"{remedy}, or leave it out")
                break
    yield from _schedule_problems(given, asked)
    yield from _optimizer_problems(given)
    yield from _evaluation_problems(given, asked)


def _schedule_problems(given: Mapping[str, Any], asked: frozenset[str]) -> Iterator[Problem]:
    schedule = str(given.get("lr_scheduler_type", "linear"))
    kwargs = given.get("lr_scheduler_kwargs") or {}
    takes = SCHEDULE_KWARGS.get(schedule)
    if takes is None:  # an unknown schedule is said to be
        return
    for key in kwargs:
        if key not in takes:
            found = f"train.lr_scheduler_kwargs has `{key}`, which {schedule} does not take"
            expected = f"one of {listed(takes)}" if takes else "none: it has no arguments"
            yield Problem(found, expected, nearest(str(key), takes) or "leave it out")
    if schedule.endswith("min_lr") and not {"min_lr", "min_lr_rate"} & set(kwargs):
        found = f"train.lr_scheduler_type is {schedule} without its lowest rate"
        yield Problem(found, "", "set train.lr_scheduler_kwargs: {min_lr_rate: 0.1}")
    if {"min_lr", "min_lr_rate"} <= set(kwargs) and schedule.endswith("min_lr"):
        yield Problem("train.lr_scheduler_kwargs has min_lr and min_lr_rate", "one of them", "leave one out")
    if schedule == "warmup_stable_decay" and "num_decay_steps" not in kwargs:
        found = f"train.lr_scheduler_type is {schedule} without the length of its decay"
        yield Problem(found, "", "set train.lr_scheduler_kwargs: {num_decay_steps: 100}")
    if schedule in WITHOUT_WARMUP and "warmup_steps" in asked and given["warmup_steps"]:
        remedy = "set train.lr_scheduler_type: constant_with_warmup" if schedule == "constant" else "leave it out"
        found = f"train.warmup_steps is {given['warmup_steps']:g}, and {schedule} has no warm-up"
        yield Problem(found, "", remedy)


def _optimizer_problems(given: Mapping[str, Any]) -> Iterator[Problem]:
    optim, text = str(given.get("optim", "")), given.get("optim_args")
    if optim in LOW_RANK and not given.get("optim_target_modules"):
        found = f"train.optim is {optim} without the layers it works on"
        yield Problem(found, "", "set train.optim_target_modules: all-linear")
    if not isinstance(text, str) or not text:
        return
    takes = OPTIM_ARGS.get(optim, ())
    for part in text.replace(" ", "").split(","):
        key, sign, _ = part.partition("=")
        if not sign:
            yield Problem(f"train.optim_args is {text!r}", "must be like `momentum=0.9,nesterov=true`")
        elif key not in takes:
            found = f"train.optim_args has `{key}`, which {optim} does not take"
            expected = f"one of {listed(takes)}" if takes else "none: its arguments are fields of `train`"
            yield Problem(found, expected, nearest(key, takes) or "leave it out")


def _evaluation_problems(given: Mapping[str, Any], asked: frozenset[str]) -> Iterator[Problem]:
    best, strategy = bool(given.get("load_best_model_at_end")), given.get("eval_strategy", "steps")
    save = given.get("save_strategy")
    by_evaluation = best or given.get("lr_scheduler_type") in BY_EVALUATION
    what = (
        "train.load_best_model_at_end is true"
        if best
        else f"train.lr_scheduler_type is {given.get('lr_scheduler_type')}"
    )
    if by_evaluation and strategy == "no":
        yield Problem(f"{what} and train.eval_strategy is no", "evaluations to choose by", "leave eval_strategy out")
    if save == "best" and not best:
        yield Problem(
            "train.save_strategy is best without a best to load", "", "set train.load_best_model_at_end: true"
        )
    if best and save not in (None, "best", strategy):
        found = (
            f"train.load_best_model_at_end is true, train.save_strategy is {save} and train.eval_strategy {strategy}"
        )
        yield Problem(found, "the same strategy", "leave save_strategy out: the best evaluation is saved when it ends")
    every, steps = given.get("save_steps"), given.get("eval_steps")
    if best and save == "steps" and every and steps and every != steps:
        found = f"train.load_best_model_at_end is true, train.save_steps is {every:g} and train.eval_steps {steps:g}"
        yield Problem(found, "the same steps", "leave save_steps out: the best evaluation is saved when it ends")
    for field in ("metric_for_best_model", "greater_is_better"):
        if field in asked and given[field] is not None and not by_evaluation:
            found = f"train.{field} has no effect here"
            yield Problem(found, "a best evaluation to choose by it", "set train.load_best_model_at_end: true")
