"""What `docs/upstream.md` says of libraries, where no other test would fail: names, signatures, and their use."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

PARAMETERS: dict[str, str] = {
    "transformers.Trainer._build_accelerator_args": "self kwargs",
    "transformers.Trainer._determine_best_metric": "self metrics trial",
    "transformers.Trainer._get_num_items_in_batch": "self batch_samples device",
    "transformers.Trainer._load_best_model": "self",
    "transformers.Trainer._load_from_checkpoint": "self resume_from_checkpoint model",
    "transformers.Trainer._load_optimizer_and_scheduler": "self checkpoint",
    "transformers.Trainer._load_scaler": "self checkpoint",
    "transformers.Trainer._prepare_for_training": "self max_steps train_dataloader resume_from_checkpoint",
    "transformers.Trainer._save": "self output_dir state_dict",
    "transformers.Trainer._save_checkpoint": "self model trial",
    "transformers.Trainer._save_optimizer_and_scheduler": "self output_dir",
    "transformers.PreTrainedModel._initialize_weights": "self module is_custom_code",
    "transformers.PreTrainedModel._resolve_parallel_plans": "self distributed_config",
    "trl.DPOTrainer._precompute_ref_logps": "self dataset name batch_size",
    "trl.KTOTrainer._precompute_ref_logps": "self dataset name batch_size",
    "trl.GRPOTrainer._tokenize_prompts": "self prompts",
    "trl.RLOOTrainer._tokenize_prompts": "self prompts",
    "accelerate.parallelism_config.ParallelismConfig._validate_accelerator": "self accelerator",
}
"""Private methods that are overridden or called, and their parameters."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_private_methods_have_the_parameters_they_are_used_with(name: str) -> None:
    module, owner, method = name.rsplit(".", 2)
    signature = inspect.signature(getattr(getattr(__import__(module, fromlist=[owner]), owner), method))
    assert " ".join(signature.parameters) == PARAMETERS[name]


def test_the_trainer_counts_predicted_tokens_of_every_causal_model(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    from pipeline.models.load.pretrained import count_predicted_tokens

    counts = []
    for is_set in (False, True):
        model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=16, n_positions=8))
        if is_set:
            count_predicted_tokens(model)
        trainer = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))
        batch = {"labels": torch.ones(2, 5, dtype=torch.long)}
        counts.append(int(trainer._get_num_items_in_batch([batch], torch.device("cpu"))))
    # 2 rows of 5 tokens: the first token of a row is predicted by none, so 8 are. transformers itself counts all 10.
    assert counts == [10, 8]


@pytest.mark.parametrize("trainer", ["DPOTrainer", "KTOTrainer"])
def test_trl_hashes_the_model_only_through_the_name_that_is_replaced(trainer: str) -> None:
    import trl

    from pipeline.training.reference import unhashed

    cls = getattr(trl, trainer)
    module: Any = sys.modules[cls.__module__]
    before = module.hash_module
    with unhashed(cls):
        assert module.hash_module(torch.nn.Linear(1, 1)) == ""
    assert module.hash_module is before
    assert "hash_module(" in inspect.getsource(cls.__init__), "the hash is no longer taken in the constructor"


def test_a_prepared_model_computes_without_autocast_again() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from pipeline.models.save.verification import _without_autocast

    class Model(torch.nn.Linear):
        device = torch.device("cpu")

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        model = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(Model(4, 4))
        # accelerate converts outputs back to fp32, so the rounding tells: 1 + 2^-12 is 1 in bfloat16.
        model.weight.data, model.bias.data = torch.eye(4) * (1 + 2**-12), torch.zeros(4)
        with torch.no_grad():
            rounded = model(torch.ones(1, 4))
            with _without_autocast(model):
                exact = model(torch.ones(1, 4))
            again = model(torch.ones(1, 4))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert rounded.tolist() == again.tolist() == [[1.0] * 4]
    assert exact.tolist() == [[1 + 2**-12] * 4]


_COMPILES = """
import os
os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed
from deepspeed.comm.torch import build_shm_op
from deepspeed.ops.op_builder.builder import OpBuilder
from pipeline.parallel.process_group import _skip_shm_compilation

def load(self, verbose=True):
    raise SystemExit("compiles")

OpBuilder.load = load
_skip_shm_compilation()
assert build_shm_op() is None
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = True
build_shm_op()
"""


def test_deepspeed_compiles_nothing_on_a_cpu() -> None:
    """Without the patched entry DeepSpeed would compile, which the last line of the program shows."""
    ended = subprocess.run(
        [sys.executable, "-c", _COMPILES],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr.strip().splitlines()[-1:]) == (1, ["compiles"]), ended.stderr[-2000:]


def test_quantised_layers_keep_one_kernel() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")

    from pipeline.models.load.pretrained import _compute_as_in_training

    layer = bitsandbytes.nn.Linear4bit(64, 64)
    assert hasattr(layer, "support_avx512bf16_for_cpu")
    layer.support_avx512bf16_for_cpu = True
    _compute_as_in_training(torch.nn.Sequential(layer))
    assert layer.support_avx512bf16_for_cpu is False
    assert "support_avx512bf16_for_cpu" in inspect.getsource(type(layer).forward), "the kernel is chosen elsewhere"


def test_torch_reads_the_variable_that_keeps_the_agent_off_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    assert f'setdefault("{name}", "1")' in (ROOT / "pipeline" / "launch" / "ranks.py").read_text(encoding="utf-8")
    monkeypatch.delenv(name, raising=False)
    assert not torch.cuda._nvml_based_avail()
    monkeypatch.setenv(name, "1")
    assert torch.cuda._nvml_based_avail()


def test_saved_bytes_are_counted_without_computing() -> None:
    from transformers import LlamaConfig

    from pipeline.models.saved_activations import count_saved_activations

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 32}
    counted = [
        count_saved_activations(LlamaConfig(**{**sizes, "intermediate_size": width}, num_hidden_layers=2))
        for width in (32, 64)
    ]
    # 32 more inner units. A gated block saves 4 tensors of that width: the gate before and after its activation, the
    # other half, and their product.
    assert counted[1].fp32 - counted[0].fp32 == 4 * 4 * 32


_VARIABLES = """
import json, logging
import huggingface_hub.constants as hub
import tqdm
import transformers.utils.logging as transformers_logging
bar = tqdm.tqdm(range(1))
read = [hub.HF_HUB_DISABLE_TELEMETRY, hub.HF_HUB_DISABLE_PROGRESS_BARS, bar.disable]
print(json.dumps([*read, transformers_logging.get_verbosity() == logging.ERROR]))
"""


def test_libraries_read_the_variables_that_stages_set() -> None:
    names = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE", "TRANSFORMERS_VERBOSITY")
    warm = (ROOT / "pipeline" / "launch" / "warm.py").read_text(encoding="utf-8")
    values = {name: warm.partition(f'setdefault("{name}", "')[2].partition('"')[0] for name in names}
    assert all(values.values()), "a stage no longer sets them"
    ended = subprocess.run(
        [sys.executable, "-c", _VARIABLES], env={**os.environ, **values}, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[true, true, true, true]"
