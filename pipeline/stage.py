"""The interface of a stage: its kind, its configuration, and the context that its `run()` receives.

Owns the registry of kinds, and the markers of configuration fields that name artifacts and data. Knows nothing of any
single kind, of recipes, of the store, or of torch: `trueup plan` imports this module.

A kind is one file in `pipeline/stages/`:

    class Config(StageConfig):
        data: Annotated[str, Data("messages")]
        model: Annotated[str, Input(external=True)]

    @stage("sft", version=1, config=Config)
    def run(ctx: StageContext, config: Config) -> StageResult: ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from pipeline.compute import ComputeSettings
from pipeline.errors import Interrupted, PipelineError, Problem, listed, nearest
from pipeline.parallel.dims import ParallelDims

Shape = Literal["text", "messages", "preference", "labelled", "prompt"]
"""Shape of the rows of a data source, see `pipeline/records/formats.py`."""

Shapes = Shape | tuple[Shape, ...]
"""One shape, or several alternatives: all rows of a source have the same one of them."""


@dataclass(frozen=True)
class Input:
    """Marks a configuration field (a name or a list of names) that takes artifacts.

    Attributes:
        kinds: kinds of stages accepted; empty accepts all whose artifact contains a model.
        external: whether a local folder or a hub id is also accepted.
    """

    kinds: tuple[str, ...]
    external: bool = False

    def __init__(self, *kinds: str, external: bool = False) -> None:
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "external", external)


@dataclass(frozen=True)
class Data:
    """Marks a configuration field that names a data source, with the shape or shapes of its rows."""

    shape: Shapes


@dataclass(frozen=True)
class Runtime:
    """Marks a field that cannot change the result; the fingerprint does not cover it."""


@dataclass(frozen=True)
class Code:
    """Marks a field that names a Python function, ``module:name`` or ``path/to/file.py:name``.

    The fingerprint covers the source of its file.
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
        """Return the problems that types do not express, e.g. two fields that exclude each other."""
        return []


