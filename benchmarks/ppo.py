"""PPO against the PPOTrainer of TRL 1.12: `make bench-ppo`.

    python benchmarks/ppo.py                          # peer and all our modes, three times in turn
    python benchmarks/ppo.py --runs 1 --modes cached  # a look

A Llama of 3.7 million parameters, 32 episodes a step of 32 prompt and 48 new tokens, 4 epochs of 1 minibatch; reward
model of the same size; fp32. Each run is a process of its own, pinned to one core with one thread. Prints one JSON line
per side (medians over runs) and one per ratio with its bar; every run goes to the error stream as it ends.

shared    all weights, one trunk with a value head: what the peer's user would want, with less work
separate  all weights, a value model of its own: the peer's work
cached    LoRA on the top half of the layers: trains other parameters than the peer

The peer runs by the interpreter in `TRUEUP_PPO_PEER`, or `.venv-peer/bin/python`. Run it on an otherwise idle machine:
a `cpu_share` below 0.97 means that something else took the core; `episodes_per_cpu_s` suffers less from that.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BARS = {"shared": (1.8, 0.75), "separate": (1.15, 1.0), "cached": (3.0, 0.6)}
"""By mode: episodes/s at least, and peak memory at most, as ratios to the peer's."""
SIZES = {"hidden": 256, "intermediate": 688, "layers": 4, "heads": 4, "vocab": 1024}
SIZES |= {"prompt": 32, "new-tokens": 48, "batch": 32, "epochs": 4}
SHOWN = (
    "episodes_per_s",
    "episodes_per_cpu_s",
    "rollout_s",
    "score_s",
    "update_s",
    "step_s",
    "cpu_share",
    "peak_rss_mib",
)


def peer_python() -> str:
    """Return the interpreter that has the peer."""
    found = os.environ.get("TRUEUP_PPO_PEER") or str(ROOT / ".venv-peer" / "bin" / "python")
    if not Path(found).is_file():
        sys.exit(f"no interpreter at {found}; `make bench-ppo` makes it, or name one with trl 1.12 in TRUEUP_PPO_PEER")
    return found


def measured(side: str, steps: int, warmup: int) -> dict[str, Any]:
    """Run one side once, in a process of its own."""
    script = ROOT / "benchmarks" / ("ppo_trl_peer.py" if side == "peer" else "ppo_ours.py")
    command = ["taskset", "-c", "0"] if shutil.which("taskset") else []
    command += [peer_python() if side == "peer" else sys.executable, str(script), *([] if side == "peer" else [side])]
    for name, value in {**SIZES, "steps": steps, "warmup": warmup}.items():
        command += [f"--{name}", str(value)]
    paths = {} if side == "peer" else {"PYTHONPATH": str(ROOT)}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{side} failed:\n{done.stderr[-2000:]}")
    line = done.stdout.strip().splitlines()[-1]
    print(line, file=sys.stderr, flush=True)
    found: dict[str, Any] = json.loads(line)
    return found


def ratios(mode: str, ours: dict[str, float], peer: dict[str, float]) -> list[dict[str, Any]]:
    """Return the two figures of a mode against the peer, with their bars."""
    faster, smaller = (ours[name] / peer[name] for name in ("episodes_per_s", "peak_rss_mib"))
    least, most = BARS[mode]
    return [
        {"figure": f"ppo_{mode}_speed", "value": round(faster, 3), "bar": f"≥ {least:g}", "met": faster >= least},
        {"figure": f"ppo_{mode}_memory", "value": round(smaller, 3), "bar": f"≤ {most:g}", "met": smaller <= most},
    ]


def main() -> None:
    """Alternate the sides, compare medians, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--modes", nargs="+", choices=tuple(BARS), default=list(BARS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="counted steps of a run")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    asked = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in ("peer", *asked.modes)}
    for _ in range(asked.runs):
        for side, found in runs.items():
            found.append(measured(side, asked.steps, asked.warmup))
    medians = {
        side: {name: round(statistics.median(run[name] for run in found), 4) for name in SHOWN}
        for side, found in runs.items()
    }
    for side, figures in medians.items():
        print(json.dumps({"figure": f"ppo_{side}", **figures, "runs": asked.runs, "torch": runs[side][0]["torch"]}))
    for mode in asked.modes:
        for line in ratios(mode, medians[mode], medians["peer"]):
            print(json.dumps(line, ensure_ascii=False))


if __name__ == "__main__":
    main()
