"""One side of `benchmarks/gpu.py` in its own process; prints one JSON line.

    python benchmarks/gpu_sides.py sft ours --scratch DIR [--smoke]

Ours: a recipe is written and read, and its stage runs as the runner would run it. trl: its trainer as its documentation
has it, on the same model, rows, batch, micro-batch and optimizer; padded, in random order, gradient checkpointing off.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stage_speed

warnings.filterwarnings("ignore")


@dataclass(frozen=True)
class Size:
    """How large everything is; lengths in words, which are tokens.

    Attributes:
        micro_tokens: tokens of a forward pass.
    """

    hidden: int = 1024
    intermediate: int = 2816
    layers: int = 24
    heads: int = 16
    words: int = 31_995
    context: int = 2048
    rows: int = 32
    conversations: int = 64
    pairs: int = 32
    micro: int = 8
    steps: int = 20
    warmup: int = 6
    rollout: int = 64
    new_tokens: int = 128
    iterations: int = 3
    epochs: int = 2
    device: str = "cuda"
    precision: str = "bf16"
    backend: str = "inductor"


SMOKE = Size(64, 176, 2, 4, 507, 128, 8, 8, 4, 4, 3, 1, 4, 6, 2, 1, "cpu", "fp32", "eager")

RECIPE = """\
name: gpu
seed: 3
data: {{rows: {{path: {rows}}}}}
stages:
  it:
    kind: {kind}
    data: rows
    {model}: {base}
    {more}
    train: {train}
compute: {compute}
"""


def text(rng: random.Random, words: int) -> str:
    """Return that many random words of the vocabulary."""
    return stage_speed.text(rng, words)


def prepare(size: Size, scratch: Path, *, with_judge: bool) -> Path:
    """Write the random model, its tokenizer, and where asked a reward model, once for all sides; return the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from pipeline.models.load.scratch import build_causal_lm
    from pipeline.models.save.artifact import save_model

    made = stage_speed.tokenizer()
    shape = {
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "max_position_embeddings": size.context,
    }
    base, judge = scratch / "base", scratch / "judge"
    if not (base / "config.json").is_file():
        save_model(build_causal_lm({"type": "llama", "tie_word_embeddings": True, **shape}, made, 3), made, base)
    if with_judge and not (judge / "config.json").is_file():
        torch.manual_seed(4)
        ids = {"eos_token_id": made.eos_token_id, "pad_token_id": made.pad_token_id, "bos_token_id": None}
        config = LlamaConfig(**shape, vocab_size=len(made), num_labels=1, **ids)
        save_model(LlamaForSequenceClassification(config), made, judge)
    return base


