"""Training on one GPU, ours against plain trl: `make bench-gpu`, in at most nine minutes; no network.

    python benchmarks/gpu.py                       # on a machine with CUDA and torch; wheels.sh has fetched the rest
    python benchmarks/gpu.py --only pretrain,sft   # some of it
    python benchmarks/gpu.py --smoke               # a tiny model on a CPU, the same code: its figures mean nothing

A Llama of 341 million random weights (24 layers of 1,024 units, 32,000 words) in bf16, on synthetic rows. Each side is
a process of its own that runs the product's own stages from a recipe with `device: cuda`, or trl's trainers on the same
rows, batches and optimizer, compiled likewise. Figures count from the end of the warm-up steps (compilation) to the
end. One JSON line per figure:

pretrain          packed rows of 2,048 tokens, torch.compile
sft, sft_packed   conversations bucketed by length, or packed into full rows        against trl's SFTTrainer
dpo               pairs; the time of the reference's log-probabilities counted in   against trl's DPOTrainer
ppo               value head on the trunk, reward model of the same size; rollout, scoring and update apart

MFU: model FLOPs utilisation as in PaLM (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): 6 N + 12 L H Q T FLOPs
per token, with N parameters, L layers, H·Q hidden units and T the length of the sequence a token stands in, over the
card's peak. Only real tokens count.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from pipeline.estimate.devices import peak_tflops  # noqa: E402  (the project need not be installed)

WHEELS = HERE / "wheels"
NEEDED = ("transformers", "trl", "peft", "accelerate", "datasets", "pydantic", "ruamel.yaml", "matplotlib")
MINUTES = 9.0
RESERVE_S = 5.0

BARS = {"pretrain_mfu": "≥ 0.45", "sft_mfu": "≥ 0.45", "sft_ratio": "≥ 1", "dpo_ratio": "≥ 1", "minutes": "≤ 9"}

SIDES = (
    ("pretrain", "ours"),
    ("sft", "ours"),
    ("sft_packed", "ours"),
    ("sft", "trl"),
    ("dpo", "ours"),
    ("dpo", "trl"),
    ("ppo", "ours"),
)


def flops_per_token(parameters: int, layers: int, hidden: int, sequence: float) -> float:
    """Return FLOPs of forward and backward pass for one token (PaLM, appendix B; H · Q is the hidden size)."""
    return 6.0 * parameters + 12.0 * layers * hidden * sequence


def mfu(side: dict[str, Any]) -> float | None:
    """Return a side's model FLOPs utilisation; None where the card's peak is not known."""
    peak = peak_tflops(side["card"])
    if peak is None or "tokens_per_s" not in side:
        return None
    each = flops_per_token(side["parameters"], side["layers"], side["hidden"], side["sequence"])
    return float(side["tokens_per_s"] * each / (peak * 1e12))


def show(figure: str, value: float | None, **more: Any) -> None:
    """Print one figure."""
    shown = None if value is None else round(value, 4)
    print(json.dumps({"figure": figure, "value": shown, "bar": BARS.get(figure, ""), **more}), flush=True)


def python_path(scratch: Path) -> str:
    """Return what lets a child import the project and what it needs; installs wheels where something is missing."""
    path = [str(HERE.parent), str(HERE)]
    missing = [name for name in NEEDED if importlib.util.find_spec(name.partition(".")[0]) is None]
    if missing:
        if not list(WHEELS.glob("*.whl")):
            remedy = "run benchmarks/wheels.sh where there is a network"
            sys.exit(f"{', '.join(missing)} missing and no wheels in {WHEELS}: {remedy}")
        target = scratch / "site"
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(target)]
        subprocess.run([*pip, *map(str, sorted(WHEELS.glob("*.whl")))], check=True, stdout=sys.stderr)
        path.append(str(target))
        print(json.dumps({"installed": len(list(WHEELS.glob("*.whl"))), "missing_before": missing}), flush=True)
    return os.pathsep.join([*path, *filter(None, [os.environ.get("PYTHONPATH")])])


def run_side(kind: str, side: str, scratch: Path, environment: dict[str, str], *, smoke: bool, left_s: float) -> Any:
    """Measure one side in a process of its own; None when it broke or there was no time for it."""
    command = [sys.executable, str(HERE / "gpu_sides.py"), kind, side, "--scratch", str(scratch)]
    command += ["--smoke"] if smoke else []
    started = time.perf_counter()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=left_s)
    except subprocess.TimeoutExpired:
        print(json.dumps({"side": f"{kind} {side}", "failed": f"no end within {left_s:.0f} s"}), flush=True)
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"side"')]
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(json.dumps({"side": f"{kind} {side}", "failed": last[:500]}), flush=True)
        print(done.stderr, file=sys.stderr)
        return None
    found = json.loads(lines[-1])
    found["mfu"] = mfu(found)
    print(json.dumps({**found, "process_s": round(time.perf_counter() - started, 1)}), flush=True)
    return found


def report(found: dict[tuple[str, str], dict[str, Any]], asked: list[str]) -> None:
    """Print the figures that have bars, and those of PPO."""
    card = next((side["card"] for side in found.values()), "")
    for kind in asked:
        ours = found.get((kind, "ours"))
        if kind == "sft" and ours is not None:  # a user picks the layout: the better one counts
            both = [ours, *filter(None, [found.get(("sft_packed", "ours"))])]
            ours = max(both, key=lambda side: side["tokens_per_s"])
        if ours is None or kind == "sft_packed":
            continue
        if kind == "ppo":
            show("ppo_rollout_share", ours["rollout_s"] / ours["step_s"], card=card)
            continue
        show(f"{kind}_mfu", ours["mfu"], card=card, tokens_per_s=ours["tokens_per_s"], of=ours["side"])
        peer = found.get((kind, "trl"))
        if peer is not None:
            rates = {"ours": ours["tokens_per_s"], "trl": peer["tokens_per_s"]}
            show(f"{kind}_ratio", rates["ours"] / rates["trl"], card=card, tokens_per_s=rates)


def main() -> None:
    """Measure what was asked for, within the minutes there are."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--smoke", action="store_true", help="a tiny model in fp32 on a CPU")
    parser.add_argument("--only", default="", help="some of pretrain, sft, sft_packed, dpo, ppo")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    asked = parser.parse_args()
    kinds = asked.only.split(",") if asked.only else list(dict.fromkeys(kind for kind, _ in SIDES))
    unknown = set(kinds) - {kind for kind, _ in SIDES}
    if unknown:
        sys.exit(f"unknown figure {', '.join(sorted(unknown))}; choose from pretrain, sft, sft_packed, dpo, ppo")
    import torch

    if not asked.smoke and not torch.cuda.is_available():
        sys.exit("no CUDA device: run this on a GPU, or --smoke on a CPU")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
        environment |= {"PYTHONPATH": python_path(scratch), "PYTHONWARNINGS": "ignore"}
        sides = [side for side in SIDES if side[0] in kinds]
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for number, (kind, side) in enumerate(sides):
            left_s = asked.minutes * 60 - (time.perf_counter() - started) - RESERVE_S
            if left_s < 1:
                print(json.dumps({"side": f"{kind} {side}", "failed": "no time left"}), flush=True)
                continue
            share_s = left_s / (len(sides) - number) * 2  # one slow side does not take the time of all others
            measured = run_side(
                kind, side, scratch, environment, smoke=asked.smoke, left_s=min(left_s, max(60.0, share_s))
            )
            if measured is not None:
                found[kind, side] = measured
    report(found, kinds)
    show("minutes", (time.perf_counter() - started) / 60)
    sys.exit(0 if len(found) == len(sides) else 1)


if __name__ == "__main__":
    main()
