"""Evaluations asked for on the command line, and reports compared prompt by prompt.

Owns the recipe that `trueup evaluate` stands for, which report has which model, and the pairing of answers. The
statistics are those of `pipeline.evaluation`. Knows nothing of terminals.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.artifacts import Artifact, Store
from pipeline.artifacts.refs import resolve
from pipeline.disk import writing
from pipeline.errors import PipelineError, Problem, listed, nearest
from pipeline.evaluation.estimate import Delta, Estimate, Record
from pipeline.evaluation.report import Report, Sample, read
from pipeline.recipe import Recipe, load

SEED = 0
"""Of the bootstraps: comparing twice gives the same intervals."""


@dataclass(frozen=True)
class Evaluation:
    """What `trueup evaluate` was asked for; the fields are those of the evaluate stage."""

    name: str
    models: tuple[str, ...]
    baseline: str
    data: tuple[str, ...]
    reward: str | None = None
    gold: str | None = None
    correct: str | None = None
    limit: int | None = None
    temperature: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    trust_remote_code: bool = False


@contextlib.contextmanager
def evaluation_recipe(asked: Evaluation) -> Iterator[Recipe]:
    """Give the recipe an evaluation stands for; it can be planned and run while the context lasts.

    Raises:
        PipelineError: a file is not there, an option is wrong.
    """
    stage = {
        "kind": "evaluate",
        "data": "prompts",
        "models": list(asked.models),
        "baseline": asked.baseline,
        "reward": asked.reward,
        "gold": _absolute_code(asked.gold),
        "correct": _absolute_code(asked.correct),
        "limit": asked.limit,
        "temperature": asked.temperature,
        "max_new_tokens": asked.max_new_tokens,
    }
    recipe = {
        "name": "evaluate",
        "seed": asked.seed,
        "trust_remote_code": asked.trust_remote_code,
        "data": {"prompts": {"path": [_absolute(path) for path in asked.data]}},
        "stages": {asked.name: {key: value for key, value in stage.items() if value is not None}},
    }
    with tempfile.TemporaryDirectory(prefix="trueup-") as outer:
        # Two levels, since a relative path is also looked up in the parent of the recipe's folder.
        file = Path(outer) / "recipe" / "evaluate.yaml"
        file.parent.mkdir()
        with writing(file):
            file.write_text(json.dumps(recipe, indent=2), encoding="utf-8")  # JSON is YAML
        with _without_places(str(file)):
            yield load(file)


@contextlib.contextmanager
def _without_places(file: str) -> Iterator[None]:
    """Take the lines of a file the user never saw out of errors."""
    try:
        yield
    except PipelineError as error:
        cleaned = [
            Problem(p.found, p.expected, p.remedy, "" if p.where.startswith(file) else p.where, p.stage)
            for p in error.problems
        ]
        error.problems = tuple(cleaned)
        raise


def _absolute(path: str) -> str:
    return path if "${" in path else str(Path(path).expanduser().absolute())


def _absolute_code(spec: str | None) -> str | None:
    """Make the file of ``FILE.py:NAME`` absolute; ``module:name`` stays."""
    if spec is None:
        return None
    file, colon, name = spec.rpartition(":")
    return f"{_absolute(file)}{colon}{name}" if file.endswith(".py") else spec


class Measure(Record):
    """One measure of two models on the same prompts.

    Attributes:
        name: ``score``, ``correct``, or ``correct: TASK``.
        first: mean of the first.
        second: mean of the second.
        difference: paired, first minus second.
    """

    name: str
    first: float
    second: float
    difference: Delta


class Comparison(Record):
    """Two models on the same prompts, or one model in two reports.

    Attributes:
        first: what is compared.
        second: what it is compared with.
        source: where the answers come from.
        judge: whose scores decide.
        prompts: shared by both.
        win_rate: of the first, ties counting one half; absent without scores.
        wins: prompts won.
        ties: prompts on which neither was better.
        losses: prompts lost.
        p_value: of no preference.
        measures: means and differences.
    """

    first: str
    second: str
    source: str
    judge: str
    prompts: int
    win_rate: Estimate | None = None
    wins: int = 0
    ties: int = 0
    losses: int = 0
    p_value: float | None = None
    measures: tuple[Measure, ...] = ()


def compare_refs(store: Store, first: str, second: str, report: str | None = None) -> list[Comparison]:
    """Compare two reports model by model, or two models of one report.

    Args:
        store: where the reports are.
        first: ref of a report, or a model as a report names it.
        second: of the same sort.
        report: ref of the report that has both models; the newest that does by default.

    Raises:
        PipelineError: no such report, model or common prompt.
    """
    if report is None:
        whole = [_report_artifact(store, ref) for ref in (first, second)]
        if whole[0] is not None and whole[1] is not None:
            return _compare_reports(whole[0], whole[1])
        if whole[0] is not None or whole[1] is not None:
            one, other = (first, second) if whole[0] is not None else (second, first)
            raise PipelineError(
                Problem(f"`{one}` is a report and `{other}` is not", "two reports, or two models of one")
            )
    artifact, names = _report_with(store, (first, second), report)
    content, samples = _read(artifact)
    pairs = [(sample, sample) for sample in samples]
    return [_compare(pairs, names, (first, second), artifact.ref, content.judge)]


def _compare_reports(first: Artifact, second: Artifact) -> list[Comparison]:
    reports = [_read(first), _read(second)]
    shared = [name for name in reports[0][0].models if name in reports[1][0].models]
    if not shared:
        models = " and ".join(listed(report.models) for report, _ in reports)
        raise PipelineError(
            Problem(f"{first.ref} and {second.ref} share no model", f"a model of both; they have {models}")
        )
    judges = {report.judge for report, _ in reports}
    if len(judges) > 1:
        raise PipelineError(Problem(f"{first.ref} and {second.ref} have different judges", "the same judge in both"))
    others = _by_prompt(reports[1][1])
    pairs = [(sample, others[key]) for key, sample in _by_prompt(reports[0][1]).items() if key in others]
    if not pairs:
        raise PipelineError(Problem(f"{first.ref} and {second.ref} share no prompt", "prompts that are in both"))
    source = f"{first.ref} and {second.ref}"
    labels = [(f"{name} in {first.ref}", f"{name} in {second.ref}") for name in shared]
    return [
        _compare(pairs, (name, name), label, source, reports[0][0].judge)
        for name, label in zip(shared, labels, strict=True)
    ]


def _by_prompt(samples: Sequence[Sample]) -> dict[tuple[str, int], Sample]:
    """Return samples by prompt and how often it came before."""
    found: dict[tuple[str, int], Sample] = {}
    for sample in samples:
        count = 0
        while (sample.prompt, count) in found:
            count += 1
        found[sample.prompt, count] = sample
    return found


def _compare(
    pairs: Sequence[tuple[Sample, Sample]], names: tuple[str, str], labels: tuple[str, str], source: str, judge: str
) -> Comparison:
    """Compare one model's answers with another's."""
    from pipeline.evaluation.winrate import win_rate

    measures = []
    won: dict[str, Any] = {}
    tasks = list(dict.fromkeys(sample.task for sample, _ in pairs if sample.task))
    for title, attribute, task in [
        ("score", "score", None),
        ("correct", "correct", None),
        *((f"correct: {task}", "correct", task) for task in tasks),
    ]:
        values = _paired_values(pairs, names, attribute, task)
        if not values:
            continue
        mine, theirs = [a for a, _ in values], [b for _, b in values]
        measures.append(_measure(title, mine, theirs, is_share=attribute == "correct"))
        if attribute == "score":
            result = win_rate(mine, theirs, seed=SEED)
            won = {"win_rate": result.estimate, "wins": result.wins, "ties": result.ties, "losses": result.losses}
            won["p_value"] = result.p_value
    return Comparison(
        first=labels[0],
        second=labels[1],
        source=source,
        judge=judge,
        prompts=len(pairs),
        measures=tuple(measures),
        **won,
    )


def _paired_values(
    pairs: Sequence[tuple[Sample, Sample]], names: tuple[str, str], attribute: str, task: str | None
) -> list[tuple[float, float]]:
    found = []
    for mine, theirs in pairs:
        answers = mine.answers.get(names[0]), theirs.answers.get(names[1])
        if None in answers or (task is not None and mine.task != task):
            continue
        values = tuple(getattr(answer, attribute) for answer in answers)
        if None not in values:
            found.append((float(values[0]), float(values[1])))
    return found


def _measure(name: str, mine: Sequence[float], theirs: Sequence[float], *, is_share: bool) -> Measure:
    from pipeline.evaluation.differences import paired_difference

    bounds = (0.0, 1.0) if is_share else None
    difference = paired_difference(list(mine), list(theirs), seed=SEED, bounds=bounds)
    return Measure(name=name, first=sum(mine) / len(mine), second=sum(theirs) / len(theirs), difference=difference)


def _report_artifact(store: Store, ref: str) -> Artifact | None:
    """Return the report a ref means; None when it means something else or nothing."""
    try:
        artifact = resolve(store, ref)
    except PipelineError:
        return None
    return artifact if artifact.manifest.makes == "report" else None


def _report_with(store: Store, refs: tuple[str, str], report: str | None) -> tuple[Artifact, tuple[str, str]]:
    """Return the report that has both models, and their names in it."""
    if report is not None:
        chosen = resolve(store, report)
        if chosen.manifest.makes != "report":
            raise PipelineError(Problem(f"`{chosen.ref}` is a {chosen.manifest.makes}", "a report"))
        candidates = [chosen]
    else:
        reports = [artifact for artifact in store.artifacts() if artifact.manifest.makes == "report"]
        candidates = sorted(reports, key=lambda artifact: (artifact.manifest.created, artifact.manifest.version))[::-1]
    known: list[str] = []
    for artifact in candidates:
        models = _names(read(artifact.path / "report.json"))
        names = [models.get(ref) or models.get(_full_ref(store, ref)) for ref in refs]
        if names[0] is not None and names[1] is not None:
            return artifact, (names[0], names[1])
        known += [model for model in dict.fromkeys(models.values()) if model not in known]
    missing = [ref for ref in refs if ref not in known] or list(refs)
    where = f"{candidates[0].ref} has" if report is not None else "reports have"
    wanted = " and ".join(f"`{ref}`" for ref in missing)
    raise PipelineError(
        Problem(
            f"no report with {wanted}" if candidates else "no reports in this store",
            f"{where} {listed(known)}" if known else "",
            nearest(missing[0], known) or "make one with `trueup evaluate`",
            str(store.root),
        )
    )


def _full_ref(store: Store, ref: str) -> str:
    """Return ``name@vN`` for a ref of the store; anything else as it is."""
    try:
        return resolve(store, ref).ref
    except PipelineError:
        return ref


def _names(report: Report) -> Mapping[str, str]:
    """Return every way to call a model of a report: its name there, and the ref of its checkpoint."""
    refs = {model.ref: name for name, model in reversed(report.models.items()) if model.ref and "(" not in name}
    return {**refs, **{name: name for name in report.models}}


def _read(artifact: Artifact) -> tuple[Report, list[Sample]]:
    """Return a report with the answers it is made of."""
    file = artifact.path / "samples.jsonl"
    if not file.is_file():
        raise PipelineError(Problem(f"`{artifact.ref}` has no samples.jsonl", "a report of the evaluate stage"))
    try:
        samples = [Sample.model_validate_json(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    except ValidationError as error:
        raise PipelineError(Problem(f"samples.jsonl: {error.errors()[0]['msg']}", where=str(file))) from None
    return read(artifact.path / "report.json"), samples
