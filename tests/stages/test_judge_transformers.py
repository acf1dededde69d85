"""The judge asks a real server: `transformers serve`, on the tiny chain's checkpoint and on SmolLM2-135M-Instruct.

The tiny checkpoint knows no English and prefers nothing, but which of the tokens `A` and `B` it finds likelier depends
on what it reads. A bias on both makes one of them its answer, and a further one on `B` splits its verdicts evenly. What
it must say is computed beside it, by a plain forward pass.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from model_server import served

from pipeline.evaluation.judges.endpoint import Endpoint
from pipeline.evaluation.judges.pairs import pairs_of

pytest.importorskip("fastapi", reason="`transformers serve` needs fastapi, of the extra `test`")

MODELS = Path(os.environ.get("TRUEUP_REAL_MODELS") or Path(__file__).parents[3] / "shared" / "models")
SMOLLM = MODELS / "smollm2-135m-instruct"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("serve")]


def _rows() -> list[dict[str, Any]]:
    """Return eight pairs of the tiny world."""
    asked = [f"which colour has the {thing} ?" for thing in ("cat", "dog", "sun", "sky", "sea", "leaf", "rose", "snow")]
    return [
        {
            "prompt": [{"role": "user", "content": text}],
            "chosen": [{"role": "assistant", "content": "it is red ."}],
            "rejected": [{"role": "assistant", "content": f"go away , it is {colour} ."}],
        }
        for text, colour in zip(asked, ("red", "blue", "green", "white") * 2, strict=True)
    ]


def _leanings(folder: Path, endpoint: Endpoint, load_plain: Callable[[Path], tuple[Any, Any]]) -> dict[str, float]:
    """Return by how much the model finds `A` likelier than `B`, by the text of the request."""
    model, tokenizer = load_plain(folder)
    a, b = (tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "AB")
    leanings = {}
    for pair in pairs_of(_rows(), "preference").pairs:
        for request in endpoint.requests(pair):
            ids = tokenizer.apply_chat_template(
                request.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, -1]
            leanings[request.messages[-1]["content"]] = float(logits[a] - logits[b])
    return leanings


def test_a_served_checkpoint_judges_as_the_model_itself_does(
    tmp_path: Path,
    chain: Any,
    load_plain: Callable[[Path], tuple[Any, Any]],
    run_stage: Callable[..., Any],
    write_jsonl: Any,
) -> None:
    folder = chain["sft"].path
    template = "{prompt} {first} or {second}"
    settings: dict[str, Any] = {"url": "", "model": str(folder), "max_tokens": 1, "template": template, "parallel": 2}
    leanings = _leanings(folder, Endpoint.model_validate({**settings, "url": "http://h"}), load_plain)
    ordered = sorted(leanings.values())
    gaps = [(high - low, (high + low) / 2) for low, high in pairwise(ordered[3:-3])]
    width, split = max(gaps)
    assert width > 1e-3  # rounding does not decide
    _, tokenizer = load_plain(folder)
    a, b = (str(tokenizer.encode(letter, add_special_tokens=False)[0]) for letter in "AB")
    settings["parameters"] = {"logit_bias": {a: 50.0, b: 50.0 + split}}
    rows = write_jsonl(tmp_path / "rows.jsonl", _rows())
    with served(folder, tmp_path / "home") as url:

        def judge(name: str) -> Any:
            out = tmp_path / "store" / ".work" / name
            return run_stage("judge", {"endpoint": {**settings, "url": url}}, data={"data": rows}, out=out, expect=None)

        ran = judge("first")
        again = judge("second")
    said = [json.loads(line) for line in (_told(ran)).read_text().splitlines()]
    for row in said:
        texts = [row["first"][0]["content"], row["second"][0]["content"]]
        for order, (first, second) in zip(row["orders"], (texts, texts[::-1]), strict=True):
            leaning = leanings[f"{row['prompt'][0]['content']} {first} or {second}"]
            assert order["reply"] == order["verdict"] == ("A" if leaning > split else "B")
            assert order["probability"] in (0.0, 1.0)  # it passes over `logprobs`, and says so in its log only
    assert len({order["verdict"] for row in said for order in row["orders"]}) == 2
    assert (_told(again)).read_bytes() == (_told(ran)).read_bytes()
    assert any("no calls to send" in note for note in again.notes)


def _told(ran: Any) -> Path:
    """Return the file with all verdicts; it is in the work folder if nothing is preferred in both orders."""
    file = ran.out / "verdicts.jsonl"
    return file if file.is_file() else ran.work / "verdicts.jsonl"


@pytest.mark.whole
def test_an_instruction_tuned_model_judges_real_pairs(
    tmp_path: Path, load_plain: Callable[[Path], tuple[Any, Any]], run_stage: Callable[..., Any], write_jsonl: Any
) -> None:
    if not (SMOLLM / "model.safetensors").is_file():
        pytest.skip("TRUEUP_REAL_MODELS names no folder with smollm2-135m-instruct and its model.safetensors")
    questions = {
        "What is the capital of France?": ("The capital of France is Paris.", "I like cheese."),
        "Name a colour.": ("Blue is a colour.", "Seven."),
        "How much is two and two?": ("Two and two is four.", "Go away."),
    }
    rows = [{"prompt": asked, "chosen": good, "rejected": bad} for asked, (good, bad) in questions.items()]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    _, tokenizer = load_plain(SMOLLM)
    bias = {str(tokenizer.encode(letter, add_special_tokens=False)[0]): 50.0 for letter in "AB"}
    with served(SMOLLM, tmp_path / "home") as url:
        endpoint = {"url": url, "model": str(SMOLLM), "max_tokens": 24, "parallel": 1, "timeout_s": 600}

        def judge(name: str, **more: Any) -> list[dict[str, Any]]:
            config = {"endpoint": {**endpoint, **more}, "max_errors": 1.0}
            out = tmp_path / "store" / ".work" / name
            ran = run_stage("judge", config, data={"data": file}, out=out, expect=None)
            return [json.loads(line) for line in _told(ran).read_text().splitlines()]

        free = judge("free")
        bound = judge("bound", max_tokens=1, parameters={"logit_bias": bias})
    # It is too small to judge, or to end as asked: what it does is told, pair by pair.
    assert len(free) == len(bound) == 3
    for row in free:
        assert row["outcome"] in ("first", "second", "tie", "flip") or "no verdict in the reply" in row["error"]
    assert {row["outcome"] for row in bound} <= {"first", "second", "flip"}
