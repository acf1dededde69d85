"""Every field of a trainer that `train:` passes on has an effect: another value gives other weights or another log.

One run for each field, on the smallest model there is. What cannot be seen here is named in `UNSEEN` with the reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import DataSource
from pipeline.stage import KINDS
from pipeline.trainer_fields.classes import ALL_CHANGES, RUNTIME_TRAIN_FIELDS

QUICK = {"max_steps": 3, "batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1, "eval_steps": 3}
SAMPLED = {**QUICK, "num_generations": 4, "max_new_tokens": 6}
DATA = {"pretrain": "corpus", "sft": "demos", "reward": "pairs", "dpo": "pairs", "kto": "pairs"}
TWICE = {"num_iterations": 3, "learning_rate": 0.05}  # an old policy that differs from the one that learns

CASES: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "pretrain": [
        ({}, {"adam_beta1": 0.5}),
        ({}, {"adam_beta2": 0.5}),
        ({}, {"adam_epsilon": 0.1}),
        ({"optim": "sgd"}, {"optim_args": "momentum=0.9"}),
        ({"lr_scheduler_type": "cosine"}, {"lr_scheduler_kwargs": {"num_cycles": 2}}),
        ({}, {"eval_delay": 4}),
        ({}, {"eval_steps": 1}),
        ({}, {"eval_strategy": "no", "eval_steps": None}),
        ({}, {"label_smoothing_factor": 0.3}),
        ({"load_best_model_at_end": True, "eval_steps": 1}, {"greater_is_better": True}),
        ({}, {"neftune_noise_alpha": 50.0}),
    ],
    "sft": [
        ({}, {"loss_type": "dft"}),
        ({}, {"label_smoothing_factor": 0.3}),
        ({"load_best_model_at_end": True, "eval_steps": 1}, {"metric_for_best_model": "entropy"}),
    ],
    "reward": [({}, {"center_rewards_coefficient": 0.5})],
    "dpo": [
        ({}, {"f_divergence_type": "js_divergence"}),
        ({"f_divergence_type": "alpha_divergence"}, {"f_alpha_divergence_coef": 0.3}),
        ({"loss_type": "robust"}, {"label_smoothing": 0.2}),
        ({"loss_type": "discopop"}, {"discopop_tau": 0.5}),
        ({"loss_type": ["sigmoid", "sft"]}, {"loss_weights": [0.5, 1.0]}),
        ({}, {"use_weighting": True}),
    ],
    "kto": [({}, {"desirable_weight": 2.0}), ({}, {"undesirable_weight": 2.0})],
    "grpo": [
        (TWICE, {"delta": 1.05}),
        (TWICE, {"epsilon_high": 0.5}),
        (TWICE, {"importance_sampling_level": "sequence"}),
        (TWICE, {"off_policy_mask_threshold": 1e-6}),
        ({}, {"entropy_coef": 0.5}),
        ({}, {"use_adaptive_entropy": True}),
        ({"use_adaptive_entropy": True, "entropy_target": 9.0}, {"entropy_coef_delta": 0.2}),
        ({"use_adaptive_entropy": True, "entropy_target": 9.0}, {"entropy_coef_max": 0.001}),
        ({"use_adaptive_entropy": True}, {"entropy_target": 9.0}),
        ({}, {"mask_truncated_completions": True}),
        ({}, {"multi_objective_aggregation": "normalize_then_sum"}),
        ({}, {"scale_rewards": "none"}),
        ({}, {"top_entropy_quantile": 0.3}),
        ({"beta": 0.5, "sync_ref_model": True}, {"ref_model_sync_steps": 1}),
        ({"beta": 0.5, "sync_ref_model": True, "ref_model_sync_steps": 1}, {"ref_model_mixup_alpha": 0.1}),
        ({}, {"min_p": 0.5}),
        ({}, {"top_k": 2}),
        ({}, {"repetition_penalty": 5.0}),
        ({}, {"generation_kwargs": {"top_k": 2}}),
        ({}, {"num_generations_eval": 2}),
        ({}, {"shuffle_dataset": False}),
    ],
    "rloo": [({}, {"normalize_advantages": True}), ({}, {"reward_clip_range": [0.0, 3.0]})],
}
"""Kind to pairs of what the plain run has and what is changed."""

_READ = "no difference in three steps of the tiny model; its use is read in the trainer"
UNSEEN = {
    "entropy_coef_min": _READ,
    "load_best_model_at_end": _READ,
    "sapo_temperature_neg": _READ,
    "sapo_temperature_pos": _READ,
    "sync_ref_model": _READ,
    "top_p": _READ,
    "use_bias_correction_kl": _READ,
    "vespo_k_neg": _READ,
    "vespo_k_pos": _READ,
    "vespo_lambda_neg": _READ,
    "vespo_lambda_pos": _READ,
    "cache_implementation": "how keys and values lie in memory; the samples are the same but for rounding",
    "cast_lm_head_to_fp32": "the output layer is fp32 unless the computation is in half precision",
    "disable_dropout": "the tiny models have no dropout",
    "optim_target_modules": "its optimizers stand in packages that are not installed",
    "router_aux_loss_coef": "for models with experts",
    "torch_compile": "takes a compiler and minutes; the same numbers but for rounding",
    "torch_compile_backend": "as torch_compile",
    "torch_compile_mode": "as torch_compile",
    "transformers_continuous_batching_config": "for a GPU",
    "use_transformers_continuous_batching": "for a GPU",
    "use_vllm": "vLLM is not installed",
}

REWARDS = """\
def varied(completion_ids, **kwargs):
    return [float(sum(ids) % 7) for ids in completion_ids]
