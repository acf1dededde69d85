"""Shows an evaluation report: its warnings, conclusions and tables."""

from __future__ import annotations

from pipeline.artifacts import Artifact
from pipeline.cli.terminal import NO_BREAK_SPACE, Column, print_line, print_table, shown_path
from pipeline.evaluation.report.conclusion import of_model
from pipeline.evaluation.report.gaming_section import gaming_sentences
from pipeline.evaluation.report.record import GREEDY, Report, read
from pipeline.evaluation.report.rounds_section import rounds_sentence, rounds_table
from pipeline.evaluation.report.sweep_section import best_of_n_sentence, best_of_n_table, sweep_sentence, sweep_table
from pipeline.evaluation.report.tables import headline, task_table


def print_evaluation(artifact: Artifact) -> None:
    """Print the conclusions and tables of a report artifact, and the path of its page; nothing without `report.json`.

    The sentences are derived from the figures of the table, by the same rule as those of the page.
    """
    file = artifact.path / "report.json"
    if not file.is_file():
        return
    whole = read(file)
    report = _without_greedy(whole)
    print(f"\n{artifact.ref}" + (f": {report.sample_text}" if report.is_sample else ""))
    for warning in report.warnings:
        print_line(f"warning: {warning}")
    for name in report.candidates:
        print_line(" ".join(of_model(report, name).lines))
    for sentence in gaming_sentences(report):
        print_line(sentence)
    _print_cells(headline(report))
    if report.rounds:
        print_line(f"\n{rounds_sentence(report)}")
        _print_cells(rounds_table(report))
    if report.sweep:
        print_line(f"\n{sweep_sentence(report)}")
        _print_cells(sweep_table(report))
    if report.best_of_n:
        print_line(f"\n{best_of_n_sentence(report)}")
        _print_cells(best_of_n_table(report))
    if report.task_names:
        print("\ncorrect answers by task")
        _print_cells(task_table(report))
    greedy = [name for name in whole.models if name not in report.models]
    page = artifact.path / "report.md"
    if greedy and page.is_file():
        print_line(f"on the page also: {', '.join(greedy)}")
    if page.is_file():
        print_line(f"report: {shown_path(page)}")


def _without_greedy(report: Report) -> Report:
    """Return the report with one row for each model: greedy decoding of a model is on the page."""
    models = {name: metrics for name, metrics in report.models.items() if not name.endswith(GREEDY)}
    return report.model_copy(update={"models": models})


def _print_cells(cells: list[list[str]]) -> None:
    header, *rows = cells
    rows = [[_breaking_before_brackets(cell) for cell in row] for row in rows]
    print_table([Column(header[0], style="bold"), *(Column(title, fold=True) for title in header[1:])], rows)


def _breaking_before_brackets(cell: str) -> str:
    """Make ``74.2 % [70.1, 78.0]`` breakable only before its interval."""
    return cell.replace(", ", f",{NO_BREAK_SPACE}").replace(" %", f"{NO_BREAK_SPACE}%")
