"""What `train` asks for by name: trackers, optimizers, schedules, engines; what is not there is said beforehand."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from pipeline.stage import KINDS
from pipeline.trainer_fields.optimizers import OPTIM_ARGS, PACKAGES
from pipeline.trainer_fields.schedules import SCHEDULE_KWARGS
from pipeline.trainer_fields.table import table
from pipeline.trainer_fields.trackers import TRACKERS
from pipeline.training.packages import evaluation_problems, package_problems


def train_of(kind: str, **fields: Any) -> Any:
    return KINDS[kind].config.model_fields["train"].annotation.model_validate(fields)  # type: ignore[union-attr]


def checked(kind: str, **fields: Any) -> list[str]:
    return [str(problem) for problem in train_of(kind, **fields).check()]


def lacking(kind: str, **fields: Any) -> list[str]:
    """Say what is missing on a machine with nothing."""
    train = train_of(kind, **fields)
    return [str(problem) for problem in package_problems(train, has=lambda module: False, which=lambda name: None)]


def test_trackers_are_those_of_transformers() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(TRACKERS) == set(INTEGRATION_TO_CALLBACK)


def test_schedules_and_their_arguments_are_those_of_transformers() -> None:
    from torch.optim.lr_scheduler import ReduceLROnPlateau
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR

    assert {str(name.value) for name in TYPE_TO_SCHEDULER_FUNCTION} == set(SCHEDULE_KWARGS)
    fixed = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "kwargs", "self"}
    classes = {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": GreedyLR}
    for name, function in TYPE_TO_SCHEDULER_FUNCTION.items():
        takes = set(inspect.signature(classes.get(str(name.value), function)).parameters) - fixed
        assert set(SCHEDULE_KWARGS[str(name.value)]) == takes, name


def test_optimizers_are_those_of_transformers() -> None:
    known = set(table()["TrainingArguments"]["optim"]["values"])
    assert set(PACKAGES) | set(OPTIM_ARGS) <= known
    in_torch = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}
    assert known - set(PACKAGES) == in_torch  # a new one belongs to one of them


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"report_to": "wandb"},
            "train.report_to is wandb, which is not installed. Run pip install wandb, or leave it out",
        ),
        ({"report_to": ["none"]}, None),
        ({"report_to": "dagshub"}, "pip install dagshub mlflow"),
        ({"optim": "adamw_bnb_8bit"}, "train.optim is adamw_bnb_8bit, and bitsandbytes is not installed"),
        ({"optim": "galore_adamw", "optim_target_modules": "all-linear"}, "galore_torch is not installed"),
        ({"optim": "sgd"}, None),
        (
            {"torch_compile": True},
            "there is no C++ compiler. Run apt-get install g++, or set train.torch_compile_backend",
        ),
        ({"torch_compile": True, "torch_compile_backend": "eager"}, None),
    ],
)
def test_what_is_not_installed_is_named_with_what_to_do(fields: dict[str, Any], expected: str | None) -> None:
    problems = lacking("sft", **fields)
    assert (expected in problems[0] and len(problems) == 1) if expected else problems == []


def test_vllm_is_asked_for() -> None:
    assert "train.use_vllm is true, and vLLM is not installed" in lacking("grpo", use_vllm=True)[0]
    assert lacking("grpo") == []


def test_one_of_two_packages_is_enough_for_tensorboard() -> None:
    train = train_of("sft", report_to="tensorboard")
    assert list(package_problems(train, has=lambda module: module == "tensorboardX")) == []


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("sft", {"lr_scheduler_type": "cosin"}, "train.lr_scheduler_type is cosin; .*Did you mean `cosine`"),
        ("sft", {"optim": "adamw"}, "train.optim is adamw; "),
        ("sft", {"report_to": "wandbb"}, "train.report_to: wandbb is not supported.*Did you mean `wandb`"),
        ("ppo", {"report_to": ["tensorbord"]}, "tensorbord is not supported.*Did you mean `tensorboard`"),
        ("sft", {"report_to": ["none", "wandb"]}, "train.report_to has none among others"),
        ("sft", {"loss_type": "nl"}, "train.loss_type is nl; .*Did you mean `nll`"),
        ("sft", {"load_best_model_at_end": True, "eval_strategy": "no"}, "evaluations to choose by"),
        ("sft", {"load_best_model_at_end": True, "save_strategy": "epoch"}, "save_strategy is epoch"),
        (
            "sft",
            {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 4, "eval_steps": 2},
            "same steps",
        ),
        ("sft", {"load_best_model_at_end": True, "metric_for_best_model": "los"}, "Did you mean `loss`"),
        ("kto", {"load_best_model_at_end": True, "metric_for_best_model": "rewards/accuracies"}, "must be one of loss"),
        ("sft", {"metric_for_best_model": "loss"}, "train.metric_for_best_model has no effect here"),
        ("sft", {"save_strategy": "best"}, "without a best to load"),
        ("sft", {"optim": "sgd", "adam_beta1": 0.8}, "train.adam_beta1 has no effect here"),
        ("sft", {"optim": "lion_32bit", "adam_epsilon": 0.1}, "train.adam_epsilon has no effect here"),
        ("sft", {"optim_args": "momentum=0.9"}, "`momentum`, which adamw_torch_fused does not take"),
        ("sft", {"optim": "sgd", "optim_args": "momentun=0.9"}, "Did you mean `momentum`"),
        ("sft", {"optim": "sgd", "optim_args": "0.9"}, "must be like `momentum=0.9"),
        ("sft", {"optim": "galore_adamw"}, "Set train.optim_target_modules: all-linear"),
        ("sft", {"lr_scheduler_kwargs": {"num_cycles": 2}}, "`num_cycles`, which linear does not take"),
        ("sft", {"lr_scheduler_type": "cosine_with_min_lr"}, r"Set train.lr_scheduler_kwargs: \{min_lr_rate: 0.1\}"),
        ("sft", {"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps: 100"),
        (
            "sft",
            {"lr_scheduler_type": "constant", "warmup_steps": 5},
            "constant has no warm-up. Set .*constant_with_warmup",
        ),
        ("sft", {"lr_scheduler_type": "greedy", "eval_strategy": "no"}, "evaluations to choose by"),
        ("sft", {"label_smoothing_factor": 0.1, "loss_type": "dft"}, "it needs train.loss_type: nll"),
        ("sft", {"save_steps": 5}, "Set train.save_strategy: steps, or leave it out"),
        ("sft", {"run_name": "x", "project": "p"}, "train.project has no effect here"),
        ("dpo", {"label_smoothing": 0.1}, "train.label_smoothing has no effect here"),
        ("dpo", {"discopop_tau": 0.1}, "it needs train.loss_type: discopop"),
        ("grpo", {"sapo_temperature_pos": 2.0}, "it needs train.loss_type: sapo"),
        ("grpo", {"sync_ref_model": True}, "it needs train.beta"),
        ("grpo", {"vllm_mode": "server"}, "it needs train.use_vllm"),
        ("grpo", {"num_generations_eval": 3}, "train.num_generations_eval is 3; expected a divisor"),
        ("rloo", {"entropy_coef": 0.1}, None),
    ],
)
def test_what_a_trainer_would_refuse_or_pass_over_is_said(
    kind: str, fields: dict[str, Any], expected: str | None
) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="unknown key"):
            train_of(kind, **fields)
        return
    problems = checked(kind, **fields)
    assert len(problems) == 1 and re.search(expected, problems[0]), problems


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("pretrain", {"lr_scheduler_type": "constant"}),  # its own default of a warm-up is not asked for
        ("sft", {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}}),
        ("sft", {"load_best_model_at_end": True}),
        ("sft", {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 2, "eval_steps": 2}),
        ("sft", {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}),
        ("dpo", {"loss_type": ["sigmoid", "robust"], "label_smoothing": 0.1}),
        ("grpo", {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2}),
        ("grpo", {"load_best_model_at_end": True, "metric_for_best_model": "rewards/mine/mean"}),
        ("sft", {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"}),
        ("sft", {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 2}),
    ],
)
def test_what_has_an_effect_is_taken(kind: str, fields: dict[str, Any]) -> None:
    assert checked(kind, **fields) == []


def test_evaluations_want_held_out_rows() -> None:
    train = train_of("sft", eval_steps=5, lr_scheduler_type="greedy")
    problems = [str(problem) for problem in evaluation_problems(train, "rows")]
    rest = "and data.rows holds no rows out to evaluate on. Set data.rows.held_out: 0.1, or leave it out"
    assert problems == [f"train.eval_steps is 5, {rest}", f"train.lr_scheduler_type is greedy, {rest}"]
    assert list(evaluation_problems(train_of("sft", eval_strategy="no"), "rows")) == []
