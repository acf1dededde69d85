"""What is asked: columns that belong to it however they are spelt, and messages that are no prompt."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import PipelineError
from pipeline.recipe import DataSource
from pipeline.records import LoadedRows, load
from pipeline.stage import Shape

Write = Callable[..., Path]
SHOWN = {"prompt": "Q?", "completion": "A"}
PAIR = {"prompt": "Q?", "chosen": "A", "rejected": "B"}


def loaded(rows: list[dict[str, Any]], shape: Shape, jsonl: Write, **fields: Any) -> LoadedRows:
    return load(DataSource(path=[str(jsonl(*rows))], **fields), shape, seed=0, name="d")


@pytest.mark.parametrize("shape", ["messages", "preference"])
@pytest.mark.parametrize(
    ("column", "role", "asked"),
    [
        ("system_message", "system", "Be kind."),
        ("SystemPrompt", "system", "Be kind."),
        ("System", "system", "Be kind."),
        ("Input", "user", "Q?\n\nBe kind."),
        ("Context", "user", "Q?\n\nBe kind."),
    ],
)
def test_a_part_of_the_prompt_under_another_spelling_stops_the_run_with_its_renaming(
    column: str, role: str, asked: str, shape: Shape, jsonl: Write
) -> None:
    row = {**(SHOWN if shape == "messages" else PAIR), column: "Be kind."}
    with pytest.raises(PipelineError, match=f"column `{column}` would not reach the model") as caught:
        loaded([row], shape, jsonl)
    use, leave = (yaml.safe_load(one) for one in re.findall(r"columns: (\{[^}]*\})", str(caught.value)))
    mended = loaded([row], shape, jsonl, columns=use)
    turns = mended.train[0]["messages" if shape == "messages" else "prompt"]
    assert turns[0] == {"role": role, "content": asked} and mended.unused == ()
    assert loaded([row], shape, jsonl, columns=leave).unused == ("note",)


@pytest.mark.parametrize("asked", ["text", "prompt", "instruction"])
@pytest.mark.parametrize(("column", "said"), [("from", "gpt"), ("speaker", "Assistant"), ("author", "system")])
def test_what_another_than_the_user_says_is_no_prompt(asked: str, column: str, said: str, jsonl: Write) -> None:
    rows = [{asked: "Q?", column: "human"}, {asked: "A", column: said}]
    with pytest.raises(PipelineError) as caught:
        loaded(rows, "prompt", jsonl)
    words = f"rows.jsonl:2: row `{column}` is {said}, so `{asked}` is no prompt; expected a message of the user. "
    assert words in str(caught.value)
    kept = loaded(rows, "prompt", jsonl, on_bad_row="skip")
    assert [row["prompt"][0]["content"] for row in kept.train] == ["Q?"] and kept.rejected == 1


def test_a_column_that_names_no_speaker_says_nothing_of_a_prompt(jsonl: Write) -> None:
    rows = [{"prompt": "Q?", "author": "Ada", "from": "https://example.org", "role": "Doctor"}]
    assert len(loaded(rows, "prompt", jsonl).train) == 1


def test_the_system_turn_beside_transcripts_is_read_and_not_called_unread(jsonl: Write) -> None:
    row = {"chosen": "\n\nHuman: Q?\n\nAssistant: A", "rejected": "\n\nHuman: Q?\n\nAssistant: B", "system": "Be kind."}
    made = loaded([row], "preference", jsonl)
    assert made.train[0]["prompt"][0] == {"role": "system", "content": "Be kind."}
    assert made.unused == () and "system" not in made.train[0]


def test_a_transcript_whose_speakers_do_not_stand_apart_says_so(jsonl: Write) -> None:
    row = {"chosen": "Human: Q?\nAssistant: A", "rejected": "Human: Q?\nAssistant: B"}
    with pytest.raises(
        PipelineError, match="row `chosen` has no turn of the Assistant; expected speakers that a blank"
    ):
        loaded([row], "preference", jsonl)


def test_one_conversation_whose_keys_are_not_known_is_no_list_of_rows(jsonl: Write) -> None:
    row = {"talk": [{"who": "user", "said": "Q?"}, {"who": "assistant", "said": "A"}]}
    with pytest.raises(PipelineError, match="column talk is of no known format"):
        loaded([row], "messages", jsonl)


def test_the_exchanges_before_are_read_from_a_table_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('instruction,output,history\nQ?,A,"[[""Hi"", ""Yes?""]]"\nQ?,A,[]\nQ?,A,\n')
    rows = load(DataSource(path=[str(path)]), "messages", seed=0, name="d").train
    assert [[turn["content"] for turn in row["messages"]] for row in rows] == [
        ["Hi", "Yes?", "Q?", "A"],
        *[["Q?", "A"]] * 2,
    ]
