from __future__ import annotations

import copy
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.models.generate.chat_session import ChatSession, ReplyOptions, _text_pieces, complete, reply
from pipeline.models.generate.decode import GenerationSettings, beam_search, decode
from pipeline.models.generate.sampling import Sampling

ASK = [{"role": "user", "content": "say hello"}]


def prompt_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    return list(
        tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)[
            "input_ids"
        ]
    )


def test_greedy_reply_is_the_decoded_text(llama: Any, tokenizer: Any) -> None:
    ids = decode(
        llama,
        [prompt_ids(tokenizer, ASK)],
        GenerationSettings(max_new_tokens=12, eos_ids=[1], pad_id=0, sampling=Sampling(greedy=True)),
    )[0]
    pieces = list(reply(llama, tokenizer, ASK, ReplyOptions(greedy=True, max_new_tokens=12)))
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert len(pieces) > 1


def test_beams_give_the_best_beam_in_one_piece(llama: Any, tokenizer: Any) -> None:
    ids = beam_search(
        llama, [prompt_ids(tokenizer, ASK)], GenerationSettings(max_new_tokens=8, eos_ids=[1], pad_id=0), beams=3
    )[0]
    pieces = list(reply(llama, tokenizer, ASK, ReplyOptions(beams=3, max_new_tokens=8)))
    assert pieces == [tokenizer.decode(ids, skip_special_tokens=True)]


def test_reply_follows_its_seed(llama: Any, tokenizer: Any) -> None:
    def text(seed: int) -> str:
        return "".join(reply(llama, tokenizer, ASK, ReplyOptions(seed=seed, max_new_tokens=12)))

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_characters_of_several_bytes_come_whole(tokenizer: Any) -> None:
    text = "café ☃ and 🙂!"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > len(text)  # the bytes of ☃ and 🙂 are tokens of their own
    pieces = list(_text_pieces(tokenizer, iter([*ids, tokenizer.eos_token_id])))
    assert "".join(pieces) == text
    assert "☃" in pieces
    assert not any("\ufffd" in piece for piece in pieces)


def test_broken_last_character_is_not_lost(tokenizer: Any) -> None:
    ids = tokenizer("ok ☃")["input_ids"][:-1]
    assert "".join(_text_pieces(tokenizer, iter(ids))) == "ok \ufffd"


def test_session_remembers(llama: Any, tokenizer: Any) -> None:
    session = ChatSession(llama, tokenizer, ReplyOptions(greedy=True, max_new_tokens=5), system="be kind")
    first = "".join(session.say("say hello"))
    second = "".join(session.say("hot?"))
    assert session.history == [
        {"role": "user", "content": "say hello"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "hot?"},
        {"role": "assistant", "content": second},
    ]
    whole = [{"role": "system", "content": "be kind"}, *session.history[:3]]
    assert second == "".join(reply(llama, tokenizer, whole, session.options))
    session.reset()
    assert session.history == []


def test_full_context_forgets_the_oldest_turns_but_not_the_system(llama: Any, tokenizer: Any) -> None:
    session = ChatSession(llama, tokenizer, ReplyOptions(greedy=True, max_new_tokens=20), system="be kind")
    for _ in range(8):  # 128 positions: two or three exchanges fit
        list(session.say("what is the opposite of hot"))
    assert session.forgotten > 0
    assert session.forgotten % 2 == 0
    assert session.history[0]["role"] == "user"
    assert len(session.history) + session.forgotten == 16


def test_too_long_a_question_is_an_error_and_is_not_remembered(llama: Any, tokenizer: Any) -> None:
    session = ChatSession(llama, tokenizer, ReplyOptions(max_new_tokens=5))
    with pytest.raises(PipelineError, match="less than the model's 128 positions"):
        list(session.say("x " * 200))
    assert session.history == []


def test_a_reply_cut_short_stays_in_the_history(llama: Any, tokenizer: Any) -> None:
    session = ChatSession(llama, tokenizer, ReplyOptions(greedy=True, max_new_tokens=12))
    pieces = session.say("say hello")
    first = next(pieces)
    pieces.close()
    assert session.history[-1] == {"role": "assistant", "content": first}


def test_no_template_points_to_generate(llama: Any, tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(PipelineError, match=r"no chat template; expected one, to chat. Use `trueup generate`"):
        list(reply(llama, bare, ASK, ReplyOptions()))


def test_complete_goes_on_with_the_text(llama: Any, tokenizer: Any) -> None:
    ids = tokenizer("the cat")["input_ids"]
    expected = decode(
        llama, [ids], GenerationSettings(max_new_tokens=8, eos_ids=[1], pad_id=0, sampling=Sampling(greedy=True))
    )[0]
    text = "".join(complete(llama, tokenizer, "the cat", ReplyOptions(greedy=True, max_new_tokens=8)))
    assert text == tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beams": 0}, "beams is 0; it must be >= 1"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ],
)
def test_bad_options_are_told(llama: Any, tokenizer: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(PipelineError, match=says):
        list(reply(llama, tokenizer, ASK, ReplyOptions(**options)))
