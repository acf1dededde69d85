"""What enters a fingerprint, on the real kinds: every field that can change a result, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from pipeline.endpoints.answers import AnswerEndpoint
from pipeline.plan.fingerprint import config_data, digest_of, payload
from pipeline.recipe import Compute, StageSpec
from pipeline.stage import KINDS, Added, Code, Data, Input, Runtime, StageConfig
from pipeline.trainer_fields import CONTROLLED, RUNTIME_TRAIN_FIELDS, TrainFields
from pipeline.trainer_fields.values import MAPPINGS, NUMBERS, words_of

COMPLETE: dict[str, dict[str, Any]] = {
    "tokenizer": {"data": "d"},
    "pretrain": {"data": "d", "tokenizer": "t", "model": {"type": "llama"}},
    "sft": {"data": "d", "model": "m"},
    "reward": {"data": "d", "model": "m"},
    "dpo": {"data": "d", "model": "m"},
    "kto": {"data": "d", "model": "m"},
    "ppo": {"data": "d", "model": "m", "reward": ["r"]},
    "grpo": {"data": "d", "model": "m", "reward": ["r"]},
    "rloo": {"data": "d", "model": "m", "reward": ["r"]},
    "evaluate": {"data": "d", "models": ["m", "n"], "baseline": "m", "reward": "r"},
    "implicit_reward": {"policy": "m", "reference": "n", "beta": 0.2, "test": "d"},
    "merge": {"model": "m", "adapters": ["a"]},
    "sample": {"data": "d", "models": ["m"]},
    "best_of_n": {"data": "d", "reward": ["r"]},
    "labels": {"data": "d"},
    "collect": {"data": "d"},
    "judge": {"data": "d", "endpoint": {"url": "http://h/v1", "model": "m"}},
}
TRAINING = [name for name, fields in COMPLETE.items() if "train" in KINDS[name].config.model_fields]
OTHER_VALUES: dict[str, Any] = {
    "aggregate": "dawid_skene",
    "algorithm": None,  # there is only one
    "special_tokens": ("<|x|>",),
    "chat_template": "x",
    "model": {"type": "gpt2"},
    "adapter": {"r": 3},
    "group_by": "kind",
    "property_column": "differs_in",
    "judge": "reward",
    "reference": "solution",
    "control_tokens": "parsed",
    "greedy": ["n"],
    "rounds": ["m", "n"],
    "variants": {"n": {"stage": "s", "settings": {"beta": 0.1}}},
    "baseline": "n",
    "limit": 5,
    "part": (0.5, 1.0),
    "best_of_n": 4,
    "live": {"labels": 5},
    "endpoints": {"big": {"url": "http://h/v1", "model": "m"}},
    "title": "Other",
    "guidelines": "Other",
    "dimensions": [{"name": "helpful", "rated": 5}],
    "layout": "separate",
    "rollout_engine": "generate",
    "engine": "generate",
    "reward_weights": [0.5],
    "reward_combine": "min",
    "value": "adapter",
    "dtype": "bf16",
    "temperatures": [0.5],
    "top_p": 0.9,
    "stop": ["x"],
    "repeats": 0.03,
    "pair_choice": "delta",
    "random_share": 0.5,
    "rank_size": 5,
    "against": "random",
    "endpoint": {"url": "http://h/v1", "model": "n"},
    "pairs_per_prompt": 3,
    "reference_weight": 0.5,
}
NESTED_VALUES: dict[str, Any] = {
    "mode": "packed",
    "order": "file",
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "max_steps": 77,
    "max_length": 99,
    "targets": ["q_proj"],
    "quantize": "4bit",
    "alpha": 5,
    "layers": "top-half",
    "loss_type": "ipo",
    "value_learning_rate": 1e-3,
    "kl_target": 6.0,
    "truncation": "mask",
    "score_scaling": "running",
    "score_center": "reference",
    "best_by": "watch",
    "gamma": 0.9,
    "lam": 0.9,
    "generation_batch_size": 64,
    "clip_range_high": 0.28,
    "max_ratio": 4.0,
    "tis_clip": 3.0,
    "ema_decay": 0.99,
    "overlong_buffer": 8,
}


def _fingerprint(kind: str, config: dict[str, Any], seed: int = 1, **compute: Any) -> str:
    spec = StageSpec("s", kind, KINDS[kind].config.model_validate(config), seed, Compute(**compute), "r.yaml:1")
    return digest_of(payload(spec, {}, {}, [Path()], trust_remote_code=False))


def _different(name: str, value: Any) -> Any:
    """Return another valid value of a simple field."""
    if name in NESTED_VALUES:
        return NESTED_VALUES[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 if value else 1
    raise AssertionError(f"no other value known for `{name}` ({value!r}): add one to this test")


def test_every_kind_is_covered() -> None:
    assert set(COMPLETE) >= set(KINDS) - {"base", "tune"}


def _own_fields() -> list[tuple[str, str]]:
    marked = (Input, Data, Code, Runtime)
    return [
        (kind, name)
        for kind in COMPLETE
        for name, info in KINDS[kind].config.model_fields.items()
        if name not in ("train", "algorithm") and not any(isinstance(item, marked) for item in info.metadata)
    ]


@pytest.mark.parametrize(("kind", "name"), _own_fields())
def test_every_field_of_a_kind_changes_its_fingerprint(kind: str, name: str) -> None:
    value = getattr(KINDS[kind].config.model_validate(COMPLETE[kind]), name)
    other = OTHER_VALUES[name] if name in OTHER_VALUES else _different(name, value)
    assert _fingerprint(kind, {**COMPLETE[kind], name: other}) != _fingerprint(kind, COMPLETE[kind])


def test_every_field_of_a_judge_s_server_changes_the_fingerprint_unless_it_is_runtime() -> None:
    server: dict[str, Any] = COMPLETE["judge"]["endpoint"]
    others: dict[str, Any] = {
        "url": "http://other/v1",
        "model": "n",
        "revision": "2",
        "key_env": "KEY",
        "template": "{prompt}{first}{second}",
        "system": "x",
        "rubric": [{"name": "a", "weight": 2.0}],
        "temperature": 1.0,
        "max_tokens": 5,
        "logprobs": False,
        "parameters": {"seed": 1},
        **dict.fromkeys(("parallel", "timeout_s", "attempts", "backoff_s", "max_calls", "max_tokens_total"), 7),
    }
    config: Any = KINDS["judge"].config
    fields = config.model_validate(COMPLETE["judge"]).endpoint
    assert set(others) == set(type(fields).model_fields)
    runtime = fields.markers(Runtime)
    assert {"url", "key_env", "parallel"} <= set(runtime)
    plain = _fingerprint("judge", COMPLETE["judge"])
    for name, value in others.items():
        other = _fingerprint("judge", {**COMPLETE["judge"], "endpoint": {**server, name: value}})
        assert (other != plain) is (name not in runtime), name


def test_every_field_of_an_endpoint_that_answers_changes_the_fingerprint_unless_it_is_runtime() -> None:
    others: dict[str, Any] = {
        "url": "http://other/v1",
        "model": "n",
        "revision": "2",
        "key_env": "KEY",
        "system": "x",
        "parameters": {"top_k": 1},
        "length_field": "max_completion_tokens",
        "send_seed": False,
        **dict.fromkeys(("parallel", "timeout_s", "attempts", "backoff_s", "max_calls", "max_tokens_total"), 7),
    }
    server = {"url": "http://h/v1", "model": "m"}
    assert set(others) == set(AnswerEndpoint.model_fields)
    runtime = AnswerEndpoint.model_validate(server).markers(Runtime)
    assert set(runtime) - {"url", "key_env"} == {
        "parallel", "timeout_s", "attempts", "backoff_s", "max_calls", "max_tokens_total",
    }  # fmt: skip
    plain = _fingerprint("sample", {**COMPLETE["sample"], "endpoints": {"big": server}})
    for name, value in others.items():
        other = _fingerprint("sample", {**COMPLETE["sample"], "endpoints": {"big": {**server, name: value}}})
        assert (other != plain) is (name not in runtime), name
    assert _fingerprint("sample", {**COMPLETE["sample"], "endpoints": {"small": server}}) != plain


def test_a_field_that_was_added_leaves_the_fingerprint_as_it_was() -> None:
    """At its default it is not part of what is hashed, so artifacts of before stay valid."""
    added = [(kind, name) for kind in COMPLETE for name in KINDS[kind].config.markers(Added)]
    assert {("sample", "endpoints"), ("reward", "property_column")} <= set(added)
    for kind, name in added:
        config = KINDS[kind].config.model_validate(COMPLETE[kind])
        assert name not in config_data(config)
        assert _fingerprint(kind, {**COMPLETE[kind], name: getattr(config, name)}) == _fingerprint(kind, COMPLETE[kind])


@pytest.mark.parametrize("kind", TRAINING)
def test_every_word_of_train_changes_the_fingerprint(kind: str) -> None:
    train: type[StageConfig] = KINDS[kind].config.model_fields["train"].annotation  # type: ignore[assignment]
    seen = {_fingerprint(kind, COMPLETE[kind])}
    default = train()
    runtime = train.markers(Runtime)
    names = [name for name in train.model_fields if name not in runtime]
    for name in names:
        changed = {"train": {name: _different(name, getattr(default, name))}}
        seen.add(_fingerprint(kind, {**COMPLETE[kind], **changed}))
    assert len(seen) == len(names) + 1


OTHER_SHAPES = {**{key: {"some": 1} for key in MAPPINGS}, **{key: [0.1, 0.2] for key in NUMBERS}, "delta": 1.5}


@pytest.mark.parametrize("kind", [kind for kind in TRAINING if kind != "ppo"])  # it passes nothing on: it is ours
def test_every_field_passed_to_the_trainer_changes_it_unless_it_is_runtime(kind: str) -> None:
    train: type[TrainFields] = KINDS[kind].config.model_fields["train"].annotation  # type: ignore[assignment]
    values = {"int": 12345, "float": 0.12345, "str": "something", "bool": None, "any": "something"}
    plain = _fingerprint(kind, COMPLETE[kind])
    checked = 0
    for name, described in train.allowed().items():
        words = words_of(name, described)
        value = OTHER_SHAPES.get(name) or (words[-1] if words else values[described["type"]])
        given = [True, False] if described["type"] == "bool" else [value]
        for value in given:
            changed = _fingerprint(kind, {**COMPLETE[kind], "train": {name: value}}) != plain
            assert changed is (name not in RUNTIME_TRAIN_FIELDS), name
            checked += 1
    assert checked > 40
    assert not set(train.allowed()) & set(CONTROLLED)


@pytest.mark.parametrize("kind", [kind for kind in TRAINING if "adapter" in KINDS[kind].config.model_fields])
def test_every_word_of_an_adapter_changes_the_fingerprint(kind: str) -> None:
    field = KINDS[kind].config.model_fields["adapter"].annotation
    adapter: type[BaseModel] = next(item for item in get_args(field) if item is not type(None))
    seen = {_fingerprint(kind, {**COMPLETE[kind], "adapter": {}}), _fingerprint(kind, COMPLETE[kind])}
    for name in adapter.model_fields:
        value = 0.1 if name == "dropout" else _different(name, getattr(adapter(), name))
        seen.add(_fingerprint(kind, {**COMPLETE[kind], "adapter": {name: value}}))
    assert len(seen) == len(adapter.model_fields) + 2


@pytest.mark.parametrize("kind", COMPLETE)
def test_compute_stays_out_but_for_a_precision_that_is_asked_for(kind: str) -> None:
    other = {
        "processes": 2,
        "nodes": 2,
        "zero": 3,
        "offload": "all",
        "fsdp": True,
        "rendezvous": "first:29500",
        "launcher": "slurm",
        "join_timeout_s": 5.0,
        "slurm": {"partition": "gpu", "time": "1-00:00:00"},
        "micro_batch": 2,
        "threads": 3,
        "device": "cpu",
        "activation_checkpointing": True,
        "hardware": "h100-80gb",
        "attention": "eager",
        "liger": "off",
        "pipeline_parallel": 2,
        "tensor_parallel": 2,
        "sequence_parallel": 2,
        "checkpoint_every_s": 1.0,
    }
    assert set(other) | {"precision"} >= set(Compute.model_fields), "a new field of compute: runtime or not?"
    plain = _fingerprint(kind, COMPLETE[kind])
    for name, value in other.items():
        assert _fingerprint(kind, COMPLETE[kind], **{name: value}) == plain, name
    assert _fingerprint(kind, COMPLETE[kind], precision="bf16") != plain
    assert _fingerprint(kind, COMPLETE[kind], seed=2) != plain
