"""Every field of a trainer that `train:` passes on has an effect: another value gives other weights or another log.

One run for each field, on the smallest model there is. What cannot be seen here is named in `UNSEEN` with the reason.
The suite runs those of `CORE`, where code of ours stands between the field and what reads it, and sees of all others
that they reach the trainer; `make test-fields` runs all.
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
from pipeline.trainer_fields.table import table

QUICK = {"max_steps": 3, "batch_size": 8, "learning_rate": 1e-2, "logging_steps": 1, "eval_steps": 3}
SAMPLED = {**QUICK, "num_generations": 4, "max_new_tokens": 6}
DATA = {"pretrain": "corpus", "sft": "demos", "reward": "pairs", "dpo": "pairs", "kto": "pairs"}
TWICE = {"num_iterations": 3, "learning_rate": 0.05}  # an old policy that differs from the one that learns
NEAR = {"num_iterations": 3, "learning_rate": 2e-3}  # so near that no response becomes all but certain or impossible

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
        ({"eval_steps": 1, "learning_rate": 0.5}, {"load_best_model_at_end": True}),
        ({"load_best_model_at_end": True, "eval_steps": 1}, {"greater_is_better": True}),
        ({}, {"neftune_noise_alpha": 50.0}),
    ],
    "sft": [
        ({}, {"loss_type": "dft"}),
        ({}, {"label_smoothing_factor": 0.3}),
        (
            {"load_best_model_at_end": True, "eval_steps": 1, "greater_is_better": False},
            {"metric_for_best_model": "entropy"},
        ),
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
        (TWICE, {"loss_type": "cispo"}),
        ({**TWICE, "beta": 0.5}, {"use_bias_correction_kl": False}),
        ({**NEAR, "loss_type": "sapo"}, {"sapo_temperature_neg": 5.0}),
        ({**NEAR, "loss_type": "sapo"}, {"sapo_temperature_pos": 5.0}),
        ({**NEAR, "loss_type": "vespo"}, {"vespo_k_neg": 0.5}),
        ({**NEAR, "loss_type": "vespo"}, {"vespo_k_pos": 0.5}),
        ({**NEAR, "loss_type": "vespo"}, {"vespo_lambda_neg": 0.5}),
        ({**NEAR, "loss_type": "vespo"}, {"vespo_lambda_pos": 0.5}),
        ({}, {"entropy_coef": 0.5}),
        ({}, {"use_adaptive_entropy": True}),
        ({"use_adaptive_entropy": True, "entropy_target": 9.0}, {"entropy_coef_delta": 0.2}),
        ({"use_adaptive_entropy": True, "entropy_target": 9.0}, {"entropy_coef_max": 0.001}),
        ({"use_adaptive_entropy": True}, {"entropy_target": 9.0}),
        ({"use_adaptive_entropy": True, "entropy_target": 0.0}, {"entropy_coef_min": 0.01}),
        ({}, {"mask_truncated_completions": True}),
        ({}, {"multi_objective_aggregation": "normalize_then_sum"}),
        ({}, {"scale_rewards": "none"}),
        ({}, {"top_entropy_quantile": 0.3}),
        ({"beta": 0.5}, {"sync_ref_model": True, "ref_model_sync_steps": 1}),
        ({"beta": 0.5, "sync_ref_model": True}, {"ref_model_sync_steps": 1}),
        ({"beta": 0.5, "sync_ref_model": True, "ref_model_sync_steps": 1}, {"ref_model_mixup_alpha": 0.1}),
        ({}, {"min_p": 0.5}),
        ({}, {"top_k": 2}),
        ({}, {"top_p": 0.8}),
        ({}, {"repetition_penalty": 5.0}),
        ({}, {"generation_kwargs": {"no_repeat_ngram_size": 1}}),
        ({}, {"num_generations_eval": 2}),
        ({}, {"shuffle_dataset": False}),
    ],
    "rloo": [({}, {"normalize_advantages": True}), ({}, {"reward_clip_range": [0.0, 3.0]})],
}
"""Kind to pairs of what the plain run has and what is changed."""

UNSEEN = {
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

CORE = {
    "pretrain": {"lr_scheduler_kwargs", "eval_delay", "optim_args"},
    "sft": {"loss_type", "metric_for_best_model"},
    "reward": {"center_rewards_coefficient"},
    "dpo": {"loss_weights"},
    "kto": {"desirable_weight"},
    "grpo": {"delta", "loss_type", "num_generations_eval", "ref_model_sync_steps", "shuffle_dataset", "top_k"},
    "rloo": {"reward_clip_range"},
}
"""Cases that the suite runs, by kind."""

OWN: dict[str, Any] = {
    "max_steps": 5,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "polynomial",
    "warmup_steps": 2,
    "weight_decay": 0.03,
    "max_grad_norm": 0.7,
    "optim": "adamw_torch",
    "beta": 0.3,
    "num_generations": 2,
    "generation_batch_size": 16,
    "num_iterations": 2,
    "temperature": 0.9,
    "epsilon": 0.1,
    "disable_dropout": False,
}
LOSS = {"dpo": "ipo", "kto": "apo_zero_unpaired", "grpo": "bnpo"}
"""Words of a kind's own that are a field of its trainer too, none at its default."""
CUT_HERE = {"max_length"}
"""Words of a trainer that the stage does itself."""

