"""Groups of processes hold the same shards: gradients are averaged over them, once a step, or the stage refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import be_rank, run_ranks
from torch.distributed.tensor import DTensor

from pipeline.errors import PipelineError
from pipeline.parallel.process_group import init_process_group
from pipeline.parallel.tensor.sharding import TPReplicas, shard_model
from pipeline.training.audit import check_replicas

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 90}


def tiny() -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))


def learn(model: Any, rows: torch.Tensor) -> None:
    model(input_ids=rows, labels=rows, use_cache=False).loss.backward()


def main() -> None:
    """Be one of four processes: 0 and 1 hold a model, 2 and 3 another."""
    torch.set_num_threads(1)
    init_process_group(cpu=True, deepspeed=False)
    rows = torch.arange(4 * 2 * 8).reshape(4, 2, 8) * 7 % 90
    group, ctx = dist.get_rank() // 2, SimpleNamespace(name="sft")
    model = shard_model(tiny(), 2)
    copies = TPReplicas(model)
    assert copies.count == 2

    learn(model, rows[group])
    assert copies.apart(model) > 1e-3
    with pytest.raises(PipelineError, match="2 groups of 2 processes train, and their gradients differ"):
        check_replicas(ctx, model)  # type: ignore[arg-type]

    model.zero_grad()
    ends: list[bool] = []
    copies.average_gradients(model, lambda: ends[-1])
    for last, batch in ((False, rows[group]), (True, rows[2 + group])):  # two passes, then a step
        ends.append(last)
        learn(model, batch)
        assert (copies.apart(model) == 0) == last
    check_replicas(ctx, model)  # type: ignore[arg-type]

    whole = tiny()
    for batch in rows:
        learn(whole, batch)
    for (name, parameter), alone in zip(model.named_parameters(), whole.parameters(), strict=True):
        gradient = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        torch.testing.assert_close(gradient, alone.grad / 2, rtol=1e-4, atol=1e-6, msg=name)

    mine = torch.full((2, 3), float(dist.get_rank()))
    both = [float(dist.get_rank() % 2), float(2 + dist.get_rank() % 2)]  # who holds these shards
    assert copies.all_gather({"a": mine})["a"][:, 0].tolist() == [both[0], both[0], both[1], both[1]]
    assert copies.all_gather([mine[0, 0]])[0].tolist() == both


def test_copies_average_their_gradients_once_a_step_and_are_refused_when_they_do_not() -> None:
    run_ranks(__file__, count=4)


if __name__ == "__main__":
    be_rank(main)
