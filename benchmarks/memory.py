"""The forecast of memory against the peak of resident memory of real stages on a CPU: `make bench-memory`.

    python benchmarks/memory.py                      # in fp32, and in bf16 where the processor has instructions for it
    python benchmarks/memory.py --precision bf16     # one of them, on any processor

Each stage runs in a process of its own. Measured is what it needs beyond the same stage on a minute model: the
libraries a process has loaded (about 485 MiB) are left out on both sides, for they would hide an error. A stage's peak
differs from run to run with the holes in glibc's heap, by 3 % mostly and by 15 % beneath adapters, so those run three
times; and from processor to processor with what its libraries of matrix products set aside. So the table belongs to a
processor (`docs/log.md`); the suite holds what is exact, the bytes that autograd saves (`tests/estimate`).

One JSON line per stage, then the table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from memory_world import write_recipe

from pipeline.artifacts import Store
from pipeline.machine.environment import cpu_name
from pipeline.models.cpu.bf16_speed import has_bf16
from pipeline.plan import make_plan
from pipeline.preflight.forecast import forecasts
from pipeline.recipe import load
from pipeline.stages import load_all

MIB = 2**20
FITTED = {
    "base": "small",
    "wide": "small",
    "long": "small",
    "qwen": "small",
    "checkpointed": "small",
    "lora": "small-lora",
    "dpo": "small-dpo",
    "rm": "small-rm",
}
"""What `pipeline.estimate.memory.SLACK` was chosen on, and the minute stage of the same kind."""
REPEATED = {"lora": ("lora", "lora-again", "lora-thrice")}
HELD_OUT = {
    "neox": "small",
    "gpt2": "small",
    "sft": "small-lora",
    "ppo": "small-rm",
    "separate": "small-rm",
}
"""Architectures, kinds and settings that no constant has seen."""


def measure(precision: str, folder: Path) -> list[dict[str, object]]:
    """Run every stage in one precision; return what the forecast said and what was needed, in MiB."""
    recipe, store = write_recipe(folder), folder / "store"
    sets = f"compute.precision={precision}"
    needs, unknown = forecasts(make_plan(load(recipe, overrides=[sets]), Store(store)), Store(store))
    if unknown:
        sys.exit("; ".join(unknown))
    estimated = {need.stage.spec.name: need.memory.peak / MIB for need in needs}
    line = [sys.executable, "-m", "pipeline.cli", "run", str(recipe), "--store", str(store), "--set", sets]
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(line, cwd=folder, env=environment, stdout=sys.stderr, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    manifests = [json.loads(file.read_text(encoding="utf-8")) for file in store.glob("*/*/manifest.json")]
    peaks = {manifest["name"]: manifest["peak_memory_mib"] for manifest in manifests}
    rows: list[dict[str, object]] = []
    for name, small in (FITTED | HELD_OUT).items():
        needed = median(peaks[run] for run in REPEATED.get(name, (name,))) - peaks[small]
        said = estimated[name] - estimated[small]
        found = {"said_mib": round(said), "needed_mib": round(needed), "ratio": round(said / needed, 3)}
        rows.append({"stage": name, "precision": precision, "held_out": name in HELD_OUT, **found})
    return rows


def main() -> None:
    """Print the table for this processor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="one format instead of those of the processor")
    asked = parser.parse_args().precision
    load_all()
    rows = []
    for precision in (asked,) if asked else ("fp32", "bf16") if has_bf16() else ("fp32",):
        with tempfile.TemporaryDirectory() as folder:
            for row in measure(precision, Path(folder)):
                print(json.dumps(row), flush=True)
                rows.append(row)
    print(f"\n{cpu_name()}, one thread; MiB beyond the same stage on a minute model\n")
    print("| stage | format | forecast | needed | forecast / needed |\n|---|---|---:|---:|---:|")
    for row in rows:
        name = f"{row['stage']}{'' if row['held_out'] else ' (fitted)'}"
        print(f"| {name} | {row['precision']} | {row['said_mib']:,} | {row['needed_mib']:,} | {row['ratio']:.2f} |")


if __name__ == "__main__":
    main()
