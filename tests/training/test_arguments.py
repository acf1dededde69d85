"""Trainers' own configs from the recipe's words: nothing is left to a default that surprises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import TrainingArguments
from trl import DPOConfig, RewardConfig, SFTConfig

from pipeline.errors import PipelineError
from pipeline.models.cpu.precision import Choice
from pipeline.stages.sft.config import Train
from pipeline.training import arguments
from pipeline.training.arguments import build_arguments, precision_of, resolve_precision, starting_weights
from pipeline.training.fields import CommonTrain

CLASSES = [TrainingArguments, SFTConfig, RewardConfig, DPOConfig]


def _arguments(make_context: Any, cls: Any = SFTConfig, train: CommonTrain | None = None, **more: Any) -> Any:
    compute = more.pop("compute", {})
    values = {"micro_batch": 4, "steps": 200, "has_held_out": False, **more}
    return build_arguments(cls, make_context(**compute), train or Train(batch_size=16), **values)


@pytest.mark.parametrize("cls", CLASSES)
def test_what_trl_switches_on_by_itself_is_off(make_context: Any, cls: Any) -> None:
    """trl's configs default to bf16 and gradient checkpointing: half as fast as fp32 on a CPU, and other numbers."""
    made = _arguments(make_context, cls)
    assert (made.bf16, made.fp16, made.gradient_checkpointing) == (False, False, False)
    assert made.report_to == []
    assert made.save_strategy == "no"
    assert made.logging_nan_inf_filter is False  # a lost loss must be seen, not replaced by the last good one
    assert made.remove_unused_columns is False
    assert made.push_to_hub is False


def test_trl_still_has_the_defaults_this_guards_against() -> None:
    fields = SFTConfig.__dataclass_fields__
    assert fields["gradient_checkpointing"].default is True
    assert fields["bf16"].default is None  # None: on wherever the device can


@pytest.mark.parametrize("cls", CLASSES)
def test_the_recipes_words_become_the_trainers(make_context: Any, cls: Any) -> None:
    train = Train(
        batch_size=16,
        learning_rate=3e-4,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.2,
        max_grad_norm=0.5,
        optim="adafactor",
    )
    made = _arguments(make_context, cls, train, has_held_out=True)
    assert made.per_device_train_batch_size == made.per_device_eval_batch_size == 4
    assert made.gradient_accumulation_steps == 4  # 16 rows in micro-batches of 4
    assert made.max_steps == 200
    assert (made.learning_rate, made.weight_decay, made.max_grad_norm) == (3e-4, 0.2, 0.5)
    assert (made.lr_scheduler_type, made.optim) == ("cosine", "adafactor")
    assert made.get_warmup_steps(200) == 20  # a tenth of 200
    assert (made.seed, made.data_seed) == (3, 3)
    assert made.logging_steps == 10
    assert (made.eval_strategy, made.eval_steps) == ("steps", 50)  # four times in 200 steps


def test_short_runs_are_logged_often_enough_to_draw(make_context: Any) -> None:
    assert _arguments(make_context, steps=5).logging_steps == 1
    assert _arguments(make_context, steps=60).logging_steps == 3
    assert _arguments(make_context, steps=100_000).logging_steps == 10
    assert _arguments(make_context).eval_strategy == "no"


def test_other_keys_go_to_the_trainer_and_the_stage_has_the_last_word(make_context: Any) -> None:
    train = Train.model_validate({"batch_size": 16, "adam_beta2": 0.9, "neftune_noise_alpha": 5.0})
    made = _arguments(make_context, train=train, max_length=None)
    assert (made.adam_beta2, made.neftune_noise_alpha, made.max_length) == (0.9, 5.0, None)


def test_precision_and_device_are_computes_matter(make_context: Any) -> None:
    assert _arguments(make_context, compute={"precision": "bf16"}).bf16 is True
    assert _arguments(make_context, compute={"activation_checkpointing": True}).gradient_checkpointing is True
    if not torch.cuda.is_available():
        assert resolve_precision(make_context(precision="auto")).compute.precision == "fp32"
        with pytest.raises(PipelineError, match=r"no CUDA device. Use `compute.device: auto`"):
            _arguments(make_context, compute={"device": "cuda"})


def test_auto_is_decided_once_and_a_resumed_stage_goes_on_in_it(
    make_context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(measured: Choice) -> tuple[str, dict[str, Any], list[str]]:
        events: list[Any] = []
        ctx = make_context(events, precision="auto", device="cpu")  # the same work folder each time
        monkeypatch.setattr(arguments, "fastest_precision", lambda width: measured)
        return precision_of(resolve_precision(ctx, 1024)), ctx.runtime_report, [event.text for event in events]

    fast, slow = Choice("bf16", "bf16 is 3.5 times as fast"), Choice("fp32", "bf16 is 0.4 times as fast")
    facts = {"precision": "bf16", "precision_reason": "bf16 is 3.5 times as fast"}
    note = "computes in bf16: bf16 is 3.5 times as fast; `compute.precision: fp32` takes the other"
    assert begin(fast) == ("bf16", facts, [note])
    assert begin(slow) == ("bf16", facts, [])  # resumed, on a machine where fp32 is faster
    [kept] = (make_context().work).glob("precision*")
    kept.write_text('["bf')  # as a kill in the middle would leave a file that is written in place
    assert begin(slow)[0] == "fp32"


def test_one_process_drives_one_gpu_however_many_it_sees(make_context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer would spread over all of them (nn.DataParallel), which trl refuses."""

    def four(self: TrainingArguments) -> torch.device:
        self._n_gpu = 4
        return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(four))
    assert TrainingArguments("out", use_cpu=True).n_gpu == 4
    assert _arguments(make_context).n_gpu == 1


def test_a_cpu_gets_none_of_a_gpus_ways(make_context: Any) -> None:
    made = _arguments(make_context, compute={"device": "cpu"})
    assert (made.use_liger_kernel, made.dataloader_pin_memory) == (False, False)
    assert made.accelerator_config.non_blocking is False
    with pytest.raises(PipelineError, match=r"compute\.liger is on.*there is no GPU"):
        _arguments(make_context, compute={"device": "cpu", "liger": "on"})
    with pytest.raises(PipelineError, match=r"compute\.attention is.*there is no GPU"):
        starting_weights(make_context(device="cpu", attention="flash"), None)
