"""Every tokenizer and chat template of the shared models: what is learnt, what stays text, what is refused by row."""

from __future__ import annotations

import copy
import functools
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from single_rows import encode_conversation
from transformers import AddedToken

from pipeline.errors import PipelineError
from pipeline.models.tokenizer.contract import end_ids, unseen_opening
from pipeline.models.tokenizer.encoding import Text, TextEncoder
from pipeline.models.tokenizer.template import ChatTemplate
from pipeline.stages.pretrain.documents import cut_documents
from pipeline.training.data.encoding import (
    IGNORE,
    Reader,
    encode_labelled,
    encode_messages,
    encode_pairs,
    encode_prompts,
    encode_texts,
)

FOLDER = Path(os.environ.get("TRUEUP_REAL_MODELS") or Path(__file__).parents[3] / "shared" / "models")
TOKENIZERS = ("stories260K", "mistral-7b-instruct-v0.2", "qwen3", "smollm2-135m-instruct")
TEMPLATES = sorted(path.stem for path in (FOLDER / "chat_templates").glob("*.jinja"))
OWN = [name for name in TOKENIZERS if (FOLDER / name / "chat_template.jinja").is_file()]
PAIRS = [(name, template) for name in TOKENIZERS for template in TEMPLATES] + [(name, "") for name in OWN]

pytestmark = pytest.mark.skipif(
    not TEMPLATES,
    reason=f"no models at {FOLDER}: set TRUEUP_REAL_MODELS to a folder with tokenizers and chat_templates",
)

TALK = [
    {"role": "user", "content": "What is 2 plus 2?"},
    {"role": "assistant", "content": "It is four."},
    {"role": "user", "content": "And plus 1?"},
    {"role": "assistant", "content": "That is five."},
]
TEXTS = (
    "Once upon a time, there was a little girl named Lily.",
    "  two spaces,\ttab\n\n\nthree newlines  \n",
    "naïve café – “quotes” 北京 🙂 ﬁ e\u0301",
    "def f(x):\n    return x[1:] < 3 and <b>bold</b>\n",
)


@functools.cache
def loaded(name: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER / name)


def with_template(name: str, template: str) -> Any:
    if not template:
        return loaded(name)
    tokenizer = copy.copy(loaded(name))
    tokenizer.chat_template = (FOLDER / "chat_templates" / f"{template}.jinja").read_text(encoding="utf-8").strip()
    return tokenizer


def learnt(tokenizer: Any, row: dict[str, list[int]]) -> list[str]:
    """Return the runs of tokens that are learnt, as text."""
    runs: list[list[int]] = []
    for before, label in pairwise([IGNORE, *row["labels"]]):
        if label != IGNORE:
            if before == IGNORE:
                runs.append([])
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(("name", "template"), PAIRS)
def test_each_answer_is_learnt_with_its_end_and_nothing_of_the_user_is(name: str, template: str) -> None:
    tokenizer = with_template(name, template)
    made = encode_messages(tokenizer, [{"messages": TALK}])
    assert not made.faults
    said = [text for row in made.rows for text in learnt(tokenizer, row)]
    assert len(said) == 2
    assert "It is four." in said[0] and "That is five." in said[1]
    assert not any("plus" in text for text in said)
    ends = end_ids(tokenizer)
    assert made.rows[-1]["labels"][-1] in ends
    # No start token comes twice, and none is lost.
    bos = tokenizer.bos_token_id
    assert all(not (a == b == bos) for row in made.rows for a, b in pairwise(row["input_ids"]) if bos is not None)
    # The last text is the one the template renders, up to the end of the answer.
    text = tokenizer.apply_chat_template(TALK, tokenize=False, bos_token=tokenizer.bos_token or "")
    whole = tokenizer.decode(made.rows[-1]["input_ids"])
    rendered = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert rendered.startswith(whole) or rendered.startswith(whole.removesuffix(tokenizer.eos_token))


@pytest.mark.parametrize(("name", "template"), PAIRS)
def test_a_response_follows_the_very_tokens_that_are_generated_from(name: str, template: str) -> None:
    tokenizer = with_template(name, template)
    pair = {"prompt": TALK[:1], "chosen": TALK[1:2], "rejected": [{"role": "assistant", "content": "No."}]}
    made = encode_pairs(tokenizer, [pair])
    assert not made.faults
    (row,) = made.rows
    (prompt,) = encode_prompts(tokenizer, [pair]).rows
    assert row["prompt_ids"] == prompt["prompt_ids"]
    for side, text in (("chosen_ids", "It is four."), ("rejected_ids", "No.")):
        assert text in tokenizer.decode(row[side])
        assert row[side][-1] in end_ids(tokenizer)


