"""State that should be sharded and does not is seen, and a stage refuses to train so: FSDP2, ZeRO and plain sums.

Two processes prepare a small model in every way, right and wrong, and say what they hold. Then a stage is broken inside
the real runner, by a reward function's file that every process imports: accelerate then does what it does by itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import be_rank, run_ranks

from pipeline.errors import StageFailed
from pipeline.kind.compute import ComputeSettings
from pipeline.parallel.dims import ParallelDims
from pipeline.parallel.fsdp import wrapping as fsdp
from pipeline.parallel.process_group import init_process_group
from pipeline.parallel.sharding_state import ShardingState, holding, sharding_problems
from pipeline.parallel.zero.config import bucket_problem, deepspeed_config
from pipeline.stage import StageContext
from pipeline.training.audit import trainer_problems

pytestmark = pytest.mark.xdist_group("fallbacks")  # what its fixtures train is trained once

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 90}


def tiny() -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))


def through_accelerate(*, engaged: bool) -> ShardingState:
    """Prepare with FSDP2 as a trainer does; not ``engaged`` is what accelerate does of itself."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import FullyShardedDataParallelPlugin

    AcceleratorState._reset_state()
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    if engaged:
        fsdp.engage(accelerator, plugin)
    model = tiny()
    prepared, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    return holding(getattr(prepared, "module", prepared), optimizer)


def a_layer_only() -> ShardingState:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = tiny()
    fully_shard(model.model.layers[0], mesh=init_device_mesh("cpu", (2,)))
    return holding(model, torch.optim.AdamW(model.parameters()))


def each_alone() -> ShardingState:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = tiny()
    fully_shard(model, mesh=init_device_mesh("cpu", (2, 1), mesh_dim_names=("apart", "together"))["together"])
    return holding(model, torch.optim.AdamW(model.parameters()))


def with_zero(stage: int) -> ShardingState:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DeepSpeedPlugin

    AcceleratorState._reset_state()
    once = {"gradient_accumulation_steps": 1, "train_micro_batch_size_per_gpu": 1, "train_batch_size": 2}
    config = {**deepspeed_config(ParallelDims(zero=stage), "fp32"), **once, "gradient_clipping": 0.0}
    accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))
    model = tiny()
    engine, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    return holding(engine.module, optimizer)


def main(which: str, folder: str) -> None:
    """Be one of two processes."""
    torch.set_num_threads(1)
    init_process_group(cpu=True, deepspeed=which == "zero")
    if which == "zero":
        states = {f"ZeRO-{stage}": with_zero(stage) for stage in (1, 2, 3)}
    else:
        states = {
            "accelerate's own": through_accelerate(engaged=False),
            "a layer only": a_layer_only(),
            "each alone": each_alone(),
            "FSDP2": through_accelerate(engaged=True),
        }
    said = json.dumps({name: asdict(held) for name, held in states.items()})
    (Path(folder) / f"{which}-{os.environ['RANK']}.json").write_text(said)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, ShardingState]]:
    folder = tmp_path_factory.mktemp("prepared")

    def prepare(which: str) -> dict[str, ShardingState]:
        run_ranks(__file__, which, str(folder))
        kept = [json.loads((folder / f"{which}-{rank}.json").read_text()) for rank in (0, 1)]
        assert {name: held["engine"] for name, held in kept[0].items()} == {n: h["engine"] for n, h in kept[1].items()}
        return {name: ShardingState(**held) for name, held in kept[0].items()}

    return prepare


def problems(held: ShardingState, **compute: Any) -> list[str]:
    """Return what two processes that hold so would be told."""
    return [problem.found for problem in sharding_problems(ParallelDims(2, **compute), held, joined=2)]


