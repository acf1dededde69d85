"""What a stage is: its kind, its configuration, and the context its `run()` is given.

Owns the registry of kinds and the markers a configuration uses to say which of its fields name artifacts and data.
Knows nothing of any single kind, of recipes, of the store, or of torch: `trueup plan` imports this.

A kind is one file in `pipeline/stages/`:

    class Config(StageConfig):
        data: Annotated[str, Data("messages")]
        model: Annotated[str, Input(external=True)]

    @stage("sft", version=1, config=Config)
    def run(ctx: StageContext, config: Config) -> StageResult: ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from pipeline.errors import Interrupted, PipelineError, Problem, listed, nearest

Shape = Literal["text", "messages", "preference", "labelled", "prompt"]
"""What the rows of a data source must be: see `pipeline/records/formats.py`."""

Shapes = Shape | tuple[Shape, ...]
"""One shape, or several: then all rows of a source are of one of them."""


@dataclass(frozen=True)
class Input:
    """Marks a configuration field (a name or a list of names) that takes artifacts.

    Attributes:
        kinds: kinds of stages accepted; empty accepts all that hold a model.
        external: also accepts a local folder or a hub id.
    """

    kinds: tuple[str, ...]
    external: bool = False

    def __init__(self, *kinds: str, external: bool = False) -> None:
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "external", external)


@dataclass(frozen=True)
class Data:
    """Marks a configuration field that names a data source, and the shape (or shapes) its rows may have."""

    shape: Shapes


@dataclass(frozen=True)
class Runtime:
    """Marks a field that cannot change the result; it stays out of the fingerprint."""


@dataclass(frozen=True)
class Code:
    """Marks a field that names a Python function, ``module:name`` or ``path/to/file.py:name``.

    The source of its file enters the fingerprint.
    """


class StageConfig(BaseModel):
    """Base of every kind's configuration: strict, frozen, an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    @classmethod
    def markers(cls, marker: type[Any]) -> dict[str, Any]:
        """Return ``{field name: marker instance}`` for the fields annotated with ``marker``."""
        markers = {}
        for name, info in cls.model_fields.items():
            for item in info.metadata:
                if isinstance(item, marker):
                    markers[name] = item
        return markers

    def check(self) -> list[Problem]:
        """Return what is wrong beyond types, e.g. two fields that exclude each other."""
        return []


class ResolvedInput(BaseModel):
    """An input a stage reads: an artifact of the store, a local folder, or a hub id.

    Attributes:
        ref: how the recipe names it.
        name: stage name of the artifact, or the folder's or hub repository's name.
        kind: kind of the stage that made it, or ``external``.
        fingerprint: of the artifact; of the folder's content; ``hub:ID@REVISION``.
        path: payload directory, or the hub id.
        manifest: manifest of the artifact as plain data, empty when external.
    """

    model_config = ConfigDict(frozen=True)

    ref: str
    name: str
    kind: str
    fingerprint: str
    path: str
    manifest: dict[str, Any] = {}


@dataclass(frozen=True)
class Event:
    """Something a running stage tells its runner.

    Attributes:
        kind: ``progress`` (step of total, metrics), ``note`` (a line of text), or ``phase`` (what it now does).
        text: the line or the phase.
        step: steps done.
        total: steps in all; 0 when unknown.
        metrics: latest values worth showing.
    """

    kind: Literal["progress", "note", "phase"]
    text: str = ""
    step: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


class Rejected(NamedTuple):
    """A row that a stage cannot use.

    Attributes:
        where: its ``file:line``.
        reason: what is wrong with it.
        row: as the stage was given it.
    """

    where: str
    reason: str
    row: Mapping[str, Any]


class Rows(Protocol):
    """Rows of a data source in one shape, already checked: what `records.load` returns."""

    @property
    def shape(self) -> Shape:
        """The shape they are in, of those the field takes."""
        ...

    @property
    def train(self) -> list[dict[str, Any]]:
        """Rows to learn from."""
        ...

    @property
    def held_out(self) -> list[dict[str, Any]]:
        """Rows split off by prompt; empty when the source asks for no split."""
        ...

    @property
    def places(self) -> list[str]:
        """``file:line`` of each row, those to learn from first."""
        ...


MODEL_PARALLEL: dict[str, frozenset[str]] = {
    "pipeline_parallel": frozenset({"pretrain", "sft"}),
    "tensor_parallel": frozenset({"pretrain", "sft", "reward", "dpo", "kto"}),
    "sequence_parallel": frozenset({"pretrain", "sft"}),
}
"""Words of `compute` that have several processes work on the same rows, with the kinds of stages that can."""


def group_of(compute: Mapping[str, Any]) -> int:
    """Return how many processes work on the same rows, of `compute` as plain data."""
    return math.prod(int(compute.get(word, 1)) for word in MODEL_PARALLEL)