BEGINNINGS = ("It is four.", "\n\nIt", " It", "\tIt", "\u2014 four", "4", "```\n4\n```")


@pytest.mark.parametrize(("name", "template"), PAIRS)
def test_an_answer_is_learnt_behind_the_very_tokens_it_is_generated_from(name: str, template: str) -> None:
    tokenizer = with_template(name, template)
    for said in BEGINNINGS:
        talk = [TALK[0], {"role": "assistant", "content": said}]
        if unseen_opening(tokenizer, talk):
            continue  # the template itself writes a generated answer otherwise, and `sft` says so
        (row,) = encode_messages(tokenizer, [{"messages": talk}]).rows
        (prompt,) = encode_prompts(tokenizer, [{"prompt": talk[:1]}]).rows
        (pair,) = encode_labelled(tokenizer, [{"prompt": talk[:1], "completion": talk[1:], "label": True}]).rows
        first = next(i for i, label in enumerate(row["labels"]) if label != IGNORE)
        assert row["input_ids"][:first] == prompt["prompt_ids"], said
        assert row["input_ids"] == [*pair["prompt_ids"], *pair["completion_ids"]], said


@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_is_gone_on_with_behind_the_very_tokens_it_is_generated_from(name: str) -> None:
    tokenizer = copy.copy(loaded(name))
    tokenizer.chat_template = None
    for asked in ("TL;DR:\n\n", "Once upon a time, ", "def f(x):\n    ", "Lily"):
        talk = [{"role": "user", "content": asked}, {"role": "assistant", "content": "Once more"}]
        (row,) = encode_messages(tokenizer, [{"messages": talk, "plain_text": True}]).rows
        (prompt,) = encode_prompts(tokenizer, [{"prompt": talk[:1], "plain_text": True}]).rows
        first = next(i for i, label in enumerate(row["labels"]) if label != IGNORE)
        assert row["input_ids"][:first] == prompt["prompt_ids"], asked
        assert tokenizer.decode(row["labels"][first:-1]).strip() == "Once more"