def test_fsdp2_that_is_not_there_is_seen(
    prepared: Callable[[str], dict[str, ShardingState]],
) -> None:
    states = prepared("fsdp")
    right = states["FSDP2"]
    assert (right.engine, right.over, right.optimizer) == ("FSDP2", 2, right.weights)
    assert 0.49 < right.weights < 0.51
    assert problems(right, fsdp=True) == []
    assert problems(right) == ["compute asks for plain, and FSDP2 runs"]
    own = states["accelerate's own"]
    assert own == ShardingState("plain", 1, 1.0, 1.0)
    assert problems(own, fsdp=True) == ["compute asks for FSDP2, and plain runs"]
    # 9 of the 21 weights of two layers: 4 of attention, 3 of the feed-forward block and 2 norms in each, and 3 outside.
    assert states["a layer only"].engine == "FSDP2 for 9 of 21 weights"
    assert problems(states["a layer only"], fsdp=True)
    told = problems(states["each alone"], fsdp=True)
    assert told == ["FSDP2 has spread its state over 1 of 2 processes"]


def test_another_zero_stage_is_seen(
    prepared: Callable[[str], dict[str, ShardingState]],
) -> None:
    pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed: pip install 'trueup[deepspeed]'")
    states = prepared("zero")
    for stage in (1, 2, 3):
        held = states[f"ZeRO-{stage}"]
        assert (held.engine, held.over) == (f"ZeRO-{stage}", 2)
        assert held.weights == pytest.approx(0.5 if stage == 3 else 1, abs=0.01)
        assert held.optimizer == pytest.approx(0.5, abs=0.01)
        for asked in (1, 2, 3):
            told = problems(held, zero=asked)
            assert told == ([] if asked == stage else [f"compute asks for ZeRO-{asked}, and ZeRO-{stage} runs"])
        alone = ShardingState(held.engine, 1, 1.0, 1.0)
        assert problems(alone, zero=stage)


def test_buckets_that_are_not_the_configured_ones_are_seen() -> None:
    assert bucket_problem(2, 2048, 2**22) is None  # the least, 4 Mi, is also 2048²
    assert bucket_problem(2, 4096, 2**22) is not None
    problem = bucket_problem(2, 2048, 500_000_000)
    assert problem is not None
    assert problem.found == "DeepSpeed's buckets have 500000000 elements"


def test_gradients_that_nobody_sums_are_seen(tmp_path: Path) -> None:
    nothing: Any = None
    ctx = StageContext(
        "one",
        1,
        tmp_path,
        tmp_path,
        {},
        nothing,
        ComputeSettings(precision="fp32"),
        nothing,
        nothing,
        dims=ParallelDims(2),
    )
    trainer = SimpleNamespace(accelerator=SimpleNamespace(mixed_precision="no"), model_wrapped=torch.nn.Linear(2, 2))
    (problem,) = trainer_problems(ctx, trainer)
    assert problem.found == "DDP is missing: gradients are not averaged over the 2 processes"


STAGE = """
  practice:
    kind: grpo
    data: asks
    model: sft
    reward: {function: gold.py:broken}
    train: {max_steps: 2, batch_size: 8, max_new_tokens: 4, num_generations: 4}
"""
BREAKS = {
    "accelerate falls back": (
        "import pipeline.parallel.fsdp.wrapping as engine\nengine.engage = lambda *given: None\n",
        "accelerate runs MULTI_CPU",
    ),
    "nothing is sharded": (
        "import accelerate.accelerator as engine\nengine.fsdp2_prepare_model = lambda accelerator, model: model\n",
        "compute asks for FSDP2, and plain runs",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_stage_that_falls_back_is_refused_and_leaves_nothing(case: str, spread_world: Callable[[str], Any]) -> None:
    world = spread_world(STAGE)
    line, said = BREAKS[case]
    reward = "\n\ndef broken(completions, **columns):\n    return [0.0] * len(completions)\n"
    gold = world.recipe.parent / "gold.py"
    gold.write_text(gold.read_text() + reward + line)
    with pytest.raises(StageFailed, match=said) as refused:
        world.train("broken", ("practice",), "compute.processes=2", "compute.fsdp=true")
    assert refused.value.exit_code == 2 and "compute.zero: 3" in str(refused.value)
    assert not world.store("broken").artifacts("practice")


if __name__ == "__main__":
    be_rank(main)
