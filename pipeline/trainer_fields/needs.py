"""Rejects fields that have no effect because another field is not set: Adam's ε does nothing with plain SGD."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import Problem, listed
from pipeline.trainer_fields.contradictions import contradictions
from pipeline.trainer_fields.generation import generation_problems
from pipeline.trainer_fields.optimizers import LION, LOW_RANK, WITH_EPS, optimizer_problems
from pipeline.trainer_fields.schedules import BY_EVALUATION, schedule_problems
from pipeline.trainer_fields.table import GivenFields


@dataclass(frozen=True)
class Need:
    """Another field that a field needs to have an effect.

    Attributes:
        other: name of the other field.
        values: values of the other field that meet the need; empty for any value but null, false and 0.
        default: default of the other field.
    """

    other: str
    values: tuple[Any, ...] = ()
    default: Any = None

    def is_met(self, given: GivenFields) -> bool:
        """Return whether the other field has a value that meets the need."""
        value = given.get(self.other, self.default)
        values = value if isinstance(value, list) else [value]
        return any(one in self.values for one in values) if self.values else bool(value)


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
    "adam_beta1": (Need("optim", (*WITH_EPS, *LION)),),
    "adam_beta2": (Need("optim", (*WITH_EPS, *LION)),),
    "adam_epsilon": (Need("optim", WITH_EPS),),
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
    "epsilon": (Need("loss_type", (*_CLIPPED, "cispo"), "dapo"),),
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
    "logging_steps": (Need("logging_strategy", ("steps",), "steps"),),
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
"""Field to the other fields it needs to have an effect."""


def need_problems(given: GivenFields, asked: frozenset[str]) -> Iterator[Problem]:
    """Yield problems of fields in the recipe that would have no effect, or that contradict one another.

    Args:
        given: all fields of `train` with their values, including defaults of the kind's own fields.
        asked: names of the fields the recipe sets.
    """
    for field in sorted(asked):
        if given[field] is None or given[field] is False:
            continue
        for need in NEEDS.get(field, ()):
            if not need.is_met(given):
                words = listed(need.values)
                wanted = "" if not need.values else f" to be one of {words}" if len(need.values) > 1 else f": {words}"
                remedy = f"set train.{need.other}" + (f": {need.values[0]}" if len(need.values) == 1 else "")
                statement = f"train.{field} has no effect here"
                yield Problem(statement, f"it needs train.{need.other}{wanted}", f"{remedy}, or leave it out")
                break
    yield from schedule_problems(given, asked)
    yield from optimizer_problems(given)
    yield from _evaluation_problems(given, asked)
    yield from contradictions(given, asked)
    yield from generation_problems(given)


def _evaluation_problems(given: GivenFields, asked: frozenset[str]) -> Iterator[Problem]:
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
    last = given.get("max_steps") or math.inf
    for word in ("eval_steps", "eval_delay") if by_evaluation and strategy == "steps" else ():
        if word in asked and (given[word] or 0) > last:
            expected = f"must be at most train.max_steps ({last}): {what}"
            yield Problem(f"train.{word} is {given[word]:g}", expected)
    if save == "best" and not best:
        yield Problem(
            "train.save_strategy is best without a best to load", "", "set train.load_best_model_at_end: true"
        )
    if best and save not in (None, "best", strategy):
        statement = (
            f"train.load_best_model_at_end is true, train.save_strategy is {save} and train.eval_strategy {strategy}"
        )
        yield Problem(
            statement, "the same strategy", "leave save_strategy out: the best evaluation is saved when it ends"
        )
    every, steps = given.get("save_steps"), given.get("eval_steps")
    if best and save == "steps" and every and every != steps:
        beside = f"train.eval_steps {steps:g}" if steps else "train.eval_steps not said"
        statement = f"train.load_best_model_at_end is true, train.save_steps is {every:g} and {beside}"
        yield Problem(statement, "the same steps", "leave save_steps out: the best evaluation is saved when it ends")
    for field in ("metric_for_best_model", "greater_is_better"):
        follows = best or (by_evaluation and field == "metric_for_best_model")
        if field in asked and given[field] is not None and not follows:
            statement = f"train.{field} has no effect here"
            remedy = "set train.load_best_model_at_end: true"
            if by_evaluation:
                remedy = "set train.lr_scheduler_kwargs: {mode: max}, or min"
            yield Problem(statement, "a best evaluation to choose by it", remedy)
