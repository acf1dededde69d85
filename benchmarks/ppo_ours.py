"""Our side of `benchmarks/ppo.py`: the product's PPO trainer, without a recipe. Prints one JSON line.

    python benchmarks/ppo_ours.py shared     # all weights, a value head on the policy's trunk
    python benchmarks/ppo_ours.py separate   # all weights, and a value model of its own: the peer's work
    python benchmarks/ppo_ours.py cached     # LoRA on the top half, the lower half computed once per rollout

Same shapes, prompts of fixed length, and responses without a stop token as the peer's; a step is one iteration, its
metrics included. The start-up check of the stage runs before the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import sys
import time
import warnings
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

MODES = ("shared", "separate", "cached")


def trainer(asked: argparse.Namespace) -> Any:
    """Return the trainer of a mode, put together as the ppo stage does it."""
    import torch
    from stage_speed import tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from pipeline.models.cpu.matmul import use_fastest_matmul
    from pipeline.models.generate.decode import GenerationSettings
    from pipeline.models.generate.engines.batched import BatchedEngine
    from pipeline.models.load.adapter_config import Adapter
    from pipeline.models.scoring import sequence_scores
    from pipeline.rl.policy.build import build_policy, check_policy
    from pipeline.rl.ppo.settings import PPOSettings
    from pipeline.rl.ppo.trainer import PPOTrainer
    from pipeline.rl.rollout.episodes import Prompt

    use_fastest_matmul()
    torch.manual_seed(asked.seed)
    made = tokenizer()
    if len(made) != asked.vocab:
        sys.exit(f"the tokenizer has {len(made)} entries, not {asked.vocab}")
    config = LlamaConfig(
        hidden_size=asked.hidden,
        intermediate_size=asked.intermediate,
        num_hidden_layers=asked.layers,
        num_attention_heads=asked.heads,
        num_key_value_heads=asked.heads,
        vocab_size=asked.vocab,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=made.eos_token_id,
        pad_token_id=made.pad_token_id,
        tie_word_embeddings=False,
        num_labels=1,
    )
    reward = LlamaForSequenceClassification(config).requires_grad_(False)
    policy = build_policy(
        LlamaForCausalLM(config),
        layout="separate" if asked.mode == "separate" else "shared",
        adapter=Adapter(r=16, layers="top-half") if asked.mode == "cached" else None,
        value_start=LlamaForSequenceClassification(config) if asked.mode == "separate" else None,
        seed=asked.seed,
    )
    rng = random.Random(asked.seed)
    count = asked.batch * (asked.steps + asked.warmup)
    prompts = [Prompt({}, tuple(rng.randrange(asked.vocab) for _ in range(asked.prompt))) for _ in range(count)]
    engine, generation = BatchedEngine(), GenerationSettings(asked.new_tokens, [], made.pad_token_id)
    check_policy(policy, engine, prompts, generation)
    if (asked.mode == "cached") != (policy.cut is not None):
        sys.exit(f"mode {asked.mode} runs with cut {policy.cut}")
    return PPOTrainer(
        policy=policy,
        settings=PPOSettings(
            iterations=asked.steps + asked.warmup,
            rollout_batch=asked.batch,
            epochs=asked.epochs,
            max_new_tokens=asked.new_tokens,
            learning_rate=3e-6,
            target_kl=0,  # no epoch is skipped
        ),
        prompts=prompts,
        score=lambda episodes: sequence_scores(
            reward, [[*e.prompt_ids, *e.response_ids] for e in episodes], made.pad_token_id
        ),
        engine=engine,
        generation=generation,
        decode_text=lambda ids, prompt_ids: str(made.decode(ids, skip_special_tokens=True)),
        seed=asked.seed,
    )


def measure(asked: argparse.Namespace) -> list[dict[str, float]]:
    """Train; return the seconds of each step."""
    running = trainer(asked)
    steps = []
    for _ in range(asked.steps + asked.warmup):
        started, cpu = time.perf_counter(), time.process_time()
        metrics = running.iterate()
        step = {f"{part}_s": metrics[f"seconds_{part}"] for part in ("rollout", "score", "update")}
        step |= {"step_s": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}
        if metrics["epochs_run"] != asked.epochs or metrics["length"] != asked.new_tokens:
            sys.exit(f"other work than asked for: {metrics['epochs_run']} epochs, {metrics['length']} tokens")
        steps.append(step)
    return steps


def main() -> None:
    """Measure one mode and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("mode", choices=MODES)
    sizes = {"hidden": 256, "intermediate": 688, "layers": 4, "heads": 4, "vocab": 1024}
    sizes |= {"prompt": 32, "new-tokens": 48, "batch": 32, "epochs": 4, "steps": 3, "warmup": 1, "seed": 0}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    asked = parser.parse_args()
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    steps = measure(asked)[asked.warmup :]
    mean = {name: statistics.fmean(step[name] for step in steps) for name in steps[0]}
    figures = {
        "episodes_per_s": asked.batch / mean["step_s"],
        "episodes_per_cpu_s": asked.batch / mean["cpu_s"],
        **mean,
        "cpu_share": mean["cpu_s"] / mean["step_s"],
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (1024**2 if sys.platform == "darwin" else 1024),
    }
    shown = {name: round(value, 4) for name, value in figures.items()}
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    print(
        json.dumps({"side": asked.mode, **shown, "steps": len(steps), "threads": torch.get_num_threads(), **versions})
    )


if __name__ == "__main__":
    main()