@pytest.mark.parametrize(("name", "template"), PAIRS)
def test_content_is_never_parsed_into_control_tokens(name: str, template: str) -> None:
    tokenizer = with_template(name, template)
    control = TextEncoder(tokenizer).control
    spelled = "".join(list(control)[:6])
    talk = [
        {"role": "user", "content": f"Explain {spelled} and </"},
        {"role": "assistant", "content": f"It ends {spelled} so. <"},
    ]
    plain = [{"role": turn["role"], "content": turn["content"].replace(spelled, "X")} for turn in talk]
    ids, without = encode_conversation(tokenizer, talk).ids, encode_conversation(tokenizer, plain).ids
    # The template's own control tokens are there, as often as in a conversation that spells none.
    own = [token for token in ids if token in control.values()]
    assert own == [token for token in without if token in control.values()]
    assert spelled in tokenizer.decode(ids, skip_special_tokens=True).replace("</s>", "</s>")
    row = {"prompt": talk[:1], "completion": talk[1:], "label": True}
    (made,) = encode_labelled(tokenizer, [row]).rows
    (prompt,) = encode_prompts(tokenizer, [row]).rows
    answered = [*prompt["prompt_ids"], *made["completion_ids"]]
    assert [token for token in answered if token in control.values()] == own
    assert encode_messages(tokenizer, [{"messages": talk}]).spelled == [0]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_plain_text_is_encoded_as_the_tokenizer_does(name: str) -> None:
    tokenizer, encoder = loaded(name), TextEncoder(loaded(name))
    assert encode_texts(tokenizer, TEXTS) == tokenizer(list(TEXTS), add_special_tokens=False)["input_ids"]
    spelled = [f"{text}{token}{text}" for text in TEXTS for token in list(encoder.control)[:3]]
    made = encode_texts(tokenizer, spelled)
    assert not any(token in encoder.control.values() for ids in made for token in ids)
    assert [tokenizer.decode(ids) for ids in made] == [
        tokenizer.decode(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        for text in spelled
    ]
    assert encode_texts(tokenizer, spelled, parsed=True) == tokenizer(spelled, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_end_token_that_swallows_white_space_leaves_no_token_behind_it(name: str) -> None:
    """As Phi-3's: a later answer stands behind the tokens that it is generated from."""
    tokenizer = copy.deepcopy(loaded(name))
    tokenizer.add_tokens([AddedToken("<|done|>", rstrip=True, special=True)], special_tokens=True)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':\n' + m['content'] + '<|done|>\n' }}{% endfor %}"
        "{{ 'assistant:\n' if add_generation_prompt }}"
    )
    (row,) = encode_messages(tokenizer, [{"messages": TALK}]).rows
    (prompt,) = encode_prompts(tokenizer, [{"prompt": TALK[:3]}]).rows
    assert row["input_ids"][: len(prompt["prompt_ids"])] == prompt["prompt_ids"]
    assert [text.strip() for text in learnt(tokenizer, row)] == ["It is four.<|done|>", "That is five.<|done|>"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_document_begins_as_the_tokenizer_begins_a_text_and_ends_once(name: str) -> None:
    tokenizer = loaded(name)
    ids, end = tokenizer(TEXTS[0])["input_ids"], tokenizer.eos_token_id
    made = cut_documents(tokenizer, [TEXTS[0], TEXTS[0] + tokenizer.eos_token], 64, "rows", parsed=True)
    assert [row["input_ids"] for row in made] == [[*ids, end]] * 2
    if tokenizer.bos_token_id == ids[0]:  # SmolLM2's and Qwen3's tokenizers begin with none
        (begun,) = cut_documents(tokenizer, [tokenizer.bos_token + TEXTS[0]], 64, "rows", parsed=True)
        assert begun["input_ids"].count(ids[0]) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_parts_encoded_anew_are_those_of_the_whole(name: str) -> None:
    """A private character beside the text takes the long way, part by part: the tokens must be the same."""
    tokenizer, encoder = loaded(name), TextEncoder(loaded(name))
    end = tokenizer.eos_token
    for text in TEXTS:
        whole = f"{text}{end}{text}x{end}\n{text}"
        letter = chr(0xF0000)
        shielded = Text(whole.replace("a", letter), {letter: "a"})
        assert encoder.encode_one(shielded).ids == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_an_answer_that_begins_with_a_newline_keeps_it() -> None:
    tokenizer = with_template("smollm2-135m-instruct", "")
    said = "\n\nThe lake is still."
    talk = [TALK[0], {"role": "assistant", "content": said}]
    (row,) = encode_messages(tokenizer, [{"messages": talk}]).rows
    assert learnt(tokenizer, row) == [f"{said}<|im_end|>"]
    pair = {"prompt": talk[:1], "completion": talk[1:], "label": True}
    (made,) = encode_labelled(tokenizer, [pair]).rows
    assert tokenizer.decode(made["completion_ids"]) == f"{said}<|im_end|>"
    assert [*made["prompt_ids"], *made["completion_ids"]] == row["input_ids"]


def test_qwen_trains_each_answer_as_it_is_generated() -> None:
    tokenizer = loaded("qwen3")
    thoughts = ("two and two", "four and one")
    talk = [dict(turn) for turn in TALK]
    talk[1]["reasoning_content"], talk[3]["content"] = thoughts[0], f"<think>\n{thoughts[1]}\n</think>\n\nfive"
    made = encode_messages(tokenizer, [{"messages": talk}])
    assert made.kept == [0, 0]
    assert [learnt(tokenizer, row) for row in made.rows] == [
        ["<think>\ntwo and two\n</think>\n\nIt is four.<|im_end|>"],
        ["<think>\nfour and one\n</think>\n\nfive<|im_end|>"],
    ]
    assert thoughts[0] not in tokenizer.decode(made.rows[1]["input_ids"])  # as the template shows earlier turns


TOOLS = [{"type": "function", "function": {"name": "lake_level", "parameters": {"type": "object", "properties": {}}}}]
CALLS = [
    {"role": "user", "content": "How high is Lake Omo?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "lake_level", "arguments": {"lake": "Omo"}}}],
    },
    {"role": "tool", "content": "three metres"},
    {"role": "assistant", "content": "It is 3 m high."},
]


def test_calls_are_learnt_and_a_tools_result_is_not() -> None:
    tokenizer = loaded("qwen3")
    made = encode_messages(tokenizer, [{"messages": CALLS, "tools": TOOLS}])
    assert not made.faults
    said = [text for row in made.rows for text in learnt(tokenizer, row)]
    assert any('{"name": "lake_level", "arguments": {"lake": "Omo"}}' in text for text in said)
    assert "It is 3 m high.<|im_end|>" in said[-1]
    assert not any("three metres" in text for text in said)
    assert '"name": "lake_level"' in tokenizer.decode(made.rows[-1]["input_ids"][:120])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": CALLS[:2]}, "loses the call of `lake_level` in turn 2"),
        ({"messages": TALK[:2], "tools": TOOLS}, "loses the tool `lake_level`"),
        ({"messages": [TALK[0], {**TALK[1], "reasoning_content": "two and two"}]}, "loses the reasoning of turn 2"),
    ],
)
def test_what_a_template_leaves_out_is_a_fault(row: dict[str, Any], says: str) -> None:
    made = encode_messages(loaded("smollm2-135m-instruct"), [{"messages": TALK[:2]}, row])
    assert made.kept == [0]
    (fault,) = made.faults
    assert fault.index == 1
    assert fault.reason.startswith(says)


