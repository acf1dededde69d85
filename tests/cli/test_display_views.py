"""What a person sees of a run: driven by the runner's calls, on a real plan and real artifacts."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import Result

from pipeline.artifacts import Artifact, Store
from pipeline.cli import doctor
from pipeline.cli.display.manifest import ran_facts
from pipeline.cli.display.views import Display, LiveDisplay, PlainDisplay, Running, display
from pipeline.errors import ExitCode, Problem
from pipeline.models.cpu.bf16_speed import Speed
from pipeline.plan import Plan, make_plan
from pipeline.recipe import load
from pipeline.stage import Event


class Screen(io.StringIO):
    """A terminal as far as `isatty` says."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def plan(tiny_recipe: Path, tmp_path: Path) -> Plan:
    return make_plan(load(tiny_recipe), Store(tmp_path / "store"))


def _lines(text: str) -> list[str]:
    """Return lines without their times."""
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in text.splitlines()]


def test_remaining_time_is_counted_from_the_first_step_seen() -> None:
    # A stage resumed at step 100 of 200; 10 steps in 5 seconds: 90 are left, at half a second each.
    running = Running("sft", "1/1", started=0.0)
    running.take(Event("progress", step=100, total=200), now=1000.0)
    assert running.remaining_s(1000.0) is None
    running.take(Event("progress", step=110, total=200, metrics={"loss": 1.0}), now=1005.0)
    assert running.remaining_s(1005.0) == pytest.approx(45.0)
    running.take(Event("phase", text="writing"), now=1006.0)
    assert (running.step, running.total, running.remaining_s(1006.0)) == (0, 0, None)


def test_a_plain_run_is_one_line_per_event_and_seldom_progress(plan: Plan, stocked: Store, tmp_path: Path) -> None:
    out = io.StringIO()
    view = PlainDisplay(out)
    stage = plan.stages[2]
    artifact = stocked.artifacts("sft")[1]
    with view:
        view.run_started(plan, tmp_path)
        view.stage_started(stage, resumed=True)
        view.stage_event(stage, Event("phase", text="training on 240 conversations"))
        for step in range(50):
            view.stage_event(stage, Event("progress", step=step, total=50, metrics={"loss": 2.0}))
        view.stage_event(stage, Event("note", text="2 rows left out"))
        view.stage_stopping(stage)
        view.stage_failed(stage, (Problem("broken"),), ExitCode.FAILED)
        view.stage_started(stage, resumed=False)
        view.stage_done(stage, artifact, 12.0)
    lines = [re.sub(r"after [0-9.]+ s;", "after … s;", line) for line in _lines(out.getvalue())]
    assert lines[0].split() == ["stage", "kind", "status", "why"]
    assert lines[8] == "6 stages: 6 pending"
    assert lines[10:] == [
        "[3/6] sft: resuming",
        "[3/6] sft: training on 240 conversations",
        "sft: 2 rows left out",
        "sft: stopping; saving a checkpoint (Ctrl-C again to stop at once)",
        "failed sft ended early after … s; what it did is kept",
        "[3/6] sft: starting",
        "done sft@v2 in 12 s: loss 1.25",
    ]


def test_a_plain_run_is_not_silent_for_longer_than_ten_seconds(plan: Plan, tmp_path: Path) -> None:
    out = io.StringIO()
    view = PlainDisplay(out)
    stage = plan.stages[0]
    view.stage_started(stage, resumed=False)
    assert view.running is not None
    view.stage_event(stage, Event("progress", step=1, total=10))
    view.running.shown -= 11
    view.stage_event(stage, Event("progress", step=4, total=10, metrics={"loss": 2.0}))
    assert _lines(out.getvalue())[1].startswith("[1/1] tokenizer: step 4/10, loss 2, ")