def conversations(size: Size, count: int) -> list[dict[str, Any]]:
    """Return conversations of a sixteenth of the context to the whole."""
    rng, rows = random.Random(5), []
    for _ in range(count):
        words = rng.randint(size.context // 16, size.context) - 5  # four special tokens and the end of the answer
        question = text(rng, 2)
        answer = text(rng, max(1, words - 2))
        rows.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    return rows


def pairs(size: Size, count: int) -> list[dict[str, Any]]:
    """Return prompts of up to a quarter of the context with two answers of up to a quarter each."""
    rng, most = random.Random(6), size.context // 4
    long = lambda: text(rng, rng.randint(max(2, most // 8), most - 8))  # noqa: E731
    return [
        {
            "prompt": [{"role": "user", "content": long()}],
            "chosen": [{"role": "assistant", "content": long()}],
            "rejected": [{"role": "assistant", "content": long()}],
        }
        for _ in range(count)
    ]


def rows_of(kind: str, size: Size) -> list[dict[str, Any]]:
    """Return the rows a kind trains on: enough for its steps without a second pass."""
    steps, rng = size.steps + size.warmup, random.Random(7)
    if kind == "pretrain":
        return [{"text": text(rng, size.context - 1)} for _ in range(size.rows * steps)]
    if kind == "ppo":
        count = size.rollout * (size.iterations + 1)
        return [{"prompt": text(rng, size.new_tokens)} for _ in range(count)]
    return pairs(size, size.pairs * steps) if kind == "dpo" else conversations(size, size.conversations * steps)


class Clock:
    """Marks (step, seconds) once the device has done all it was asked to."""

    def __init__(self, size: Size) -> None:
        import torch

        self.size = size
        self.torch: Any = torch
        self.marks: list[tuple[int, float]] = []

    def __call__(self, step: int) -> None:
        """Mark a step."""
        if self.size.device == "cuda":
            self.torch.cuda.synchronize()
        self.marks.append((step, time.perf_counter()))

    def measured(self) -> tuple[int, int, float]:
        """Return the first and the last step measured, and the seconds between them."""
        first = next(mark for mark in self.marks if mark[0] >= self.size.warmup)
        last = self.marks[-1]
        return first[0], last[0], last[1] - first[1]

    def peak_mib(self) -> float:
        """Return the largest memory this process has held: of the GPU, or resident."""
        if self.size.device == "cuda":
            return float(self.torch.cuda.max_memory_allocated() / 2**20)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def train_of(kind: str, size: Size) -> dict[str, Any]:
    """Return the `train:` block of a kind."""
    if kind == "ppo":
        return {
            "iterations": size.iterations + 1,
            "rollout_batch": size.rollout,
            "epochs": size.epochs,
            "max_new_tokens": size.new_tokens,
            "target_kl": 0,  # no epoch is skipped
            "max_ratio": 0,
            "token_budget": size.micro * size.context,
            "eval_every": 1000,
            "eval_prompts": 2,
        }
    batch = {"pretrain": size.rows, "sft_packed": size.rows, "dpo": size.pairs, "sft": size.conversations}[kind]
    train = {"batch_size": batch, "learning_rate": 1e-5, "lr_scheduler_type": "constant", "epochs": 1}
    train |= {"max_length": size.context, "torch_compile": True, "torch_compile_backend": size.backend}
    packed = {"mode": "packed"} if kind in ("pretrain", "sft_packed") else {}
    return {**train, **packed}


def ours(kind: str, size: Size, scratch: Path) -> dict[str, Any]:
    """Run the product's own stage from a recipe and time its steps from the events it sends."""
    from pipeline.launch.job import DataJob, Job, context_of
    from pipeline.recipe import load
    from pipeline.stage import Event, ResolvedInput, kind_of
    from pipeline.stages import load_all

    load_all()
    base = prepare(size, scratch, with_judge=kind == "ppo")
    folder = scratch / f"{kind}-ours"
    folder.mkdir()
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(kind, size)), encoding="utf-8")
    stage_kind = kind.partition("_")[0]
    start = "init" if kind == "pretrain" else "model"
    compute = {"device": size.device, "precision": size.precision, "micro_batch": size.micro}
    more = f"reward: {scratch / 'judge'}" if kind == "ppo" else ""
    written = RECIPE.format(
        rows=file,
        kind=stage_kind,
        model=start,
        base=base,
        more=more,
        train=json.dumps(train_of(kind, size)),
        compute=json.dumps(compute),
    )
    (folder / "gpu.yaml").write_text(written, encoding="utf-8")
    recipe = load(folder / "gpu.yaml")
    spec = recipe.stages["it"]
    inputs = {start: [ResolvedInput(ref="base", name="base", kind="external", fingerprint="b", path=str(base))]}
    if kind == "ppo":
        judge = str(scratch / "judge")
        inputs["reward"] = [ResolvedInput(ref="judge", name="judge", kind="external", fingerprint="j", path=judge)]
    for name in ("out", "work"):
        (folder / name).mkdir()
    clock, training, iterations = Clock(size), [False], _watched(size)

    def emit(event: Event) -> None:
        if event.kind == "phase":
            training[0] = event.text.startswith("training")
        elif event.kind == "progress" and training[0]:
            clock(event.step)

    job = Job(
        name="it",
        kind=spec.kind,
        config=spec.config.model_dump(),
        seed=spec.seed,
        out=folder / "out",
        work=folder / "work",
        log=folder / "log",
        inputs=inputs,
        data={"data": DataJob("rows", recipe.data["rows"], None, folder / "rejects.jsonl")},
        compute=spec.compute.model_copy(update={"checkpoint_every_s": 1e9}),
    )
    context, _ = context_of(job, emit, lambda: False)
    result = kind_of(spec.kind).load_run()(context, spec.config)
    made = {"loss": result.metrics.get("loss", 0.0), "peak_memory_mib": clock.peak_mib(), "how": context.runtime_report}
    if kind == "ppo":
        return {**made, **_ppo_figures(iterations, size)}
    first, last, seconds = clock.measured()
    lengths = _lengths(kind, size)
    tokens = _tokens(kind, lengths, size, spec.seed, first, last)
    seconds += result.scoring_seconds * tokens / sum(lengths)
    return {**made, "tokens_per_s": tokens / seconds, "steps": last - first, "sequence": _mean_length(lengths)}


def _watched(size: Size) -> list[dict[str, float]]:
    """Let PPO's trainer hand its metrics of every iteration over as well; return where they go."""
    from pipeline.rl.ppo.trainer import PPOTrainer

    seen: list[dict[str, float]] = []
    inner = PPOTrainer.iterate

    def iterate(self: Any) -> dict[str, float]:
        metrics = inner(self)
        seen.append(dict(metrics))
        return metrics

    PPOTrainer.iterate = iterate  # type: ignore[method-assign]
    return seen


def _ppo_figures(iterations: list[dict[str, float]], size: Size) -> dict[str, float]:
    later = iterations[1:]  # the first one warms up
    parts = {name: statistics.fmean(one[f"seconds_{name}"] for one in later) for name in ("rollout", "score", "update")}
    whole = sum(parts.values())
    length = statistics.fmean(one["length"] for one in later)
    responses = size.rollout * length
    return {
        **{f"{name}_s": seconds for name, seconds in parts.items()},
        "step_s": whole,
        "response_tokens_per_s": responses / whole,
        "rollout_tokens_per_s": responses / parts["rollout"],
        "episodes_per_s": size.rollout / whole,
        "sequence": size.new_tokens + length,
    }


def _lengths(kind: str, size: Size) -> list[int]:
    """Return the tokens of every sequence; of a pair, both of its sequences."""
    rows, turn = rows_of(kind, size), 2  # a turn's role and its end
    if kind == "pretrain":
        return [size.context] * len(rows)
    if kind == "dpo":
        said = [{side: len(row[side][0]["content"].split()) for side in row} for row in rows]
        return [one["prompt"] + one[side] + 2 * turn for one in said for side in ("chosen", "rejected")]
    return [sum(len(message["content"].split()) + turn for message in row["messages"]) for row in rows]


def _tokens(kind: str, lengths: list[int], size: Size, seed: int, first: int, last: int) -> float:
    """Return the real tokens of our steps after the first to the last."""
    from pipeline.training.data.batches import Batches

    if kind == "sft_packed":  # full rows, much alike
        return sum(lengths) * (last - first) / last
    rows = [sum(both) for both in zip(lengths[::2], lengths[1::2], strict=True)] if kind == "dpo" else lengths
    batch = {"pretrain": size.rows, "sft": size.conversations, "dpo": size.pairs}[kind]
    batches = Batches(rows, batch, batch, seed)
    return batches.tokens(last) - batches.tokens(first)


def _mean_length(lengths: list[int]) -> float:
    """Return the mean length of the sequence that a token stands in."""
    return sum(length**2 for length in lengths) / sum(lengths)


def peer(kind: str, size: Size, scratch: Path) -> dict[str, Any]:
    """Run trl's own trainer on the same model, rows, batch and optimizer."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    base = prepare(size, scratch, with_judge=False)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    clock = Clock(size)

    class Marks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock(state.global_step)

    batch = size.pairs if kind == "dpo" else size.conversations
    values: dict[str, Any] = {
        "output_dir": str(scratch / f"{kind}-trl"),
        "per_device_train_batch_size": size.micro,
        "gradient_accumulation_steps": batch // size.micro,
        "num_train_epochs": 1,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "max_length": size.context,
        "bf16": size.precision == "bf16",
        "use_cpu": size.device == "cpu",
        "gradient_checkpointing": False,
        "torch_compile": True,
        "torch_compile_backend": size.backend,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 10,
        "disable_tqdm": True,
        "dataloader_pin_memory": size.device == "cuda",
    }
    rows = Dataset.from_list(rows_of(kind, size))
    common = {"model": model, "train_dataset": rows, "processing_class": tokenizer, "callbacks": [Marks()]}
    trainer: Any
    if kind == "dpo":
        trainer = DPOTrainer(args=DPOConfig(**values), **common)
    else:
        trainer = SFTTrainer(args=SFTConfig(assistant_only_loss=True, **values), **common)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    first, last, seconds = clock.measured()
    lengths = _lengths(kind, size)
    tokens = sum(lengths) * (last - first) / last
    return {
        "tokens_per_s": tokens / seconds,
        "steps": last - first,
        "sequence": _mean_length(lengths),
        "peak_memory_mib": clock.peak_mib(),
    }


def main() -> None:
    """Measure one side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("kind", choices=("pretrain", "sft", "sft_packed", "dpo", "ppo"))
    parser.add_argument("side", choices=("ours", "trl"))
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    size = SMOKE if asked.smoke else Size()
    stage_speed.WORDS = size.words
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    figures = (ours if asked.side == "ours" else peer)(asked.kind, size, asked.scratch)
    config = transformers.AutoConfig.from_pretrained(asked.scratch / "base")
    with torch.device("meta"):
        parameters = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters())
    card = torch.cuda.get_device_name(0) if size.device == "cuda" else "cpu"
    facts = {"card": card, "parameters": parameters, "layers": size.layers, "hidden": size.hidden}
    shown = {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"side": f"{asked.kind} {asked.side}", **facts, **shown, **versions}))


if __name__ == "__main__":
    main()
