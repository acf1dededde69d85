"""The types of a recipe that has been read: data sources, compute, stages.

Knows nothing of YAML or of single kinds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipeline.kind.compute import Attention, ComputeSettings, Precision, Switch
from pipeline.kind.compute import Device as DeviceName
from pipeline.parallel.dims import Offload, ParallelDims, model_parallel_size
from pipeline.plain_data import JsonObject, JsonView
from pipeline.recipe.data_source import DataSource
from pipeline.recipe.document import Node
from pipeline.recipe.hardware import Hardware, Hardwares
from pipeline.recipe.paths import Variable, find
from pipeline.stage import MODEL_PARALLEL, StageConfig, kind_of

SLURM_TIME = re.compile(r"(\d+-)?\d{1,3}:\d{2}:\d{2}")
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]*"


class Slurm(BaseModel):
    """What `launcher: slurm` asks the cluster for; nodes and processes are those of `compute`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: str | None = Field(None, description="Partition, or several with commas.")
    account: str | None = Field(None, description="Account that pays.")
    qos: str | None = Field(None, description="Quality of service.")
    time: int | str = Field(
        60, description="Longest time of a job: minutes, or [DAYS-]HH:MM:SS. A job that needs longer is requeued."
    )
    gpus_per_node: int | None = Field(None, ge=0, description="GPUs on each node.")
    cpus_per_task: int | None = Field(
        None, ge=1, description="CPUs on each node; processes times threads when not given."
    )
    mem_gb: float | None = Field(None, gt=0, description="Memory on each node, in GiB.")
    constraint: str | None = Field(None, description="Features the nodes must have.")
    nodelist: str | None = Field(None, description="Nodes to use.")
    exclude: str | None = Field(None, description="Nodes not to use.")
    grace_s: int = Field(
        120, ge=30, description="Seconds before the end of its time at which a job saves and requeues."
    )
    setup: list[str] = Field([], description="Shell lines of a job before it starts, e.g. `module load cuda`.")
    options: dict[str, str | int | bool] = Field({}, description="Any other option of sbatch: name to value.")

    @field_validator("time")
    @classmethod
    def _is_time(cls, value: int | str) -> int | str:
        if (isinstance(value, int) and value < 1) or (isinstance(value, str) and not SLURM_TIME.fullmatch(value)):
            raise ValueError(f"is {value!r}|minutes, or [DAYS-]HH:MM:SS")
        return value

    @property
    def minutes(self) -> int:
        """The time in minutes, rounded up."""
        if isinstance(self.time, int):
            return self.time
        days, _, clock = self.time.rpartition("-")
        hours, minutes, seconds = map(int, clock.split(":"))
        return int(days or 0) * 1440 + hours * 60 + minutes + (seconds > 0)


