"""What the labels of a large batch say, as commands: `make bench-collect` runs it after the load.

    python benchmarks/collect_reports.py                    # 100,000 labels of fifty people, SQLite
    python benchmarks/collect_reports.py --keep FOLDER      # keep the recipe and its ledger, to profile a command

Each figure is the CPU time (user and system, in seconds) of a command of its own, imports included, the least of some
runs: other programs on the machine delay a command, and change its CPU time less. `first_*` is the first command after
the data changed, which reads and hashes all pairs.

Prints one JSON line for each figure, with its bar.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.preferences.items import items_of, wanted  # noqa: E402
from pipeline.preferences.ledger import Ledger  # noqa: E402
from pipeline.records.shapes.conversion import shaped  # noqa: E402

FORMATS = ("preference", "unpaired", "raw", "hh", "csv", "parquet", "argilla", "label-studio")
OVERLAP = 0.15
RECIPE = f"""
name: bench
data: {{answers: {{path: answers.jsonl}}}}
stages: {{labels: {{kind: labels, data: answers, overlap: {OVERLAP}}}}}
"""
LEDGER = "sqlite:///ledger.db"
BAR_S, FIRST_BAR_S = 2.0, 3.0


def words(rng: random.Random, count: int) -> str:
    """Return a text of some words."""
    return " ".join(
        rng.choices(("the", "answer", "is", "that", "model", "learns", "what", "people", "prefer"), k=count)
    )


def make_world(folder: Path, labels: int, length: int) -> None:
    """Write the recipe, its pairs with answers of some words, and a ledger of labels that nobody needs to wait for."""
    rng = random.Random(0)
    rows = []
    for n in range(round(labels / (1 + 2 * OVERLAP))):
        first, second = words(rng, length), words(rng, length)
        rows.append({"prompt": f"question {n}", "chosen": f"{n}: {first}", "rejected": f"of {n}: {second}"})
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bench.yaml").write_text(RECIPE)
    people = [f"person-{n}" for n in range(50)]
    events: list[Any] = [("batch", {"salt": "0" * 32})]
    events += [("annotator", {"name": name, "token": name}) for name in people]
    for item in items_of(shaped(row, "preference", "preference") for row in rows)[0]:
        for who in rng.sample(people, wanted(item.id, 1, OVERLAP)):
            events.append(("lease", {"annotator": who, "items": [item.id], "until": 0.0}))
            events.append(("label", {**choice(rng), "item": item.id, "annotator": who}))
    os.chdir(folder)
    Ledger(LEDGER, "labels").extend(events)


def choice(rng: random.Random) -> dict[str, Any]:
    """Return what somebody says of a pair, of which the first answer is the better one."""
    verdict = rng.choices(("first", "second", "tie", "both good", "both bad"), (6, 2, 1, 1, 1))[0]
    strength = rng.choice((1, 2, 3)) if verdict in ("first", "second") else 1
    told = {"verdict": verdict, "strength": strength, "seconds": round(rng.uniform(2, 40), 3)}
    return {**told, "swapped": rng.random() < 0.5, "request": f"{rng.getrandbits(64):016x}"}


def cpu_s(*words_of_command: str) -> float:
    """Run a command of `trueup labels` and return its CPU seconds."""
    line = [sys.executable, "-m", "pipeline.cli", "labels", words_of_command[0], "bench.yaml", "labels"]
    around = {**os.environ, "TRUEUP_LEDGER": LEDGER, "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*line, *words_of_command[1:]], env=around, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words_of_command)}: exit code {done.returncode}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def show(figure: str, value: float, bar: float, **more: Any) -> None:
    """Print one figure."""
    print(json.dumps({"figure": figure, "cpu_s": round(value, 2), "bar": f"≤ {bar:g}", **more}), flush=True)


def measure(folder: Path, runs: int) -> None:
    """Measure each command in a folder of `make_world`; those that write come last, on a copy of the ledger."""
    os.chdir(folder)
    for verb in ("status", "export"):
        firsts = []
        for _ in range(runs):
            shutil.rmtree("store/.cache/items", ignore_errors=True)
            firsts.append(cpu_s(verb))
        show(f"first_{verb}", min(firsts), FIRST_BAR_S)
    for verb in ("status", "agreement", "stats", "people", "verify"):
        show(verb, min(cpu_s(verb) for _ in range(runs)), BAR_S)
    for row_format in FORMATS:
        out = f"out-{row_format}.jsonl"
        took = min(cpu_s("export", "--format", row_format, "--out", out) for _ in range(runs))
        show(f"export --format {row_format}", took, BAR_S, mib=round(Path(out).stat().st_size / 2**20, 1))
    more = ("--split", "0.1", "--out", "out.split")
    show("export --split", min(cpu_s("export", *more) for _ in range(runs)), BAR_S)
    more = ("--aggregate", "dawid_skene", "--out", "out.dawid_skene")
    show("export --aggregate dawid_skene", min(cpu_s("export", *more) for _ in range(runs)), BAR_S)
    show("import", min(cpu_s("import", "out-raw.jsonl", "--format", "raw") for _ in range(runs)), BAR_S)
    shutil.copy("ledger.db", "before.db")
    show("drop --stuck", cpu_s("drop", "--stuck"), BAR_S)
    show("close", cpu_s("close"), BAR_S)
    shutil.move("before.db", "ledger.db")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description="Measure the reports on a large batch of labels.")
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=8, help="words of an answer")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder of the recipe and its ledger; made if it is not there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trueup-bench-") as made:
        folder = (asked.keep or Path(made)).resolve()
        if not (folder / "bench.yaml").exists():
            folder.mkdir(parents=True, exist_ok=True)
            make_world(folder, asked.labels, asked.words)
        measure(folder, asked.runs)


if __name__ == "__main__":
    main()
