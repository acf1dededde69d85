"""The commands of `docs/labelling.md`, one after the other, until the last stage has trained on what people said."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """The folder of somebody who follows the pages; their models train for a few steps only."""
    shutil.copytree(ROOT / "data" / "quickstart", tmp_path / "data" / "quickstart")
    for page, name in (("recipes.md", "first.yaml"), ("labelling.md", "collect.yaml")):
        (text,) = (block for block in _blocks(page, "yaml") if block.startswith(f"# {name}\n"))
        fewer = text.replace("max_steps: 200", "max_steps: 6").replace("max_steps: 50", "max_steps: 2")
        (tmp_path / name).write_text(fewer.replace("train: {batch_size: 4}", "train: {batch_size: 4, max_steps: 2}"))
    return tmp_path


def _label_everything(app: Any) -> int:
    """Label as everybody who has a link, until nothing is left for anybody."""
    count = 0
    for who in app.tokens:
        items = app.ask("next", who)["items"]
        while items:
            choice = "left" if len(items[0]["left"][0]["content"]) < len(items[0]["right"][0]["content"]) else "right"
            items = app.ask("label", who, item=items[0]["item"], choice=choice, seconds=1.0)["items"]
            count += 1
    return count


@pytest.mark.slow
def test_the_commands_of_the_page_end_in_a_trained_model(
    reader: Path, call: Any, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRUEUP_LEDGER", raising=False)
    commands = [
        line.partition("#")[0].split()[1:]
        for line in _blocks("labelling.md", "bash")[0].splitlines()
        if line.startswith("trueup ")
    ]
    assert [command[0] for command in commands] == ["run", "collect", "labels", "run"]
    waiting = call(*commands[0], cwd=reader)
    assert waiting.returncode == 3 and "waiting for people: 0 of " in waiting.stderr, waiting.stderr
    app = serve([*commands[1], "--port", "0"], reader)
    assert len(app.tokens) == 3
    given = _label_everything(app)
    app.process.send_signal(signal.SIGINT)
    app.process.wait(timeout=800)
    assert app.process.returncode in (0, 130)
    status = call(*commands[2], cwd=reader)
    assert f"{given} of {given} labels of 20 pairs" in status.stdout, status.stdout + status.stderr
    done = call(*commands[3], cwd=reader)
    assert done.returncode == 0, done.stdout + done.stderr
    (manifest,) = (json.loads(file.read_text()) for file in (reader / "store" / "dpo").glob("*/manifest.json"))
    assert manifest["rows"]["train"] > 10
