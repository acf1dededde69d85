"""Views of a run: live on a terminal, one line per event elsewhere.

Both implement `pipeline.run.runner.View`. The live view prints finished stages as lines that scroll away and
redraws only the running stage.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pipeline.artifacts import Artifact
from pipeline.cli.display.plans import print_plan
from pipeline.cli.terminal import console, duration, figure, metrics
from pipeline.errors import ExitCode, Problem
from pipeline.plan import Plan, PlannedStage
from pipeline.stage import Event

if TYPE_CHECKING:
    from rich.console import Console

BAR_WIDTH = 28
LINE_EVERY_S = 10.0
"""Seconds between two progress lines of the plain view."""
_MARKS = {"done": ("✓", "green"), "failed": ("✗", "bold red")}


@dataclass
class Running:
    """State of the running stage.

    Attributes:
        name: name of the stage.
        position: position among the pending stages, as ``3/7``.
        started: monotonic time of its start.
        phase: current phase, as text.
        step: steps done.
        total: number of steps; 0 when unknown.
        first: ``(clock, step)`` of the first progress in this phase; a resumed stage does not start at step 0.
        latest: latest value of each metric.
        shown: monotonic time of the last line printed about the stage.
    """

    name: str
    position: str
    started: float
    phase: str = ""
    step: int = 0
    total: int = 0
    first: tuple[float, int] | None = None
    latest: dict[str, float] = field(default_factory=dict)
    shown: float = 0.0

    def take(self, event: Event, now: float) -> None:
        """Update phase, steps and metrics from an event."""
        if event.kind == "phase":
            self.phase, self.step, self.total, self.first = event.text, 0, 0, None
        elif event.kind == "progress":
            if self.first is None or event.total != self.total or event.step < self.step:
                self.first = (now, event.step)
            self.step, self.total = event.step, event.total
            self.latest.update(event.metrics)

    def remaining_s(self, now: float) -> float | None:
        """Return the seconds left at the pace of this phase; None without progress."""
        if self.first is None or not self.total or self.step <= self.first[1]:
            return None
        clock, step = self.first
        return (now - clock) / (self.step - step) * (self.total - self.step)


class Display(ABC):
    """The state of a run that the live and the plain view share. Use it as a context manager."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.pending: list[str] = []
        self.running: Running | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 -- the plain view has nothing to restore
        """Restore the terminal."""

    @abstractmethod
    def line(self, text: str, *, mark: str = "", style: str = "") -> None:
        """Print one permanent line."""

    @abstractmethod
    def refresh(self, *, changed: bool = False) -> None:
        """Show the progress of the running stage; ``changed`` when it has entered another phase."""

    def run_started(self, plan: Plan, run_dir: Path) -> None:
        """Show the plan before anything runs."""
        self.pending = [stage.spec.name for stage in plan.pending]
        if not self.pending:
            self.line("nothing to run: every stage is in the store")
            return
        print_plan(plan, self.stream)
        print(file=self.stream, flush=True)

    def stage_cached(self, stage: PlannedStage, artifact: Artifact) -> None:
        """Show that a stage is taken from the store, unless the printed plan says so."""
        if stage.status != "cached":
            self.line(f"{stage.spec.name}: {artifact.ref} was made by another run", mark="done")

    def stage_started(self, stage: PlannedStage, *, resumed: bool) -> None:
        """Show that a stage runs now."""
        name = stage.spec.name
        position = self.pending.index(name) + 1 if name in self.pending else 1
        now = time.monotonic()
        phase = "resuming" if resumed else "starting" if position > 1 else "loading libraries"
        self.running = Running(name, f"{position}/{max(position, len(self.pending))}", now, phase)
        self.refresh(changed=True)

    def stage_waiting(self, stage: PlannedStage) -> None:
        """Show that this run waits for another process, which runs the stage."""
        self.line(f"{stage.spec.name}: another run is making it; waiting")

    def stage_event(self, stage: PlannedStage, event: Event) -> None:
        """Show progress, a phase or a note."""
        if self.running is None:
            return
        if event.kind == "note":
            self.line(f"{stage.spec.name}: {event.text}", style="dim")
            return
        self.running.take(event, time.monotonic())
        self.refresh(changed=event.kind == "phase")

    def stage_stopping(self, stage: PlannedStage) -> None:
        """Show that the run was asked to stop and the stage saves its state."""
        self.line(f"{stage.spec.name}: stopping; saving a checkpoint (Ctrl-C again to stop at once)")

    def stage_done(self, stage: PlannedStage, artifact: Artifact, seconds: float) -> None:
        """Show that a stage was committed."""
        self.running = None
        manifest = artifact.manifest
        rate = f", {figure(manifest.tokens_per_s)} tokens/s" if manifest.tokens_per_s else ""
        summary = f": {manifest.summary}" if manifest.summary else ""
        self.line(f"{artifact.ref} in {duration(seconds)}{rate}{summary}", mark="done")

    def stage_failed(self, stage: PlannedStage, problems: tuple[Problem, ...], exit_code: int) -> None:
        """Show that a stage failed or was stopped; the problems are printed when the command ends."""
        spent = f" after {duration(time.monotonic() - self.running.started)}" if self.running else ""
        self.running = None
        if exit_code == ExitCode.WAITING:
            self.line(f"{stage.spec.name} waits{spent}; the run goes on when it is run again")
        else:
            self.line(f"{stage.spec.name} ended early{spent}; what it did is kept", mark="failed")


