"""Trying a checkpoint: generate and chat on a tiny real model; evaluate through the real stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from pipeline.artifacts import Store

Trueup = Callable[..., Result]


@pytest.fixture
def world(trueup: Trueup, chain: Any, tmp_path: Path) -> Path:
    """A copy of the finished tiny chain's folder, and its store as `store/`."""
    shutil.copytree(chain.recipe.parent, tmp_path / "world")
    shutil.copytree(chain.store.root, tmp_path / "store")
    return tmp_path / "world"


ASK = "which colour has the cat ?"


def test_greedy_is_the_same_each_time_whatever_the_seed(trueup: Trueup, world: Path) -> None:
    told = json.loads(trueup("generate", "sft", ASK, "--greedy", "-n", "2", "--json").stdout)
    assert [each["seed"] for each in told] == [0, 1]
    assert told[0]["text"] == told[1]["text"] != ""
    assert trueup("generate", "sft", ASK, "--greedy").stdout == told[0]["text"] + "\n"


def test_sampling_follows_the_seed(trueup: Trueup, world: Path) -> None:
    args = ("generate", "base", ASK, "--temperature", "2", "--max-new-tokens", "12", "--json")
    many = [each["text"] for each in json.loads(trueup(*args, "-n", "4", "--seed", "5").stdout)]
    assert len(set(many)) > 1
    again = json.loads(trueup(*args, "--seed", "7").stdout)
    assert again == [{"prompt": ASK, "seed": 7, "text": many[2]}]


def test_top_k_of_one_is_greedy(trueup: Trueup, world: Path) -> None:
    greedy = trueup("generate", "sft", ASK, "--greedy").stdout
    assert trueup("generate", "sft", ASK, "--top-k", "1", "--seed", "3").stdout == greedy
    assert trueup("generate", "sft", ASK, "--top-p", "0.000001", "--seed", "3").stdout == greedy


def test_beams_raw_text_and_standard_input(trueup: Trueup, world: Path) -> None:
    beams = trueup("generate", "sft", ASK, "--beams", "3")
    assert beams.exit_code == 0, beams.output
    assert beams.stdout.strip()
    piped = trueup("generate", "sft", "--greedy", stdin=f"{ASK}\n")
    assert piped.stdout == trueup("generate", "sft", ASK, "--greedy").stdout
    raw = trueup("generate", "base", ASK, "--raw", "--greedy", "--max-new-tokens", "8")
    assert raw.exit_code == 0
    assert raw.stdout != trueup("generate", "base", ASK, "--greedy", "--max-new-tokens", "8").stdout


def test_a_folder_is_a_checkpoint_too(trueup: Trueup, world: Path) -> None:
    folder = trueup("show", "sft", "--path").stdout.strip()
    assert trueup("generate", folder, ASK, "--greedy").stdout == trueup("generate", "sft", ASK, "--greedy").stdout


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--temperature", "0"], "temperature is 0.0; it must be > 0. Use greedy decoding for the most likely token"),
        (["--top-p", "1.5"], "top_p is 1.5; it must be > 0 and <= 1. 1 keeps every token"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0; it must be >= 1"),
        (["--beams", "0"], "beams is 0; it must be >= 1. 1 is no beam search"),
    ],
)
def test_bad_options_are_told(trueup: Trueup, world: Path, options: list[str], line: str) -> None:
    told = trueup("generate", "sft", ASK, *options)
    assert (told.exit_code, told.stderr) == (2, f"{line}\n")


def test_chat_answers_and_obeys_commands(trueup: Trueup, world: Path) -> None:
    answer = trueup("generate", "sft", ASK, "--greedy").stdout
    said = [
        ("/greedy", "greedy, at most 256 tokens\n"),
        (ASK, answer),
        ("/reset", "forgotten\n"),
        (ASK, answer),
        ("/temperature 0.5", "temperature 0.5, top-p 1, top-k 0, seed 0, at most 256 tokens\n"),
        ("/temperature -1", "temperature is -1.0; it must be > 0. Use greedy decoding for the most likely token\n"),
        ("/top-p 0.9", "temperature 0.5, top-p 0.9, top-k 0, seed 0, at most 256 tokens\n"),
        ("/top-k x", "/top-k needs a number\n"),
        ("/max 0", "max is 0; it must be >= 1\n"),
        ("/temprature 1", "no command /temprature. Did you mean `temperature`?\n"),
        ("/zzz", "no command /zzz. /help lists them\n"),
        ("/quit", ""),
        ("never reached", ""),
    ]
    told = trueup("chat", "sft", stdin="".join(f"{line}\n" for line, _ in said))
    assert told.exit_code == 0, told.output
    assert told.stdout == "".join(reply for _, reply in said)


