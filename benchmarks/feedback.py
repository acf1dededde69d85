"""What a few hundred comparisons teach, and which pairs teach most: `make bench-feedback`.

    python benchmarks/feedback.py                  # 400 comparisons; then 200 for each choice of pairs
    python benchmarks/feedback.py --only choice    # only the second
    python benchmarks/feedback.py --store DIR      # begin from a store that has the quickstart's sft

Runs `recipes/feedback.yaml` with a simulated person at the labelling app, over HTTP: they prefer what the quickstart's
gold function scores higher, say "no difference" where it scores both alike, and are wrong in 15 % of their preferences.

`--only choice` compares the choices of pairs (`pair_choice`). Of the same answers to the same prompts the person labels
random pairs, those with the largest predicted gap, and those on which three reward models disagree. The reward models
learn from the quickstart's own preference pairs. Each choice is measured with several persons, who err in other places.

Prints one JSON line for each figure, with its bar.
"""

from __future__ import annotations

import argparse
import http.client
import importlib.util
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "recipes/feedback.yaml"
FLIPS = 0.15
CHOICES = ("random", "delta", "uncertain")
JUDGES = ("rm", "rm2", "rm3")
TRUEUP = [sys.executable, "-m", "pipeline.cli"]


def show(figure: str, value: float, bar: str = "", **more: Any) -> None:
    """Print one figure."""
    print(json.dumps({"figure": figure, "value": round(value, 4), "bar": bar, **more}, ensure_ascii=False), flush=True)


