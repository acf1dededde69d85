"""What a few hundred comparisons teach: `make bench-feedback`.

    python benchmarks/feedback.py                  # 400 comparisons
    python benchmarks/feedback.py --store DIR      # begin from a store that has the quickstart's sft

Runs `recipes/feedback.yaml` with a simulated person at the labelling app, over HTTP: they prefer what the quickstart's
gold function scores higher, say "no difference" where it scores both alike, and are wrong in 15 % of their preferences.
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


def label(store: Path, count: int) -> Counter[str]:
    """Label as one person over HTTP until so many labels are given; return how often each choice was made."""
    rows = {}
    for line in (ROOT / "data" / "quickstart" / "prompts.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[row["prompt"][-1]["content"]] = {key: value for key, value in row.items() if key != "prompt"}
    line = [*TRUEUP, "collect", RECIPE, "labels", "--annotators", "ada", "--port", "0", "--store", str(store)]
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

    rng, score, given = random.Random(0), gold(), Counter[str]()
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


def main() -> None:
    """Run the recipe with a simulated person."""
    parser = argparse.ArgumentParser(description="Measure what a few hundred comparisons teach.")
    parser.add_argument("--labels", type=int, default=400)
    parser.add_argument("--store", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trueup-feedback-") as made:
        store = asked.store or Path(made)
        os.environ.pop("TRUEUP_LEDGER", None)
        trueup("run", RECIPE, "--store", str(store), expect=3)
        started = time.perf_counter()
        given = label(store, asked.labels)
        show("labels", given.total(), seconds=round(time.perf_counter() - started, 1), choices=dict(given))
        trueup("labels", "close", RECIPE, "labels", "--store", str(store))
        trueup("run", RECIPE, "--store", str(store))
        (file,) = (store / "report").glob("*/report.json")
        model = json.loads(file.read_text())["models"]["dpo"]
        rate = model["win_rate"]
        show("win_rate", rate["value"], "> 0.6, interval above 0.5", low=rate["low"], high=rate["high"], n=rate["n"])
        show("correct", model["correct"]["value"], kl=model["kl"]["value"])


if __name__ == "__main__":
    main()