def test_chat_remembers_until_reset_and_retries_with_another_seed(trueup: Trueup, world: Path) -> None:
    args = ("chat", "base", "--temperature", "2", "--max-new-tokens", "8")
    once = trueup(*args, stdin=f"{ASK}\n").stdout
    retried = trueup(*args, stdin=f"{ASK}\n/retry\n/settings\n").stdout
    assert retried.startswith(once)
    assert retried.endswith("seed 1, at most 8 tokens\n")
    # The retry forgot the first answer: it is what seed 1 says to the same single message.
    assert retried == once + trueup(*args, "--seed", "1", stdin=f"{ASK}\n/settings\n").stdout


def test_evaluate_makes_a_report_once(trueup: Trueup, call: Any, world: Path, tmp_path: Path) -> None:
    args = ("evaluate", "dpo", "--baseline", "sft", "--data", "world/asks.jsonl", "--gold", "world/gold.py:gold",
            "--limit", "8", "--max-new-tokens", "8")  # fmt: skip
    told = call(*args, "--json", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    ended = json.loads(told.stdout)
    assert [(stage["name"], stage["status"], stage["ref"]) for stage in ended["stages"]] == [
        ("evaluation", "done", "evaluation@v1")
    ]
    report = ended["reports"]["evaluation"]
    assert list(report["models"]) == ["sft", "sft (greedy)", "dpo"]
    assert report["models"]["dpo"]["ref"] == "dpo@v1"
    assert report["models"]["dpo"]["win_rate"]["n"] == 8
    again = trueup(*args)
    assert again.exit_code == 0, again.output
    assert "nothing to run: every stage is in the store" in again.stdout
    assert "trueup show evaluation" in again.stdout
    assert "--set" not in again.stdout
    manifest = Store(tmp_path / "store").artifacts("evaluation")[0].manifest
    assert {record.name for record in manifest.inputs} == {"sft", "dpo"}
    compared = json.loads(trueup("compare", "dpo", "sft", "--report", "evaluation", "--json").stdout)[0]
    assert compared["win_rate"]["value"] == report["models"]["dpo"]["win_rate"]["value"]


def test_problems_of_an_evaluation_name_no_file_the_user_never_saw(trueup: Trueup, world: Path, tmp_path: Path) -> None:
    told = trueup("evaluate", "dpo", "--baseline", "sft", "--data", "nope.jsonl", "--gold", "world/gold.py:goold")
    assert told.exit_code == 2
    assert told.stderr.splitlines() == [
        f"data.prompts: `{tmp_path}/nope.jsonl` does not exist",
        "stage evaluation: gold: gold.py does not define `goold`. Did you mean `gold`?",
    ]


def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(chain: Any, as_input: Callable[..., Any]) -> None:
    from pipeline.cli.chat_loop import ChatLoop
    from pipeline.models.generate.chat_session import ChatSession, ReplyOptions, load_checkpoint

    model, tokenizer = load_checkpoint(as_input(chain["sft"]))
    shown: list[str] = []

    def write(text: str) -> None:
        shown.append(text)
        if len(shown) == 2:  # the person presses Ctrl-C while the second piece is printed
            raise KeyboardInterrupt

    loop = ChatLoop(ChatSession(model, tokenizer, ReplyOptions(greedy=True)), write)
    loop.run([ASK, "/settings"])
    assert shown[2:] == [" … (stopped)\n", "greedy, at most 256 tokens\n"]
    assert [turn["role"] for turn in loop.session.history] == ["user", "assistant"]
    assert loop.session.history[1]["content"] == "".join(shown[:2])
