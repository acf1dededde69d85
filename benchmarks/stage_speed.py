"""Measures one side of a training benchmark in its own process and prints one JSON line.

    python benchmarks/stage_speed.py sft ours      # the product's sft stage
    python benchmarks/stage_speed.py sft peer      # plain trl SFTTrainer, packing off, fp32
    python benchmarks/stage_speed.py pretrain ours # the product's pretrain stage
    python benchmarks/stage_speed.py pretrain peer # a bare loop: forward, loss, backward, AdamW; nothing else

Both sides of a pair train the same randomly initialised Llama on the same synthetic rows. Tokens/s counts real
(non-padding) tokens from the end of the warm-up steps to the end of the last one, data loading included.
`benchmarks/run.py` alternates the sides and compares medians.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
WORDS = 1019
BATCH = 16
WARMUP = 2


@dataclass(frozen=True)
class Rows:
    """Rows of one shape, already in the form `StageContext.load_rows` returns."""

    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]


def tokenizer() -> Any:
    """Return a word-level tokenizer with 1,024 entries in the product's chat format: one word is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from pipeline.models.tokenizer.chat_format import CHAT_TEMPLATE, END, PAD, SPECIAL_TOKENS

    words = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    words |= {f"t{index}": index + len(SPECIAL_TOKENS) for index in range(WORDS)}
    backend = Tokenizer(models.WordLevel(words, unk_token="t0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (END, PAD)],
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def text(rng: random.Random, words: int) -> str:
    """Return ``words`` random words."""
    return " ".join(f"t{rng.randrange(WORDS)}" for _ in range(words))


def sft_rows(steps: int, seed: int) -> list[dict[str, Any]]:
    """Return conversations of 64 to 256 tokens: a short question, and an answer that makes up the rest."""
    rng = random.Random(seed)
    rows = []
    for _ in range(BATCH * (steps + WARMUP)):
        words = rng.randint(64, 256) - 5  # four special tokens and the end of the answer
        question = text(rng, 8)
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": text(rng, words - 8)},
                ]
            }
        )
    return rows


def pretrain_rows(steps: int, seed: int) -> list[dict[str, Any]]:
    """Return texts of 159 words: 160 tokens with the end token."""
    rng = random.Random(seed)
    return [{"text": text(rng, 159)} for _ in range(BATCH * (steps + WARMUP))]


def ours(kind: str, steps: int, seed: int) -> dict[str, Any]:
    """Run the product's own stage and time its steps from the events it sends."""
    from pipeline.kind.compute import ComputeSettings
    from pipeline.models.load.scratch import build_causal_lm
    from pipeline.models.save.artifact import save_model
    from pipeline.stage import Event, ResolvedInput, StageContext, kind_of
    from pipeline.stages import load_all

    total = steps + WARMUP
    marks: list[tuple[int, float, float]] = []

    def emit(event: Event) -> None:
        if event.kind == "progress" and event.total == total:  # the encoding of rows tells of its progress too
            marks.append((event.step, time.perf_counter(), time.process_time()))

    load_all()
    stage = kind_of(kind)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        made = tokenizer()
        save_model(build_causal_lm({"type": "llama", **SHAPE}, made, seed), made, base)
        rows = sft_rows(steps, seed) if kind == "sft" else pretrain_rows(steps, seed)
        source = ResolvedInput(ref="base", name="base", kind="external", fingerprint="bench", path=str(base))
        for name in ("out", "work"):
            (Path(folder) / name).mkdir()
        context = StageContext(
            name=kind,
            seed=seed,
            out=Path(folder) / "out",
            work=Path(folder) / "work",
            inputs={"model": [source], "init": [source], "tokenizer": [source]},
            load_rows=lambda _: Rows(rows, []),
            compute=ComputeSettings(),
            emit=emit,
            stopping=lambda: False,
        )
        train = {"batch_size": BATCH, "max_steps": total, "learning_rate": 1e-4, "lr_scheduler_type": "constant"}
        config = {"data": "rows", "train": train, **({"model": "base"} if kind == "sft" else {"init": "base"})}
        result = stage.load_run()(context, stage.config(**config))
    first = next(mark for mark in marks if mark[0] >= WARMUP)
    last = marks[-1]
    lengths = [len(row) for row in _lengths(kind, rows)]
    tokens = _tokens(lengths, seed, first[0], last[0])
    return {
        "tokens_per_s": tokens / (last[1] - first[1]),
        "tokens_per_cpu_s": tokens / (last[2] - first[2]),
        "steps": last[0] - first[0],
        "loss": result.metrics["loss"],
    }