@pytest.mark.parametrize(
    ("talk", "says"),
    [
        ([{"role": "system", "content": "Be kind."}, *TALK], "roles must alternate"),
        ([TALK[0], TALK[0], TALK[1]], "roles must alternate"),
    ],
)
def test_what_a_template_refuses_is_a_fault_of_the_row(talk: list[dict[str, str]], says: str) -> None:
    made = encode_messages(loaded("mistral-7b-instruct-v0.2"), [{"messages": talk}, {"messages": TALK}])
    assert (made.kept, [fault.index for fault in made.faults]) == ([1], [0])
    assert "is refused by the chat template, which says:" in made.faults[0].reason
    assert says in made.faults[0].reason


@pytest.mark.parametrize(("name", "template"), [("smollm2-135m-instruct", ""), ("mistral-7b-instruct-v0.2", "zephyr")])
def test_a_turn_that_is_not_to_be_learnt_is_not(name: str, template: str) -> None:
    tokenizer = with_template(name, template)
    talk = [TALK[0], {**TALK[1], "train": False}, *TALK[2:]]
    (row,) = encode_messages(tokenizer, [{"messages": talk}]).rows
    (said,) = learnt(tokenizer, row)
    assert "five" in said
    assert row["input_ids"] == encode_messages(tokenizer, [{"messages": TALK}]).rows[0]["input_ids"]


def test_pairs_that_differ_by_what_the_template_trims_are_the_same() -> None:
    tokenizer = with_template("mistral-7b-instruct-v0.2", "zephyr")
    pair = {"prompt": TALK[:1], "chosen": TALK[1:2], "rejected": [{"role": "assistant", "content": " It is four. \n"}]}
    made = encode_pairs(tokenizer, [pair])
    assert (made.rows, made.kept, made.same) == ([], [], [0])


def test_prompts_that_the_reward_model_cannot_read_are_faults() -> None:
    tokenizer, mistral = loaded("smollm2-135m-instruct"), loaded("mistral-7b-instruct-v0.2")
    system = {"role": "system", "content": "Be brief."}
    rows = [{"prompt": TALK[:1]}, {"prompt": [system, TALK[0]]}, {"prompt": TALK[:1]}]
    made = encode_prompts(tokenizer, rows, readers=[Reader("reward model `judge`", mistral)])
    assert made.kept == [0, 2] and [fault.index for fault in made.faults] == [1]
    assert "Conversation roles must alternate" in made.faults[0].reason
    assert made.faults[0].reason.endswith("(reward model `judge`)")
    assert encode_prompts(tokenizer, rows).kept == [0, 1, 2]
    base = copy.copy(mistral)
    base.chat_template = None
    with pytest.raises(PipelineError, match="without a chat template"):
        encode_prompts(tokenizer, rows, readers=[Reader("reward model `base`", base)])
    told = [{**row, "plain_text": True} for row in rows[:1]]
    with pytest.raises(PipelineError, match="without a chat template"):  # the policy answers as an assistant
        encode_prompts(tokenizer, told, readers=[Reader("reward model `base`", base)])
    assert encode_prompts(base, told, readers=[Reader("reward model `base`", base)]).kept == [0]


