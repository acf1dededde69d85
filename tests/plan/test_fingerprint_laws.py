"""What may and what may not change a fingerprint, walked over every field of every kind rather than listed by hand."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from pipeline.plan import digest_of
from pipeline.plan.fingerprint import config_data, payload
from pipeline.recipe import Compute, DataSource, StageSpec
from pipeline.stage import KINDS, Code, Data, Input, Runtime, StageConfig, register_kind
from pipeline.trainer_fields import CONTROLLED, RUNTIME_TRAIN_FIELDS, TrainFields
from pipeline.trainer_fields.values import MAPPINGS, NUMBERS, WORDS

NAMED = (Input, Data, Code)
ORIGIN = {"path", "hub", "revision", "subset", "hub_split", "artifact", "file"}  # they enter through the digest


class Inner(StageConfig):
    depth: int = 1
    words: list[str] = Field(default_factory=list)
    comment: Annotated[str, Runtime()] = ""


class WideTrain(TrainFields):
    trainer: ClassVar[str] = "DPOConfig"
    beta: float = Field(0.1, gt=0)
    every: Annotated[int, Runtime()] = 10


class WideConfig(StageConfig):
    """A configuration with one field of every sort."""

    data: Annotated[str, Data("messages")] = "d"
    model: Annotated[str, Input("wide")] = "m"
    gold: Annotated[str | None, Code()] = None
    whole: int = 3
    share: float = 0.5
    yes: bool = False
    text: str = "t"
    word: Literal["one", "two"] = "one"
    maybe: int | None = None
    several: list[float] = Field(default_factory=lambda: [0.1])
    mapping: dict[str, int] = Field(default_factory=dict)
    inner: Inner = Inner()
    optional: Inner | None = None
    train: WideTrain = WideTrain()
    loud: Annotated[bool, Runtime()] = False


@pytest.fixture(autouse=True)
def wide(kinds: None) -> None:
    register_kind("wide", version=1, config=WideConfig, run="", makes="model")


def fingerprint(spec: StageSpec, source: DataSource | None = None, *, digest: str = "0", trust: bool = False) -> str:
    data = {"data": (source or DataSource(hub="a/b"), digest)}
    return digest_of(payload(spec, {"model": ["1"]}, data, (), trust_remote_code=trust))


def spec_of(config: StageConfig, *, seed: int = 0, **compute: Any) -> StageSpec:
    return StageSpec("s", "wide", config, seed, Compute(**compute), "f:1")


def another(annotation: Any, value: Any) -> Any:
    """Return some other value of a type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return next(word for word in arguments if word != value)
    if origin is Annotated:
        return another(arguments[0], value)
    if origin in {list, tuple}:
        return [*(value or []), another(arguments[0], None)]
    if origin is dict:
        return {**(value or {}), "new": another(arguments[1], None)}
    if arguments:  # a union
        part = next(a for a in arguments if a is not type(None))
        return another(part, value)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation()
    if annotation is bool:
        return not value
    return {int: lambda: (value or 0) + 1, float: lambda: (value or 0.0) / 2 + 0.01, str: lambda: f"{value}x"}[
        annotation
    ]()


def changes(config: BaseModel) -> Iterator[tuple[str, BaseModel, bool]]:
    """Yield ``(field, changed config, whether it may enter the fingerprint)`` for every field, however deep."""
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        runtime = any(isinstance(item, Runtime | Input | Data | Code) for item in info.metadata)
        if isinstance(value, BaseModel):
            for below, changed, enters in changes(value):
                yield f"{name}.{below}", config.model_copy(update={name: changed}), enters and not runtime
        else:
            changed_value = another(info.annotation, value)
            yield name, config.model_copy(update={name: changed_value}), not runtime


CASES = [(name, changed, enters) for name, changed, enters in changes(WideConfig())]


def test_the_walk_sees_every_sort_of_field() -> None:
    seen = {name: enters for name, _, enters in CASES}
    assert len(seen) == 13 + 3 + 2
    assert {name for name, enters in seen.items() if not enters} == {
        *("data", "model", "gold", "loud", "inner.comment", "train.every")
    }


@pytest.mark.parametrize(("name", "changed", "enters"), CASES, ids=[name for name, _, _ in CASES])
def test_runtime_fields_leave_the_fingerprint_alone_every_other_changes_it(
    name: str, changed: StageConfig, enters: bool
) -> None:
    assert (digest_of(config_data(changed)) != digest_of(config_data(WideConfig()))) is enters


def test_every_passed_on_field_changes_it_unless_runtime() -> None:
    plain = fingerprint(spec_of(WideConfig()))
    examples = {"int": 7, "float": 0.7, "bool": True, "str": "x", "any": ["x"]}
    examples |= {**{name: words[-1] for name, words in WORDS.items()}, **{key: {"a": 1} for key in MAPPINGS}}
    examples |= {key: [0.1, 0.7] for key in NUMBERS}
    for name, info in WideTrain.allowed().items():
        value = examples.get(name) or info.get("values", [examples[info["type"]]])[-1]
        train = WideTrain.model_validate({name: value})
        changed = fingerprint(spec_of(WideConfig(train=train)))
        assert (changed == plain) is (name in RUNTIME_TRAIN_FIELDS), name
    assert not RUNTIME_TRAIN_FIELDS & set(CONTROLLED)


