"""The peer of `benchmarks/ppo.py`: PPOTrainer of TRL 1.12, the last release that has it. Prints one JSON line.

    .venv-peer/bin/python benchmarks/ppo_trl_peer.py --steps 3

Imports nothing of the product, and runs in an environment of its own. Policy, reward model and value model are Llamas
of one size with random weights; prompts and responses have a fixed length (no stop token), so every episode costs the
same.

Per PPO step: rollout is `batch_generation`, score lasts from there to the first forward pass with gradients, update
from there to `on_step_end`. The trainer runs as it comes, except that gradient checkpointing and bf16 are off: both are
its defaults, and both make it slower on a CPU. Its first steps are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import (  # noqa: E402
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)

try:
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
except ImportError as error:
    sys.exit(f"trl {trl.__version__} has no PPO ({error}); the peer is trl 1.12.0, `make bench-ppo` installs it")

SPECIAL = ("<eos>", "<pad>", "<unk>")


def tokenizer(vocab: int) -> Any:
    """Return a word-level tokenizer with ``vocab`` entries."""
    words = {f"t{index}": index for index in range(vocab - len(SPECIAL))}
    words |= {token: vocab - len(SPECIAL) + place for place, token in enumerate(SPECIAL)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    eos, pad, unk = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, pad_token=pad, unk_token=unk, padding_side="left"
    )


class Clock(TrainerCallback):  # type: ignore[misc]
    """The seconds of each PPO step."""

    def __init__(self) -> None:
        """Put marks around the trainer's own functions."""
        self.steps: list[dict[str, float]] = []
        self.marks: dict[str, float] = {}
        generate, forward = ppo_trainer.batch_generation, ppo_trainer.forward

        def timed_generation(*args: Any, **kwargs: Any) -> Any:
            self.marks = {"start": time.perf_counter(), "cpu": time.process_time()}
            found = generate(*args, **kwargs)
            self.marks["sampled"] = time.perf_counter()
            return found

        def timed_forward(*args: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled():
                self.marks.setdefault("scored", time.perf_counter())
            return forward(*args, **kwargs)

        ppo_trainer.batch_generation, ppo_trainer.forward = timed_generation, timed_forward

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close a step."""
        marks, now = self.marks, time.perf_counter()
        self.steps.append(
            {
                "rollout_s": marks["sampled"] - marks["start"],
                "score_s": marks["scored"] - marks["sampled"],
                "update_s": now - marks["scored"],
                "step_s": now - marks["start"],
                "cpu_s": time.process_time() - marks["cpu"],
            }
        )


def settings(asked: argparse.Namespace, folder: str) -> Any:
    """Return the trainer's configuration."""
    return PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=asked.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=asked.epochs,
        total_episodes=asked.batch * (asked.steps + asked.warmup),
        local_rollout_forward_batch_size=asked.batch,
        response_length=asked.new_tokens,
        stop_token=None,
        temperature=1.0,
        kl_coef=0.05,
        learning_rate=3e-6,
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=asked.seed,
    )


def train(asked: argparse.Namespace) -> list[dict[str, float]]:
    """Run the trainer; return the seconds of each step."""
    torch.manual_seed(asked.seed)
    made = tokenizer(asked.vocab)
    shape = {
        "hidden_size": asked.hidden,
        "intermediate_size": asked.intermediate,
        "num_hidden_layers": asked.layers,
        "num_attention_heads": asked.heads,
        "num_key_value_heads": asked.heads,
        "vocab_size": asked.vocab,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": made.eos_token_id,
        "pad_token_id": made.pad_token_id,
        "tie_word_embeddings": False,
    }
    random = torch.Generator().manual_seed(asked.seed)
    count = asked.batch * (asked.steps + asked.warmup)
    ids = torch.randint(0, asked.vocab - len(SPECIAL), (count, asked.prompt), generator=random)
    data = Dataset.from_dict({"input_ids": ids.tolist()})
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=settings(asked, folder),
            processing_class=made,
            model=LlamaForCausalLM(LlamaConfig(**shape)),
            ref_model=None,
            reward_model=LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1)),
            value_model=LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1)),
            train_dataset=data,
            eval_dataset=data.select(range(asked.batch)),
            callbacks=[clock],
        )
        trainer.log = lambda *_, **__: None
        trainer.train()
    return clock.steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    sizes = {"hidden": 256, "intermediate": 688, "layers": 4, "heads": 4, "vocab": 1024}
    sizes |= {"prompt": 32, "new-tokens": 48, "batch": 32, "epochs": 4, "steps": 3, "warmup": 1, "seed": 0}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    sys.stdout, printed = sys.stderr, sys.stdout  # the trainer prints; the figures stay one line
    steps = train(asked)[asked.warmup :]
    sys.stdout = printed
    mean = {name: statistics.fmean(step[name] for step in steps) for name in steps[0]}
    figures = {
        "side": "peer",
        "episodes_per_s": asked.batch / mean["step_s"],
        "episodes_per_cpu_s": asked.batch / mean["cpu_s"],
        **mean,
        "cpu_share": mean["cpu_s"] / mean["step_s"],
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (1024**2 if sys.platform == "darwin" else 1024),
    }
    shown = {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    print(json.dumps({**shown, "steps": len(steps), "threads": torch.get_num_threads(), **versions}))


if __name__ == "__main__":
    main()