def test_named_templates_are_taken_as_transformers_takes_them() -> None:
    tokenizer = copy.copy(loaded("qwen3"))
    own = tokenizer.chat_template
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "tool_use": own}
    source = ChatTemplate(TextEncoder(tokenizer)).source
    assert (source(), source(TOOLS)) == ("{{ messages[0].content }}", own)
    tokenizer.chat_template = {"rag": own}
    with pytest.raises(PipelineError, match="the tokenizer's chat templates are rag"):
        encode_messages(tokenizer, [{"messages": TALK}])


def test_ends_of_turns_that_are_not_the_tokenizers() -> None:
    tokenizer = copy.deepcopy(loaded("smollm2-135m-instruct"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.chat_template = (FOLDER / "chat_templates" / "gemma-it.jinja").read_text().strip()
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert end_ids(tokenizer) == [tokenizer.eos_token_id, end]
    assert encode_conversation(tokenizer, TALK).labels[-1] == end
    # Falcon's ends with nothing: the tokenizer's own end token is learnt.
    falcon = with_template("smollm2-135m-instruct", "falcon-instruct")
    assert encode_conversation(falcon, TALK).labels[-1] == falcon.eos_token_id


def test_text_is_continued_where_there_is_no_template() -> None:
    tokenizer = loaded("stories260K")
    assert not tokenizer.chat_template
    row = {
        "prompt": [{"role": "user", "content": "Once upon a time,"}],
        "completion": [{"role": "assistant", "content": " there was a </s> cat."}],
        "label": True,
        "plain_text": True,
    }
    (made,) = encode_labelled(tokenizer, [row]).rows
    assert made["prompt_ids"] == tokenizer("Once upon a time,")["input_ids"]  # begins with <s>, id 1
    assert made["prompt_ids"][0] == 1
    assert made["completion_ids"][-1] == 2  # </s>
    assert 2 not in made["completion_ids"][:-1]
    assert tokenizer.decode([*made["prompt_ids"], *made["completion_ids"]][1:-1]) == (
        "Once upon a time, there was a </s> cat."
    )
    (told,) = encode_messages(tokenizer, [{"messages": [*row["prompt"], *row["completion"]], "plain_text": True}]).rows
    assert told["input_ids"] == [*made["prompt_ids"], *made["completion_ids"]]
    assert [label for label in told["labels"] if label != IGNORE] == made["completion_ids"]
    with pytest.raises(PipelineError, match="the tokenizer has no chat template"):
        encode_prompts(tokenizer, [{"prompt": row["prompt"]}])


def test_trls_training_variant_helps_where_an_answer_begins_otherwise_than_its_prompt() -> None:
    """DeepSeek's generation prompt opens a thought that its conversations do not hold; the variant marks the answer."""
    import trl

    tokenizer = copy.copy(loaded("smollm2-135m-instruct"))
    folder = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (folder / "deepseek_r1_distill.jinja").read_text(encoding="utf-8")
    (row,) = encode_messages(tokenizer, [{"messages": TALK}]).rows
    end = "<｜end▁of▁sentence｜>"
    assert learnt(tokenizer, row) == [f"<｜Assistant｜>It is four.{end}", f"<｜Assistant｜>That is five.{end}"]
    thinking = [TALK[0], {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\nfour"}]
    assert "cannot be masked" in encode_messages(tokenizer, [{"messages": thinking}]).faults[0].reason


def test_a_template_that_leaves_text_out_is_refused_for_conversations_pairs_and_prompts() -> None:
    """SmolVLM's template reads contents as lists of parts: of a plain text it writes nothing."""
    import trl

    tokenizer = copy.copy(loaded("smollm2-135m-instruct"))
    folder = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (folder / "smolvlm.jinja").read_text(encoding="utf-8")
    prompt, answer = TALK[:1], TALK[1:2]
    made = (
        encode_messages(tokenizer, [{"messages": TALK}]),
        encode_labelled(tokenizer, [{"prompt": prompt, "completion": answer, "label": True}]),
        encode_prompts(tokenizer, [{"prompt": prompt}]),
    )
    assert [one.faults[0].reason.startswith("loses the text of turn 1") for one in made] == [True] * 3


def test_tools_that_a_template_leaves_out_of_a_prompt_are_told() -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
    asked = [{"prompt": TALK[:1], "tools": [tool]}]
    assert "loses the tool `look_up`" in encode_prompts(loaded("smollm2-135m-instruct"), asked).faults[0].reason
    assert encode_prompts(loaded("qwen3"), asked).faults == []