"""


@pytest.fixture(scope="module")
def plain_runs() -> dict[str, str]:
    """Digests of plain runs, by what they were asked."""
    return {}


@pytest.fixture
def digest_of(tmp_path: Path, chain: Any, as_input: Any, run_stage: Callable[..., Any]) -> Callable[..., str]:
    """Run a kind with some fields and return a digest of its weights and its log."""
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    folder = chain.recipe.parent

    def run(kind: str, fields: dict[str, Any]) -> str:
        config: dict[str, Any] = {"train": {**(SAMPLED if kind in ("grpo", "rloo") else QUICK), **fields}}
        inputs, field = {"model": as_input(chain["sft"])}, "model"
        if kind == "pretrain":
            inputs, field = {"init": as_input(chain["base"])}, "init"
        if kind in ("grpo", "rloo"):
            config["reward_functions"] = ["rewards.py:varied"]
        source = DataSource(path=str(folder / f"{DATA.get(kind, 'asks')}.jsonl"), held_out=0.1)
        assert KINDS[kind].config.model_validate({**config, "data": "d", field: "m"}).check() == []
        ran = run_stage(kind, config, data={"data": source}, inputs=inputs)
        log = json.dumps([ran.history, dict(ran.outcome.result.best)], sort_keys=True).encode()
        return hashlib.sha256((ran.out / "model.safetensors").read_bytes() + log).hexdigest()

    return run


@pytest.mark.parametrize(
    ("kind", "plain", "changed"),
    [pytest.param(kind, *case, id=f"{kind}-{next(iter(case[1]))}") for kind, cases in CASES.items() for case in cases],
)
def test_another_value_gives_another_result(
    kind: str,
    plain: dict[str, Any],
    changed: dict[str, Any],
    digest_of: Callable[..., str],
    plain_runs: dict[str, str],
) -> None:
    key = json.dumps([kind, plain], sort_keys=True)
    if key not in plain_runs:
        plain_runs[key] = digest_of(kind, plain)
    assert digest_of(kind, {**plain, **changed}) != plain_runs[key]


def test_no_field_is_forgotten() -> None:
    """Every field that is passed on is seen above, has a reason not to be, needs vLLM, or is a kind's own word."""
    seen = {name for cases in CASES.values() for _, changed in cases for name in changed}
    for kind in CASES:
        train: Any = KINDS[kind].config.model_fields["train"].annotation
        passed_on = set(train.allowed()) - RUNTIME_TRAIN_FIELDS
        assert passed_on <= ALL_CHANGES
        missing = {name for name in passed_on - seen - set(UNSEEN) if not name.startswith("vllm_")}
        assert missing == set(), kind


def test_runtime_fields_change_nothing(digest_of: Callable[..., str], plain_runs: dict[str, str]) -> None:
    fields = {
        "dataloader_num_workers": 1,
        "dataloader_prefetch_factor": 3,
        "dataloader_multiprocessing_context": "fork",
        "ddp_bucket_cap_mb": 1,
        "log_level": "error",
        "logging_first_step": True,
        "save_steps": 1,
        "save_strategy": "steps",
        "torch_empty_cache_steps": 1,
    }
    key = json.dumps(["pretrain", {}], sort_keys=True)
    if key not in plain_runs:
        plain_runs[key] = digest_of("pretrain", {})
    assert digest_of("pretrain", fields) == plain_runs[key]