def _lengths(kind: str, rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return each row as a list with one item per token."""
    if kind == "pretrain":
        return [[*row["text"].split(), "<|end|>"] for row in rows]
    return [
        [token for message in row["messages"] for token in ("<|role|>", *message["content"].split(), "<|end|>")]
        for row in rows
    ]


def _tokens(lengths: list[int], seed: int, first: int, last: int) -> int:
    from pipeline.training.data.batches import Batches

    batches = Batches(lengths, BATCH, BATCH, seed)
    return batches.tokens(last) - batches.tokens(first)


def peer_sft(steps: int, seed: int) -> dict[str, Any]:
    """Run trl's SFTTrainer as its documentation does: random order, padded batches, packing off; fp32 for fairness."""
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    disable_progress_bar()
    made = tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            **SHAPE,
            vocab_size=len(made),
            bos_token_id=None,
            eos_token_id=made.eos_token_id,
            pad_token_id=made.pad_token_id,
        )
    )

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            marks.append((time.perf_counter(), time.process_time()))

    marks: list[tuple[float, float]] = []
    real: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=steps + WARMUP,
            max_length=256,
            assistant_only_loss=True,
            bf16=False,
            activation_checkpointing=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            use_cpu=True,
            seed=seed,
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(sft_rows(steps, seed)),
            processing_class=made,
            callbacks=[Clock()],
        )
        inner = trainer.training_step

        def counted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            real.append(int(inputs["attention_mask"].sum()))
            return inner(model, inputs, *args, **kwargs)

        trainer.training_step = counted
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    tokens = sum(real[WARMUP:])
    (wall, cpu), (end_wall, end_cpu) = marks[WARMUP - 1], marks[-1]
    return {"tokens_per_s": tokens / (end_wall - wall), "tokens_per_cpu_s": tokens / (end_cpu - cpu), "steps": steps}


def peer_pretrain(steps: int, seed: int) -> dict[str, Any]:
    """Run a bare loop on the same model and rows: nothing but forward, loss, backward and AdamW."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    made = tokenizer()
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=len(made), use_cache=False)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    ids = torch.tensor([made(row["text"] + "<|end|>")["input_ids"] for row in pretrain_rows(steps, seed)])
    wall = cpu = 0.0
    for step in range(steps + WARMUP):
        if step == WARMUP:
            wall, cpu = time.perf_counter(), time.process_time()
        batch = ids[step * BATCH : (step + 1) * BATCH]
        logits = model(input_ids=batch).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    tokens = steps * ids[:BATCH].numel()
    return {
        "tokens_per_s": tokens / (time.perf_counter() - wall),
        "tokens_per_cpu_s": tokens / (time.process_time() - cpu),
        "steps": steps,
        "loss": loss.item(),
    }


def main() -> None:
    """Measure one side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kind", choices=("sft", "pretrain"))
    parser.add_argument("side", choices=("ours", "peer"))
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    if asked.side == "ours":
        figures = ours(asked.kind, asked.steps, asked.seed)
    else:
        figures = (peer_sft if asked.kind == "sft" else peer_pretrain)(asked.steps, asked.seed)
    shown = {key: round(value, 4) for key, value in figures.items()}
    print(json.dumps({"bench": asked.kind, "side": asked.side, "threads": torch.get_num_threads(), **shown}))


if __name__ == "__main__":
    main()
