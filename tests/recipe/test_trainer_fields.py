"""The table of trainer fields against the installed trainers, and what `train:` accepts."""

import json
import subprocess
import sys
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from pipeline import trainer_fields
from pipeline.trainer_fields import CONTROLLED, RUNTIME_TRAIN_FIELDS, TrainFields


class Train(TrainFields):
    trainer: ClassVar[str] = "SFTConfig"
    epochs: float = 1.0
    packing: bool = False  # a field trueup decides elsewhere may be a kind's own word


def test_the_table_is_that_of_the_installed_trainers() -> None:
    program = (
        "from pipeline import trainer_fields as t; import sys; sys.stdout.write('TABLE' + t.render(t.build_table()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.partition("TABLE")[2] == trainer_fields.TABLE.read_text(), (
        "run `python -m pipeline.trainer_fields`"
    )


def test_types_are_reduced() -> None:
    table = trainer_fields.table()
    assert table["SFTConfig"]["learning_rate"] == {"type": "float", "optional": False}
    assert table["SFTConfig"]["lr_scheduler_type"] == {"type": "str", "optional": False}
    assert table["DPOConfig"]["ld_alpha"] == {"type": "float", "optional": True}
    assert table["DPOConfig"]["loss_type"] == {"type": "any", "optional": False}
    assert "ld_alpha" not in table["SFTConfig"]


def test_every_special_field_is_a_field_of_some_trainer() -> None:
    known = {name for fields in trainer_fields.table().values() for name in fields}
    assert set(CONTROLLED) | RUNTIME_TRAIN_FIELDS <= known
    assert {
        "output_dir",
        "seed",
        "bf16",
        "deepspeed",
        "push_to_hub",
        "hub_token",
        "per_device_train_batch_size",
    } <= set(CONTROLLED)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"beta": 0.1}, "unknown key `beta`"),
        ({"logging_steps": "x"}, "logging_steps is 'x'"),
        ({"max_steps": 1.5}, "max_steps is 1.5"),
        ({"max_steps": True}, "max_steps is True"),
        ({"learning_rate": None}, "learning_rate is None"),
        ({"output_dir": "x"}, "`output_dir` is decided by trueup"),
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
    train = Train.model_validate({"logging_steps": 5, "disable_tqdm": True, "max_steps": 3})
    assert train.fingerprint_data() == {"epochs": 1.0, "packing": False, "max_steps": 3}
