"""What `check` takes, the trainers of trl and transformers take; what they refuse when they are made, it refuses."""

from __future__ import annotations

import itertools
import math
import random
import re
import types
import warnings
from typing import Any

import pytest

from pipeline.errors import Problem
from pipeline.stage import KINDS
from pipeline.trainer_fields.contradictions import BOUNDS
from pipeline.trainer_fields.generation import OF_TRAIN, REFUSED, TAKEN
from pipeline.trainer_fields.needs import NEEDS
from pipeline.trainer_fields.optimizers import OPTIM_ARGS
from pipeline.trainer_fields.schedules import SCHEDULE_KWARGS
from pipeline.trainer_fields.values import MAPPINGS, NUMBERS, words_of

TRAINED = ("pretrain", "sft", "reward", "dpo", "kto", "grpo", "rloo")
VALUES = (-1, 0, 0.1, 0.5, 1, 1.5, 3, 50)


def train_of(kind: str, fields: dict[str, Any]) -> Any:
    return KINDS[kind].config.model_fields["train"].annotation.model_validate(fields)  # type: ignore[union-attr]


def problems_of(kind: str, fields: dict[str, Any]) -> list[Problem]:
    problems: list[Problem] = train_of(kind, fields).check()
    return problems


def make(kind: str, fields: dict[str, Any], out: str) -> Any:
    """Make the configuration of a kind's trainer, as its stage does where data has held-out rows."""
    import transformers
    import trl

    train = train_of(kind, fields)
    values = {
        **{"output_dir": out, "use_cpu": True, "max_steps": train.max_steps or 20},
        **{"save_strategy": "no", "eval_strategy": "steps", "eval_steps": 5},
        **{word: getattr(train, word) for word in ("learning_rate", "lr_scheduler_type", "optim", "warmup_steps")},
        **{word: getattr(train, word) for word in ("loss_type", "num_generations") if hasattr(train, word)},
        **train.passthrough(),
        "report_to": "none",
    }
    if values.pop("load_best_model_at_end", False):
        values["save_strategy"] = "no"  # `training/checkpoint/best.py` keeps it
    if kind in ("grpo", "rloo"):
        rows = ("generation_batch_size", "per_device_train_batch_size", "per_device_eval_batch_size")
        values.update(dict.fromkeys(rows, train.batch_size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (getattr(trl, train.trainer, None) or getattr(transformers, train.trainer))(**values)


def any_value(rng: random.Random, field: str, info: dict[str, Any]) -> Any:
    words = words_of(field, info)
    if words:
        return rng.choice(words)
    if field in NUMBERS:
        return [0.5, 1.0]
    if info["type"] == "bool":
        return rng.random() < 0.5
    return rng.choice(VALUES) if info["type"] in ("int", "float") and field not in MAPPINGS else None


def any_fields(rng: random.Random, kind: str) -> dict[str, Any]:
    """Choose some fields with what they need beside them, so that they are read."""
    allowed = KINDS[kind].config.model_fields["train"].annotation.allowed()  # type: ignore[union-attr]
    given: dict[str, Any] = {}
    for field in rng.sample(sorted(allowed), 3):
        given[field] = any_value(rng, field, allowed[field])
        for need in NEEDS.get(field, ()):
            given[need.other] = rng.choice(need.values) if need.values else True
    for bounds in BOUNDS:
        if {bounds.lower, bounds.upper} & set(given) and bounds.lower in allowed:
            given |= {name: any_value(rng, name, allowed[name]) for name in (bounds.lower, bounds.upper)}
    return {field: value for field, value in given.items() if value is not None}


@pytest.mark.parametrize("kind", TRAINED)
def test_what_is_taken_the_trainers_configuration_takes(kind: str, tmp_path: Any) -> None:
    rng, taken = random.Random(7), 0
    for _ in range(120):
        fields = any_fields(rng, kind)
        try:
            is_right = problems_of(kind, fields) == []
        except ValueError:
            continue
        if is_right:
            make(kind, fields, str(tmp_path))
            taken += 1
    assert taken > 20


REFUSED_BY_TRL: list[tuple[dict[str, Any], str]] = [
    (
        {"vllm_importance_sampling_clip_min": 3.0, "vllm_importance_sampling_clip_max": 2.0},
        "train.vllm_importance_sampling_clip_min is 3; it must be below train.vllm_importance_sampling_clip_max (2)",
    ),
    (
        {"vllm_importance_sampling_clip_min": 2.0, "vllm_importance_sampling_clip_max": 2.0},
        "train.vllm_importance_sampling_clip_min is 2; it must be below train.vllm_importance_sampling_clip_max (2)",
    ),
    (
        {"vllm_importance_sampling_clip_min": 4.0},
        "train.vllm_importance_sampling_clip_min is 4; "
        "it must be below train.vllm_importance_sampling_clip_max (3, its default)",
    ),
    (
        {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": None},
        "train.vllm_importance_sampling_mode is token_truncate without a bound to cut at. "
        "Set train.vllm_importance_sampling_clip_max: 3.0",
    ),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED_BY_TRL)
def test_bounds_that_trl_refuses_are_refused_beforehand(fields: dict[str, Any], message: str, tmp_path: Any) -> None:
    fields = {"use_vllm": True, **fields}
    with pytest.raises(ValueError, match="vllm_importance_sampling"):
        make("grpo", fields, str(tmp_path))
    assert [str(problem) for problem in problems_of("grpo", fields)] == [message]


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("grpo", {"use_adaptive_entropy": True, "entropy_coef_min": 0.5, "entropy_coef_max": 0.1}, "entropy_coef_min"),
        ("grpo", {"use_adaptive_entropy": True, "entropy_coef": 2.0}, "entropy_coef is 2; it must be at most"),
        ("grpo", {"use_vllm": True, "loss_type": "vespo"}, "Set train.vllm_importance_sampling_mode: token_truncate"),
        ("grpo", {"use_vllm": True, "use_transformers_continuous_batching": True}, "has no effect beside"),
        ("grpo", {"generation_kwargs": {"top_p": 0.5}}, "Use train.top_p"),
        ("grpo", {"generation_kwargs": {"typical": 0.5}}, "has typical, which transformers does not know. "),
        # What transformers samples without, or breaks at when the first answers are sampled.
        ("grpo", {"generation_kwargs": {"max_length": 5}}, "has max_length; expected a word .*. Use train.max_new_tok"),
        ("rloo", {"generation_kwargs": {"num_return_sequences": 2}}, "Use train.num_generations"),
        ("rloo", {"generation_kwargs": {"penalty_alpha": 0.5}}, "This transformers samples as if it were not there"),
        ("grpo", {"generation_kwargs": {"stop_strings": ["."]}}, "end them with the chat template"),
        ("grpo", {"generation_kwargs": {"do_sample": False}}, "do_sample: False; it must be true: else all answers"),
        ("grpo", {"generation_kwargs": {"length_penalty": 2.0}}, "which ranks beams; expected num_beams above 1"),
        ("grpo", {"use_vllm": True, "cache_implementation": "static"}, "cache_implementation has no effect beside"),
        (
            "rloo",
            {
                **{"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://a:1"},
                "vllm_server_port": 2,
            },
            "train.vllm_server_port has no effect beside train.vllm_server_base_url. Leave one of them out",
        ),
        ("grpo", {"loss_type": "sapo", "epsilon": 0.3}, "train.epsilon has no effect here; it needs train.loss_type"),
        ("sft", {"logging_strategy": "epoch", "logging_steps": 5}, "train.logging_steps has no effect here"),
        (
            "sft",
            {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 3},
            "train.save_steps is 3 and train.eval_steps not said; expected the same steps",
        ),
        # A schedule that follows a metric takes less for better; the best is more of all but a loss.
        (
            "sft",
            {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "mean_token_accuracy"},
            "takes less of mean_token_accuracy for better; expected mode: max. Set .*kwargs: {mode: max}",
        ),
        (
            "sft",
            {"lr_scheduler_type": "greedy", "lr_scheduler_kwargs": {"mode": "max"}},
            "takes more of loss for better; expected mode: min",
        ),
        (
            "kto",
            {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "kl"},
            "expected its mode beside a metric of which either may be better",
        ),
        ("grpo", {"lr_scheduler_type": "reduce_lr_on_plateau"}, "Set train.metric_for_best_model: reward"),
        (
            "sft",
            {"lr_scheduler_type": "reduce_lr_on_plateau", "greater_is_better": False},
            "train.greater_is_better has no effect here; .* Set train.lr_scheduler_kwargs: {mode: max}, or min",
        ),
        (
            "kto",
            {"load_best_model_at_end": True, "metric_for_best_model": "kl"},
            "kl, of which neither more nor less is better by itself; expected train.greater_is_better beside it",
        ),
        ("rloo", {"generation_kwargs": {"min_new_tokens": 500}}, r"at most train.max_new_tokens \(128\)"),
        ("dpo", {"loss_type": "exo_pair"}, "label_smoothing is 0 with train.loss_type exo_pair; it must be > 0"),
        ("dpo", {"loss_type": "robust", "label_smoothing": 0.5}, "it must be < 0.5"),
        ("dpo", {"loss_type": "aot", "use_weighting": True}, "a loss that does not sort its rows"),
        ("dpo", {"loss_type": ["sft", "aot"], "f_divergence_type": "js_divergence"}, "with train.loss_type aot"),
        ("dpo", {"loss_type": []}, "train.loss_type is an empty list; expected at least one loss"),
        ("dpo", {"loss_type": ["sft", "sft"]}, "train.loss_type is sft, sft; expected each loss once"),
        ("kto", {"desirable_weight": 0, "undesirable_weight": 0}, "no row would be learnt from"),
        ("sft", {"load_best_model_at_end": True, "eval_steps": 9, "max_steps": 8}, "at most train.max_steps"),
        ("sft", {"lr_scheduler_type": "greedy", "eval_delay": 9, "max_steps": 8}, "at most train.max_steps"),
        ("sft", {"lr_scheduler_type": "polynomial", "learning_rate": 1e-8}, "below train.learning_rate"),
        (
            "sft",
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1.0}},
            "min_lr: 1; expected one below train.learning_rate",
        ),
        (
            "sft",
            {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 9}, "max_steps": 8},
            r"num_decay_steps: 9; expected at most 8, the steps of train.max_steps \(8\)",
        ),
        (
            "sft",
            {"lr_scheduler_type": "greedy", "lr_scheduler_kwargs": {"min_lr": 0.2, "max_lr": 0.1}},
            r"min_lr: 0.2; expected at most its max_lr \(0.1\)",
        ),
        ("sft", {"optim": "sgd", "optim_args": "momentum=much"}, "has momentum=much; it must be a number >= 0"),
        ("sft", {"optim": "sgd", "optim_args": "nesterov=true"}, "a momentum above 0 beside it"),
        ("sft", {"optim": "sgd", "optim_args": "momentum=0.9=1"}, "must be like"),
        ("sft", {"optim": "rmsprop", "optim_args": "centered=maybe"}, "it must be true or false"),
        ("sft", {"optim": "sgd", "optim_args": "momentum=inf"}, "has momentum=inf; it must be a number >= 0"),
        ("sft", {"optim": "ademamix", "optim_args": "t_alpha=nan"}, "has t_alpha=nan; it must be a whole number >= 1"),
        (
            "sft",
            {"optim": "sgd", "optim_args": "momentum=0.9,momentum=0"},
            "has momentum twice; expected each argument",
        ),
    ],
)
def test_words_that_contradict_one_another_are_one_sentence(kind: str, fields: dict[str, Any], message: str) -> None:
    (problem,) = problems_of(kind, fields)
    assert re.search(message, str(problem)), str(problem)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("grpo", {"use_vllm": True, "vllm_importance_sampling_clip_min": 0.5}),
        ("grpo", {"use_vllm": True, "loss_type": "vespo", "vllm_importance_sampling_mode": "token_mask"}),
        ("grpo", {"use_vllm": True, "generation_kwargs": {"ignore_eos": True}}),  # a word of vLLM
        ("grpo", {"use_adaptive_entropy": True, "entropy_coef_min": 0.5}),
        ("dpo", {"loss_type": "exo_pair", "label_smoothing": 0.001}),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "f_divergence_type": "js_divergence"}),
        ("kto", {"desirable_weight": 0}),
        ("rloo", {"epsilon": 0.3}),
        ("grpo", {"epsilon": 0.3, "loss_type": "cispo"}),
        ("kto", {"load_best_model_at_end": True, "metric_for_best_model": "eval_kl", "greater_is_better": False}),
        ("grpo", {"load_best_model_at_end": True, "metric_for_best_model": "rewards/gold/mean"}),
        (
            "grpo",
            {
                "lr_scheduler_type": "reduce_lr_on_plateau",
                "lr_scheduler_kwargs": {"mode": "max"},
                "metric_for_best_model": "reward",
            },
        ),
        ("sft", {"eval_steps": 9, "max_steps": 8}),  # a quick look at a recipe, without evaluations
        ("sft", {"load_best_model_at_end": True, "eval_strategy": "epoch", "eval_delay": 9, "max_steps": 8}),  # epochs
        ("sft", {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=True"}),
    ],
)
def test_bounds_that_hold_are_taken(kind: str, fields: dict[str, Any]) -> None:
    assert problems_of(kind, fields) == []


