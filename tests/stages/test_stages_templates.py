"""Real tokenizers and templates through the stages that train: small random models, one step each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.stage import ResolvedInput

FOLDER = Path(os.environ.get("TRUEUP_REAL_MODELS") or Path(__file__).parents[3] / "shared" / "models")
TALKING = [
    pytest.param("smollm2-135m-instruct", "", marks=pytest.mark.whole),  # pads with its end of turn
    ("mistral-7b-instruct-v0.2", ""),  # no padding token
    pytest.param("qwen3", "", marks=pytest.mark.whole),  # no start token; earlier thoughts are taken out
    ("smollm2-135m-instruct", "falcon-instruct"),  # ends turns with nothing
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (FOLDER / "qwen3").is_dir(), reason=f"no models at {FOLDER}: set TRUEUP_REAL_MODELS"),
]


def _demonstration(i: int) -> dict[str, Any]:
    asked, said = f"What is {i} plus 2?", f"\n\nIt is {i + 2}."
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


DEMOS = [_demonstration(i) for i in range(4)]
PAIRS = [{"prompt": f"Say {i} <|im_end|></s>", "chosen": f"Well, {i}.", "rejected": "No."} for i in range(4)]
KTO = [{"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2 == 0} for i, row in enumerate(PAIRS)]
ASKS = [{"prompt": row["prompt"]} for row in PAIRS]
TRAIN = {"max_steps": 1, "batch_size": 4, "learning_rate": 1e-3}


def as_source(folder: Path) -> ResolvedInput:
    return ResolvedInput(ref="base", name="base", kind="external", fingerprint="f" * 64, path=str(folder))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], ResolvedInput]:
    """Make a random model with a real tokenizer and template."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    def make(name: str, template: str) -> ResolvedInput:
        folder = tmp_path_factory.mktemp("small")
        tokenizer = AutoTokenizer.from_pretrained(FOLDER / name)
        if template:
            tokenizer.chat_template = (FOLDER / "chat_templates" / f"{template}.jinja").read_text().strip()
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            num_key_value_heads=1, max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return as_source(folder)

    return make


def through_all_stages(
    run_stage: Any, write_jsonl: Any, tmp_path: Path, model: ResolvedInput, rows: dict[str, Any]
) -> dict[str, Any]:
    """Run every stage that trains for a step; return what each did."""
    files = {name: write_jsonl(tmp_path / f"{name}.jsonl", each) for name, each in rows.items()}
    ran = {"sft": run_stage("sft", {"train": TRAIN}, data={"data": files["demos"]}, inputs={"model": model})}
    for kind, more in (("reward", {}), ("dpo", {}), ("kto", {"kl_batch": 4})):
        rows_of = files["kto" if kind == "kto" else "pairs"]
        ran[kind] = run_stage(kind, {"train": {**TRAIN, **more}}, data={"data": rows_of}, inputs={"model": model})
    ppo = {"iterations": 1, "rollout_batch": 3, "max_new_tokens": 4}
    inputs = {"model": model, "reward": [ran["reward"].source]}
    config = {"reward": ["made"], "train": ppo}
    ran["ppo"] = run_stage("ppo", config, data={"data": files["asks"]}, inputs=inputs)
    return ran


@pytest.mark.parametrize(("name", "template"), TALKING)
def test_a_tokenizer_and_its_template_go_through_every_stage(
    run_stage: Any, write_jsonl: Any, tmp_path: Path, small_model: Any, name: str, template: str
) -> None:
    rows = {"demos": DEMOS, "pairs": PAIRS, "kto": KTO, "asks": ASKS}
    ran = through_all_stages(run_stage, write_jsonl, tmp_path, small_model(name, template), rows)
    assert_score_is_read_at_the_end(ran["reward"].out)


def test_a_base_model_without_a_template_goes_on_with_plain_text(
    run_stage: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    demos = [{"prompt": f"Once upon {i} times,", "completion": " there was a cat."} for i in range(4)]
    rows = {"demos": demos, "pairs": PAIRS, "kto": KTO, "asks": ASKS}
    ran = through_all_stages(run_stage, write_jsonl, tmp_path, as_source(FOLDER / "stories260K"), rows)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "stories260K")

    def text(*parts: str) -> int:
        """Count the tokens of one text between the tokenizer's own start and end, none of them made of its words."""
        return 2 + len(tokenizer("".join(parts), add_special_tokens=False, split_special_tokens=True)["input_ids"])

    tokens = {kind: one.outcome.result.tokens for kind, one in ran.items()}
    assert tokens["sft"] == sum(text(row["prompt"], row["completion"]) for row in demos)
    both = sum(text(row["prompt"], row[side]) for row in PAIRS for side in ("chosen", "rejected"))
    assert tokens["reward"] == tokens["dpo"] == both
    assert_score_is_read_at_the_end(ran["reward"].out)


def assert_score_is_read_at_the_end(folder: Path) -> None:
    """transformers alone, on padded rows, gives the score of the last token, also where that is the end token."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from pipeline.models.scoring import sequence_scores

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ended, cut = [5, 6, 7, tokenizer.eos_token_id], [5, 6, 7]
    padded = torch.tensor([ended, [*cut, tokenizer.pad_token_id]])
    theirs = model(input_ids=padded).logits[:, 0].tolist()
    ours = sequence_scores(model, [ended, cut], tokenizer.pad_token_id)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert abs(ours[0] - ours[1]) > 1e-6