def trueup(*arguments: str, expect: int = 0) -> str:
    """Run a command of trueup and return its output, or end with what it said."""
    done = subprocess.run([*TRUEUP, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != expect:
        sys.exit(f"trueup {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr}")
    return done.stdout


def gold() -> Any:
    """Return the quickstart's gold function."""
    spec = importlib.util.spec_from_file_location("gold", ROOT / "data" / "quickstart" / "gold.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "data" / "quickstart"))
    spec.loader.exec_module(module)
    return module.gold


def label(store: Path, count: int, recipe: str = RECIPE, stage: str = "labels", person: int = 0) -> Counter[str]:
    """Label as one person over HTTP until so many labels are given; return how often each choice was made."""
    rows = {}
    for line in (ROOT / "data" / "quickstart" / "prompts.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[row["prompt"][-1]["content"]] = {key: value for key, value in row.items() if key != "prompt"}
    line = [*TRUEUP, "collect", recipe, stage, "--annotators", "ada", "--port", "0", "--store", str(store)]
    server = subprocess.Popen(line, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert server.stdout is not None
    token, address = "", ""
    for text in server.stdout:
        if "/#" in text:
            token = text.strip().partition("#")[2]
        if text.startswith("listening on "):
            address = text.split()[2].rstrip(";")
            break
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def ask(name: str, body: dict[str, Any]) -> Any:
        connection.request("POST", f"/api/{name}", json.dumps(body), headers)
        reply = connection.getresponse()
        told = json.loads(reply.read())
        assert reply.status == 200, told
        return told

    rng, score, given = random.Random(person), gold(), Counter[str]()
    items = ask("next", {})["items"]
    while items and given.total() < count:
        item = items[0]
        columns = rows[item["prompt"][-1]["content"]]
        left, right = (
            score(
                completions=[item[side]], prompts=[item["prompt"]], **{key: [value] for key, value in columns.items()}
            )[0]
            for side in ("left", "right")
        )
        choice = "tie" if left == right else "left" if left > right else "right"
        if choice != "tie" and rng.random() < FLIPS:
            choice = {"left": "right", "right": "left"}[choice]
        given[choice] += 1
        items = ask("label", {"item": item["item"], "choice": choice, "request": secrets.token_hex(8)})["items"]
        time.sleep(0.02)
    server.send_signal(signal.SIGINT)
    server.wait()
    return given


def measure_feedback(store: Path, labels: int) -> None:
    """Run the recipe with a simulated person, and print what its assistant gained."""
    trueup("run", RECIPE, "--store", str(store), expect=3)
    started = time.perf_counter()
    given = label(store, labels)
    show("labels", given.total(), seconds=round(time.perf_counter() - started, 1), choices=dict(given))
    trueup("labels", "close", RECIPE, "labels", "--store", str(store))
    trueup("run", RECIPE, "--store", str(store))
    (file,) = (store / "report").glob("*/report.json")
    model = json.loads(file.read_text())["models"]["dpo"]
    rate = model["win_rate"]
    show("win_rate", rate["value"], "> 0.6, interval above 0.5", low=rate["low"], high=rate["high"], n=rate["n"])
    show("correct", model["correct"]["value"], kl=model["kl"]["value"])


def choice_recipe(folder: Path, labels: int, persons: int) -> str:
    """Write the recipe that learns from each choice of pairs; return its path."""
    reward = {"kind": "reward", "data": "writers", "test": "pairs_test", "model": "sft", "group_by": "task"}
    train = {"batch_size": 16, "learning_rate": 7.0e-4, "warmup_steps": 0.1}
    stages: dict[str, Any] = {name: {**reward, "seed": i, "train": train} for i, name in enumerate(JUDGES, start=1)}
    # A few more prompts than labels: some have no two different answers.
    stages["candidates"] = {"reward": list(JUDGES), "limit": labels + 20}
    stages |= {"labels": None, "dpo": None}
    data: dict[str, Any] = {
        "writers": {"path": str(ROOT / "data" / "quickstart" / "preferences.jsonl")},
        "compared": {"artifact": "candidates", "file": "candidates.jsonl"},
        "liked": None,
    }
    names = [f"{choice}_{person}" for choice in CHOICES for person in range(persons)]
    for name in names:
        choice, person = name.split("_")
        stages[f"labels_{name}"] = {
            "kind": "labels", "data": "compared", "pair_choice": choice, "seed": 100 + int(person)
        }  # fmt: skip
        data[f"pairs_{name}"] = {"artifact": f"labels_{name}", "file": "preferences.jsonl"}
        learning = {"batch_size": 16, "epochs": 4, "learning_rate": 2.0e-4, "beta": 0.3, "warmup_steps": 0.1}
        stages[name] = {"kind": "dpo", "data": f"pairs_{name}", "model": "sft", "train": learning}
    stages["report"] = {"models": ["sft", *names], "greedy": []}
    recipe = {"extends": str(ROOT / RECIPE), "name": "pair-choice", "data": data, "stages": stages}
    file = folder / "pair-choice.yaml"
    file.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
    return str(file)


def measure_choice(folder: Path, store: Path, labels: int, persons: int) -> None:
    """Learn from so many labels of each choice of pairs, and print what each gained over the start."""
    recipe = choice_recipe(folder, labels, persons)
    trueup("run", recipe, "--until", "candidates", "--store", str(store))
    told: dict[str, dict[str, int]] = {}
    for choice in CHOICES:
        for person in range(persons):
            stage = f"labels_{choice}_{person}"
            told[f"{choice}_{person}"] = dict(label(store, labels, recipe, stage, person))
            trueup("labels", "close", recipe, stage, "--store", str(store))
    trueup("run", recipe, "--store", str(store))
    file = max((store / "report").glob("*/report.json"), key=lambda one: one.stat().st_mtime)
    models = json.loads(file.read_text())["models"]
    for name, choices in told.items():
        rate = models[name]["win_rate"]
        more = {"correct": models[name]["correct"]["value"], "kl": models[name]["kl"]["value"], "choices": choices}
        show(f"win_rate_{name}", rate["value"], low=rate["low"], high=rate["high"], n=rate["n"], **more)
    for choice in CHOICES:
        values = [models[f"{choice}_{person}"]["win_rate"]["value"] for person in range(persons)]
        show(f"win_rate_{choice}", sum(values) / persons, labels=labels, lowest=min(values), highest=max(values))


def main() -> None:
    """Run the recipes with simulated people."""
    parser = argparse.ArgumentParser(description="Measure what a few hundred comparisons teach.")
    parser.add_argument("--labels", type=int, default=400)
    parser.add_argument("--choice-labels", type=int, default=200)
    parser.add_argument("--persons", type=int, default=3)
    parser.add_argument("--only", choices=("feedback", "choice"))
    parser.add_argument("--store", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trueup-feedback-") as made:
        store = asked.store or Path(made) / "store"
        os.environ.pop("TRUEUP_LEDGER", None)
        if asked.only != "choice":
            measure_feedback(store, asked.labels)
        if asked.only != "feedback":
            measure_choice(Path(made), store, asked.choice_labels, asked.persons)


if __name__ == "__main__":
    main()
