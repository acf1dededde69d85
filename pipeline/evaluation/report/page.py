"""The report as a Markdown page: conclusions and tables first, then samples, then a guide to reading it.

Owns wording and order. Knows nothing of statistics or files: it renders a `Report` and its samples to text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.errors import counted
from pipeline.evaluation.markdown import escaped, table
from pipeline.evaluation.report.conclusion import of_model
from pipeline.evaluation.report.gaming_section import gaming_section
from pipeline.evaluation.report.record import LOWER_MARK, ModelMetrics, Report
from pipeline.evaluation.report.rounds_section import rounds_sentence, rounds_table
from pipeline.evaluation.report.samples import Sample
from pipeline.evaluation.report.sweep_section import best_of_n_sentence, best_of_n_table, sweep_sentence, sweep_table
from pipeline.evaluation.report.tables import correct_cell, gamed_text, task_table, win_cell
from pipeline.evaluation.stats.estimate import number_interval, percent, percent_interval, points_interval

WORST_SHOWN = 4
BEST_SHOWN = 2
_LONGEST_TEXT = 400
_CAPTIONS = {
    "rounds.svg": "Mean score of each round with its interval",
    "win_rates.svg": "Win rate of each model with its interval",
    "tasks.svg": "Correct answers by task and model",
    "frontier.svg": "Score of each setting over its KL",
    "reward_gold.svg": "Gain by the reward model and by gold against KL",
}


def render(report: Report, samples: Sequence[Sample], figures: Sequence[str], *, title: str = "Evaluation") -> str:
    """Render the page.

    Args:
        report: the report.
        samples: every prompt with its answers; may be empty.
        figures: file names of the figures beside the page.
        title: title of the page.
    """
    parts = [f"# {escaped(title)}\n", *_warnings(report), *_conclusions(report), _lead(report)]
    parts += ["## Models\n", table(_model_rows(report))]
    parts += _figure("win_rates.svg", figures)
    if report.sweep:
        parts += ["## Settings\n", f"{sweep_sentence(report)}\n", table(_escaped_names(sweep_table(report)))]
    if report.best_of_n:
        parts += ["## Best of n\n", f"{best_of_n_sentence(report, escaped)}\n", table(best_of_n_table(report))]
    parts += _figure("frontier.svg", figures)
    if report.rounds:
        parts += ["## Rounds\n", f"{rounds_sentence(report, escaped)}\n", table(_rounds_rows(report))]
        parts += _figure("rounds.svg", figures)
    if report.task_names:
        parts += ["## Correct answers by task\n", _tasks_lead(report), table(_escaped_names(task_table(report)))]
        parts += _figure("tasks.svg", figures)
    if any(metrics.gaming for metrics in report.models.values()):
        parts += ["## Does the reward model still agree with gold?\n", *gaming_section(report)]
        parts += _figure("reward_gold.svg", figures)
    if samples:
        parts += _samples(report, samples)
    return "\n".join([*parts, "## How to read this\n", _guide(report)])


def regressions(samples: Sequence[Sample], model: str, baseline: str) -> list[tuple[float, Sample]]:
    """Return ``(score of model - score of baseline, sample)`` in ascending order; ties keep the order of the prompts.

    Prompts without a score of both models are left out.
    """
    gaps = []
    for sample in samples:
        own, other = sample.answers.get(model), sample.answers.get(baseline)
        if own and other and own.score is not None and other.score is not None:
            gaps.append((own.score - other.score, sample))
    return sorted(gaps, key=lambda gap: gap[0])


def _warnings(report: Report) -> list[str]:
    return [f"> **Warning:** {escaped(warning)}\n" for warning in report.warnings]


def _conclusions(report: Report) -> list[str]:
    """Return the list of conclusions, one line for each candidate, and a line on variants of the baseline."""
    lines = [" ".join(of_model(report, name, escaped).lines) + _gamed_below(report, name) for name in report.candidates]
    variants = [escaped(name) for name, metrics in report.models.items() if metrics.variant]
    if variants:
        lines.append(
            f"{', '.join(variants)}: the checkpoint of {escaped(report.baseline)} decoded in another way, to compare "
            "with; no candidate."
        )
    return ["".join(f"- {line}\n" for line in lines)] if lines else []


def _gamed_below(report: Report, name: str) -> str:
    gamed = gamed_text(report.models[name])
    return f" Its reward is not to be believed ({escaped(gamed)}, see below)." if gamed else ""


def _lead(report: Report) -> str:
    count = f"{counted(report.prompts, 'prompt')}, the same for all models. " if report.prompts else ""
    if report.is_sample:
        count = f"{escaped(report.sample_text)}, the same for all models. "
    judge = "gold function" if report.judge == "gold" else "reward model"
    return (
        f"{count}A model wins a prompt when the {judge} scores its answer above that of "
        f"**{escaped(report.baseline)}**; a tie counts one half. Brackets are {percent(report.level, 0)} intervals.\n"
    )


def _model_rows(report: Report) -> list[list[str]]:
    """Return the table of models, without columns that are empty for all."""
    columns: list[tuple[str, Callable[[ModelMetrics], str]]] = [
        ("correct", lambda m: correct_cell(m, report, percent_interval(m.correct)) if m.correct else ""),
        ("Δ correct", lambda m: _delta(m, report.level)),
        (f"win rate vs {escaped(report.baseline)}", win_cell),
        (
            "won / tied / lost",
            lambda m: f"{m.win_counts.wins} / {m.win_counts.ties} / {m.win_counts.losses}" if m.win_counts else "",
        ),
        ("gold", lambda m: number_interval(m.gold) if m.gold else ""),
        ("reward", lambda m: number_interval(m.reward) + _gamed(m) if m.reward else ""),
        ("KL (nats)", lambda m: number_interval(m.kl) if m.kl else ""),
        (f"NLL by {escaped(report.baseline)}", lambda m: number_interval(m.nll) if m.nll else ""),
        ("tokens", lambda m: number_interval(m.length, 1) if m.length else ""),
        ("ended", lambda m: percent(m.eos_rate.value) if m.eos_rate else ""),
        ("checkpoint", lambda m: f"`{m.ref}`" if m.ref else ""),
    ]
    header, body = ["model"], [[_name(report, name)] for name in report.models]
    for title, cell in columns:
        cells = [cell(metrics) for metrics in report.models.values()]
        if any(cells):
            header.append(title)
            for row, text in zip(body, cells, strict=True):
                row.append(text or "–")
    return [header, *body]


def _name(report: Report, name: str) -> str:
    return f"**{escaped(name)}** (baseline)" if name == report.baseline else escaped(name)


def _delta(metrics: ModelMetrics, level: float) -> str:
    if not metrics.delta:
        return ""
    text = points_interval(metrics.delta).replace(" points", "")
    return text + (f" {LOWER_MARK}" if metrics.delta.is_below(level) else "")


def _gamed(metrics: ModelMetrics) -> str:
    gamed = gamed_text(metrics)
    return f" ({escaped(gamed)})" if gamed else ""


def _tasks_lead(report: Report) -> str:
    return (
        f"In parentheses: difference to {escaped(report.baseline)} on the same prompts, in percentage points. "
        f"{LOWER_MARK} marks a task answered worse than by the baseline beyond noise. Each figure is rounded by "
        "itself, so a difference may be one off that of the figures shown.\n"
    )


def _rounds_rows(report: Report) -> list[list[str]]:
    header, *body = rounds_table(report)
    return [header, *([row[0], escaped(row[1]), *row[2:]] for row in body)]


def _escaped_names(rows: list[list[str]]) -> list[list[str]]:
    header, *body = rows
    return [[escaped(cell) for cell in header], *([escaped(row[0]), *row[1:]] for row in body)]


def _figure(name: str, figures: Sequence[str]) -> list[str]:
    return [f"![{_CAPTIONS[name]}]({name})\n"] if name in figures else []


def _samples(report: Report, samples: Sequence[Sample]) -> list[str]:
    """Return the section of samples: for each model the worst regressions, then the largest gains."""
    parts = ["## Samples\n", "Where each model lost most against the baseline, then where it gained most.\n"]
    for name in report.models:
        gaps = regressions(samples, name, report.baseline)
        if name == report.baseline or not gaps:
            continue
        worst = [gap for gap in gaps[:WORST_SHOWN] if gap[0] < 0]
        best = [gap for gap in reversed(gaps[-BEST_SHOWN:]) if gap[0] > 0]
        lost = sum(gap < 0 for gap, _ in gaps)
        parts.append(f"### {escaped(name)}: scored lower on {lost} of {counted(len(gaps), 'prompt')}\n")
        parts += [_sample(gap, sample, name, report.baseline) for gap, sample in (*worst, *best)]
    return parts


def _sample(gap: float, sample: Sample, model: str, baseline: str) -> str:
    """Render one prompt with the two answers."""
    rows = [["model", "score", "correct", "answer"]]
    for name in (model, baseline):
        answer = sample.answers[name]
        correct = (
            "–" if answer.correct is None else {0.0: "no", 1.0: "yes"}.get(answer.correct, f"{answer.correct:.2f}")
        )
        score = "–" if answer.score is None else f"{answer.score:.2f}"
        rows.append([escaped(name), score, correct, escaped(answer.text, _LONGEST_TEXT) or "*(empty)*"])
    task = f" · {escaped(sample.task)}" if sample.task else ""
    lead = f"**{gap:+.2f}**{task}: {escaped(sample.prompt, _LONGEST_TEXT)}\n"
    if sample.reference is not None:
        lead += f"\nRight answer: {escaped(str(sample.reference), _LONGEST_TEXT)}\n"
    return f"{lead}\n{table(rows, numbers_from=len(rows[0]))}"


def _guide(report: Report) -> str:
    """Return the guide: the meaning of the columns, and the noise of this report."""
    others = [m for name, m in report.models.items() if name != report.baseline]
    widths = [m.win_rate.half_width for m in others if m.win_rate]
    resampled = f" ({report.resamples:,} times)" if report.resamples else ""
    known = f" With this many prompts it is known to about ±{100 * max(widths):.1f} points." if widths else ""
    lines = [
        f"**Intervals** come from resampling prompts{resampled}; shares of yes/no answers use Wilson's. They say how "
        "much other prompts of the same kind could change a value, and nothing of how another training seed would. "
        "One without any width, as in 0.80 [0.80, 0.80], says that no prompt differed from another, not that the "
        "value is certain.",
        f"**Win rate**: 50 % is no preference.{known}",
        "**A win rate alone flatters.** Tone and length can win prompts while answers get worse, so read *correct* "
        "and the table of tasks beside it, and compare with greedy decoding of the baseline where it is listed.",
    ]
    if any(m.kl for m in others):
        lines.append(
            "**KL** is how far a model moved from its reference, in nats per answer, on its own samples. A reward that "
            "rises with KL while gold falls is the reward model being exploited."
        )
    if any(m.nll for m in report.models.values()):
        name = escaped(report.baseline)
        lines.append(
            f"**NLL by {name}** is the negative log-likelihood per token of the answers under {name}, in nats; its "
            f"exponential is their perplexity. Fluent answers are near {name}'s own: far above, {name} would not write "
            "them; far below, they repeat what is likeliest."
        )
    if any(m.eos_rate for m in report.models.values()):
        lines.append("**ended** is the share of answers that stopped by themselves before the length limit.")
    if report.task_names:
        lines.append(_guide_to_mark(len(report.task_names), 1 - report.level))
    return "".join(f"- {line}\n" for line in lines)


def _guide_to_mark(tests: int, alpha: float) -> str:
    """Explain the mark and its false positive rate: each test errs on the lower side in alpha / 2 of cases."""
    chance = 1 - (1 - alpha / 2) ** tests
    return (
        f"**{LOWER_MARK}** is one paired test per task and model (exact McNemar for yes/no answers, p < {alpha:.2g}) "
        "whose interval leaves out zero as well. "
        f"With {tests} {'task' if tests == 1 else 'tasks'}, chance alone marks a model that is as good as the baseline "
        f"somewhere in at most {percent(chance, 0)} of reports."
    )
