"""A model built without its weights gets those it would have had, bit for bit, and no others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.models.load.deferred import Deferred
from pipeline.models.load.pretrained import load_deferred_causal_lm
from pipeline.parallel.pipeline.split import MODULE_NAMES
from pipeline.stage import ResolvedInput

SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}


def _built(kind: str, tied: bool) -> Any:
    more = {"num_key_value_heads": 2, "intermediate_size": 96} if kind != "gpt2" else {}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, vocab_size=61, tie_word_embeddings=tied, **special, **SHAPE, **more)
    torch.manual_seed(11)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", sorted(MODULE_NAMES))
def test_weights_are_those_of_a_model_built_at_once(kind: str, tied: bool) -> None:
    whole = _built(kind, tied)
    after = torch.rand(3)
    with Deferred() as later:
        made = _built(kind, tied)
    assert torch.equal(torch.rand(3), after)  # as many numbers were drawn
    assert all(p.is_meta for p in made.parameters() if p.dim() > 1)
    for name, buffer in whole.named_buffers():
        assert torch.equal(made.get_buffer(name), buffer), name
    later.fill(made)
    for name, parameter in whole.named_parameters():
        assert torch.equal(made.get_parameter(name), parameter), name
    assert (made.get_input_embeddings().weight is made.get_output_embeddings().weight) is tied
    ids = torch.arange(3, 13)[None]
    assert torch.equal(made.eval()(input_ids=ids).logits, whole.eval()(input_ids=ids).logits)


def test_only_what_is_asked_for_gets_memory() -> None:
    with Deferred() as later:
        made = _built("llama", tied=False)
    later.fill(made.model.layers[1])
    assert not any(p.is_meta for p in made.model.layers[1].parameters())
    assert all(p.is_meta for p in made.model.layers[0].parameters() if p.dim() > 1)
    whole = _built("llama", tied=False)
    for name, parameter in whole.model.layers[1].named_parameters():
        assert torch.equal(made.model.layers[1].get_parameter(name), parameter)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_of_a_folder_are_read_for_what_is_kept(tied: bool, tmp_path: Path) -> None:
    whole = _built("llama", tied)
    whole.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    source = ResolvedInput(ref="x", name="x", kind="external", fingerprint="x", path=str(tmp_path))
    made, later = load_deferred_causal_lm(source)
    assert later is not None
    later.fill(made.model.layers[1])
    assert all(p.is_meta for p in made.model.layers[2].parameters() if p.dim() > 1)
    later.fill(made)
    for name, parameter in whole.named_parameters():
        assert torch.equal(made.get_parameter(name), parameter), name
    assert (made.get_input_embeddings().weight is made.get_output_embeddings().weight) is tied


def test_a_folder_with_other_names_is_loaded_whole(tmp_path: Path) -> None:
    whole = _built("gpt2", tied=True)
    whole.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    named = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}  # as on the hub
    save_file(named, tmp_path / "model.safetensors", metadata={"format": "pt"})
    source = ResolvedInput(ref="x", name="x", kind="external", fingerprint="x", path=str(tmp_path))
    made, later = load_deferred_causal_lm(source)
    assert later is None
    for name, parameter in whole.named_parameters():
        assert torch.equal(made.get_parameter(name), parameter), name


MEASURE = """
import json, re, sys
from pathlib import Path
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from pipeline.models.load.deferred import Deferred
from pipeline.models.load.pretrained import load_deferred_causal_lm
from pipeline.parallel.pipeline.stage_module import StageModule
from pipeline.stage import ResolvedInput

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

def built():
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1]), dtype=torch.float32)

source = ResolvedInput(ref="x", name="x", kind="external", fingerprint="x", path=sys.argv[1])
AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **json.loads(sys.argv[2])))  # what torch needs once
grown = {}
for how in ("stored", "drawn", "whole"):
    before = peak()
    if how == "stored":
        model, later = load_deferred_causal_lm(source)
    elif how == "drawn":
        with Deferred() as later:
            model = built()
    else:
        model, later = built(), None
    part = StageModule(model, 0, 4)
    if later is not None:
        later.fill(part)
    grown[how] = peak() - before
    held = sum(p.numel() for p in part.parameters()) * 4 / 2**20
    del model, part, later
print(json.dumps({**grown, "held": held}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read where Linux tells it")
def test_a_process_never_holds_more_than_its_part(tmp_path: Path) -> None:
    """The first of four parts of 220 MiB of weights; the peak of the process is measured after each way in turn."""
    small = {"vocab_size": 61, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    large = {**small, "vocab_size": 2000, "hidden_size": 1024, "intermediate_size": 1536, "num_hidden_layers": 6}
    config = AutoConfig.for_model("llama", **large)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    line = [sys.executable, "-c", MEASURE, str(tmp_path), json.dumps(small)]
    ended = subprocess.run(line, capture_output=True, text=True, check=True)
    grown = json.loads(ended.stdout.splitlines()[-1])
    print(grown)
    whole = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters()) * 4 / 2**20
    assert grown["held"] < 0.25 * whole
    assert grown["stored"] < grown["held"] + 0.1 * whole
    assert grown["stored"] + grown["drawn"] < grown["held"] + 0.2 * whole
    assert grown["whole"] > 0.6 * whole
