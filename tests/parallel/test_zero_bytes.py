"""What ZeRO-3 on two processes holds of the parameter and optimizer bytes of a plain run, measured.

Each holds at most 60 %. In bf16 that is (2 + 4 + 8) / 2 bytes a parameter for 4 + 8, 58 %; in fp32 (4 + 8) / 2, a half,
once DeepSpeed's copy of weights that are fp32 already is given up (`share_fp32_storage`); with it, two thirds.

Two real processes train a small Llama with DeepSpeed as stages configure it, and count the storages of their
weights, of the optimizer's copies of them and of its moments, each storage once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import be_rank, run_ranks

from pipeline.estimate.memory import ParallelLayout, state
from pipeline.estimate.shape import shape_of
from pipeline.parallel.dims import ParallelDims
from pipeline.parallel.process_group import init_process_group
from pipeline.parallel.zero.config import deepspeed_config
from pipeline.parallel.zero.optimizer_state import share_fp32_storage
from pipeline.parallel.zero.zero3 import zero3_building

CONFIG = {
    "hidden_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 768,
    "vocab_size": 2000,
}


def storages(tensors: Iterator[torch.Tensor]) -> int:
    """Return the bytes of the distinct storages of tensors."""
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(sizes.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def held(model: Any, optimizer: Any) -> Iterator[torch.Tensor]:
    """Yield weights, whole or sharded, the optimizer's copies of them, and its moments."""
    for parameter in model.parameters():
        yield parameter.data
        if hasattr(parameter, "ds_tensor"):
            yield parameter.ds_tensor.data
    yield from _tensors(getattr(optimizer, "fp32_partitioned_groups_flat", []))
    inner = getattr(optimizer, "optimizer", optimizer)
    yield from _tensors([list(states.values()) for states in inner.state.values()])


def main(out: str, precision: str, offload: str) -> None:
    """Be one of two processes: two steps under ZeRO-3, then count."""
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(1)
    init_process_group(cpu=True, deepspeed=True)
    once = {"gradient_accumulation_steps": 1, "train_micro_batch_size_per_gpu": 1, "train_batch_size": 2}
    config = {**deepspeed_config(ParallelDims(zero=3, offload=offload), precision), **once, "gradient_clipping": 0.0}
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))
    with zero3_building(config):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **CONFIG))
    engine, prepared = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    share_fp32_storage(prepared.optimizer)
    assert (prepared.optimizer.offload_optimizer, prepared.optimizer.offload_param) == (offload == "all",) * 2
    ids = torch.arange(32).reshape(1, 32) + int(os.environ["RANK"])
    for _ in range(2):
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    Path(out).with_suffix(f".{os.environ['RANK']}").write_text(
        json.dumps({"bytes": storages(held(engine.module, prepared.optimizer)), "processes": accelerator.num_processes})
    )


@pytest.mark.parametrize(
    ("precision", "offload", "share"), [("bf16", "none", 0.6), ("fp32", "none", 0.52), ("fp32", "all", 0.52)]
)
def test_what_each_of_two_processes_of_zero_3_holds(tmp_path: Path, precision: str, offload: str, share: float) -> None:
    pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed: pip install 'trueup[deepspeed]'")
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **CONFIG))
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.arange(32).reshape(1, 32)
    model(input_ids=ids, labels=ids).loss.backward()
    adam.step()
    plain = storages(held(model, adam))
    run_ranks(__file__, str(tmp_path / "held"), precision, offload)
    shape = shape_of({"type": "llama", **CONFIG})
    assert shape is not None
    assert plain == pytest.approx(12 * shape.parameters, rel=0.01)  # 4 bytes of weight and 8 of moments
    spread = ParallelLayout(processes=2, zero=3, offload=offload, half=precision == "bf16", on_gpu=False)
    weights, _, moments = state(shape, shape.parameters, spread)
    for rank in (0, 1):
        report = json.loads((tmp_path / f"held.{rank}").read_text())
        assert report["processes"] == 2
        print(f"rank {rank}: {report['bytes'] / plain:.1%} of the plain run's bytes")
        assert report["bytes"] <= share * plain
        assert report["bytes"] == pytest.approx(weights + moments, rel=0.15)


if __name__ == "__main__":
    be_rank(main)
