from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.errors import PipelineError
from pipeline.models.load.pretrained import load_causal_lm, load_reward_model, load_tokenizer, source_of
from pipeline.models.save.artifact import save_model, save_tokenizer


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def saved(fresh_llama: Any, tokenizer: Any, tmp_path: Path) -> Path:
    save_model(fresh_llama, tokenizer, tmp_path / "saved")
    return tmp_path / "saved"


def test_model_survives_the_round_trip(saved: Path, llama: Any, tokenizer: Any, folder_input: Any) -> None:
    model, back = load_causal_lm(folder_input(saved)), load_tokenizer(folder_input(saved))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        assert torch.equal(model.eval()(ids).logits, llama(ids).logits)
    assert back.chat_template == tokenizer.chat_template
    text = "the cat sat, café ☃"
    assert back(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert back.decode(back(text)["input_ids"]) == text


def test_plain_transformers_reads_what_is_saved(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert model.generation_config.eos_token_id == 1
    assert model.generation_config.pad_token_id == 0
    assert AutoTokenizer.from_pretrained(saved).eos_token == "<|end|>"
    assert {path.name for path in saved.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }


def test_same_weights_give_the_same_bytes(saved: Path, fresh_llama: Any, tokenizer: Any, folder_input: Any) -> None:
    # What a stage does to its tokenizer must not show: a call with truncation leaves it switched on.
    tokenizer("a b c", truncation=True, max_length=2, padding="max_length")
    save_model(fresh_llama, tokenizer, saved.parent / "again")
    assert hashes(saved.parent / "again") == hashes(saved)
    loaded = load_causal_lm(folder_input(saved)), load_tokenizer(folder_input(saved))
    save_model(*loaded, saved.parent / "reloaded")
    assert hashes(saved.parent / "reloaded") == hashes(saved)


def test_no_path_of_this_machine_is_saved(saved: Path, folder_input: Any) -> None:
    save_model(load_causal_lm(folder_input(saved)), load_tokenizer(folder_input(saved)), saved.parent / "b")
    for path in (saved.parent / "b").glob("*.json"):
        assert str(saved.parent) not in path.read_text(encoding="utf-8")


def test_saved_tokenizer_alone_loads(tokenizer: Any, tmp_path: Path, folder_input: Any) -> None:
    save_tokenizer(tokenizer, tmp_path / "t")
    assert load_tokenizer(folder_input(tmp_path / "t")).get_vocab() == tokenizer.get_vocab()


def test_dtype_is_what_was_asked(saved: Path, folder_input: Any) -> None:
    def dtypes(*asked: Any) -> set[torch.dtype]:
        return {weight.dtype for weight in load_causal_lm(folder_input(saved), *asked).parameters()}

    assert dtypes() == {torch.float32}
    assert dtypes("bf16") == {torch.bfloat16}
    assert dtypes("fp16") == {torch.float16}


def test_pickled_weights_are_refused(saved: Path, folder_input: Any) -> None:
    model = load_causal_lm(folder_input(saved))
    (saved / "model.safetensors").unlink()
    torch.save(model.state_dict(), saved / "pytorch_model.bin")
    with pytest.raises(PipelineError) as caught:
        load_causal_lm(folder_input(saved))
    line = f"{saved} holds only pytorch_model.bin; expected model.safetensors. Convert the weights to safetensors"
    assert str(caught.value) == line
    with pytest.raises(PipelineError, match=r"holds only pytorch_model\.bin"):
        load_reward_model(folder_input(saved), load_tokenizer(folder_input(saved)))


def test_lost_tensors_are_an_error_not_random_weights(saved: Path, folder_input: Any) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(saved / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PipelineError, match=r"lack 1 tensor, first model\.layers\.1\.mlp\.up_proj\.weight"):
        load_causal_lm(folder_input(saved))


def remote_code_folder(folder: Path, ran: Path) -> Path:
    folder.mkdir()
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    mapped = {"tokenizer_class": "MineTokenizer", "auto_map": {"AutoTokenizer": ["mine.MineTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(mapped), encoding="utf-8")
    (folder / "mine.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import PreTrainedConfig\nclass Mine(PreTrainedConfig): pass\n",
        encoding="utf-8",
    )
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_code_of_a_repository_does_not_run(tmp_path: Path, folder_input: Any) -> None:
    ran = tmp_path / "ran"
    folder = remote_code_folder(tmp_path / "remote", ran)
    for load in (load_causal_lm, load_tokenizer):
        with pytest.raises(PipelineError) as caught:
            load(folder_input(folder))
        assert "runs Python of its own" in str(caught.value)
        assert "`trust_remote_code: true`" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not ran.exists()
    with pytest.raises(Exception, match=r".*"):  # allowed, it runs; that it holds no model is found out later
        load_causal_lm(folder_input(folder), trust_remote_code=True)
    assert ran.exists()


@pytest.mark.parametrize("what", [load_causal_lm, load_tokenizer])
def test_empty_or_absent_folder_is_one_line(tmp_path: Path, folder_input: Any, what: Any) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(PipelineError) as caught:
            what(folder_input(path))
        assert len(str(caught.value).splitlines()) == 1
        assert str(path) in str(caught.value)


def test_revision_of_a_hub_id_is_split_off(folder_input: Any) -> None:
    assert source_of(folder_input("Qwen/Qwen2.5-0.5B@main")) == ("Qwen/Qwen2.5-0.5B", "main")
    assert source_of(folder_input("Qwen/Qwen2.5-0.5B")) == ("Qwen/Qwen2.5-0.5B", None)


def test_reward_head_is_seeded_and_small(saved: Path, tokenizer: Any, folder_input: Any) -> None:
    first = load_reward_model(folder_input(saved), tokenizer, seed=3)
    again = load_reward_model(folder_input(saved), tokenizer, seed=3)
    other = load_reward_model(folder_input(saved), tokenizer, seed=4)
    assert first.score.weight.shape == (1, 32)
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    # Standard deviation 1 / sqrt(33) = 0.174; of 32 draws the sample deviation is within 40 % of it.
    assert 0.104 < first.score.weight.std().item() < 0.244
    assert first.config.pad_token_id == 0


def test_reward_model_keeps_its_head_through_a_round_trip(saved: Path, tokenizer: Any, folder_input: Any) -> None:
    model = load_reward_model(folder_input(saved), tokenizer, seed=3)
    save_model(model, tokenizer, saved.parent / "reward")
    back = load_reward_model(folder_input(saved.parent / "reward"), tokenizer, seed=99)
    assert torch.equal(back.score.weight, model.score.weight)
    assert back.config.num_labels == 1


def test_loading_prints_nothing(saved: Path, folder_input: Any, capfd: pytest.CaptureFixture[str]) -> None:
    model = load_reward_model(folder_input(saved), load_tokenizer(folder_input(saved)))
    save_model(model, load_tokenizer(folder_input(saved)), saved.parent / "quiet")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
