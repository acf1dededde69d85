"""A store of real committed artifacts with tiny payloads, and the command called in this process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline.artifacts import Artifact, Store
from pipeline.cli.app import app

REPORT = {
    "schema": 1,
    "baseline": "sft",
    "models": {
        "sft": {
            "ref": "sft@v1",
            "gold": {"value": 0.75, "low": 0.25, "high": 1.0, "n": 4},
            "tasks": {"a": {"correct": {"value": 0.5, "low": 0.1, "high": 0.9, "n": 2}}},
        },
        "dpo": {
            "ref": "dpo@v1",
            "win_rate": {"value": 0.625, "low": 0.25, "high": 1.0, "n": 4},
            "gold": {"value": 1.0, "low": 0.5, "high": 1.5, "n": 4},
            "tasks": {
                "a": {
                    "correct": {"value": 1.0, "low": 0.3, "high": 1.0, "n": 2},
                    "delta": {"value": 0.5, "low": -0.5, "high": 1.0, "n": 2, "p_value": 1.0},
                }
            },
        },
    },
}
# Scores of sft and dpo on four prompts, and whether each is correct.
SCORES = (
    ("one", "a", 1.0, 2.0, 1, 1),
    ("two", "a", 1.0, 1.0, 0, 1),
    ("three", "b", 1.0, 0.0, 1, 0),
    ("four", "b", 0.0, 1.0, 1, 1),
)


def fingerprint_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _commit(store: Store, name: str, seed: str, files: dict[str, str], **fields: Any) -> Artifact:
    with store.work(name, fingerprint_of(f"{name} {seed}")) as area:
        for path, text in files.items():
            (area.payload / path).write_text(text, encoding="utf-8")
        return area.commit(**fields)


def _input(field: str, artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "field": field,
        "ref": manifest.name,
        "name": manifest.name,
        "kind": manifest.kind,
        "version": manifest.version,
        "fingerprint": manifest.fingerprint,
    }


@pytest.fixture
def commit() -> Callable[..., Artifact]:
    """Commit an artifact with the given payload files and manifest fields."""
    return _commit


@pytest.fixture
def store_with(tmp_path: Path) -> Callable[[dict[str, Any], int], Store]:
    """Return a function that makes a store with `few@v1`, made from 1,200 rows of a source of a recipe."""

    def made(sources: dict[str, Any], rejected: int) -> Store:
        store = Store(tmp_path / "store")
        record = {"source": "demos", "digest": "d" * 64, "rows": 1200, "rejected": rejected, "where": ["demos.jsonl"]}
        recipe = {"name": "r", "file": "r.yaml", "resolved": {"data": sources}}
        _commit(store, "few", "one", {"w": "w"}, kind="sft", makes="model", data={"data": record}, recipe=recipe)
        return store

    return made


@pytest.fixture
def stocked(tmp_path: Path) -> Store:
    """sft@v1 and sft@v2, dpo@v1 made from sft@v2, a reward model, and a report on both."""
    store = Store(tmp_path / "store")
    data = {"data": {"source": "demos", "digest": "d" * 64, "rows": 1200, "rejected": 3, "where": ["demos.jsonl"]}}
    _commit(
        store,
        "sft",
        "one",
        {"weights.txt": "old"},
        kind="sft",
        makes="model",
        data=data,
        config={"kind": "sft", "config": {"train": {"learning_rate": 0.001}}},
        metrics={"loss": 1.5},
        summary="loss 1.5",
    )
    second = _commit(
        store,
        "sft",
        "two",
        {"weights.txt": "new"},
        kind="sft",
        makes="model",
        data=data,
        config={"kind": "sft", "config": {"train": {"learning_rate": 0.002}}},
        metrics={"loss": 1.25},
        summary="loss 1.25",
    )
    dpo = _commit(
        store, "dpo", "one", {"weights.txt": "dpo"}, kind="dpo", makes="model", inputs=[_input("model", second)]
    )
    rm = _commit(
        store, "rm", "one", {"head.txt": "rm"}, kind="reward", makes="reward", inputs=[_input("model", second)]
    )
    samples = "".join(
        json.dumps(
            {
                "prompt": prompt,
                "task": task,
                "answers": {
                    "sft": {"text": "s", "score": sft, "correct": sft_right},
                    "dpo": {"text": "d", "score": dpo_score, "correct": dpo_right},
                },
            }
        )
        + "\n"
        for prompt, task, sft, dpo_score, sft_right, dpo_right in SCORES
    )
    _commit(
        store,
        "report",
        "one",
        {"report.json": json.dumps(REPORT), "samples.jsonl": samples, "report.md": "# Evaluation\n"},
        kind="evaluate",
        makes="report",
        inputs=[_input("models", second), _input("models", dpo), _input("reward", rm)],
    )
    return store


@pytest.fixture
def trueup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Call the command in this process, in an empty folder that has `store/` if `stocked` is used."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRUEUP_STORE", raising=False)
    monkeypatch.delenv("TRUEUP_DEBUG", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)

    def call(*args: str | Path, stdin: str | None = None, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, env=env)

    return call