REWARDS = """\
def varied(completion_ids, **kwargs):
    return [float(sum(ids) % 7) for ids in completion_ids]
"""


@pytest.fixture(scope="module")
def plain_runs() -> dict[str, str]:
    """Digests of plain runs, by what they were asked."""
    return {}


@pytest.fixture
def run_with(tmp_path: Path, chain: Any, as_input: Any, run_stage: Callable[..., Any]) -> Callable[..., Any]:
    """Run a kind with some fields of `train`."""
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    folder = chain.recipe.parent

    def run(kind: str, fields: dict[str, Any], **options: Any) -> Any:
        inputs, field = {"model": as_input(chain["sft"])}, "model"
        if kind == "pretrain":
            inputs, field = {"init": as_input(chain["base"])}, "init"
        config = config_of(kind, fields)
        source = DataSource(path=str(folder / f"{DATA.get(kind, 'asks')}.jsonl"), held_out=0.1)
        assert KINDS[kind].config.model_validate({**config, "data": "d", field: "m"}).check() == []
        return run_stage(kind, config, data={"data": source}, inputs=inputs, **options)

    return run


def config_of(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a quick stage."""
    if kind not in ("grpo", "rloo"):
        return {"train": {**QUICK, **fields}}
    return {"train": {**SAMPLED, **fields}, "reward_functions": ["rewards.py:varied"]}


@pytest.fixture
def digest_of(run_with: Callable[..., Any]) -> Callable[..., str]:
    """Run a kind with some fields and return a digest of its weights and its log."""

    def run(kind: str, fields: dict[str, Any]) -> str:
        ran = run_with(kind, fields)
        log = json.dumps([ran.history, dict(ran.outcome.result.best)], sort_keys=True).encode()
        return hashlib.sha256((ran.out / "model.safetensors").read_bytes() + log).hexdigest()

    return run


class Reached(Exception):  # noqa: N818 -- no error: a stage came to where it trains
    """The trainer is made."""


@pytest.fixture
def arguments_of(run_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a kind with some fields up to its first step and return the arguments its trainer has."""
    made: list[Any] = []

    def take(ctx: Any, trainer: Any, *rest: Any, **named: Any) -> None:
        made.append(trainer.args)
        raise Reached

    def run(kind: str, fields: dict[str, Any]) -> Any:
        for module in ("pipeline.rl.on_policy.run", f"pipeline.stages.{kind}.train"):
            monkeypatch.setattr(f"{module}.run_trainer", take, raising=False)
        ran = run_with(kind, fields, expect="failed")
        assert str(ran.outcome.problems[0]).startswith("Reached"), ran.outcome
        return made[-1]

    return run


def together(kind: str) -> list[dict[str, Any]]:
    """All cases of a kind in as few configurations as they fit into."""
    groups: list[dict[str, Any]] = []
    for plain, changed in CASES[kind]:
        case = {**plain, **changed}
        for group in groups:
            clashes = any(group.get(name, value) != value for name, value in case.items())
            config = {**config_of(kind, {**group, **case}), "data": "d", "init" if kind == "pretrain" else "model": "m"}
            if not clashes and KINDS[kind].config.model_validate(config).check() == []:
                group.update(case)
                break
        else:
            groups.append(dict(case))
    return groups


def lost(made: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Fields that a trainer has other values of than were asked for, with those; DPO's makes a list of one loss."""
    values = {name: getattr(made, name) for name in fields}
    return {name: value for name, value in values.items() if fields[name] != value and [fields[name]] != value}


@pytest.mark.parametrize("kind", CASES)
def test_every_field_reaches_the_trainer(kind: str, arguments_of: Callable[..., Any]) -> None:
    for fields in together(kind):
        made = arguments_of(kind, fields)
        assert lost(made, fields) == {}


@pytest.mark.parametrize("kind", CASES)
def test_every_word_of_a_kind_that_is_a_field_of_its_trainer_reaches_it(
    kind: str, arguments_of: Callable[..., Any]
) -> None:
    train: Any = KINDS[kind].config.model_fields["train"].annotation
    words = set(train.model_fields) & set(table()[train.trainer]) - CUT_HERE
    fields = {word: LOSS[kind] if word == "loss_type" else OWN[word] for word in words}
    assert all(train.model_fields[word].default != value for word, value in fields.items())
    made = arguments_of(kind, fields)
    assert lost(made, fields) == {}


@pytest.mark.parametrize(
    ("kind", "plain", "changed"),
    [
        pytest.param(
            kind,
            *case,
            id=f"{kind}-{next(iter(case[1]))}",
            marks=() if CORE[kind] & set(case[1]) else pytest.mark.whole,
        )
        for kind, cases in CASES.items()
        for case in cases
    ],
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