def test_rows_of_an_evaluation_count_when_its_best_is_kept() -> None:
    def of(**fields: Any) -> str:
        return fingerprint(spec_of(WideConfig(train=WideTrain.model_validate(fields))))

    best = {"load_best_model_at_end": True}
    assert of(save_steps=5) == of()
    assert of(save_steps=5, **best) == of(**best) != of()  # the best is saved whenever it is evaluated
    assert of(per_device_eval_batch_size=5) == of()
    assert of(per_device_eval_batch_size=5, **best) != of(**best)


@pytest.mark.parametrize("name", Compute.model_fields)
def test_compute_stays_out_except_a_precision_that_is_asked_for(name: str) -> None:
    info = Compute.model_fields[name]
    special = {"micro_batch": 4, "activation_checkpointing": True, "hardware": "h100-80gb"}
    special["rendezvous"] = "first:29500"
    value = special[name] if name in special else another(info.annotation, info.default)
    changed = fingerprint(spec_of(WideConfig(), **{name: value}))
    assert (changed != fingerprint(spec_of(WideConfig()))) is (name == "precision")


@pytest.mark.parametrize("name", [n for n in DataSource.model_fields if n not in ORIGIN])
def test_how_data_is_read_enters(name: str) -> None:
    info = DataSource.model_fields[name]
    before = DataSource(hub="a/b")
    after = before.model_copy(update={name: another(info.annotation, info.default)})
    changed = fingerprint(spec_of(WideConfig()), after) != fingerprint(spec_of(WideConfig()), before)
    assert changed is (name != "on_bad_row")


def test_where_data_is_does_not_enter_but_its_content_does() -> None:
    spec = spec_of(WideConfig())
    assert fingerprint(spec, DataSource(path="x")) == fingerprint(spec, DataSource(artifact="y", file="z"))
    assert fingerprint(spec, digest="1") != fingerprint(spec, digest="2")


def test_seed_and_remote_code_enter_the_name_of_the_stage_does_not() -> None:
    spec = spec_of(WideConfig())
    assert fingerprint(spec_of(WideConfig(), seed=1)) != fingerprint(spec)
    assert fingerprint(spec, trust=True) != fingerprint(spec)
    assert fingerprint(StageSpec("other", "wide", spec.config, 0, Compute(), "g:9")) == fingerprint(spec)


def test_a_fingerprint_is_the_hash_of_its_payload_and_nothing_hidden() -> None:
    content = payload(
        spec_of(Inner(depth=2, words=["a"], comment="c"), seed=3, precision="bf16"),
        {"model": ["f1"]},
        {"data": (DataSource(path="p", limit=4), "d1")},
        (),
        trust_remote_code=True,
    )
    assert content == {
        "kind": "wide",
        "kind_version": 1,
        "config": {"depth": 2, "words": ["a"]},
        "seed": 3,
        "inputs": {"model": ["f1"]},
        "data": {
            "data": {"digest": "d1", "format": "auto", "columns": {}, "held_out": 0.0, "limit": 4, "system": None}
        },
        "code": {},
        "precision": "bf16",
        "trust_remote_code": True,
    }
    # printf '{"a":1,"b":[1.5,"\\u00e9"]}' | sha256sum
    assert digest_of({"b": [1.5, "é"], "a": 1}) == "66634ca65e9c2d37194119bdd44b2d239958a0cddc85a28ab2241ac7d6414527"


@given(
    st.dictionaries(st.text(max_size=3), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text())
)
def test_the_order_of_keys_does_not_count(data: dict[str, Any]) -> None:
    keys = list(data)
    random.Random(0).shuffle(keys)
    assert digest_of({key: data[key] for key in keys}) == digest_of(data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=15)
@given(st.permutations(["base", "sft", "dpo", "report"]))
def test_the_order_of_stages_in_the_file_does_not_count(make_world: Callable[[], Any], order: list[str]) -> None:
    world = make_world()
    lines = (Path(world.folder) / "r.yaml").read_text().splitlines()
    stages = {line.split(":")[0].strip(): line for line in lines[-4:]}
    expected = {s.spec.name: s.fingerprint for s in world.plan().stages}
    world.write("r.yaml", "\n".join([*lines[:-4], *(stages[name] for name in order)]) + "\n")
    assert {s.spec.name: s.fingerprint for s in world.plan().stages} == expected
    assert list(expected) == ["base", "sft", "dpo", "report"] == [s.spec.name for s in world.plan().stages]


def test_numbers_written_in_two_ways_are_one_setting(make_world: Callable[[], Any]) -> None:
    world = make_world()

    def of(*overrides: str) -> str:
        return str(world.stage("dpo", *overrides).fingerprint)

    base = "stages.dpo.train."
    assert of(f"{base}beta=1") == of(f"{base}beta=1.0") == of(f"{base}beta=10e-1")
    assert of(f"{base}max_steps=100") == of(f"{base}max_steps=1e2")
    assert of(f"{base}learning_rate=1") == of(f"{base}learning_rate=1.0")


def test_writing_a_default_out_is_no_change(make_world: Callable[[], Any]) -> None:
    world = make_world()
    assert world.stage("dpo", "stages.dpo.adapter.r=16").fingerprint == world.stage("dpo").fingerprint
    assert KINDS["wide"].version == 1
