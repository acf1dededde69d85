"""The recipe behind `trueup evaluate`, and the comparison of reports behind `trueup compare`.

Owns that recipe, the search for the report that has given models, and the pairing of answers by prompt. The statistics
are those of `pipeline.evaluation`. Knows nothing of terminals.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.artifacts import Artifact, Store
from pipeline.artifacts.refs import resolve
from pipeline.errors import PipelineError, Problem, listed, nearest
from pipeline.evaluation.report.record import Report, read
from pipeline.evaluation.report.samples import Sample, read_samples
from pipeline.machine.disk import writing
from pipeline.recipe import Recipe, load

if TYPE_CHECKING:
    from pipeline.evaluation.pairwise import Comparison


@dataclass(frozen=True)
class Evaluation:
    """The arguments of `trueup evaluate`; the fields are those of the evaluate stage."""

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
    """Yield the recipe of an evaluation; it can be planned and run inside the context.

    Raises:
        PipelineError: a file is missing, or an option is invalid.
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
    """Remove the locations in a temporary recipe, which the user never saw, from errors."""
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
    return path if "${" in path else os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 -- as `expand`


def _absolute_code(spec: str | None) -> str | None:
    """Make the path in ``FILE.py:NAME`` absolute; leave ``module:name`` unchanged."""
    if spec is None:
        return None
    file, colon, name = spec.rpartition(":")
    return f"{_absolute(file)}{colon}{name}" if file.endswith(".py") else spec


def compare_refs(store: Store, first: str, second: str, report: str | None = None) -> list[Comparison]:
    """Compare two reports model by model, or two models of one report.

    Args:
        store: store of the reports.
        first: ref of a report, or name of a model in a report.
        second: another of the same sort.
        report: ref of a report with both models; by default the newest on all prompts of its data, or the newest on a
            sample when there is no other.

    Raises:
        PipelineError: no such report, model or common prompt.
    """
    if report is None:
        reports = [_report_artifact(store, ref) for ref in (first, second)]
        if reports[0] is not None and reports[1] is not None:
            return _compare_reports(reports[0], reports[1])
        if reports[0] is not None or reports[1] is not None:
            one, other = (first, second) if reports[0] is not None else (second, first)
            raise PipelineError(
                Problem(f"`{one}` is a report and `{other}` is not", "two reports, or two models of one")
            )
    chosen = _report_with(store, (first, second), report)
    content, samples = _read(chosen.artifact)
    pairs = [(sample, sample) for sample in samples]
    notes = [*chosen.notes, *_sample_note(chosen.artifact, content), *content.warnings]
    return _compared(pairs, content, {(first, second): chosen.names}, chosen.artifact.ref, notes)


def _compared(
    pairs: Sequence[tuple[Sample, Sample]],
    report: Report,
    names: Mapping[tuple[str, str], tuple[str, str]],
    source: str,
    notes: Sequence[str],
) -> list[Comparison]:
    """Compare two models on paired samples, for each pair of labels of the output and names of the samples."""
    from pipeline.evaluation.pairwise import compare_samples, pairs_of  # loads scipy

    combined = pairs_of(pairs, report)
    return [compare_samples(combined, own, label, source, notes) for label, own in names.items()]


def _compare_reports(first: Artifact, second: Artifact) -> list[Comparison]:
    """Compare the models that two reports share, on the prompts that both have."""
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
    both = [(sample, others[key]) for key, sample in _by_prompt(reports[0][1]).items() if key in others]
    if not both:
        raise PipelineError(Problem(f"{first.ref} and {second.ref} share no prompt", "prompts that are in both"))
    notes = []
    for artifact, (content, samples) in zip((first, second), reports, strict=True):
        notes += [*_sample_note(artifact, content), *(f"{artifact.ref}: {warning}" for warning in content.warnings)]
        if len(samples) > len(both):
            left = len(samples) - len(both)
            what = "prompt is" if left == 1 else "prompts are"
            notes.append(f"{left:,} {what} in {artifact.ref} only, and left out")
    names = {(f"{name} in {first.ref}", f"{name} in {second.ref}"): (name, name) for name in shared}
    return _compared(both, reports[0][0], names, f"{first.ref} and {second.ref}", notes)


def _sample_note(artifact: Artifact, report: Report) -> list[str]:
    """Return a note that a report is on a sample of the prompts of its data; empty when it is on all."""
    limit = _limit_of(artifact, report)
    if not limit:
        return []
    what = report.sample_text if report.is_sample else f"the first {limit:,} prompts of its data"
    return [f"{artifact.ref} is on {what}, not on all"]


