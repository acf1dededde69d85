"""The table of trainer fields against the installed trainers, and what `train:` accepts."""

import json
import subprocess
import sys
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from pipeline.trainer_fields import CONTROLLED, RUNTIME_TRAIN_FIELDS, TrainFields
from pipeline.trainer_fields.classes import ALL_CHANGES, CHANGES, REFUSED_BY
from pipeline.trainer_fields.needs import NEEDS
from pipeline.trainer_fields.table import TABLE, table
from pipeline.trainer_fields.values import MAPPINGS, NUMBERS, RANGES, WORDS


class Train(TrainFields):
    trainer: ClassVar[str] = "SFTConfig"
    epochs: float = 1.0
    packing: bool = False  # a field trueup decides elsewhere may be a kind's own word


def test_the_table_is_that_of_the_installed_trainers() -> None:
    program = (
        "from pipeline.trainer_fields import installed as t; import sys; "
        "sys.stdout.write('TABLE' + t.render(t.build_table()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.partition("TABLE")[2] == TABLE.read_text(), "run `python -m pipeline.trainer_fields`"


def test_types_are_reduced() -> None:
    fields = table()
    assert fields["SFTConfig"]["learning_rate"] == {"type": "float", "optional": False}
    assert fields["SFTConfig"]["eval_strategy"] == {
        "type": "str",
        "optional": False,
        "values": ["no", "steps", "epoch"],
    }
    assert fields["DPOConfig"]["ld_alpha"] == {"type": "float", "optional": True}
    assert fields["DPOConfig"]["loss_type"] == {"type": "any", "optional": False}
    assert "ld_alpha" not in fields["SFTConfig"]


def test_every_field_of_every_trainer_is_in_one_class() -> None:
    """A new trl or transformers that brings a field fails here until somebody has read what it does."""
    fields = [(trainer, name) for trainer, known in table().items() for name in known]
    unclassified = [
        (trainer, name)
        for trainer, name in fields
        if (name in ALL_CHANGES) + (name in RUNTIME_TRAIN_FIELDS) + (name in CONTROLLED) != 1
    ]
    assert unclassified == []
    assert len({name for _, name in fields}) == 220
    assert len(ALL_CHANGES) == sum(map(len, CHANGES.values()))


def test_every_special_field_is_a_field_of_some_trainer() -> None:
    known = {name for fields in table().values() for name in fields}
    for names in (ALL_CHANGES, RUNTIME_TRAIN_FIELDS, CONTROLLED, NEEDS, WORDS, RANGES, MAPPINGS, NUMBERS):
        assert set(names) <= known
    for trainer, refused in REFUSED_BY.items():
        assert set(refused) <= set(table()[trainer]) - set(CONTROLLED)
    assert all(need.other in known or need.other == "max_new_tokens" for needs in NEEDS.values() for need in needs)


def test_every_refusal_says_what_to_do() -> None:
    sentences = [*CONTROLLED.values(), *(text for refused in REFUSED_BY.values() for text in refused.values())]
    assert all(len(text) > 10 for text in sentences)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"beta": 0.1}, "unknown key `beta`"),
        ({"logging_steps": "x"}, "logging_steps is 'x'"),
        ({"max_steps": 1.5}, "max_steps is 1.5"),
        ({"max_steps": True}, "max_steps is True"),
        ({"learning_rate": None}, "learning_rate is None"),
        ({"output_dir": "x"}, "`output_dir` is decided by trueup"),
        ({"pad_to_multiple_of": 64}, "`pad_to_multiple_of` is decided by trueup"),
        ({"shuffle_dataset": True}, "`shuffle_dataset` is decided by trueup"),  # GRPO reads it, SFT does not
        (
            {"eval_strategy": "epochs"},
            "eval_strategy is 'epochs', must be one of no, steps, epoch; did you mean `epoch`",
        ),
        ({"torch_compile_backend": "inducto"}, "must be one of inductor, .*did you mean `inductor`"),
        ({"adam_beta2": 1.0}, "adam_beta2 is 1, must be >= 0 and < 1"),
        ({"adam_epsilon": 0}, "adam_epsilon is 0, must be > 0"),
        ({"eval_steps": 2.5}, "eval_steps is 2.5, must be a whole number of steps, or below 1 a share of all steps"),
        ({"lr_scheduler_kwargs": "min_lr=0.1"}, "must be a mapping"),
    ],
)
def test_wrong_fields_are_refused_also_without_a_recipe(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem.replace("`", ".")):
        Train.model_validate(fields)


def test_fields_pass_through() -> None:
    train = Train.model_validate(
        {"epochs": 2, "packing": True, "max_steps": 10.0, "learning_rate": 1, "optim_args": None}
    )
    assert repr(train.passthrough()) == "{'max_steps': 10, 'learning_rate': 1.0, 'optim_args': None}"
    assert Train.model_validate(train.model_dump()) == train
    assert json.loads(train.model_dump_json()) == {**train.passthrough(), "epochs": 2.0, "packing": True}


def test_runtime_fields_stay_out_of_the_fingerprint() -> None:
    train = Train.model_validate({"logging_steps": 5, "ddp_bucket_cap_mb": 25, "max_steps": 3})
    assert train.fingerprint_data() == {"epochs": 1.0, "packing": False, "max_steps": 3}
