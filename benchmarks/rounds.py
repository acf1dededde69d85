"""What rounds of online DPO teach: `make bench-rounds`.

    python benchmarks/rounds.py                    # three rounds
    python benchmarks/rounds.py --store DIR        # begin from a store that has the quickstart's sft

Runs `recipes/online-dpo.yaml`, whose judge is the quickstart's gold function. Prints one JSON line for each round: the
change of the mean gold score over the round before, with its interval, on 500 held-out prompts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from feedback import show, trueup

RECIPE = "recipes/online-dpo.yaml"


def main() -> None:
    """Run the recipe and print what each round gained."""
    parser = argparse.ArgumentParser(description="Measure what rounds of online DPO teach.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--store", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trueup-rounds-") as made:
        store = str(asked.store or made)
        changes = ["--set", f"groups.online.rounds={asked.rounds}", "--set", f"seed={asked.seed}"]
        started = time.perf_counter()
        trueup("run", RECIPE, "--store", store, *changes)
        show("seconds", round(time.perf_counter() - started, 1))
        plan = json.loads(trueup("plan", RECIPE, "--store", store, "--json", *changes))
        (fingerprint,) = (stage["fingerprint"] for stage in plan["stages"] if stage["name"] == "report")
        report = json.loads((Path(store) / "report" / fingerprint[:12] / "report.json").read_text())
    for number, step in enumerate(report["rounds"], 1):
        delta, rate = step["delta"], step["win_rate"]
        mean = report["models"][step["model"]]["gold"]["value"]
        bounds = {"low": delta["low"], "high": delta["high"], "p_value": delta["p_value"]}
        show(f"round {number}", delta["value"], "> 0, interval above 0", **bounds, gold=mean, win_rate=rate["value"])


if __name__ == "__main__":
    main()
