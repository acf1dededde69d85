"""Every training stage compares what it wrote with what it trained, an adapter on a tied weight included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraModel, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from pipeline.stage import ResolvedInput

ON_POLICY = {"batch_size": 8, "num_generations": 4, "max_new_tokens": 6, "max_steps": 1}
PPO = {"iterations": 1, "rollout_batch": 8, "epochs": 1, "minibatches": 1, "max_new_tokens": 6, "eval_prompts": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "sft": {"train": {"max_steps": 2, "batch_size": 8}},
    "reward": {"train": {"max_steps": 1, "batch_size": 8}},
    "dpo": {"train": {"max_steps": 2, "batch_size": 8}},
    "kto": {"train": {"max_steps": 2, "batch_size": 8}},
    "ppo": {"reward": [], "train": PPO},
    "grpo": {"train": ON_POLICY},
    "rloo": {"train": ON_POLICY},
}
DATA = {"sft": "demos", "reward": "pairs", "dpo": "pairs", "kto": "pairs"}
REWARD = """\
def long(completions, **columns):
    return [float(len(turns[-1]["content"])) for turns in completions]
"""


@pytest.fixture
def train(tmp_path: Path, chain: Any, run_stage: Callable[..., Any]) -> Callable[..., Any]:
    """Run one short stage of a kind on a model."""
    (tmp_path / "rewards.py").write_text(REWARD, encoding="utf-8")

    def run(kind: str, model: ResolvedInput, *, expect: str = "done", **more: Any) -> Any:
        pays = {"reward_functions": ["rewards.py:long"]} if kind in ("ppo", "grpo", "rloo") else {}
        config = {**CONFIGS[kind], **pays, **more}
        config["train"] = {**config["train"], "learning_rate": 2e-2}
        data = chain.recipe.parent / f"{DATA.get(kind, 'asks')}.jsonl"
        return run_stage(kind, config, data={"data": data}, inputs={"model": model}, expect=expect)

    return run


@pytest.fixture(scope="module")
def tied(chain: Any, tmp_path_factory: pytest.TempPathFactory) -> ResolvedInput:
    """The chain's SFT model with one weight for embedding and output."""
    folder = tmp_path_factory.mktemp("tied")
    model = AutoModelForCausalLM.from_pretrained(chain["sft"].path)
    model.config.tie_word_embeddings, model.lm_head.weight = True, model.model.embed_tokens.weight
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(chain["sft"].path).save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    return ResolvedInput(ref="tied", name="tied", kind="sft", fingerprint="f" * 64, path=str(folder))


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every model be written with one wrong weight, as a library with a fault would."""
    write = PreTrainedModel.save_pretrained

    def write_wrong(self: Any, folder: Path, **options: Any) -> None:
        write(self, folder, **options)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][3] += 0.01
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", write_wrong)


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_stage_whose_files_differ_from_what_it_trained_fails(
    kind: str, train: Any, chain: Any, as_input: Any
) -> None:
    ran = train(kind, as_input(chain["sft"]), expect="failed")
    [problem] = ran.outcome.problems
    assert problem.found == "model.norm.weight in the written files is not what was trained"
    assert not ran.outcome.bad_input  # it is nothing that the recipe's author can mend


@pytest.mark.usefixtures("faulty")
def test_a_pretrained_model_that_differs_fails_too(chain: Any, as_input: Any, run_stage: Callable[..., Any]) -> None:
    config = {"train": {"max_steps": 1, "batch_size": 8}}
    data = {"data": chain.recipe.parent / "corpus.jsonl"}
    ran = run_stage("pretrain", config, data=data, inputs={"init": as_input(chain["base"])}, expect="failed")
    assert "in the written files is not what was trained" in ran.outcome.problems[0].found


def test_a_merge_that_differs_fails_too(
    train: Any, chain: Any, as_input: Any, run_stage: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = train("sft", as_input(chain["base"]), adapter={"r": 4})
    adapter = ran.source.model_copy(update={"name": "made", "manifest": {}})
    given = {"model": as_input(chain["base"]), "adapters": [adapter]}
    lost = lambda self, **options: self.unload()  # noqa: E731  an adapter that is lost on the way
    monkeypatch.setattr(LoraModel, "merge_and_unload", lost)
    made = run_stage("merge", {"adapters": ["made"]}, data={}, inputs=given, expect="failed")
    assert "the logits of the model with made folded in differ" in made.outcome.problems[0].found


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "reward"])
def test_an_adapter_on_a_tied_embedding_is_written_as_it_trained(
    kind: str, train: Any, tied: ResolvedInput, probe_logits: Callable[[Any], torch.Tensor]
) -> None:
    ran = train(kind, tied, adapter={"r": 4, "targets": ["embed_tokens", "q_proj"]})
    written = AutoModelForCausalLM.from_pretrained(ran.out)
    base = AutoModelForCausalLM.from_pretrained(tied.path)
    before = probe_logits(base)
    put_on = PeftModel.from_pretrained(base, ran.out / "adapter")
    torch.testing.assert_close(probe_logits(written), probe_logits(put_on), atol=1e-4, rtol=0)
    assert (probe_logits(written) - before).abs().max() > 1e-3  # it did move
    assert not written.config.tie_word_embeddings
    assert any("the output layer has its own from here on" in note for note in ran.notes)
