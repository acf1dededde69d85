"""Writes a report: `report.json`, `samples.jsonl`, the figures, and the page that shows them.

Owns the set of files of a report. Knows nothing of their content.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.evaluation.report import figures, page
from pipeline.evaluation.report.record import Report, to_json
from pipeline.evaluation.report.samples import Sample, to_jsonl


def write(report: Report, folder: Path, samples: Sequence[Sample] = (), *, title: str = "Evaluation") -> list[Path]:
    """Write `report.json`, `report.md`, `samples.jsonl` and the figures into a folder.

    Args:
        report: the report.
        folder: output folder, created if missing.
        samples: every prompt with its answers; the page shows the worst regressions.
        title: title of the page.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "report.json"]
    written[0].write_text(to_json(report), encoding="utf-8")
    if samples:
        written.append(folder / "samples.jsonl")
        written[-1].write_text(to_jsonl(samples), encoding="utf-8")
    drawn = figures.draw(report, folder)
    written += drawn
    written.append(folder / "report.md")
    written[-1].write_text(page.render(report, samples, [path.name for path in drawn], title=title), encoding="utf-8")
    return written
