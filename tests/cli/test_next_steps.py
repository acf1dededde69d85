"""What a run proposes to try next: a model its report found better, not the one with the highest win rate."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from pipeline.artifacts import Artifact, Store
from pipeline.cli.display.ending import next_commands


def _rate(value: float, low: float, high: float, p_value: float) -> dict[str, Any]:
    counts = {"wins": 9, "ties": 0, "losses": 5, "p_value": p_value}
    return {"win_rate": {"value": value, "low": low, "high": high, "n": 14}, "win_counts": counts}


def _chat(stocked: Store, commit: Callable[..., Artifact], models: dict[str, Any], name: str) -> str:
    report = {"schema": 2, "baseline": "sft", "models": {"sft": {}, **models}}
    made = commit(stocked, name, "one", {"report.json": json.dumps(report)}, kind="evaluate", makes="report")
    artifacts = [stocked.artifacts(stage)[-1] for stage in ("sft", "dpo")] + [
        commit(stocked, "ppo", name, {}, kind="ppo", makes="model")
    ]
    stages = [
        SimpleNamespace(stage=SimpleNamespace(spec=SimpleNamespace(name=artifact.manifest.name)), artifact=artifact)
        for artifact in (*artifacts, made)
    ]
    commands: list[str] = next_commands(stages, stocked, None)  # type: ignore[arg-type]
    return commands[0].split(" --store")[0]


def test_a_winner_is_chatted_with(stocked: Store, commit: Callable[..., Artifact]) -> None:
    greedy = {"sft (greedy)": {"variant": True, **_rate(0.9, 0.8, 1.0, 0.001)}}
    wins, draws = _rate(0.8, 0.6, 0.9, 0.01), _rate(0.643, 0.286, 0.929, 0.42)
    assert _chat(stocked, commit, {**greedy, "dpo": wins, "ppo": draws}, "one") == "trueup chat dpo"
    assert _chat(stocked, commit, {**greedy, "dpo": wins, "ppo": wins}, "two") == "trueup chat ppo"
    # Nothing won: the last one, as of any run.
    assert _chat(stocked, commit, {**greedy, "dpo": draws, "ppo": draws}, "three") == "trueup chat ppo"


def test_one_that_fell_while_its_reward_rose_is_not(stocked: Store, commit: Callable[..., Artifact]) -> None:
    up = {"value": 1.0, "low": 0.9, "high": 1.1, "n": 14, "p_value": 0.001}
    down = {"value": -1.0, "low": -1.1, "high": -0.9, "n": 14, "p_value": 0.001}
    wins = _rate(0.8, 0.6, 0.9, 0.01)
    gamed = {**wins, "gaming": {"proxy": up, "gold": down, "lag": down, "verdict": "gold fell"}}
    assert _chat(stocked, commit, {"dpo": wins, "ppo": gamed}, "one") == "trueup chat dpo"