class ResolvedInput(BaseModel):
    """An input a stage reads: an artifact of the store, a local folder, or a hub id.

    Attributes:
        ref: the ref in the recipe.
        name: stage name of the artifact, or the name of the folder or hub repository.
        kind: kind of the stage that made it, or ``external``.
        fingerprint: fingerprint of the artifact or of the folder's content, or ``hub:ID@REVISION``.
        path: payload directory, or the hub id.
        manifest: manifest of the artifact as plain data; empty when external.
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
    """An event that a running stage sends to its runner.

    Attributes:
        kind: ``progress`` (step of total, metrics), ``note`` (a line of text), or ``phase`` (the current activity).
        text: the line or the phase.
        step: steps done.
        total: number of steps; 0 when unknown.
        metrics: latest values to show.
    """

    kind: Literal["progress", "note", "phase"]
    text: str = ""
    step: int = 0
    total: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


class Rejected(NamedTuple):
    """A row that a stage cannot use.

    Attributes:
        where: ``file:line`` of the row.
        reason: why the stage cannot use it.
        row: the row as the stage received it.
    """

    where: str
    reason: str
    row: Mapping[str, Any]


class Rows(Protocol):
    """Validated rows of a data source in one shape, as returned by `records.load`."""

    @property
    def shape(self) -> Shape:
        """The shape of the rows, one of those the field accepts."""
        ...

    @property
    def train(self) -> list[dict[str, Any]]:
        """Rows of the training split."""
        ...

    @property
    def held_out(self) -> list[dict[str, Any]]:
        """Rows of the held-out split, made by prompt; empty when the source has no split."""
        ...

    @property
    def places(self) -> list[str]:
        """``file:line`` of each row, those of the training split first."""
        ...


MODEL_PARALLEL: dict[str, frozenset[str]] = {
    "pipeline_parallel": frozenset({"pretrain", "sft"}),
    "tensor_parallel": frozenset({"pretrain", "sft", "reward", "dpo", "kto"}),
    "sequence_parallel": frozenset({"pretrain", "sft"}),
}
"""The dimensions of model parallelism (`MODEL_PARALLEL_DIMS`), each with the kinds of stages that support it."""


@dataclass(frozen=True)
class StageContext:
    """Everything a stage may use.

    Attributes:
        name: name of the stage in its recipe.
        seed: seed of every random generator.
        out: payload directory; its files become the artifact.
        work: scratch directory for checkpoints; it survives a kill.
        inputs: inputs by the name of their configuration field, in order.
        load_rows: reads the data source named by a field.
        compute: precision, device, kernels, micro-batch: settings that may not change the result.
        emit: sends an event to the runner.
        stopping: returns true once the run was asked to stop; the stage then saves a checkpoint and raises
            `Interrupted`. It is a collective: all ranks must call it at the same points, and all get the same answer.
        trust_remote_code: whether the recipe allows a model repository to run its own Python.
        functions: loads the function of a `Code` field.
        dims: the parallel dimensions of the run.
        rank: rank of this process; rank 0 writes the payload and talks to the user.
        warnings: warnings of the plan that a report must repeat, e.g. that a model was trained on the prompts it is
            evaluated on.
        runtime_report: how the stage ran: precision, split of the batch, generated engine configuration. `report` adds
            to it, and only the stage's manifest reads it (`runtime.ran`).
        set_aside: writes rows of a field's source that cannot be rendered to its rejects and returns true; returns
            false when the source stops at bad rows.
    """

    name: str
    seed: int
    out: Path
    work: Path
    inputs: Mapping[str, list[ResolvedInput]]
    load_rows: Callable[[str], Rows]
    compute: ComputeSettings
    emit: Callable[[Event], None]
    stopping: Callable[[], bool]
    trust_remote_code: bool = False
    functions: Callable[[str], Callable[..., Any]] | None = None
    dims: ParallelDims = field(default_factory=ParallelDims)
    rank: int = 0
    warnings: tuple[str, ...] = ()
    runtime_report: dict[str, Any] = field(default_factory=dict)
    set_aside: Callable[[str, Sequence[Rejected]], bool] | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process is rank 0, which writes the payload."""
        return self.rank == 0

    @property
    def ranks(self) -> int:
        """World size: processes on all nodes."""
        return self.dims.world_size

    @property
    def replicas(self) -> int:
        """Data-parallel size: number of model-parallel groups, between which the rows of a batch are divided."""
        return self.dims.replicas

    def note(self, text: str) -> None:
        """Show the user a line of text."""
        self.emit(Event("note", text=text))

    def phase(self, text: str) -> None:
        """Set the current phase of the stage."""
        self.emit(Event("phase", text=text))

    def progress(self, step: int, total: int, **metrics: float) -> None:
        """Report ``step`` of ``total`` with the latest metrics."""
        self.emit(Event("progress", step=step, total=total, metrics=metrics))

    def report(self, **facts: Any) -> None:
        """Record how the stage ran, for its manifest; facts of one name that are mappings are merged."""
        for name, fact in facts.items():
            known = self.runtime_report.get(name)
            self.runtime_report[name] = {**known, **fact} if isinstance(known, Mapping) else fact

    def stop_if_asked(self) -> None:
        """Stop the stage if the run was asked to stop; for work without checkpoints.

        Raises:
            Interrupted: the run was asked to stop.
        """
        if self.stopping():
            raise Interrupted(Problem("stopped as asked", stage=self.name))

    def input(self, field_name: str) -> ResolvedInput:
        """Return the single input of a field."""
        return self.inputs[field_name][0]


@dataclass(frozen=True)
class StageResult:
    """The result of a stage; the runner writes it into the manifest.

    Attributes:
        metrics: final values.
        best: best values with the step at which they were measured, e.g. ``{"eval_loss": 1.2, "step": 300}``.
        tokens: number of tokens trained on or generated.
        trainer_seconds: seconds inside the trainer; for an `evaluate` stage, inside the evaluation.
        scoring_seconds: seconds a training stage spent scoring beside training: a reference model, held-out pairs.
        rows: counts, e.g. ``{"train": 1000, "held_out": 100, "rejected": 2}``.
        lineage: provenance of the weights, see `artifacts/provenance.py`.
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
        name: name in recipes.
        version: increased when the same configuration would give another result.
        config: its configuration class.
        run: the function that runs the stage; imports torch only when called.
        makes: how its artifact can be used: ``model``, ``tokenizer``, ``reward`` or ``report``.
        parallel: whether it may run in several processes; else it runs in one, whatever `compute` says.
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
    """Yield ``(field, marker, names)`` for every field of ``config`` that is set and names artifacts or data."""
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
