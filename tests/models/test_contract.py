from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from single_rows import encode_conversation

from pipeline.models.save.artifact import save_tokenizer
from pipeline.models.tokenizer.chat_format import CHAT_TEMPLATE, chat_tokenizer
from pipeline.models.tokenizer.contract import (
    conversation_problems,
    disagreements,
    end_ids,
    eos_is_learned,
    facts,
    facts_of_folder,
    unseen_opening,
)

TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "say hello"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "hot?"},
    {"role": "assistant", "content": "cold"},
]


def with_template(tokenizer: Any, template: str) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def test_default_template_renders_without_white_space(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert text == (
        "<|system|>be kind<|end|><|user|>say hello<|end|><|assistant|>hello<|end|>"
        "<|user|>hot?<|end|><|assistant|>cold<|end|>"
    )
    prompt = tokenizer.apply_chat_template(TALK[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|system|>be kind<|end|><|user|>say hello<|end|><|assistant|>"
    assert text.startswith(prompt)


def test_mask_covers_what_the_assistant_says_and_its_end(tokenizer: Any) -> None:
    out = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    spoken = [token for token, on in zip(out["input_ids"], out["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(spoken) == "hello<|end|>cold<|end|>"
    assert out["assistant_masks"][-1] == 1


def test_content_keeps_its_white_space(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template([{"role": "user", "content": " a\n\n b "}], tokenize=False)
    assert text == "<|user|> a\n\n b <|end|>"


def test_unknown_role_is_refused(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_special_tokens_have_the_first_ids(tokenizer: Any) -> None:
    tokens = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    assert tokenizer.convert_tokens_to_ids(tokens) == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, None)


def test_saved_tokenizer_agrees_with_itself(tokenizer: Any, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    of_folder = facts_of_folder(tmp_path, "base")
    assert of_folder is not None
    assert disagreements(facts(tokenizer, "base"), of_folder) == []
    assert of_folder.entries == len(tokenizer)


def test_folder_without_tokenizer_has_no_facts(tmp_path: Path) -> None:
    assert facts_of_folder(tmp_path, "base") is None


def test_each_difference_is_named(tokenizer: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    ours = facts(tokenizer, "sft")
    other = with_template(tokenizer, CHAT_TEMPLATE + " ")
    other.eos_token = "<|user|>"
    assert [str(problem) for problem in disagreements(ours, facts(other, "rm"))] == [
        "the chat template of `rm` is another one; "
        "expected that of `sft`. Start `rm` and `sft` from the same tokenizer",
        "the end token of `rm` is <|user|>; expected <|end|> as in `sft`. Start `rm` and `sft` from the same tokenizer",
    ]
    # Two tokens swapped: same size, other meaning.
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = document["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    swapped = chat_tokenizer(Tokenizer.from_str(json.dumps(document)), context_tokens=128)
    problems = disagreements(ours, facts(swapped, "rm"))
    assert [problem.found for problem in problems] == ["the vocabulary of `rm` (312 entries)"]


def test_merges_are_part_of_the_vocabulary(tokenizer: Any) -> None:
    from tokenizers import Tokenizer

    document = json.loads(tokenizer.backend_tokenizer.to_str())
    document["model"]["merges"][0], document["model"]["merges"][1] = document["model"]["merges"][1::-1]
    other = chat_tokenizer(Tokenizer.from_str(json.dumps(document)), context_tokens=128)
    assert facts(other, "x").vocabulary != facts(tokenizer, "x").vocabulary


def test_good_conversation_has_no_problems(tokenizer: Any) -> None:
    assert eos_is_learned(tokenizer, TALK)
    assert conversation_problems(tokenizer, TALK) == []


def test_end_outside_the_mask_is_not_learned(tokenizer: Any) -> None:
    moved = CHAT_TEMPLATE.replace(
        "{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}",
        "{{- message['content'] -}}{%- endgeneration -%}{{- '<|end|>' -}}",
    )
    assert moved != CHAT_TEMPLATE
    changed = with_template(tokenizer, moved)
    assert not eos_is_learned(changed, TALK)
    (problem,) = conversation_problems(changed, TALK)
    assert problem.found == "the chat template does not end the assistant's turn with <|end|>"


def test_a_template_may_end_turns_with_another_token_than_the_tokenizers(tokenizer: Any) -> None:
    # The trap of base models: the template closes turns with one token, the tokenizer's eos is another.
    changed = copy.deepcopy(tokenizer)
    changed.eos_token = "<|pad|>"
    assert eos_is_learned(changed, TALK)
    assert end_ids(changed) == [0, 1]  # generation stops at both


def test_template_without_markers_is_judged_by_what_a_turn_adds(tokenizer: Any) -> None:
    bare = CHAT_TEMPLATE.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    assert eos_is_learned(with_template(tokenizer, bare), TALK)
    # A newline after the end token, as in ChatML, does not matter; text after it does.
    newline = bare.replace("message['content'] + '<|end|>' -}}{%- else", "message['content'] + '<|end|>\n' -}}{%- else")
    assert newline != bare
    assert eos_is_learned(with_template(tokenizer, newline), TALK)
    # Text after it is what ends the turn: then the tokenizer's own end token is added and learnt.
    text_after = with_template(tokenizer, newline.replace("<|end|>\n", "<|end|>bye"))
    last = encode_conversation(text_after, TALK)
    assert tokenizer.decode(last.ids[-5:]).endswith("bye<|end|>")
    assert last.labels[-1] == 1


def test_double_end_and_double_start_are_told(tokenizer: Any) -> None:
    doubled = with_template(
        tokenizer,
        CHAT_TEMPLATE.replace(
            "message['content'] + '<|end|>' -}}{%- endgen", "message['content'] + '<|end|><|end|>' -}}{%- endgen"
        ),
    )
    assert [p.found for p in conversation_problems(doubled, TALK)] == ["the end token <|end|> comes twice in a row"]
    started = with_template(tokenizer, "{{- '<|system|><|system|>' -}}" + CHAT_TEMPLATE)
    started.bos_token = "<|system|>"
    problems = [p.found for p in conversation_problems(started, TALK[1:])]
    assert problems == ["the start token <|system|> comes twice in a row"]


def test_missing_template_is_told(tokenizer: Any) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = None
    assert [p.found for p in conversation_problems(changed, TALK)] == ["the tokenizer has no chat template"]


def test_template_that_rewrites_the_prompt_is_told(tokenizer: Any) -> None:
    rewriting = with_template(tokenizer, "{{- messages|length|string -}}" + CHAT_TEMPLATE)
    problems = [p.found for p in conversation_problems(rewriting, TALK)]
    assert problems == ["the chat template renders a prompt differently once the answer follows"]


def test_a_template_with_a_training_variant_is_not_refused_and_its_opening_is_known(tokenizer: Any) -> None:
    """DeepSeek's generation prompt opens a thought that its conversations do not hold; trl marks their answers."""
    import trl

    file = Path(trl.__file__).parent / "chat_templates" / "deepseek_r1_distill.jinja"
    opening = with_template(tokenizer, file.read_text(encoding="utf-8"))
    opening.add_special_tokens(
        {"additional_special_tokens": ["<｜end▁of▁sentence｜>", "<｜Assistant｜>", "<｜User｜>"]}
    )
    assert conversation_problems(opening, TALK) == []
    assert unseen_opening(opening, TALK) == "<｜Assistant｜><think>\n"
    assert unseen_opening(tokenizer, TALK) == ""


def test_end_ids_join_tokenizer_and_model(tokenizer: Any, fresh_llama: Any) -> None:
    assert end_ids(tokenizer) == [1]
    fresh_llama.generation_config.eos_token_id = [3, 1, 7]
    assert end_ids(tokenizer, fresh_llama) == [1, 3, 7]


def test_no_torch_is_needed() -> None:
    code = (
        "import sys, pipeline.models.tokenizer.contract, pipeline.models.tokenizer.chat_format;"
        "import pipeline.models.load.adapter_config;"
        "print([m for m in ('torch', 'transformers', 'peft', 'numpy') if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"