def test_the_words_of_generation_are_those_of_transformers() -> None:
    from transformers import GenerationConfig

    known = set(GenerationConfig().to_dict()) - {"_from_model_config", "transformers_version"}
    assert {*TAKEN, *REFUSED, *OF_TRAIN} == known
    assert not set(TAKEN) & {*REFUSED, *OF_TRAIN} and not set(REFUSED) & set(OF_TRAIN)


GENERATED: dict[str, Any] = {
    "bad_words_ids": [[5, 6]],
    "begin_suppress_tokens": [5],
    "cache_config": {"nbits": 4},
    "do_sample": True,
    "early_stopping": "never",
    "encoder_no_repeat_ngram_size": 2,
    "encoder_repetition_penalty": 1.1,
    "epsilon_cutoff": 3e-4,
    "eta_cutoff": 3e-4,
    "exponential_decay_length_penalty": [5, 1.1],
    "forced_eos_token_id": 5,
    "guidance_scale": 1.5,
    "length_penalty": -0.5,
    "min_length": 3,
    "min_new_tokens": 3,
    "no_repeat_ngram_size": 2,
    "num_beams": 2,
    "prefill_chunk_size": 16,
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "sequence_bias": [[[5], 1.0]],
    "suppress_tokens": [5],
    "top_h": 0.4,
    "typical_p": 0.9,
    "use_cache": False,
    "watermarking_config": {"bias": 2.0},
}
"""A value of each word that changes what is sampled."""