def _limit_of(artifact: Artifact, report: Report) -> int:
    """Return the number of prompts of a report on a sample; 0 when it is on all. Schema 1 records only the limit."""
    if report.available is not None:
        return report.prompts or 0 if report.is_sample else 0
    limit = artifact.manifest.config.get("config", {}).get("limit")
    return int(limit) if limit and report.prompts == limit else 0


def _by_prompt(samples: Sequence[Sample]) -> dict[tuple[str, int], Sample]:
    """Return samples by prompt and occurrence: ``(prompt, number of earlier samples of it)``."""
    by_prompt: dict[tuple[str, int], Sample] = {}
    for sample in samples:
        count = 0
        while (sample.prompt, count) in by_prompt:
            count += 1
        by_prompt[sample.prompt, count] = sample
    return by_prompt


def _report_artifact(store: Store, ref: str) -> Artifact | None:
    """Return the report that a ref refers to; None when the ref refers to another artifact or to none."""
    try:
        artifact = resolve(store, ref)
    except PipelineError:
        return None
    return artifact if artifact.manifest.makes == "report" else None


class _Chosen(NamedTuple):
    """A report with two models, their names in it, and notes on the choice of the report."""

    artifact: Artifact
    names: tuple[str, str]
    notes: tuple[str, ...] = ()


def _report_with(store: Store, refs: tuple[str, str], report: str | None) -> _Chosen:
    """Return a report that has both models, and their names in it.

    A report on all prompts of its data is preferred to a newer one on a sample, which a note then names.
    """
    if report is not None:
        chosen = resolve(store, report)
        if chosen.manifest.makes != "report":
            raise PipelineError(Problem(f"`{chosen.ref}` is a {chosen.manifest.makes}", "a report"))
        candidates = [chosen]
    else:
        reports = [artifact for artifact in store.artifacts() if artifact.manifest.makes == "report"]
        candidates = sorted(reports, key=lambda artifact: (artifact.manifest.created, artifact.manifest.version))[::-1]
    known: list[str] = []
    limited: list[_Chosen] = []
    for artifact in candidates:
        content = read(artifact.path / "report.json")
        models = _names(content)
        names = [models.get(ref) or models.get(_full_ref(store, ref)) for ref in refs]
        if names[0] is not None and names[1] is not None:
            candidate = _Chosen(artifact, (names[0], names[1]))
            if not _limit_of(artifact, content):
                return candidate._replace(notes=_passed_over(limited))
            limited.append(candidate)
        known += [model for model in dict.fromkeys(models.values()) if model not in known]
    if limited:
        return limited[0]
    missing = [ref for ref in refs if ref not in known] or list(refs)
    subject = f"{candidates[0].ref} has" if report is not None else "reports have"
    wanted = " and ".join(f"`{ref}`" for ref in missing)
    raise PipelineError(
        Problem(
            f"no report with {wanted}" if candidates else "no reports in this store",
            f"{subject} {listed(known)}" if known else "",
            nearest(missing[0], known) or "make one with `trueup evaluate`",
            str(store.root),
        )
    )


def _passed_over(limited: Sequence[_Chosen]) -> tuple[str, ...]:
    """Return a note that names the newer reports on samples that were not chosen; empty without any."""
    refs = [each.artifact.ref for each in limited]
    if not refs:
        return ()
    return (f"newer, but on a sample of the prompts: {listed(refs)}; name one with --report to use it",)


def _full_ref(store: Store, ref: str) -> str:
    """Return ``name@vN`` for a ref of the store; return any other text unchanged."""
    try:
        return resolve(store, ref).ref
    except PipelineError:
        return ref


def _names(report: Report) -> Mapping[str, str]:
    """Map every name of a report's models to the name in the report: that name, and the ref of the checkpoint."""
    refs = {model.ref: name for name, model in reversed(report.models.items()) if model.ref and "(" not in name}
    return {**refs, **{name: name for name in report.models}}


def _read(artifact: Artifact) -> tuple[Report, list[Sample]]:
    """Return a report and the samples it was computed from."""
    file = artifact.path / "samples.jsonl"
    if not file.is_file():
        raise PipelineError(Problem(f"`{artifact.ref}` has no samples.jsonl", "a report of the evaluate stage"))
    return read(artifact.path / "report.json"), read_samples(file)
