"""The figures of `make bench`: one JSON line each, every comparison made within one run.

    python benchmarks/run.py                 # all
    python benchmarks/run.py command sft     # some of: command chain sft pretrain

command   wall seconds of `trueup --help`, `plan`, and a rerun of the finished quickstart
chain     wall seconds of the whole quickstart, and the share of it outside trainers and evaluation
sft       tokens/s of the sft stage against plain trl (packing off, fp32) on the same model and rows
pretrain  tokens/s of the pretrain stage against a bare loop on the same model and rows

Training pairs run alternately, pinned to one core with one thread. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "quickstart.yaml"
TRUEUP = [sys.executable, "-m", "pipeline.cli"]
BARS = {
    "help_s": "≤ 0.3",
    "plan_s": "≤ 1",
    "rerun_s": "≤ 2",
    "chain_overhead": "≤ 0.15",
    "sft_ratio": "≥ 1.3",
    "pretrain_ratio": "≥ 0.85",
}


def show(figure: str, value: float, **more: Any) -> None:
    """Print one figure."""
    print(json.dumps({"figure": figure, "value": round(value, 4), "bar": BARS.get(figure, ""), **more}), flush=True)


def wall(command: list[str], runs: int) -> list[float]:
    """Return wall seconds of ``command``, after one run that is not counted."""
    seconds = []
    for run in range(runs + 1):
        started = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
        if run:
            seconds.append(time.perf_counter() - started)
    return seconds


def finished_store() -> Path:
    """Return the store of a finished quickstart, made once for all figures of this run."""
    store = Path(tempfile.gettempdir()) / f"trueup-bench-{os.getpid()}"
    if not store.exists():
        started = time.perf_counter()
        subprocess.run([*TRUEUP, "run", str(RECIPE), "--store", str(store)], cwd=ROOT, check=True, stdout=sys.stderr)
        (store / "wall.json").write_text(json.dumps(time.perf_counter() - started), encoding="utf-8")
    return store


def bench_command(runs: int = 5) -> None:
    """Time the commands a user waits for."""
    store = str(finished_store())
    for figure, command in (
        ("help_s", [*TRUEUP, "--help"]),
        ("plan_s", [*TRUEUP, "plan", str(RECIPE), "--store", store]),
        ("rerun_s", [*TRUEUP, "run", str(RECIPE), "--store", store]),
    ):
        seconds = wall(command, runs)
        show(figure, statistics.median(seconds), low=round(min(seconds), 3), high=round(max(seconds), 3), runs=runs)


def bench_chain() -> None:
    """Take the chain apart: seconds inside trainers and evaluation, and the rest."""
    store = finished_store()
    whole = float(json.loads((store / "wall.json").read_text(encoding="utf-8")))
    manifests = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(store.glob("*/*/manifest.json"))]
    inside = {manifest["name"]: manifest["trainer_seconds"] for manifest in manifests}
    scoring = {manifest["name"]: manifest["scoring_seconds"] for manifest in manifests}
    show("chain_s", whole, bar="≤ 180", stages={m["name"]: m["seconds"] for m in manifests})
    show("pretrain_s", inside["base"], bar="≤ 70")
    show("chain_overhead", 1 - (sum(inside.values()) + sum(scoring.values())) / whole, inside=inside, scoring=scoring)


def bench_pair(kind: str, runs: int = 3) -> None:
    """Alternate the product and its peer and compare medians."""
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pin = ["taskset", "-c", "0"] if shutil.which("taskset") else []
    for _ in range(runs):
        for side in ("peer", "ours"):
            command = [*pin, sys.executable, str(ROOT / "benchmarks" / "stage_speed.py"), kind, side]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                sys.exit(f"{kind} {side} failed:\n{done.stderr[-2000:]}")
            line = done.stdout.strip().splitlines()[-1]
            print(line, flush=True)
            rates[side].append(json.loads(line)["tokens_per_s"])
    medians = {side: statistics.median(values) for side, values in rates.items()}
    show(f"{kind}_ratio", medians["ours"] / medians["peer"], tokens_per_s={k: round(v, 1) for k, v in medians.items()})


def main() -> None:
    """Measure what was asked for."""
    asked = sys.argv[1:] or ["command", "chain", "sft", "pretrain"]
    for name in asked:
        if name == "command":
            bench_command()
        elif name == "chain":
            bench_chain()
        elif name in ("sft", "pretrain"):
            bench_pair(name)
        else:
            sys.exit(f"unknown figure {name}; choose from command, chain, sft, pretrain")
    shutil.rmtree(Path(tempfile.gettempdir()) / f"trueup-bench-{os.getpid()}", ignore_errors=True)


if __name__ == "__main__":
    main()
