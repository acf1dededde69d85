"""KTO: good responses gain on the reference and bad ones lose, whichever way round the labels are."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.stage import KINDS
from pipeline.stages.kto import _matched

TRAIN = {"max_steps": 24, "batch_size": 16, "learning_rate": 3e-3, "beta": 0.5}
LORA = {"adapter": {"r": 4}, "train": {**TRAIN, "learning_rate": 1e-2}}


@pytest.mark.parametrize(("order", "sign"), [("as they are", 1), ("swapped", -1)])
@pytest.mark.parametrize("config", [{"train": TRAIN}, LORA], ids=["full", "lora"])
def test_good_responses_gain_and_bad_ones_lose(
    order: str,
    sign: int,
    config: dict[str, Any],
    chain: Any,
    as_input: Any,
    run_stage: Callable[..., Any],
    swapped_pairs: dict[str, Path],
    load_plain: Any,
    read_rows: Any,
    response_logprob: Any,
) -> None:
    ran = run_stage("kto", config, data={"data": swapped_pairs[order]}, inputs={"model": as_input(chain["sft"])})
    # Policy and reference start as one model: no divergence, and the loss is 1 - σ(0) = 0.5 for every row.
    assert ran.history[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert ran.history[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    assert ran.history[-1]["loss"] < 0.4
    policy, tokenizer = load_plain(ran.out)
    reference, _ = load_plain(chain["sft"].path)
    gains: dict[str, list[float]] = {"chosen": [], "rejected": []}
    for row in read_rows(chain.recipe.parent / "pairs_test.jsonl")[:24]:
        for side, found in gains.items():
            new, old = (response_logprob(model, tokenizer, row["prompt"], row[side]) for model in (policy, reference))
            found.append(new - old)
    good, bad = (sum(gains[side]) / 24 for side in ("chosen", "rejected"))
    assert sign * (good - bad) > 1
    assert ran.outcome.result.metrics["rewards/margins"] > 0


def test_the_second_loss_by_hand(
    chain: Any,
    as_input: Any,
    run_stage: Callable[..., Any],
    load_plain: Any,
    read_rows: Any,
    write_jsonl: Any,
    tmp_path: Path,
    response_logprob: Any,
) -> None:
    """Without its estimate of divergence (`apo_zero_unpaired`) the loss is 1 - σ(β gain) or σ(β gain), averaged."""
    rows = read_rows(chain.recipe.parent / "pairs.jsonl")[:8]
    train = {"batch_size": 16, "learning_rate": 1e-3, "beta": 0.3, "lr_scheduler_type": "constant", "logging_steps": 1}
    train |= {"loss_type": "apo_zero_unpaired", "kl_batch": 4}
    data, inputs = {"data": write_jsonl(tmp_path / "p.jsonl", rows)}, {"model": as_input(chain["sft"])}
    one = run_stage("kto", {"train": {**train, "max_steps": 1}}, data=data, inputs=inputs, name="one")
    two = run_stage("kto", {"train": {**train, "max_steps": 2}}, data=data, inputs=inputs, name="two")
    policy, tokenizer = load_plain(one.out)
    start, _ = load_plain(chain["sft"].path)
    losses = []
    for row in rows:
        for side, sign in (("chosen", 1), ("rejected", -1)):
            new, old = (response_logprob(model, tokenizer, row["prompt"], row[side]) for model in (policy, start))
            losses.append(1 / (1 + math.exp(sign * 0.3 * (new - old))))  # 1 - σ(x) = σ(-x)
    assert two.history[1]["loss"] == pytest.approx(sum(losses) / 16, abs=1e-5)
    assert two.history[1]["loss"] < 0.5 - 1e-3


def test_a_run_cut_off_ends_in_the_same_bits(chain: Any, as_input: Any, run_stage: Callable[..., Any]) -> None:
    def run(name: str, **options: Any) -> list[str]:
        inputs = {"model": as_input(chain["sft"])}
        data = {"data": chain.recipe.parent / "pairs.jsonl"}
        train = {**TRAIN, "max_steps": 5, "logging_steps": 3}
        ran = run_stage("kto", {"train": train}, data=data, inputs=inputs, name=name, **options)
        files = [ran.out / name for name in ("model.safetensors", "metrics.jsonl")]
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.exists()] + [str(ran.out)]

    whole = run("whole")
    out = Path(whole[-1]).parent.parent / "cut"
    asked = iter([False] * 2 + [True] * 9)  # stops after the third step
    run("cut", out=out, stopping=lambda: any(out.rglob("reference-train.json")) and next(asked), expect="stopped")
    assert [path.name for path in out.rglob("checkpoint-*")] == ["checkpoint-3"]
    assert run("cut", out=out)[:-1] == whole[:-1]


def test_every_row_is_matched_with_a_response_to_another_prompt() -> None:
    rows = [{"prompt_ids": [i // 4, 1], "completion_ids": [i] * 9, "label": True} for i in range(12)]
    made = _matched(rows, rows, 6, 3)
    assert all(row["KL_completion_ids"][0] // 4 != i // 4 for i, row in enumerate(made))
    assert all(len(row["KL_completion_ids"]) == 4 for row in made)  # 6 tokens less the prompt's 2
    assert made == _matched(rows, rows, 6, 3)
    assert made != _matched(rows, rows, 6, 4)


def test_pairs_of_one_prompt_are_refused(
    chain: Any, as_input: Any, run_stage: Callable[..., Any], read_rows: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    row = read_rows(chain.recipe.parent / "pairs.jsonl")[0]
    data = {"data": write_jsonl(tmp_path / "p.jsonl", [row] * 16)}
    inputs = {"model": as_input(chain["sft"])}
    ran = run_stage("kto", {"train": TRAIN}, data=data, inputs=inputs, expect="failed")
    assert str(ran.outcome.problems[0]).startswith("all pairs have the same prompt, at least two")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"loss_type": "apo_zero_unpared"}, "train.loss_type is apo_zero_unpared, one of .*apo_zero_unpaired"),
        ({"kl_batch": 12}, r"train.batch_size is 16, a multiple of train.kl_batch \(12\)"),
    ],
)
def test_what_trl_would_not_take_is_refused_with_the_recipe(train: dict[str, Any], message: str) -> None:
    config = KINDS["kto"].config.model_validate({"data": "p", "model": "m", "train": {**TRAIN, **train}})
    (problem,) = config.check()
    assert re.match(message, str(problem))