class Compute(BaseModel):
    """Where and how a stage runs. All of it is runtime, except a precision that is asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    processes: int = Field(1, ge=1, description="Processes on each node; on GPUs one for each.")
    nodes: int = Field(1, ge=1, description="Machines.")
    zero: int = Field(
        0, ge=0, le=3, description="ZeRO stage: 1 shards optimizer states, 2 gradients too, 3 weights too."
    )
    offload: Offload = Field("none", description="What ZeRO keeps in CPU memory.")
    fsdp: bool = Field(False, description="Shard weights, gradients and optimizer with FSDP2 instead of ZeRO-3.")
    pipeline_parallel: int = Field(1, ge=1, description="Processes that hold consecutive decoder layers each.")
    tensor_parallel: int = Field(1, ge=1, description="Processes that share the numbers of every large matrix.")
    sequence_parallel: int = Field(1, ge=1, description="Processes that share the tokens of every row.")
    precision: Precision = Field("auto", description="Number format of the computation.")
    launcher: Literal["local", "slurm"] = Field("local", description="What starts the processes.")
    rendezvous: str | None = Field(
        None,
        description="HOST:PORT where the machines of `nodes` meet: an address of the first one; Slurm finds its own.",
    )
    join_timeout_s: float = Field(900.0, gt=0, description="Seconds the machines of `nodes` have to come together.")
    slurm: Slurm = Field(Slurm(), description="What `launcher: slurm` asks the cluster for.")
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Rows a device works on at once; they divide the rows of its process. Cannot change the result. "
        "`ppo` goes by `train.token_budget` instead, `kto` by `train.kl_batch`.",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of each process; all cores when not given.")
    device: DeviceName = Field("auto", description="Device to run on; `auto` is a GPU if any.")
    attention: Attention = Field(
        "auto", description="Attention kernel; `auto` is FlashAttention where it is installed on a GPU, else torch's."
    )
    liger: Switch = Field(
        "auto", description="Liger's fused kernels; `auto` uses them where they are installed on a GPU."
    )
    activation_checkpointing: bool | Literal["auto"] = Field(
        "auto",
        description="Recompute activations: less memory, more time; `auto`: where they do not fit, in ppo never.",
    )
    hardware: Hardware | Hardwares | None = Field(
        None, description="Device to plan for: hours, cost, and whether it fits; this machine's when not given."
    )
    checkpoint_every_s: float = Field(30.0, gt=0, description="Seconds between checkpoints.")

    @field_validator("rendezvous")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        host, _, port = (value or "").rpartition(":")
        if value is not None and not (host and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError(f"is {value!r}|must be HOST:PORT, e.g. node1:29500")
        return value

    def alone(self) -> Compute:
        """Return these settings for a stage that runs in one process."""
        one = {"processes": 1, "nodes": 1, "zero": 0, "fsdp": False, "offload": "none"}
        return self.model_copy(update={**one, **dict.fromkeys(MODEL_PARALLEL, 1)})

    def replicated(self) -> Compute:
        """Return these settings for a stage whose processes each hold the whole model."""
        whole = {"zero": 0, "fsdp": False, "offload": "none"}
        return self.model_copy(update={**whole, **dict.fromkeys(MODEL_PARALLEL, 1)})

    @property
    def ranks(self) -> int:
        """World size: processes on all nodes."""
        return self.processes * self.nodes

    @property
    def group(self) -> int:
        """Model-parallel size: processes that work on the same rows (pipeline, tensor or sequence parallelism)."""
        return model_parallel_size(self)

    @property
    def replicas(self) -> int:
        """Data-parallel replicas: model-parallel groups among which the rows of a batch are divided.

        Rounded down where `contradictions` says that the groups do not divide the processes.
        """
        return self.ranks // self.group

    @property
    def dims(self) -> ParallelDims:
        """The parallel dimensions of a stage with these settings.

        Raises:
            PipelineError: the model-parallel groups do not divide the processes, see `contradictions`.
        """
        return ParallelDims(
            world_size=self.ranks,
            pipeline_parallel=self.pipeline_parallel,
            tensor_parallel=self.tensor_parallel,
            sequence_parallel=self.sequence_parallel,
            zero=self.zero,
            fsdp=self.fsdp,
            offload=self.offload,
        )

    @property
    def settings(self) -> ComputeSettings:
        """What a running stage reads of these settings, besides `dims`."""
        return ComputeSettings(**{field.name: getattr(self, field.name) for field in fields(ComputeSettings)})

    def contradictions(self) -> list[tuple[str, str, str]]:
        """Return ``(field, expected, remedy)`` for each setting that contradicts another."""
        conflicts = []
        if self.fsdp and self.zero:
            needs_zero = self.offload != "none" or self.sequence_parallel > 1
            remedy = "leave compute.fsdp out" if needs_zero else "set compute.zero: 0, or leave compute.fsdp out"
            conflicts.append(("fsdp", "must be false with compute.zero above 0", remedy))
        several = [word for word in MODEL_PARALLEL if getattr(self, word) > 1]
        if len(several) > 1:
            others = " and ".join(f"compute.{word}" for word in several[1:])
            remedy = f"set {' and '.join(f'compute.{word}: 1' for word in several[1:])}, or compute.{several[0]}: 1"
            conflicts.append((several[0], f"must be 1 with {others} above 1", remedy))
        if self.pipeline_parallel > 1:
            conflicts += self._pipeline_contradictions()
        if self.tensor_parallel > 1:
            conflicts += self._tensor_contradictions()
        if self.sequence_parallel > 1:
            conflicts += self._sequence_contradictions()
        if self.offload != "none" and not self.zero:
            levels = "3" if self.offload == "all" else "2 or 3"
            remedy = f"set compute.zero: {levels}" + (", and leave compute.fsdp out" if self.fsdp else "")
            remedy = "set compute.offload: none" if set(several) - {"sequence_parallel"} else remedy
            conflicts.append(("offload", "must be none without compute.zero", remedy))
        if self.offload == "all" and 0 < self.zero < 3:
            remedy = "set compute.zero: 3, or compute.offload: optimizer; only ZeRO-3 can keep weights in CPU memory"
            conflicts.append(("offload", "must be optimizer or none below ZeRO-3", remedy))
        if self.nodes > 1 and self.launcher == "local" and not self.rendezvous:
            remedy = "set compute.rendezvous: HOST:PORT of the first machine"
            conflicts.append(("nodes", "must be 1 without compute.rendezvous", remedy))
        return conflicts

    def _undivided(self, word: str) -> list[tuple[str, str, str]]:
        """Return a conflict if ``word`` does not divide the processes; its remedy is the nearest size that does."""
        size = getattr(self, word)
        if self.ranks % size == 0:
            return []
        near = [n for n in range(2, self.ranks + 1) if self.ranks % n == 0]
        best = min(near, key=lambda n: (abs(n - size), -n), default=0)
        remedy = f"set compute.{word}: {best}" if best else f"set compute.processes: {size}, or a multiple"
        return [(word, f"must divide processes × nodes, which is {self.ranks}", remedy)]

    def _unsharded(self, word: str) -> list[tuple[str, str, str]]:
        """Return a conflict if ``word`` is combined with ZeRO or FSDP, which do not support a divided model."""
        asked = {"compute.zero: 0": self.zero > 0, "compute.fsdp: false": self.fsdp}
        off = [text for text, is_asked in asked.items() if is_asked]
        if self.offload != "none" and self.zero:
            off.append("compute.offload: none")
        remedy = f"set {' and '.join(off)}, or compute.{word}: 1"
        return [(word, "must be 1 with compute.zero or compute.fsdp", remedy)] if off else []

    def _pipeline_contradictions(self) -> list[tuple[str, str, str]]:
        """Return the conflicts of pipeline parallelism with other settings."""
        conflicts, word = [], "pipeline_parallel"
        if self.ranks % self.pipeline_parallel:
            remedy = f"set compute.processes: {self.pipeline_parallel}, or a multiple"
            conflicts.append((word, f"must divide processes × nodes, which is {self.ranks}", remedy))
        conflicts += self._unsharded(word)
        if self.precision == "fp16":
            remedy = "set compute.precision: bf16 or fp32; the scale of an fp16 loss is not shared between parts"
            conflicts.append((word, "must be 1 in fp16", remedy))
        if self.liger == "on":
            conflicts.append((word, "must be 1 with Liger's kernels", "set compute.liger: off"))
        return conflicts

    def _sequence_contradictions(self) -> list[tuple[str, str, str]]:
        """Return the conflicts of sequence parallelism with other settings."""
        word = "sequence_parallel"
        conflicts = self._undivided(word)
        if not self.zero:
            more = ", and leave compute.fsdp out" if self.fsdp else ": DeepSpeed cuts the rows"
            conflicts.append((word, "must be 1 without compute.zero", f"set compute.zero: 1, 2 or 3{more}"))
        if self.attention == "eager":
            remedy = "set compute.attention: sdpa, flash or auto"
            conflicts.append((word, "must be 1 with compute.attention: eager", remedy))
        return conflicts

    def _tensor_contradictions(self) -> list[tuple[str, str, str]]:
        """Return the conflicts of tensor parallelism with other settings."""
        word = "tensor_parallel"
        conflicts = self._undivided(word)
        conflicts += self._unsharded(word)
        if self.precision == "fp16":
            conflicts.append((word, "must be 1 in fp16", "set compute.precision: bf16 or fp32"))
        if self.liger == "on":
            conflicts.append((word, "must be 1 with Liger's kernels", "set compute.liger: off"))
        return conflicts


@dataclass(frozen=True)
class StageSpec:
    """A stage of a recipe.

    Attributes:
        name: name of the stage.
        kind: registered name of its kind.
        config: configuration, an instance of the kind's class.
        seed: the stage's seed, or the recipe's.
        compute: the recipe's settings, overridden by the stage's.
        where: ``file:line`` of the stage.
        written_as: name under `stages:` if this is one round of it, or one variant of a sweep; else empty.
        is_variant: whether it is a variant of a sweep.
    """

    name: str
    kind: str
    config: StageConfig
    seed: int
    compute: Compute
    where: str
    written_as: str = ""
    is_variant: bool = False

    @property
    def effective_compute(self) -> Compute:
        """The settings its processes run with: what its kind does not support is left out."""
        kind = kind_of(self.kind)
        if not kind.parallel:
            return self.compute.alone()
        return self.compute if kind.takes_layout else self.compute.replicated()


class BrokenStage(NamedTuple):
    """A stage whose configuration has problems; its compute and its rows are checked nevertheless.

    Attributes:
        spec: the stage without its invalid fields; None when its kind is unknown.
        data: field of the configuration to the data source it names.
        words: the configuration as the recipe has it, invalid fields included.
        wrong: names of the fields that were removed from the configuration or are missing.
    """

    spec: StageSpec | None
    data: Mapping[str, str]
    words: JsonView
    wrong: frozenset[str]


@dataclass(frozen=True)
class Recipe:
    """A recipe as read, checked and resolved.

    Attributes:
        name: name of the recipe.
        seed: seed of stages without their own.
        data: data sources by name, with their files resolved.
        stages: stages by name, in the order of the file.
        compute: default compute settings of all stages.
        profiles: names of all profiles of the recipe.
        profile: name of the profile in use.
        trust_remote_code: whether model repositories may run their own Python.
        store: folder of artifacts the recipe asks for.
        file: the recipe's file.
        search_dirs: folders in which relative paths and user functions are looked up, in order.
        root: the resolved document.
        broken: stages left out because they have problems, by name (empty after `load`).
        copies: stage of a group or a sweep to the names of its rounds or variants, which are ordinary stages.
        variants: stage of a sweep, by the name it has without it, to the names of its variants.
        swept: stages that a sweep changes, each with its settings and values in words.
        variables: the environment variables it names, each once.
    """

    name: str
    seed: int
    data: dict[str, DataSource]
    stages: dict[str, StageSpec]
    compute: Compute
    profiles: tuple[str, ...]
    profile: str | None
    trust_remote_code: bool
    store: str | None
    file: Path
    search_dirs: tuple[Path, ...]
    root: Node = field(repr=False)
    broken: Mapping[str, BrokenStage] = field(default_factory=dict)
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    swept: Mapping[str, str] = field(default_factory=dict)
    variables: tuple[Variable, ...] = ()

    def where(self, *keys: str | int) -> str:
        """Return ``file:line`` of a key, or of its nearest existing parent."""
        return self.root.where(*keys)

    def find(self, path: str) -> Path | None:
        """Return the absolute path of an existing file or folder, or None."""
        return find(path, self.search_dirs)

    @property
    def resolved(self) -> JsonObject:
        """The resolved recipe as plain data, as manifests record it."""
        plain: JsonObject = self.root.plain()
        return {**plain, "name": self.name, "seed": self.seed}
