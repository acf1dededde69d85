"""What a stage leaves is used as a stranger would: the snippets of its card run, its settings are those of its base.

One recipe makes a model of every sort from the tiny chain: an adapter on a sibling, one on a folder from outside, a
continued base model without a chat template, a merge.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pipeline.artifacts import Artifact, Store
from pipeline.artifacts.remote import pull, push

RECIPE = """\
name: made
seed: 3
data:
  corpus: {path: corpus.jsonl}
  demos: {path: demos.jsonl}
stages:
  lora: {kind: sft, data: demos, model: sft, adapter: {r: 2}, train: &short {max_steps: 2, batch_size: 4}}
  outside: {kind: sft, data: demos, model: ./published, adapter: {r: 2}, train: *short}
  again: {kind: sft, data: demos, model: outside, train: *short}
  plain: {kind: pretrain, data: corpus, init: ./untemplated, train: *short}
  merged: {kind: merge, model: sft, adapters: [lora]}
compute: {threads: 1}
"""
SETTINGS = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "repetition_penalty": 1.05,
    "no_repeat_ngram_size": 3,
}
PROBE = """\
import io, json, os, sys
from contextlib import redirect_stdout
said = {}
for folder in sys.argv[1:]:
    os.chdir(folder)
    blocks = open("README.md").read().split("```python\\n")[1:]
    out = io.StringIO()
    with redirect_stdout(out):
        exec("\\n".join(block.split("```")[0] for block in blocks), {})
    said[os.path.basename(os.path.dirname(folder))] = out.getvalue()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def made(
    chain: Any, command: Any, make_tiny_world: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Artifact]:
    """Return the newest artifact of a name, of the tiny chain or of the recipe above."""
    folder = tmp_path_factory.mktemp("made")
    make_tiny_world(folder / "world")
    published, untemplated = folder / "world" / "published", folder / "world" / "untemplated"
    for place in (published, untemplated):
        shutil.copytree(chain["sft"].path, place, ignore=shutil.ignore_patterns("manifest.json", "README.md"))
    (untemplated / "chat_template.jinja").unlink()
    eos = AutoTokenizer.from_pretrained(published).eos_token_id
    pad = AutoTokenizer.from_pretrained(published).pad_token_id
    settings = {**SETTINGS, "eos_token_id": [eos, 7], "pad_token_id": pad}
    (published / "generation_config.json").write_text(json.dumps(settings))
    # Published so by more than one: a temperature, and no sampling. `save_pretrained` refuses to write that.
    (untemplated / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "eos_token_id": eos}))
    for place in (published, untemplated):
        file = place / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_max_length": int(1e30)}))
    shutil.copytree(chain.store.root, folder / "store", ignore=shutil.ignore_patterns(".runs", ".cache"))
    recipe = folder / "world" / "made.yaml"
    recipe.write_text(RECIPE)
    before = os.umask(0o027)  # the store's files are for a group
    try:
        ended = command("run", recipe, "--store", folder / "store", cwd=folder)
    finally:
        os.umask(before)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    store = Store(folder / "store")
    return lambda name: store.artifacts(name)[-1]


def test_the_snippets_of_every_card_run_and_say_something(made: Callable[[str], Artifact]) -> None:
    names = ["base", "sft", "rm", "dpo", "lora", "outside", "again", "plain", "merged"]
    folders = [str(made(name).path) for name in names]
    ended = subprocess.run([sys.executable, "-c", PROBE, *folders], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    said = json.loads(ended.stdout.splitlines()[-1])
    assert set(said) == set(names)
    float(said.pop("rm"))  # a reward model's is one number
    assert [name for name, text in said.items() if not text.strip()] == []


def test_what_the_front_matter_says_is_what_the_hub_reads(made: Callable[[str], Artifact]) -> None:
    data = ModelCard.load(made("lora").path / "README.md").data
    assert (data.library_name, data.pipeline_tag, data.tags) == (
        "transformers",
        "text-generation",
        ["trueup", "sft", "lora"],
    )
    assert data.base_model is None  # made here from nothing: there is no such repository
    assert ModelCard.load(made("rm").path / "README.md").data.pipeline_tag == "text-classification"


def test_settings_of_the_base_stay_through_two_stages(made: Callable[[str], Artifact]) -> None:
    for name in ("outside", "again"):
        settings = GenerationConfig.from_pretrained(made(name).path)
        assert {key: getattr(settings, key) for key in SETTINGS} == SETTINGS
        tokenizer = AutoTokenizer.from_pretrained(made(name).path)
        assert settings.eos_token_id == [tokenizer.eos_token_id, 7]
        assert settings.pad_token_id == tokenizer.pad_token_id
    assert GenerationConfig.from_pretrained(made("plain").path).temperature == 0.9


def test_the_tokenizer_knows_the_context(made: Callable[[str], Artifact]) -> None:
    for name in ("sft", "outside", "plain", "rm"):
        assert AutoTokenizer.from_pretrained(made(name).path).model_max_length == 64  # of the recipe in conftest.py


def test_an_adapter_finds_its_base_in_the_store(made: Callable[[str], Artifact], monkeypatch: Any) -> None:
    lora, sft = made("lora"), made("sft")
    named = PeftConfig.from_pretrained(lora.path / "adapter").base_model_name_or_path
    assert named == f"../../sft/{sft.manifest.short}"  # no path of this machine
    monkeypatch.chdir(lora.path)
    adapted = AutoPeftModelForCausalLM.from_pretrained("adapter")
    whole = AutoModelForCausalLM.from_pretrained(".")
    merged = adapted.merge_and_unload().state_dict()
    # W0 + BA is rounded once in both, in the same order.
    assert all((merged[key] - value).abs().max() < 1e-6 for key, value in whole.state_dict().items())
    monkeypatch.chdir(made("rm").path)
    assert AutoPeftModelForSequenceClassification.from_pretrained("adapter", num_labels=1).peft_config


def test_an_adapter_finds_its_base_in_another_store(
    made: Callable[[str], Artifact], tmp_path: Path, monkeypatch: Any
) -> None:
    push(Store(made("lora").path.parents[1]), ["lora"], str(tmp_path / "remote"))
    pull(str(tmp_path / "remote"), ["lora"], Store(tmp_path / "other"))
    pulled = Store(tmp_path / "other").artifacts("lora")[-1]
    assert pulled.manifest.digest == made("lora").manifest.digest
    monkeypatch.chdir(pulled.path)
    assert AutoPeftModelForCausalLM.from_pretrained("adapter").peft_config


def test_the_adapter_of_a_folder_from_outside_names_it(made: Callable[[str], Artifact]) -> None:
    config = PeftConfig.from_pretrained(made("outside").path / "adapter")
    assert config.base_model_name_or_path == "./published"  # begins with a dot: never asked of a hub
    assert "trained on the folder `published`" in (made("outside").path / "README.md").read_text()


def test_files_have_the_permissions_the_user_gives(made: Callable[[str], Artifact]) -> None:
    path = made("lora").path
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.rglob("*") if file.is_file()}
    assert modes == {0o640}  # 666 under a umask of 027
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (path, path / "adapter")} == {0o750}


def test_nothing_in_it_names_this_machine(made: Callable[[str], Artifact]) -> None:
    for name in ("lora", "outside", "plain", "merged"):
        for file in made(name).path.rglob("*"):
            if file.is_file() and file.name != "manifest.json":
                assert str(made(name).path.parents[2]).encode() not in file.read_bytes(), file
                assert not re.search(rb"20\d\d-\d\d-\d\dT", file.read_bytes()), file