@pytest.mark.parametrize("word", TAKEN)
def test_what_is_sampled_by_takes_its_values_and_no_others(word: str) -> None:
    from transformers import GenerationConfig

    right = {word: GENERATED[word], **({"num_beams": 2} if word in ("early_stopping", "length_penalty") else {})}
    assert problems_of("grpo", {"generation_kwargs": right}) == []
    GenerationConfig(**{"do_sample": True, **right})
    wrong: tuple[Any, ...] = (
        ("x", [], {"a": 1}, ["x"], math.inf) if word not in ("cache_config", "watermarking_config") else (1,)
    )
    for value in wrong:
        (problem, *_) = problems_of("grpo", {"generation_kwargs": {**right, word: value}})
        assert str(problem).startswith(f"train.generation_kwargs has {word}: {value}; it must be ")


@pytest.mark.parametrize("schedule", SCHEDULE_KWARGS)
def test_every_schedule_is_made_of_the_arguments_that_are_taken(schedule: str) -> None:
    """And it gives rates a run can learn at: none below 0 or above ten times the peak's."""
    import torch
    from transformers import get_scheduler

    rate, steps = 1e-2, 8
    needed: dict[str, Any] = {"min_lr_rate": 0.1} if schedule.endswith("min_lr") else {}
    needed |= {"num_decay_steps": 3} if schedule == "warmup_stable_decay" else {}
    tried = 0
    for name, value in itertools.product(SCHEDULE_KWARGS[schedule], (*VALUES, 1e-3, 9, True, "min", "linear", "much")):
        kwargs = {**({} if name == "min_lr" else needed), name: value}
        words = {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": kwargs, "learning_rate": rate}
        if problems_of("sft", {**words, "max_steps": steps}):
            continue
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
        made = get_scheduler(schedule, optimizer, 0, steps, scheduler_specific_kwargs=kwargs)
        for _ in range(steps):
            optimizer.step()
            made.step(*([1.0] if schedule in ("reduce_lr_on_plateau", "greedy") else []))
            assert 0 <= optimizer.param_groups[0]["lr"] <= 10 * rate, kwargs
        tried += 1
    assert tried or not SCHEDULE_KWARGS[schedule]


@pytest.mark.parametrize("optim", ["sgd", "adagrad", "rmsprop"])
def test_every_optimizer_of_torch_is_made_of_the_arguments_that_are_taken(optim: str, tmp_path: Any) -> None:
    import torch
    from transformers import Trainer

    tried = set()
    for name, word in itertools.product(OPTIM_ARGS[optim], (*map(str, VALUES), "true", "FALSE", "much")):
        text = f"momentum=0.9,nesterov={word}" if name == "nesterov" else f"{name}={word}"
        if problems_of("sft", {"optim": optim, "optim_args": text}):
            continue
        arguments = make("sft", {"optim": optim, "optim_args": text, "learning_rate": 1e-2}, str(tmp_path))
        weight = torch.nn.Parameter(torch.ones(1))
        kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments, types.SimpleNamespace())
        made = kind([weight], **kwargs)
        weight.grad = torch.ones(1)
        made.step()
        assert math.isfinite(weight.item()), text
        tried.add(name)
    assert tried == set(OPTIM_ARGS[optim])
