"""`recipes/real-small.yaml` in miniature on real rows: every stage works on data as it comes, and learns."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("TRUEUP_REAL_DATA") or ROOT.parent / "shared" / "data")

pytestmark = pytest.mark.skipif(
    not (FOLDER / "preference").is_dir(), reason=f"no real data at {FOLDER}: set TRUEUP_REAL_DATA to its folder"
)

SMALLER = {
    "data.corpus.path": "${TRUEUP_REAL_DATA}/pretrain/tinyshakespeare.jsonl.gz",
    "data.demos.limit": "300",
    "data.pairs.path": "${TRUEUP_REAL_DATA}/preference/hh_harmless_a.jsonl.gz",
    "data.pairs.limit": "400",
    "data.asks.limit": "12",
    "stages.tokenizer.vocab_size": "1024",
    "stages.base.model.hidden_size": "64",
    "stages.base.model.intermediate_size": "128",
    "stages.base.model.num_hidden_layers": "2",
    "stages.base.model.max_position_embeddings": "512",
    "stages.base.train.max_steps": "60",
    "stages.base.train.lr_scheduler_kwargs.num_decay_steps": "20",
    "stages.sft.train.max_steps": "12",
    "stages.rm.train.max_steps": "12",
    "stages.dpo.train.max_steps": "8",
    "stages.report.max_new_tokens": "16",
}


def test_the_whole_chain_runs_on_real_rows(tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [part for key, value in SMALLER.items() for part in ("--set", f"{key}={value}")]
    monkeypatch.setenv("TRUEUP_REAL_DATA", str(FOLDER))
    done = call(
        "run", ROOT / "recipes" / "real-small.yaml", *changes, "--store", tmp_path / "store", "--json", cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    manifests = {
        file.parent.parent.name: json.loads(file.read_text()) for file in (tmp_path / "store").glob("*/*/manifest.json")
    }
    assert set(manifests) == {"tokenizer", "base", "sft", "rm", "dpo", "report"}
    # Loss falls: the first logged loss is near ln(1024) = 6.9, the last one well below.
    curve = [json.loads(line) for line in _file(tmp_path, "base", "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in curve if "loss" in row]
    assert losses[0] > 5.5
    assert losses[-1] < losses[0] - 1.0
    # The bad rows of the real preferences were kept aside and counted, not lost.
    rejected = manifests["dpo"]["data"]["data"]["rejected"]
    rejects = _file(tmp_path, "dpo", "rejects/pairs.jsonl")
    assert rejected == len(rejects.read_text().splitlines()) if rejected else not rejects.exists()
    card = json.loads(_file(tmp_path, "rm", "reward_card.json").read_text())
    assert card["accuracy"]["low"] < card["accuracy"]["value"] < card["accuracy"]["high"]
    report = json.loads(_file(tmp_path, "report", "report.json").read_text())
    assert report["judge"] == "reward"
    assert report["models"]["dpo"]["win_rate"]["n"] == 12


def _file(tmp_path: Path, stage: str, name: str) -> Path:
    return next((tmp_path / "store" / stage).glob("*")) / name
