"""A model is sharded over two processes from the start: the weights of one process, in the memory of half a model.

Two real processes make and load models under ZeRO-3, and make one in shards. What a process needs at its peak is read
from the kernel (`VmHWM`), beside what the old way needs: the whole model first, cut afterwards. Blocks too small for
glibc to give back are left out of it (`M_MMAP_THRESHOLD`).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import be_rank, run_ranks
from safetensors.torch import load_file

from pipeline.artifacts.implicit_reward import ImplicitSettings, write_settings
from pipeline.models.implicit_reward import load_implicit_reward
from pipeline.models.load.adapter_config import Adapter
from pipeline.models.load.adapters import attach
from pipeline.models.load.deferred import Deferred
from pipeline.models.load.pretrained import load_causal_lm, load_reward_model
from pipeline.models.prompted_response import PromptedResponse
from pipeline.models.scoring import score, sequence_scores
from pipeline.parallel import dtensors
from pipeline.parallel.consolidation import model_from_state
from pipeline.parallel.dims import ParallelDims
from pipeline.parallel.process_group import init_process_group
from pipeline.parallel.tensor.sharding import shard_model
from pipeline.parallel.zero.config import deepspeed_config
from pipeline.parallel.zero.zero3 import (
    count_parameters,
    forward_without_engine,
    gather_parameter,
    is_partitioned,
    zero3_building,
)
from pipeline.stage import ResolvedInput

pytestmark = pytest.mark.xdist_group("partitioned")  # what its fixtures train is trained once

NARROW = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SMALL: dict[str, dict[str, Any]] = {
    "llama": {**NARROW, "vocab_size": 501},
    "qwen3": {**NARROW, "vocab_size": 501, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 501, "bos_token_id": 1, "eos_token_id": 1},
}
# 109 M parameters, 437 MB; the largest weight is the embedding.
LARGE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 2048,
    "vocab_size": 16_000,
}
MIB = 2**20
M_MMAP_THRESHOLD = -3
"""`mallopt`'s name for the size from which a block is mapped by itself."""


class Padding:
    """What a reward model asks a tokenizer for."""

    pad_token_id = 0


def _input(folder: Path) -> ResolvedInput:
    return ResolvedInput(ref=str(folder), name="model", kind="external", fingerprint="0" * 12, path=str(folder))


def _made(model_type: str, fields: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields), dtype=torch.float32)


def _same(model: Any, expected: dict[str, torch.Tensor]) -> bool:
    """Return whether a sharded model has these weights, bit for bit, and every weight is sharded."""
    parameters = dict(model.named_parameters())
    all_sharded = set(parameters) == set(expected) and all(
        hasattr(parameter, "ds_id") for parameter in parameters.values()
    )
    equal = [
        torch.equal(gather_parameter(parameter), expected[name]) for name, parameter in parameters.items()
    ]  # on every process
    return all_sharded and all(equal)


def _small(folder: Path, parts: dict[str, Any]) -> dict[str, bool]:
    """Make and load small sharded models; return what is as it would be on one process."""
    ids, same = torch.arange(40).reshape(2, 20), {}
    for name, fields in SMALL.items():
        alone = _made(name, fields)
        with zero3_building(parts):
            made = _made(name, fields)
        expected = dict(alone.named_parameters())
        same[f"{name} made"] = _same(made, expected)
        same[f"{name} counted"] = count_parameters(made) == count_parameters(alone) > 0
        loaded = load_causal_lm(_input(folder / name), zero3=parts)
        same[f"{name} loaded"] = _same(loaded, expected)
        with forward_without_engine(loaded):
            logits = loaded.eval()(input_ids=ids).logits
        with torch.no_grad():
            same[f"{name} computes"] = torch.allclose(logits, alone.eval()(input_ids=ids).logits, atol=1e-6)
        same[f"{name} sharded again"] = sum(p.numel() for p in loaded.parameters()) == 0
    sharded, alone = (load_reward_model(_input(folder / "llama"), Padding(), seed=5, zero3=p) for p in (parts, None))
    same["new head"] = torch.equal(sharded.score.weight, alone.score.weight)
    same["below it"] = _same(sharded.model, dict(alone.model.named_parameters()))
    same["whole beside it"] = not is_partitioned(alone)
    # The second process has fewer batches than the first, and then none.
    for rows in ([[5, 6, 7], [8, 9]], [[5, 6, 7]] * (1 - int(os.environ["RANK"]))):
        mine = rows[: 2 - int(os.environ["RANK"])]
        scores = [sequence_scores(model, mine, 0, token_budget=3) for model in (sharded, alone)]
        same[f"scores of {len(rows)}"] = scores[0] == pytest.approx(scores[1], abs=1e-6) and len(scores[0]) == len(mine)
    return same | _implicit(folder / "pair", parts)


