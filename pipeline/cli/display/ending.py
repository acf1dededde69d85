"""Shows the end of a run: its artifacts, its evaluation reports, and commands to try next."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.artifacts import Store
from pipeline.cli.display.evaluations import print_evaluation
from pipeline.cli.terminal import Column, duration, figure, print_command, print_line, print_table, shown_path
from pipeline.evaluation.report.conclusion import winners
from pipeline.evaluation.report.record import read
from pipeline.plain_data import JsonObject

if TYPE_CHECKING:
    from pipeline.run.runner import RunReport, StageDone

_COLUMNS = (
    Column("stage"),
    Column("artifact", style="bold"),
    Column("kind", style="dim"),
    Column("time", right=True),
    Column("tokens/s", right=True),
    Column("memory", right=True),
)


def print_report(report: RunReport, store: Store, recipe: Path | None) -> None:
    """Print the artifacts of a run, the tables of its evaluations, and the commands to try next."""
    print()
    print_table(_COLUMNS, [_row(done) for done in report.stages])
    executed = sum(not done.cached for done in report.stages)
    print_line(f"\n{executed} made, {len(report.stages) - executed} from the store, in {duration(report.seconds)}")
    if executed:
        print_line(f"journal and logs: {shown_path(report.run_dir)}")
    for done in report.stages:
        if done.artifact.manifest.makes == "report":
            print_evaluation(done.artifact)
    commands = next_commands(report.stages, store, recipe)
    if commands:
        print("\nnext:")
        for command in commands:
            print_command(command)


def next_commands(stages: Sequence[StageDone], store: Store, recipe: Path | None) -> list[str]:
    """Return commands to try after a run; ``recipe`` is None when the run has no recipe file."""
    flag = store_flag(store)
    models = [done for done in stages if done.artifact.manifest.makes == "model"]
    reports = [done for done in stages if done.artifact.manifest.makes == "report"]
    commands = []
    if models:
        name = (_winners(reports, models) or [models[-1].stage.spec.name])[-1]
        commands += [f"trueup chat {name}{flag}", f"trueup lineage {name}{flag}"]
    commands[1:1] = [f"trueup show {done.stage.spec.name}{flag}" for done in reports[-1:]]
    change = _a_change(models[-1]) if models and recipe is not None else ""
    if change:
        commands.append(f"trueup run {recipe} --set {change}{flag}")
    return commands


def _winners(reports: Sequence[StageDone], models: Sequence[StageDone]) -> list[str]:
    """Return the models of this run that beat the baseline of its last report, in the order of the run."""
    file = reports[-1].artifact.path / "report.json" if reports else None
    if file is None or not file.is_file():
        return []
    better = winners(read(file))
    return [done.stage.spec.name for done in models if done.stage.spec.name in better]


def store_flag(store: Store) -> str:
    """Return `` --store DIR``, or nothing when it is the default store."""
    default = os.path.realpath(os.path.expanduser(os.environ.get("TRUEUP_STORE") or "store"))  # noqa: PTH111 -- `expand`
    return "" if str(store.root) == default else f" --store {shown_path(store.root)}"


def report_data(report: RunReport, store: Store) -> JsonObject:
    """Return the end of a run as plain data for `--json`."""
    return {
        "store": str(store.root),
        "run_dir": str(report.run_dir),
        "seconds": round(report.seconds, 3),
        "stages": [
            {
                "name": done.stage.spec.name,
                "kind": done.stage.spec.kind,
                "status": "cached" if done.cached else "done",
                "ref": done.artifact.ref,
                "fingerprint": done.artifact.manifest.fingerprint,
                "path": str(done.artifact.path),
                "seconds": round(done.seconds, 3),
                "tokens": done.artifact.manifest.tokens,
                "tokens_per_s": done.artifact.manifest.tokens_per_s,
                "metrics": done.artifact.manifest.metrics,
                "summary": done.artifact.manifest.summary,
            }
            for done in report.stages
        ],
        "reports": {
            done.stage.spec.name: json.loads(file.read_text(encoding="utf-8"))
            for done in report.stages
            if done.artifact.manifest.makes == "report" and (file := done.artifact.path / "report.json").is_file()
        },
    }


def _row(done: StageDone) -> list[str]:
    manifest = done.artifact.manifest
    return [
        done.stage.spec.name,
        done.artifact.ref,
        done.stage.spec.kind,
        "cached" if done.cached else duration(done.seconds),
        figure(manifest.tokens_per_s) if manifest.tokens_per_s else "",
        f"{manifest.peak_memory_mib:,.0f} MiB" if manifest.peak_memory_mib else "",
    ]


def _a_change(done: StageDone) -> str:
    """Return a `--set` value that halves a training stage's `beta` or `learning_rate`; empty without either.

    It is empty for a variant of a sweep, too, which sets values of its own.
    """
    if done.stage.spec.is_variant:
        return ""
    train = getattr(done.stage.spec.config, "train", None)
    for key in ("beta", "learning_rate"):
        value = getattr(train, key, None)
        if isinstance(value, float) and value > 0:
            return f"stages.{done.stage.spec.written_as or done.stage.spec.name}.train.{key}={value / 2:g}"
    return ""