@dataclass(frozen=True)
class StageContext:
    """All a stage may touch.

    Attributes:
        name: of the stage in its recipe.
        seed: for every random generator.
        out: payload directory; what is written here becomes the artifact.
        work: scratch directory that survives a kill; checkpoints live in it.
        inputs: field name to the inputs it names, in order.
        load_rows: reads the data source named by a field.
        compute: precision, threads, micro-batch: things that may not change the result.
        emit: sends an event to the runner.
        stopping: true once the run was asked to stop; a stage saves a checkpoint and raises `Interrupted`. With several
            processes all must ask at the same places, and all get the same answer.
        trust_remote_code: whether the recipe allows a model repository to run its own Python.
        functions: loads a `Code` field's function.
        rank: of this process; the first one writes what is kept and talks to the user.
        ranks: processes that run the stage together.
        warnings: what the plan knows that a reader of the result must know too, e.g. that a model learnt from the
            prompts it is asked.
        runtime_report: how the stage really ran: precision, split of the batch, configuration generated for an engine.
            The stage fills it; its manifest keeps it under `runtime`.
        set_aside: keeps rows of a field's source that cannot be rendered with its rejects, and returns true; false
            where the source stops at bad rows.
    """

    name: str
    seed: int
    out: Path
    work: Path
    inputs: Mapping[str, list[ResolvedInput]]
    load_rows: Callable[[str], Rows]
    compute: Mapping[str, Any]
    emit: Callable[[Event], None]
    stopping: Callable[[], bool]
    trust_remote_code: bool = False
    functions: Callable[[str], Callable[..., Any]] | None = None
    rank: int = 0
    ranks: int = 1
    warnings: tuple[str, ...] = ()
    runtime_report: dict[str, Any] = field(default_factory=dict)
    set_aside: Callable[[str, Sequence[Rejected]], bool] | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is kept."""
        return self.rank == 0

    @property
    def replicas(self) -> int:
        """Groups of processes that share the rows of a batch; those of a group work on the same rows."""
        return self.ranks // group_of(self.compute)

    def note(self, text: str) -> None:
        """Tell the user one line."""
        self.emit(Event("note", text=text))

    def phase(self, text: str) -> None:
        """Say what the stage is doing now."""
        self.emit(Event("phase", text=text))

    def progress(self, step: int, total: int, **metrics: float) -> None:
        """Report ``step`` of ``total`` with the latest metrics."""
        self.emit(Event("progress", step=step, total=total, metrics=metrics))

    def stop_if_asked(self) -> None:
        """Leave the stage here if the run was asked to stop; for work that keeps no checkpoint.

        Raises:
            Interrupted: it was.
        """
        if self.stopping():
            raise Interrupted(Problem("stopped as asked", stage=self.name))

    def input(self, field_name: str) -> ResolvedInput:
        """Return the single input of a field."""
        return self.inputs[field_name][0]


@dataclass(frozen=True)
class StageResult:
    """What a stage reports; the runner writes it into the manifest.

    Attributes:
        metrics: final values.
        best: best values with the step they were seen at, e.g. ``{"eval_loss": 1.2, "step": 300}``.
        tokens: tokens trained on or generated.
        trainer_seconds: seconds inside the trainer; of an `evaluate` stage, inside the evaluation.
        scoring_seconds: seconds a training stage spent scoring beside it: a reference, held-out pairs.
        rows: counts, e.g. ``{"train": 1000, "held_out": 100, "rejected": 2}``.
        lineage: what the weights stand on, see `artifacts/provenance.py`.
        summary: short sentences for the end-of-run table.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    trainer_seconds: float = 0.0
    scoring_seconds: float = 0.0
    rows: Mapping[str, int] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""


RunFunction = Callable[[StageContext, Any], StageResult]


@dataclass(frozen=True)
class Kind:
    """A registered kind of stage.

    Attributes:
        name: as recipes write it.
        version: raised when the same configuration would give another result.
        config: its configuration class.
        run: the function that does the work; imports torch only when called.
        makes: ``model``, ``tokenizer``, ``reward`` or ``report``: what its artifact can be used as.
        parallel: whether several processes may run it together; others run on one, whatever `compute` says.
        doc: first line of the module's docstring.
    """

    name: str
    version: int
    config: type[StageConfig]
    run: RunFunction
    makes: str
    parallel: bool
    doc: str


KINDS: dict[str, Kind] = {}


def stage(
    name: str, *, version: int, config: type[StageConfig], makes: str, parallel: bool = False
) -> Callable[[RunFunction], RunFunction]:
    """Register the decorated function as the `run()` of a kind."""

    def register(run: RunFunction) -> RunFunction:
        module_doc = run.__globals__.get("__doc__") or ""
        doc = module_doc.strip().splitlines()[0] if module_doc else ""
        KINDS[name] = Kind(name, version, config, run, makes, parallel, doc)
        return run

    return register


def kind_of(name: str) -> Kind:
    """Return the registered kind.

    Raises:
        PipelineError: no such kind.
    """
    if name in KINDS:
        return KINDS[name]
    raise PipelineError(
        Problem(found=f"unknown kind `{name}`", expected=f"one of {listed(sorted(KINDS))}", remedy=nearest(name, KINDS))
    )


def markers_in(config: StageConfig) -> Iterator[tuple[str, Any, list[str]]]:
    """Yield ``(field, marker, names)`` for every field of ``config`` that names artifacts or data and is set."""
    for kind_of_marker in (Input, Data):
        for name, marker in type(config).markers(kind_of_marker).items():
            value = getattr(config, name)
            if value is not None:
                yield name, marker, list(value) if isinstance(value, list | tuple) else [value]


__all__ = [
    "KINDS",
    "Code",
    "Data",
    "Event",
    "Input",
    "Kind",
    "ResolvedInput",
    "Rows",
    "Runtime",
    "Shape",
    "Shapes",
    "StageConfig",
    "StageContext",
    "StageResult",
    "kind_of",
    "markers_in",
    "stage",
]