def _implicit(folder: Path, parts: dict[str, Any]) -> dict[str, bool]:
    """Load an implicit reward in shards and whole, and score with both; the second process has fewer responses."""
    sharded, alone = (load_implicit_reward(_input(folder), zero3=one) for one in (parts, None))
    assert sharded is not None and alone is not None
    same = {
        "both sharded": all(map(is_partitioned, sharded.models)),
        "none": not any(map(is_partitioned, alone.models)),
    }
    for count in (3, 1):
        mine = [PromptedResponse([5, 6, 7 + i], 1) for i in range(count - int(os.environ["RANK"]))]
        rewards = [score(model, mine, 0, token_budget=3) for model in (sharded, alone)]
        same[f"rewards of {count}"] = rewards[0] == pytest.approx(rewards[1], abs=1e-6) and len(rewards[0]) == len(mine)
        same[f"rewards of {count} differ"] = all(abs(value) > 1e-3 for value in rewards[0])
    return same


def _kept_by_kernel(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _peak(work: Callable[[], Any]) -> dict[str, int]:
    """Return the bytes that work needed at its peak, and those it has left behind in memory of the process's own."""
    gc.collect()
    torch.distributed.barrier()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM begins anew
    before, own = _kept_by_kernel("VmRSS"), _kept_by_kernel("RssAnon")
    made = work()
    gc.collect()
    memory = {"peak": _kept_by_kernel("VmHWM") - before, "kept": _kept_by_kernel("RssAnon") - own}
    assert count_parameters(made) > 1e8
    return memory


def _loaded_and_cut(folder: Path, parts: dict[str, Any]) -> Any:
    """Load a model whole, then have DeepSpeed cut it, as its engine does with a model that is whole."""
    import deepspeed

    model = load_causal_lm(_input(folder))
    config = {name: parts[name] for name in ("zero_optimization", "bf16", "fp16")}
    deepspeed.zero.Init(module=model, config_dict_or_path={**config, "train_micro_batch_size_per_gpu": 1})
    return model


def _in_shards(model_type: str, fields: dict[str, Any], *, deferred: bool) -> Any:
    """Make a model and keep a shard of every large matrix."""
    if not deferred:
        return shard_model(_made(model_type, fields), 2)
    with Deferred() as later:
        model = _made(model_type, fields)
    return shard_model(model, 2, later)


def _sharded(what: str) -> dict[str, int]:
    """Be one of two processes that hold shards; return what making them took, having seen that they are the same."""
    init_process_group(cpu=True, deepspeed=False)
    for name in ("llama", "qwen3"):
        states = [_in_shards(name, SMALL[name], deferred=deferred).state_dict() for deferred in (True, False)]
        for key in states[1]:
            assert torch.equal(*(dtensors.full_tensor(state[key]) for state in states)), key
    return _peak(lambda: _in_shards("llama", LARGE, deferred=what == "sharded"))


def main(what: str, folder: str, out: str) -> None:
    """Be one of two processes."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 131_072)
    torch.set_num_threads(1)
    if what.startswith("sharded"):
        Path(out).with_suffix(f".{os.environ['RANK']}").write_text(json.dumps(_sharded(what)), encoding="utf-8")
        return
    init_process_group(cpu=True, deepspeed=True)
    parts, large = deepspeed_config(ParallelDims(zero=3), "fp32"), Path(folder) / "large"
    if what != "small":
        with zero3_building(parts):  # what DeepSpeed needs for itself is there
            _made("llama", SMALL["llama"])
    report: dict[str, Any]
    if what == "small":
        report = _small(Path(folder), parts)
    elif what == "loaded":
        report = _peak(lambda: load_causal_lm(_input(large), zero3=parts))
    elif what == "cut":
        report = _peak(lambda: _loaded_and_cut(large, parts))
    else:

        def make() -> Any:
            with zero3_building(parts):
                return _made("llama", LARGE)

        report = _peak(make)
    Path(out).with_suffix(f".{os.environ['RANK']}").write_text(json.dumps(report), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed: pip install 'trueup[deepspeed]'")
    made = tmp_path_factory.mktemp("models")
    for name, fields in SMALL.items():
        _made(name, fields).save_pretrained(made / name)
    _made("llama", LARGE).save_pretrained(made / "large")
    _made("llama", SMALL["llama"]).save_pretrained(made / "pair")
    _made("qwen3", SMALL["qwen3"]).save_pretrained(made / "pair" / "reference")  # only the tokenizer must be the same
    write_settings(made / "pair", ImplicitSettings(1.0))
    return made


def two(what: str, folder: Path, out: Path) -> list[dict[str, Any]]:
    """Return what each of two processes found."""
    run_ranks(__file__, what, str(folder), str(out / what))
    return [json.loads((out / f"{what}.{rank}").read_text()) for rank in (0, 1)]


def test_weights_made_or_loaded_sharded_are_those_of_one_process(folder: Path, tmp_path: Path) -> None:
    for report in two("small", folder, tmp_path):
        assert report and [name for name, same in report.items() if not same] == []


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_a_process_holds_half_a_model_while_it_is_loaded(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "large" / "model.safetensors")
    size = sum(tensor.nbytes for tensor in tensors.values())
    # Half of the model, and the largest weight twice: gathered, and on its way between processes.
    bar = size / 2 + 2 * max(tensor.nbytes for tensor in tensors.values()) + 32 * MIB
    del tensors
    measured = {what: two(what, folder, tmp_path) for what in ("loaded", "made", "cut")}
    print({what: [{k: round(v / MIB) for k, v in one.items()} for one in both] for what, both in measured.items()})
    for what in ("loaded", "made"):
        for rank, memory in enumerate(measured[what]):
            # The first process reads the file, whose pages are mapped: the kernel takes them back when it needs room.
            file = size if what == "loaded" and rank == 0 else 0
            assert memory["peak"] <= bar + file
            assert memory["kept"] == pytest.approx(size / 2, abs=32 * MIB)
    assert all(memory["peak"] > bar for memory in measured["cut"])  # the bar tells the two ways apart


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_a_process_holds_half_a_model_while_it_is_made_in_shards(tmp_path: Path) -> None:
    largest, size = 4 * LARGE["vocab_size"] * LARGE["hidden_size"], 4 * 109.5e6
    bar = size / 2 + 2 * largest + 32 * MIB  # its shards, and the largest matrix whole, twice: drawn before, and made
    measured = {what: two(what, tmp_path, tmp_path) for what in ("sharded", "sharded-whole")}
    print({what: [{k: round(v / MIB) for k, v in one.items()} for one in both] for what, both in measured.items()})
    for memory in measured["sharded"]:
        assert memory["peak"] <= bar
        assert memory["kept"] == pytest.approx(size / 2, abs=32 * MIB)
    assert all(memory["peak"] > bar for memory in measured["sharded-whole"])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_model_that_is_put_together_holds_the_gathered_weights_once(name: str, with_adapter: bool) -> None:
    model = _made(name, SMALL[name]).eval()
    if with_adapter:
        model = attach(model, Adapter(r=2), "causal", seed=1).eval()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    if name != "llama":  # a tied output layer is gathered with what it is tied to
        state = {key: tensor for key, tensor in state.items() if not key.endswith("lm_head.weight")}
    made = model_from_state(model, state).eval()
    own = dict(made.named_parameters())
    assert {own[key].data_ptr() for key in own} == {state[key].data_ptr() for key in own}
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert torch.equal(made(input_ids=ids).logits, model(input_ids=ids).logits)


if __name__ == "__main__":
    be_rank(main)