@pytest.mark.parametrize("width", [80, 120])
def test_a_live_run_draws_two_lines_that_fit(
    plan: Plan, stocked: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Screen()
    with LiveDisplay(out) as view:
        view.run_started(plan, tmp_path)
        stage = plan.stages[2]
        view.stage_started(stage, resumed=False)
        metrics = {"loss": 1.234567, "eval_loss": 1.5, "rewards/accuracies": 0.75}
        view.stage_event(stage, Event("phase", text="training on 384 conversations, which is a long story " * 2))
        view.stage_event(stage, Event("progress", step=30, total=60, metrics=metrics))
        paper = Console(file=io.StringIO(), width=width)
        paper.print(view.drawn())
        view.stage_done(stage, stocked.artifacts("sft")[1], 3.5)
    top, bar = paper.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(top) <= width
    assert len(bar) <= width
    assert "3/6 sft" in top
    assert "30/60" in bar
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "✓ sft@v2 in 3.5 s: loss 1.25" in drawn
    assert out.getvalue().endswith("\x1b[?25h") or "\x1b[?25h" in out.getvalue(), "the cursor is shown again"


def test_the_view_fits_the_stream() -> None:
    assert isinstance(display(Screen()), LiveDisplay)
    assert isinstance(display(io.StringIO()), PlainDisplay)


def test_a_stage_made_by_another_run_is_said(plan: Plan, stocked: Store) -> None:
    out = io.StringIO()
    view = PlainDisplay(out)
    artifact: Artifact = stocked.artifacts("sft")[0]
    view.stage_waiting(plan.stages[2])
    view.stage_cached(plan.stages[2], artifact)
    assert _lines(out.getvalue()) == [
        "sft: another run is making it; waiting",
        "done sft: sft@v1 was made by another run",
    ]


def test_doctor_finds_what_is_there_and_what_is_not(trueup: Callable[..., Result], tmp_path: Path) -> None:
    import json

    told = trueup("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(told.stdout)["checks"]}
    assert {"python", "torch", "transformers", "trl", "processor", "memory", "store", "disk"} <= set(checks)
    needed_is_here = all(check["status"] != "missing" for check in checks.values())
    assert json.loads(told.stdout)["ok"] is needed_is_here
    assert told.exit_code == (0 if needed_is_here else 1)
    assert checks["store"]["found"] == f"{tmp_path / 'store'}, made when first written"
    (tmp_path / "file").write_text("")
    broken = trueup("doctor", "--json", "--store", "/proc/nowhere")
    assert broken.exit_code == 1
    assert next(c["name"] for c in json.loads(broken.stdout)["checks"] if c["status"] == "missing") == "store"


@pytest.mark.parametrize("has_gpu", [True, False])
def test_doctor_names_what_a_gpu_would_use_what_it_brings_and_whether_it_is_of_use_here(
    has_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.cli import doctor

    monkeypatch.setattr(doctor, "installed", lambda package: {"flash-attn-3": "3.0", "vllm": "1.2"}.get(package, ""))
    checks = {check.name: check for check in doctor._on_gpu(has_gpu=has_gpu)}
    unused = "" if has_gpu else "auto does not take it here, without a GPU; on one: "
    assert checks["vllm"].status == "ok" and checks["vllm"].remedy == ""
    assert checks["vllm"].found.startswith(f"1.2: {unused}samples the responses of ppo")
    assert checks["flash-attn"].found.startswith(f"flash-attn-3 3.0: {unused}attention")
    liger = checks["liger-kernel"]
    assert liger.status == "optional"
    expected = (
        "not installed: " if has_gpu else "not installed, and auto would not take it here, without a GPU; on one: "
    )
    assert liger.found.startswith(f"{expected}fused kernels for training")
    assert liger.remedy == ("" if has_gpu else "there: ") + "pip install 'trueup[liger]'"


def test_doctor_says_what_precision_auto_comes_to(trueup: Callable[..., Result]) -> None:
    import json

    import torch

    from pipeline.models.cpu.bf16_speed import has_bf16

    checks = {check["name"]: check for check in json.loads(trueup("doctor", "--json").stdout)["checks"]}
    precision = checks["precision"]["found"]
    if torch.cuda.is_available():
        assert precision.startswith("auto is bf16") or precision.startswith("auto is fp16")
    elif has_bf16() is False:
        assert precision == "auto is fp32: this processor has no instructions for bf16"
    else:
        times = float(precision.split()[2])
        assert ("auto is bf16" in precision) is (times > 1.2) or times == 1.2  # the figure shown is rounded
        assert "below 512 it is fp32" in precision


def test_show_says_why_a_stage_computed_in_its_format() -> None:
    reason = "bf16 is 3.5 times as fast as fp32 on a layer of 1,024 units (14 ms in fp32, 4 ms in bf16)"
    manifest: Any = SimpleNamespace(runtime={"ran": {"precision": "bf16", "precision_reason": reason}})
    assert ran_facts(manifest) == {"precision": "bf16", "why this precision": reason}
    assert Speed(14.0, 4.0).words(1024) == reason


def test_doctor_measures_where_there_are_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("pipeline.models.cpu.bf16_speed.has_bf16", lambda: True)
    monkeypatch.setattr("pipeline.models.cpu.precision.measure", lambda width: Speed(14.0, 4.0))
    [check] = doctor._precision()
    assert check.found.startswith("bf16 is 3.5 times as fast as fp32 on a layer of 1,024 units")
    assert check.found.endswith(": auto is bf16 at about that width; below 512 it is fp32")


def test_a_view_that_cannot_show_a_line_is_not_made() -> None:
    with pytest.raises(TypeError, match=r"abstract methods .*line.* refresh"):
        Display()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (0, "everything needed is here"),
        (1, "1 needed thing is missing"),
        (2, "2 needed things are missing"),
    ],
)
def test_doctor_counts_what_is_missing(
    trueup: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, missing: int, said: str
) -> None:
    checks = [doctor.Check(f"thing {i}", "missing" if i < missing else "ok", "") for i in range(3)]
    monkeypatch.setattr("pipeline.cli.verbs.machine.examine", lambda store: checks)
    told = trueup("doctor")
    assert told.stdout.splitlines()[-1] == said
    assert told.exit_code == (1 if missing else 0)
