"""The quickstart's figures, in one place: `docs/figures.json`; documents take them from there.

    python benchmarks/figures.py record STORE [STORE…]    # take them from finished runs of recipes/quickstart.yaml
    python benchmarks/figures.py fill                     # write them into the documents again

A store holds one run; the recipe's own seed (17) gives the time and the picture, `--set seed=1 --store …` other rows.
In a document `<!-- figures:NAME -->…<!-- /figures -->` holds what `SPANS` says under that name. A test fills all
documents and sees that nothing changes.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # also where trueup is not installed

from pipeline.artifacts import Artifact, Store  # noqa: E402
from pipeline.cli.display.evaluations import print_evaluation  # noqa: E402
from pipeline.cli.terminal import duration  # noqa: E402
from pipeline.evaluation.report.record import read  # noqa: E402
from pipeline.evaluation.stats.estimate import Estimate  # noqa: E402
from pipeline.machine.environment import environment  # noqa: E402

FILE = ROOT / "docs" / "figures.json"
PICTURE = ROOT / "docs" / "final-table.svg"
DOCUMENTS = (ROOT / "README.md", ROOT / "data" / "quickstart" / "README.md", ROOT / "docs" / "log.md")
OWN_SEED = 17
NAMES = ("base", "sft", "dpo", "ppo")
"""The models of the recipe, in the order of the chain."""
_SPAN = re.compile(r"<!-- figures:(\w+) -->.*?<!-- /figures -->", re.DOTALL)
_WIDTH = 124


def main(arguments: list[str]) -> None:
    """Do what the command line asks for."""
    if arguments[:1] == ["record"] and len(arguments) > 1:
        record([Store(folder) for folder in arguments[1:]])
    elif arguments != ["fill"]:
        sys.exit(__doc__)
    for file in DOCUMENTS:
        file.write_text(filled(file.read_text(encoding="utf-8")), encoding="utf-8")


def record(stores: list[Store]) -> None:
    """Take the figures from the stores of finished runs, one for each seed."""
    found = {_newest(store, "report").manifest.seed: store for store in stores}
    own = found.get(OWN_SEED)
    if own is None:
        sys.exit(f"none of these stores has a report of seed {OWN_SEED}, the recipe's own")
    machine = environment()
    figures = {
        "seconds": round(seconds_of(own), 1),
        "machine": f"{machine['cpus']} cores of {machine['cpu']}",
        "seeds": {str(seed): figures_of(store) for seed, store in sorted(found.items(), key=_own_first)},
    }
    FILE.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    PICTURE.write_text(picture(_newest(own, "report")), encoding="utf-8")


def seconds_of(store: Store) -> float:
    """Return the seconds of the run that made every stage; of the stages together where they were made in parts."""
    for journal in store.root.glob(".runs/*/journal.jsonl"):
        events = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
        if events[-1]["event"] == "run_ended" and events[-1]["finished"] == events[0]["pending"] != []:
            return float(events[-1]["seconds"])
    return sum(artifact.manifest.seconds for artifact in store.artifacts())


def figures_of(store: Store) -> dict[str, Any]:
    """Return what a finished run came to: of each model what the tables show, and how good its judge is."""
    judge = _newest(store, "rm").manifest.metrics
    models = {}
    for name, metrics in read(_newest(store, "report").path / "report.json").models.items():
        known = {key: getattr(metrics, key) for key in ("win_rate", "correct", "gold", "kl")}
        models[name] = {key: _bounds(estimate) for key, estimate in known.items() if estimate is not None}
        models[name]["gamed"] = metrics.is_gamed
    return {"gold_agreement": judge.get("gold_agreement"), "models": models}


def _bounds(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _newest(store: Store, name: str) -> Artifact:
    artifacts = store.artifacts(name)
    if not artifacts:
        sys.exit(f"{store.root} has no `{name}`: run recipes/quickstart.yaml there first")
    return artifacts[-1]


def _own_first(item: tuple[int, Store]) -> tuple[bool, int]:
    return item[0] != OWN_SEED, item[0]


def picture(report: Artifact) -> str:
    """Return the final table as a picture of a terminal."""
    from rich.console import Console
    from rich.text import Text

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        print_evaluation(report)
    lines = [line for line in said.getvalue().splitlines() if line and not line.startswith("report: ")][1:]
    console = Console(record=True, width=_WIDTH, file=io.StringIO())
    console.print(Text("$ trueup run recipes/quickstart.yaml\n"))
    for line in lines:
        head = line.startswith(("model ", "task "))
        console.print(Text(line, style="bold" if head else ""), overflow="ignore", no_wrap=True, crop=False)
    return console.export_svg(title="trueup", unique_id="final-table")


def filled(text: str) -> str:
    """Return a document with the figures of `docs/figures.json` in its marked places."""
    figures = json.loads(FILE.read_text(encoding="utf-8"))

    def fill(found: re.Match[str]) -> str:
        return f"<!-- figures:{found[1]} -->{SPANS[found[1]](figures)}<!-- /figures -->"

    return _SPAN.sub(fill, text)


def _seeds(figures: dict[str, Any]) -> str:
    """Return the table of all seeds."""
    rows = [
        "| seed | reward agrees with gold | base correct | SFT correct | DPO correct | DPO wins against SFT "
        "| PPO correct | PPO wins against SFT | mean gold: base, SFT, DPO, PPO | gamed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for seed, run in figures["seeds"].items():
        models = run["models"]
        cells = [seed, _percent(run.get("gold_agreement")), *(_percent(models[name]["correct"]) for name in NAMES[:2])]
        for name in NAMES[2:]:
            cells += [_percent(models[name]["correct"]), _win(models[name])]
        cells.append(", ".join(f"{models[name]['gold']['value']:.2f}" for name in NAMES))
        cells.append(", ".join(name for name in NAMES if models[name]["gamed"]) or "–")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n" + "\n".join(rows) + "\n"


def _win(facts: dict[str, Any]) -> str:
    """Return ``75.6 % [72.6, 78.4] at 2.3 nats``, as far as it is known."""
    rate = facts["win_rate"]
    interval = f" [{rate['low']:.1%}, {rate['high']:.1%}]".replace("%", "") if "low" in rate else ""
    return f"{_percent(rate)}{interval} at {facts['kl']['value']:.2f} nats"


def _percent(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value['value'] if isinstance(value, dict) else value:.1%}".replace("%", " %")


SPANS: dict[str, Callable[[dict[str, Any]], str]] = {
    "time": lambda figures: f"{duration(figures['seconds'])} on {figures['machine']}",
    "seconds": lambda figures: duration(figures["seconds"]),
    "seeds": _seeds,
}
"""Name of a marked place → what stands in it."""

if __name__ == "__main__":
    main(sys.argv[1:])