class PlainDisplay(Display):
    """One line per event, with the time; progress at most every ten seconds."""

    def line(self, text: str, *, mark: str = "", style: str = "") -> None:
        """Print one line with the time."""
        words = f"{mark} " if mark else ""
        print(f"{time.strftime('%H:%M:%S')} {words}{text}", file=self.stream, flush=True)

    def refresh(self, *, changed: bool = False) -> None:
        """Print the progress of the stage if its phase changed or the last line is `LINE_EVERY_S` old."""
        running, now = self.running, time.monotonic()
        if running is None or (not changed and now - running.shown < LINE_EVERY_S):
            return
        running.shown = now
        facts = [running.phase] if changed else [f"step {running.step:,}/{running.total:,}"]
        if not changed:
            facts += [*filter(None, [metrics(running.latest)]), duration(now - running.started)]
            left = running.remaining_s(now)
            facts += [f"{duration(left)} left"] if left is not None else []
        self.line(f"[{running.position}] {running.name}: {', '.join(facts)}")


class LiveDisplay(Display):
    """Shows finished stages as lines, and the running one as a spinner, a bar and its metrics."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self.console: Console = console(self.stream)
        self.live: Live | None = None

    def close(self) -> None:
        """Remove the bar from the terminal and show the cursor."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def line(self, text: str, *, mark: str = "", style: str = "") -> None:
        """Print one line above the bar."""
        words = Text(text, style=style, overflow="fold")
        if not mark:
            self.console.print(words)
            return
        sign, colour = _MARKS[mark]
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_row(Text(sign, style=colour), words)
        self.console.print(row)

    def refresh(self, *, changed: bool = False) -> None:
        """Start the live area on the first call; from then on `rich` redraws it eight times a second."""
        if self.live is None:
            self.live = Live(
                console=self.console, get_renderable=self.drawn, refresh_per_second=8, transient=True, screen=False
            )
            self.live.start()

    def drawn(self) -> Group | Text:
        """Return the running stage in at most two lines."""
        running, now = self.running, time.monotonic()
        if running is None:
            return Text("")
        head = Text.assemble((running.name, "bold"), f"  {running.phase}", (f"  {metrics(running.latest)}", "cyan"))
        head.no_wrap, head.overflow = True, "ellipsis"
        if not hasattr(self, "spinner"):
            self.spinner = Spinner("dots", style="yellow")
        top = Table.grid(padding=(0, 1, 0, 0))
        top.add_row(self.spinner, Text(running.position, style="dim"), head)
        return Group(top, self._bar(running, now))

    def _bar(self, running: Running, now: float) -> Any:
        facts = [f"{running.step:,}/{running.total:,}"] if running.total else []
        facts.append(duration(now - running.started))
        left = running.remaining_s(now)
        facts += [f"{duration(left)} left"] if left is not None else []
        bar = ProgressBar(
            total=running.total or None,
            completed=running.step,
            width=min(BAR_WIDTH, max(8, self.console.width - 50)),
            pulse=not running.total,
            animation_time=now,
        )
        row = Table.grid(padding=(0, 2, 0, 0))
        row.add_row(Text("  "), bar, Text("  ".join(facts), no_wrap=True))
        return row


def display(stream: TextIO | None = None) -> Display:
    """Return the live view for a terminal, the plain view for any other stream; standard output by default."""
    stream = stream or sys.stdout
    return LiveDisplay(stream) if stream.isatty() else PlainDisplay(stream)
