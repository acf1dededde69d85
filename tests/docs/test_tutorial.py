"""The tutorial's commands, one after the other, as its reader types them, with a tiny random model in a folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")
OF_THE_READER = ("pip install ", "export SMOLLM2=")
"""What the test does in another way: trueup is there, and the variable names the tiny model."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Step(NamedTuple):
    """A command of the page, what it printed, and the text blocks that follow it."""

    command: str
    code: int
    out: str
    err: str
    shown: list[str]


def _tiny_chat_model(folder: Path) -> None:
    """Save a Llama of random weights with a tokenizer trained here, in the way that SmolLM2 writes conversations."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(
        ["What is the capital of France?", "What is the opposite of hot?", "user assistant"], trainer
    )
    start, end = special
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=start, eos_token=end, pad_token=end)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    set_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "vocab_size": len(tokenizer)}
    config = LlamaConfig(**sizes, **tokens, max_position_embeddings=512, initializer_range=0.2)
    LlamaForCausalLM(config).save_pretrained(folder)


def _words(text: str) -> list[str]:
    """Return the lines of a text with single blanks: columns are as wide as their figures."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, call: Any) -> list[Step]:
    """Follow the page from its first line to its last."""
    place = tmp_path_factory.mktemp("reader")
    _tiny_chat_model(place / "smollm2")
    (place / "bin").mkdir()
    for name, module in (("trueup", " -m pipeline.cli"), ("python", "")):
        shim = place / "bin" / name
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}"{module} "$@"\n')
        shim.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMOLLM2", "smollm2")  # a folder above the recipe's
        patch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("COLUMNS", "200")
        patch.delenv("TRUEUP_STORE", raising=False)
        return list(_steps(place, call))


def _steps(place: Path, call: Any) -> Iterator[Step]:
    """Save the page's files, run its commands, and yield each command with what it printed."""
    folder = place
    for number, (language, block) in enumerate(BLOCKS):
        named = FILE.match(block)
        if named:
            (folder / named[1]).write_text(block, encoding="utf-8")
        shown = [text for _, text in _texts_after(number)]
        for line in block.splitlines() if language == "bash" else ():
            if line.startswith(OF_THE_READER):
                continue
            words = shlex.split(line, comments=True)
            if words[0] == "cd":
                folder /= words[1]
                continue
            if words[0] == "trueup":
                ended = call(*words[1:], cwd=folder, stdin="Hi\n/quit\n")
            else:
                ended = subprocess.run(["bash", "-c", line], cwd=folder, text=True, capture_output=True)
            yield Step(line, ended.returncode, ended.stdout, ended.stderr, shown)


def _texts_after(number: int) -> Iterator[tuple[str, str]]:
    """Yield the text blocks between a block and the next one that is no text."""
    for language, block in BLOCKS[number + 1 :]:
        if language != "text":
            return
        yield language, block


def _step(walk: list[Step], command: str) -> Step:
    (step,) = (step for step in walk if step.command.partition("#")[0].strip() == command)
    return step


def test_every_command_ends_as_the_page_says(walk: list[Step]) -> None:
    assert len(walk) > 25
    for step in walk:
        expected = int(match[1]) if (match := re.search(r"# exit code (\d)", step.command)) else 0
        assert step.code == expected, f"{step.command}\n{step.out}\n{step.err}"
        assert "Traceback" not in step.out + step.err, step.command


def test_every_file_of_the_page_is_used_by_a_command_or_a_recipe(walk: list[Step]) -> None:
    names = [match[1] for _, block in BLOCKS if (match := FILE.match(block))]
    used = " ".join([*(step.command for step in walk), *(block for language, block in BLOCKS if language == "yaml")])
    assert names == ["rows.py", "brief.yaml", "style.py", "load.py"]
    assert all(name in used for name in names)


@pytest.mark.parametrize(
    "command",
    [
        "head -n 1 demos.jsonl pairs.jsonl asks.jsonl",
        "trueup check brief.yaml --set data.demos.path=broken.jsonl",
        "trueup check brief.yaml --set stages.dpo.train.betta=0.2",
        "trueup plan brief.yaml --set stages.dpo.train.learning_rate=2.0e-5",
    ],
)
def test_what_does_not_depend_on_the_model_is_printed_as_shown(walk: list[Step], command: str) -> None:
    step = _step(walk, command)
    assert step.shown
    printed = _words(step.out + step.err)
    for line in _words(step.shown[0]):
        assert line in printed, f"{line}\nis not in\n{step.out}{step.err}"


def test_check_counts_the_rows_that_the_page_counts(walk: list[Step]) -> None:
    step = _step(walk, "trueup check brief.yaml")
    # Only the context of the model differs, in the second table.
    shown, printed = ([line for line in _words(text) if " tokens " not in line] for text in (step.shown[0], step.out))
    assert shown == printed


def test_plan_has_the_stages_and_columns_that_the_page_shows(walk: list[Step]) -> None:
    step = _step(walk, "trueup plan brief.yaml")
    shown, printed = _words(step.shown[0]), _words(step.out)
    heads = [line for line in shown if line.startswith(("stage ", "MiB/process "))]
    assert shown[:6] == printed[:6] and "note: environment variable SMOLLM2 is `smollm2`" in shown
    assert len(heads) == 3 and set(heads) <= set(printed)


def test_the_first_run_makes_all_the_second_nothing_and_a_change_what_it_must(walk: list[Step]) -> None:
    first, again = (step for step in walk if step.command == "trueup run brief.yaml")
    assert "3 made, 0 from the store" in first.out and "3 made, 0 from the store" in first.shown[0]
    assert "0 made, 3 from the store" in again.out
    changed = _step(walk, "trueup run brief.yaml --set stages.dpo.train.learning_rate=2.0e-5")
    assert "2 made, 1 from the store" in changed.out
    assert "2 of 3 checkpoints were answered before" in changed.out, "only the new `dpo` is asked"
    thorough = _step(walk, "trueup run brief.yaml --set stages.sft.train.epochs=1")
    assert _words(thorough.shown[0]) == _words(thorough.out + thorough.err)[: len(_words(thorough.shown[0]))]
    assert "3 made, 0 from the store" in thorough.out


def test_the_tables_of_the_page_have_the_form_of_those_printed(walk: list[Step]) -> None:
    report = _step(walk, "trueup show report")
    (head,) = (line for line in _words(report.shown[0]) if line.startswith("model "))
    assert head in _words(report.out)
    rows = {line.partition("  ")[0] for line in report.shown[0].splitlines()}
    assert {"smollm2", "sft", "dpo"} <= rows
    diff = _step(walk, "trueup diff dpo@v1 dpo@v2")
    assert _words(diff.shown[0])[:-1] == _words(diff.out)[:2]
    lineage = _step(walk, "trueup lineage dpo")
    digests = re.compile(r"\b[0-9a-f]{12}\b")
    assert _words(digests.sub("#", lineage.shown[0])) == _words(digests.sub("#", lineage.out))


def test_what_was_pushed_and_pulled_loads_and_answers_elsewhere(walk: list[Step]) -> None:
    assert "2 artifacts to ../shelf" in _step(walk, "trueup push dpo:keep ../shelf").out
    loaded = walk[-1]
    assert loaded.command.startswith("python load.py") and loaded.out.strip()
    assert all(step.out.strip() for step in walk if step.command.startswith(("trueup generate", "trueup chat")))
