"""Checkpoints answer prompts several times: nothing depends on the others, on a stop, or on how it is divided."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from single_rows import encode_prompt
from stopping import StopAfter

from pipeline.preferences.model_names import names_model
from pipeline.stages.sample.run import Candidate, _collapsed

CONFIG: dict[str, Any] = {"temperatures": [0.7, 1.3], "n": 2, "max_new_tokens": 12}


def _rows(ran: Any, name: str = "candidates.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ran.out / name).read_text(encoding="utf-8").splitlines()]


def _origins(row: dict[str, Any]) -> dict[str, str]:
    """Return the text of every sample of a prompt, collapsed ones too, by `model/temperature/sample`."""
    texts = {}
    for one in row["candidates"]:
        own = f"{one['model']}/{one['temperature']:g}/{one['sample']}"
        texts |= dict.fromkeys((own, *one["also"]), one["text"])
    return texts


@pytest.fixture
def sample(chain: Any, as_input: Any, run_stage: Callable[..., Any]) -> Callable[..., Any]:
    def run(*models: str, data: Any = None, **more: Any) -> Any:
        own = [as_input(chain["rm"]).model_copy(update={"fingerprint": name}) for name in more.get("reward", [])]
        judges = {"reward": own} if own else {}
        known = ("out", "stopping", "expect", "seed", "responses")
        options = {key: more.pop(key) for key in list(more) if key in known}
        return run_stage(
            "sample",
            {**CONFIG, **more},
            data={"data": data or chain.recipe.parent / "asks.jsonl"},
            inputs={"models": [as_input(chain[name]) for name in models], **judges},
            **options,
        )

    return run


def test_every_model_answers_every_prompt_at_every_temperature(
    sample: Callable[..., Any], read_rows: Any, chain: Any
) -> None:
    ran = sample("sft", "dpo")
    rows = _rows(ran)
    asks = read_rows(chain.recipe.parent / "asks.jsonl")
    assert [row["prompt"][-1]["content"] for row in rows] == [row["prompt"] for row in asks]
    assert [row["answer"] for row in rows] == [row["answer"] for row in asks]  # other columns stay
    wanted = {f"{name}/{heat}/{n}" for name in ("sft", "dpo") for heat in ("0.7", "1.3") for n in (0, 1)}
    assert all(set(_origins(row)) == wanted for row in rows)
    for row in rows:
        texts = [" ".join(one["text"].split()) for one in row["candidates"]]
        assert len(set(texts)) == len(texts)
    metrics = ran.outcome.result.metrics
    assert metrics["candidates"] == sum(len(row["candidates"]) for row in rows)
    assert metrics["candidates"] + metrics["equal"] == len(rows) * 8
    assert len({one["seed"] for row in rows for one in row["candidates"]}) == 8  # no two passes share random numbers


def test_pairs_are_two_different_answers_as_the_next_stage_reads_them(sample: Callable[..., Any]) -> None:
    ran = sample("sft", "dpo", pairs_per_prompt=2)
    pairs, place = _rows(ran, "pairs.jsonl"), 0
    for row in _rows(ran):
        usable = [one for one in row["candidates"] if one["text"] and not one["names_model"]]
        possible = len(usable) * (len(usable) - 1) // 2
        assert len(row["pairs"]) == min(2, possible)
        for pair in row["pairs"]:
            assert pair["propensity"] == pytest.approx(min(2, possible) / possible)
            first, second = (row["candidates"][pair[side]]["text"] for side in ("first", "second"))
            assert first != second
            assert pairs[place] == {
                "prompt": row["prompt"],
                "chosen": [{"role": "assistant", "content": first}],
                "rejected": [{"role": "assistant", "content": second}],
                "propensity": pair["propensity"],
                "plain_text": True,  # as the prompts were; with a chat template they are turns all the same
            }
            place += 1
    assert place == len(pairs) == ran.outcome.result.metrics["pairs"]


def test_one_more_model_changes_no_answer_of_the_others(sample: Callable[..., Any]) -> None:
    alone, together = _rows(sample("sft")), _rows(sample("sft", "dpo"))
    for one, both in zip(alone, together, strict=True):
        assert _origins(one).items() <= _origins(both).items()


def test_a_limit_draws_prompts_and_keeps_their_answers(sample: Callable[..., Any]) -> None:
    rows = _rows(sample("sft"))
    few = _rows(sample("sft", limit=5))
    places = [row["row"] for row in few]
    assert len(places) == 5 and places == sorted(places) != list(range(5))
    for row in few:
        assert row["prompt"] == rows[row["row"]]["prompt"]
        assert _origins(row) == _origins(rows[row["row"]])


def test_stopped_between_passes_it_goes_on_to_the_same_bytes(sample: Callable[..., Any], tmp_path: Path) -> None:
    whole = sample("sft", "dpo")
    stopped = sample("sft", "dpo", out=tmp_path / "cut", stopping=StopAfter(3), expect="stopped")
    finished = list((stopped.work / "responses").glob("*/*.json"))
    assert 0 < len(finished) < 8
    again = sample("sft", "dpo", out=tmp_path / "cut")
    for name in ("candidates.jsonl", "pairs.jsonl"):
        assert (again.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_log_probabilities_are_the_models_own(
    sample: Callable[..., Any], chain: Any, load_plain: Callable[[Path], tuple[Any, Any]]
) -> None:
    ran = sample("sft", temperatures=[1.0], n=2, log_probabilities=True)
    model, tokenizer = load_plain(chain["sft"].path)
    checked = 0
    for row in _rows(ran)[:8]:
        for one in row["candidates"]:
            if one["finish_reason"] != "eos" or one["text"] != " ".join(one["text"].split()):
                continue
            before = encode_prompt(tokenizer, row["prompt"])
            for lead in ("", " "):  # the text is stripped; its tokens may begin with the space
                said = [*tokenizer(lead + one["text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
                if len(said) != one["tokens"]:
                    continue
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([before + said])).logits[0].log_softmax(-1)
                total = sum(float(logits[len(before) + i - 1, token]) for i, token in enumerate(said))
                if total == pytest.approx(one["log_probability"], abs=1e-3):
                    checked += 1
                    break
    assert checked >= 5


def test_a_stop_string_cuts_the_text_and_is_the_reason(sample: Callable[..., Any]) -> None:
    plain = [one for row in _rows(sample("sft")) for one in row["candidates"]]
    letter = max("abcdefghijklmnopqrstuvwxyz", key=lambda each: sum(each in one["text"] for one in plain))
    cut = [one for row in _rows(sample("sft", stop=[letter])) for one in row["candidates"]]
    assert all(letter not in one["text"] for one in cut)
    assert any(one["finish_reason"] == "stop" for one in cut)


def test_another_stage_reuses_the_tokens_also_with_other_stop_strings(
    sample: Callable[..., Any], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    sample("sft", responses=kept)
    both = sample("sft", "dpo", responses=kept, stop=["i"])
    assert "1 of 2 checkpoints was answered before: these responses are reused" in both.notes
    fresh = sample("sft", "dpo", stop=["i"])
    for name in ("candidates.jsonl", "pairs.jsonl"):
        assert (both.out / name).read_bytes() == (fresh.out / name).read_bytes()


def _candidate(text: str, **more: Any) -> Candidate:
    given = {"model": "m", "ref": "m@v1", "temperature": 1.0, "sample": 0, "seed": 1, "tokens": 3}
    return Candidate(text, **{**given, "finish_reason": "eos", "names_model": False, **more})


def test_equal_answers_are_one_and_name_where_else_they_came_from() -> None:
    given = [_candidate("a  b"), _candidate("c", sample=1), _candidate("a b", model="n", temperature=0.7, sample=2)]
    first, second = _collapsed(given)
    assert (first.text, first.also, second.text) == ("a  b", ("n/0.7/2",), "c")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("I'm ChatGPT, made by OpenAI.", True),
        ("As an AI language model, I cannot", True),
        ("My name is Qwen.", True),
        ("Meta's Llama-3 answers", True),
        ("I am Claude.", True),
        ("I was trained by Google to help.", True),
        ("Monet, Claude by name, painted a falcon, a koala and a llama.", False),
        ("I am sad. Gemini is a sign.", False),
        ("Llamas live in Peru.", False),
        ("The falconer came back.", False),
        ("Claudette sang.", False),
        ("A mistralian wind", False),
        ("As a language model, I have no feelings.", True),
        ("I’m an AI language model", True),
        ("As a large language model trained on text", True),
        ("I am **Open Assistant**", True),
        ("Hello! I am DeepSeek-V3.", True),
        ("I'm Gemma 3, trained by Google DeepMind", True),
        ("I am Kimi, made by Moonshot AI", True),
        ("I'm SmolLM, trained by Hugging Face", True),
        ("I was created by a team at Hugging Face", True),
        ("Ich bin Claude", True),
        ("Als KI-Sprachmodell kann ich das nicht", True),
        ("En tant que modèle de langage, je ne peux pas", True),
        ("Como modelo de lenguaje, no puedo", True),
        ("我是通义千问", True),
        ("作为一个AI语言模型，我", True),
        ("Как языковая модель, я не могу", True),
        ("私はChatGPTです", True),
        # what people's answers say of models and of their makers
        ("TensorFlow is an open-source library that was developed by Google.", False),
        ("a small neural network using HuggingFace `transformers`", False),
        ("Hosting a large language model on an average computer can be hard.", False),
        ("I work at Microsoft.", False),
        ("The language model is measured by its perplexity.", False),
    ],
)
def test_what_gives_the_model_away_is_seen(text: str, names: bool) -> None:
    assert names_model(text) is names


def test_nothing_to_compare_is_refused(sample: Callable[..., Any]) -> None:
    from pipeline.stages.sample.config import Config

    one = Config(data="asks", models=["sft"], n=1)
    assert "n is 1, with one model at one temperature; expected two answers to compare" in str(one.check()[0])
    twice = Config(data="asks", models=["sft", "sft"])
    assert "models names one twice; expected each once" in str(twice.check()[0])
    same = sample("sft", temperatures=[1e-6], expect="failed")
    assert "no prompt has enough different answers" in str(same.outcome.problems[0])


def test_reward_models_score_the_answers_and_choose_the_pairs(
    sample: Callable[..., Any], chain: Any, as_input: Any, run_stage: Callable[..., Any]
) -> None:
    plain = _rows(sample("sft", pairs_per_prompt=1))
    ran = sample("sft", pair_choice="delta", reward=["rm"], random_share=0.1)
    widest = 0
    for row, before in zip(_rows(ran), plain, strict=True):
        assert row["candidates"] == before["candidates"]  # scoring changes no answer
        (scores,) = row["reward_scores"].values()
        assert len(scores) == len(row["candidates"])
        usable = [i for i, one in enumerate(row["candidates"]) if one["text"] and not one["names_model"]]
        if len(usable) < 3:
            continue
        ((first, second, propensity),) = (pair.values() for pair in row["pairs"])
        span = max(scores[i] for i in usable) - min(scores[i] for i in usable)
        if abs(scores[first] - scores[second]) == pytest.approx(span):
            widest += 1
            assert propensity > 0.4  # 0.9 of it by its value, alone or by lot among two
        else:
            assert propensity == pytest.approx(0.1 * 2 / (len(usable) * (len(usable) - 1)))
    assert widest > 0.7 * len(plain) - 5
    columns = {"prompt", "chosen", "rejected", "propensity", "plain_text"}
    assert [set(pair) for pair in _rows(ran, "pairs.jsonl")] == [columns] * len(plain)


def test_stopped_between_reward_models_it_goes_on_to_the_same_bytes(sample: Callable[..., Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"pair_choice": "uncertain", "reward": ["rm", "again"], "temperatures": [1.3]}
    whole = sample("sft", **options)
    scores = tmp_path / "cut" / "work" / "scores"
    sample("sft", **options, out=tmp_path / "cut", stopping=scores.is_dir, expect="stopped")
    assert len(list(scores.iterdir())) == 1  # those of the first
    again = sample("sft", **options, out=tmp_path / "cut")
    for name in ("candidates.jsonl", "pairs.jsonl"):
        assert (again.out / name).read_bytes() == (whole.out / name).read_bytes()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pair_choice": "delta"}, "pair_choice is delta, and no reward model says what to expect"),
        ({"pair_choice": "delta", "reward": "rm", "pairs_per_prompt": 0}, "pairs_per_prompt is 0: all pairs are taken"),
        ({"random_share": 0.5}, "random_share is 0.5, and pair_choice is random"),
        ({"rank_size": 5}, "rank_size is 5, and pair_choice is random: nothing is ranked"),
        ({"pair_choice": "rank", "n": 4, "pairs_per_prompt": 2}, "pair_choice is rank, and pairs_per_prompt is 2"),
        ({"reward": ["rm", "rm"]}, "reward names one twice"),
    ],
)
def test_a_choice_that_chooses_nothing_is_refused(given: dict[str, Any], says: str) -> None:
    from pipeline.stages.sample.config import Config

    (problem,) = Config.model_validate({"data": "asks", "models": ["sft"], **given}).check()
    assert says in str(problem)


def test_answers_to_rank_are_groups_and_all_their_pairs(sample: Callable[..., Any]) -> None:
    ran = sample("sft", "dpo", pair_choice="rank", rank_size=3)
    groups, pairs = _rows(ran, "groups.jsonl"), _rows(ran, "pairs.jsonl")
    by_place = {row["row"]: row for row in _rows(ran)}
    assert len(pairs) == 3 * len(groups) and len(groups) > 10
    for i, group in enumerate(groups):
        row = by_place[group["row"]]
        texts = [one["text"] for one in group["candidates"]]
        assert len(set(texts)) == 3 and set(texts) <= {one["text"] for one in row["candidates"]}
        assert all(one.keys() == {"text"} for one in group["candidates"])  # nobody learns whose they are
        compared = {pair[side][0]["content"] for pair in pairs[3 * i : 3 * i + 3] for side in ("chosen", "rejected")}
        assert compared == set(texts)
        count = sum(bool(one["text"]) and not one["names_model"] for one in row["candidates"])
        assert group["propensity"] == pytest.approx(6 / (count * (count - 1) * (count - 2)))
        assert pairs[3 * i]["propensity"] == pytest.approx(6 / (count * (count - 1)))
