"""The interface of a stage: its kind, its configuration, and the context that its `run()` receives.

Owns the registry of kinds. Knows nothing of any single kind, of recipes, of the store, or of torch: `trueup plan`
imports this module.

A kind is one package in `pipeline/stages/`. Its `config.py` registers it, without importing torch:

    class Config(StageConfig):
        data: Annotated[str, Data("messages")]
        model: Annotated[str, Input(external=True)]

    register_kind("sft", version=1, config=Config, run="pipeline.stages.sft.train:run", makes="model")

The module of `run` is imported when a stage of the kind runs. It imports torch at its top:

    def run(ctx: StageContext, config: Config) -> StageResult: ...
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from pydantic import BaseModel, ConfigDict

from pipeline.errors import Interrupted, PipelineError, Problem, listed, nearest
from pipeline.kind.compute import ComputeSettings
from pipeline.kind.markers import Added, Among, Code, Data, Input, PerRound, Runtime, Shape, Shapes, VariantsOf
from pipeline.kind.results import Event, Rejected, StageResult
from pipeline.kind.traits import MODEL_PARALLEL, PLAIN, PLAIN_TRAIN, RowCounts, Traits, Workload
from pipeline.parallel.dims import ParallelDims
from pipeline.plain_data import JsonObject, ShapedRow

Marker = TypeVar("Marker")
"""A class of markers of fields: `Input`, `Data`, `Code` or `Runtime`."""


@runtime_checkable
class Checkable(Protocol):
    """A block of a configuration that can check itself."""

    def check(self) -> list[Problem]:
        """Return the problems that types do not express."""
        ...


class StageConfig(BaseModel):
    """Base of every kind's configuration: strict, frozen, an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    @classmethod
    def markers(cls, marker: type[Marker]) -> dict[str, Marker]:
        """Return ``{field name: marker instance}`` for the fields annotated with ``marker``."""
        markers = {}
        for name, info in cls.model_fields.items():
            for item in info.metadata:
                if isinstance(item, marker):
                    markers[name] = item
        return markers

    def check(self) -> list[Problem]:
        """Return the problems that types do not express, e.g. two fields that exclude each other.

        By default they are those of its blocks that can check themselves, such as `train`.
        """
        return [problem for _, block in self if isinstance(block, Checkable) for problem in block.check()]


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
    manifest: JsonObject = {}


class Rows(Protocol):
    """Validated rows of a data source in one shape, as returned by `records.load`."""

    @property
    def shape(self) -> Shape:
        """The shape of the rows, one of those the field accepts."""
        ...

    @property
    def train(self) -> list[ShapedRow]:
        """Rows of the training split."""
        ...

    @property
    def held_out(self) -> list[ShapedRow]:
        """Rows of the held-out split, made by prompt; empty when the source has no split."""
        ...

    @property
    def places(self) -> list[str]:
        """``file:line`` of each row, those of the training split first."""
        ...


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
        responses: folder where sampled responses are kept for every stage; None keeps them for this stage only.
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
    runtime_report: JsonObject = field(default_factory=dict)
    set_aside: Callable[[str, Sequence[Rejected]], bool] | None = None
    responses: Path | None = None

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


RunFunction = Callable[[StageContext, Any], StageResult]


@dataclass(frozen=True)
class Kind:
    """A registered kind of stage.

    Attributes:
        name: name in recipes.
        version: increased when the same configuration would give another result.
        config: its configuration class.
        run: dotted name of the function that runs the stage, ``package.module:function``; `load_run` imports it.
        makes: how its artifact can be used: ``model``, ``tokenizer``, ``reward`` or ``report``.
        doc: its description, one line.
        traits: what plan, checks and forecast know of it.
    """

    name: str
    version: int
    config: type[StageConfig]
    run: str
    makes: str
    doc: str
    traits: Traits = PLAIN

    @property
    def parallel(self) -> bool:
        """Whether it may run in several processes; else it runs in one, whatever `compute` says."""
        return self.traits.parallel

    @property
    def takes_layout(self) -> bool:
        """Whether the layout of `compute` reaches it: ZeRO, FSDP, model parallelism, precision and kernels."""
        return self.traits.parallel and not self.traits.replicated

    @property
    def workload(self) -> Workload | None:
        """What it computes with its model; None if it has no model whose work and memory can be forecast."""
        train = self.config.model_fields.get("train")
        is_plain = train is not None and frozenset(getattr(train.annotation, "model_fields", ())) >= PLAIN_TRAIN
        return self.traits.workload or (Workload() if is_plain else None)

    @property
    def trains(self) -> bool:
        """Whether its work can be forecast and includes training."""
        return self.workload is not None and self.workload.trains

    def rows_problem(self, config: StageConfig, rows: RowCounts) -> Problem | None:
        """Return the problem of too few rows in the field `data` of a stage; None if there are enough."""
        train = getattr(config, "train", None)
        return None if train is None else self.traits.row_check(train, rows)

    def load_run(self) -> RunFunction:
        """Import and return the function that runs the stage; this loads torch.

        Raises:
            PipelineError: the module or the function does not exist.
            ImportError: the module imports what is not installed.
        """
        module_name, _, function_name = self.run.partition(":")
        try:
            function = getattr(importlib.import_module(module_name), function_name, None)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # the module is there, and imports another one that is not
            function = None
        if not callable(function):
            statement = f"`run` of kind `{self.name}` is `{self.run}`, which does not exist"
            raise PipelineError(Problem(statement, "`package.module:function`", "correct its `register_kind`"))
        return cast(RunFunction, function)


KINDS: dict[str, Kind] = {}


def register_kind(
    name: str,
    *,
    version: int,
    config: type[StageConfig],
    run: str,
    makes: str,
    doc: str | None = None,
    traits: Traits = PLAIN,
) -> None:
    """Register a kind of stage under its name in recipes.

    Args:
        name: name in recipes.
        version: see `Kind`.
        config: see `Kind`.
        run: dotted name of the function that runs the stage, ``package.module:function``.
        makes: see `Kind`.
        doc: the docstring of the kind's module; its first line describes the kind.
        traits: what differs from a plain training kind.
    """
    lines = (doc or "").strip().splitlines()
    KINDS[name] = Kind(name, version, config, run, makes, lines[0] if lines else "", traits)


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
    "MODEL_PARALLEL",
    "Added",
    "Among",
    "Code",
    "Data",
    "Event",
    "Input",
    "Kind",
    "PerRound",
    "Rejected",
    "ResolvedInput",
    "Rows",
    "Runtime",
    "Shape",
    "Shapes",
    "StageConfig",
    "StageContext",
    "StageResult",
    "VariantsOf",
    "kind_of",
    "markers_in",
    "register_kind",
]
