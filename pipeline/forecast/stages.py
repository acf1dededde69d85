"""What one stage needs: its work, and the memory of each of its processes, by what its kind holds at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.artifacts import Store
from pipeline.errors import PipelineError
from pipeline.estimate.devices import Device
from pipeline.estimate.memory import (
    Memory,
    ParallelLayout,
    activation_bytes,
    block_bytes,
    buffer_bytes,
    cache_bytes,
    heap_bytes,
    host_bytes,
    logit_bytes,
    peak,
    quantised_bytes,
    state,
    tensor_parallel,
    tiled_logit_bytes,
    transient_bytes,
)
from pipeline.estimate.shape import ModelShape
from pipeline.estimate.work import forward_flops, hours, training_flops
from pipeline.forecast.machine import this_machine
from pipeline.forecast.precision import formats_of
from pipeline.forecast.rows import Lengths, RowLengths
from pipeline.forecast.shapes import ModelShapes
from pipeline.models.adapter_config import Adapter
from pipeline.parallel.batch_split import divide, divisor_up_to
from pipeline.plan import Plan, PlannedStage
from pipeline.recipe.schema import Compute, Hardware
from pipeline.stage import kind_of

TRAINED = ("pretrain", "sft", "reward", "dpo", "kto")
SAMPLED = ("ppo", "grpo", "rloo")
DROPOUT_KINDS = ("pretrain", "sft", "grpo", "rloo")
"""Kinds that leave a model's dropout on; trl and PPO switch it off for the others."""
PPO_COPIES = 5.0
"""fp32 copies of the head's output in PPO's kept pass: logits, log-probabilities, and those of the entropy."""
ASSUMED_LENGTH = 1024
"""Tokens of the longest row where the rows are not on this machine and nothing says how long they may be."""


@dataclass(frozen=True)
class Forecast:
    """What a stage will need.

    Attributes:
        facts: of the stage.
        compute: it was made for.
        adapter: it was made for.
        device: it was made for.
        trained: parameters that are trained.
        longest: tokens of its longest row, about.
        micro_batch: rows, or pairs, of a forward pass.
        tokens: it reads, samples and learns from, each once; None when the rows are not known.
        flops: of all processes; None likewise.
        memory: of one process.
        host: bytes of one process in its machine's memory, where a GPU's state is offloaded.
        formats: number format of the computation; two where `auto` is not measured yet, and the larger is counted.
    """

    facts: Facts
    compute: Compute
    adapter: Adapter | None
    device: Device
    trained: int
    longest: int
    micro_batch: int
    tokens: float | None
    flops: float | None
    memory: Memory
    host: float = 0.0
    formats: tuple[str, ...] = ("fp32",)

    @property
    def stage(self) -> PlannedStage:
        """The stage."""
        return self.facts.stage

    @property
    def shape(self) -> ModelShape:
        """The shape of its model."""
        return self.facts.shape

    @property
    def processes(self) -> int:
        """Processes over all machines."""
        return self.compute.processes * self.compute.nodes

    @property
    def room(self) -> float:
        """Bytes one process has: a device's, or its share of a machine's."""
        share = 1 if self.device.is_gpu else self.compute.processes
        return self.device.memory_gib * 2**30 / share

    @property
    def host_room(self) -> float:
        """Bytes of its machine's memory one process has for what is offloaded; 0 where that is not known."""
        return self.device.host_gib * 2**30 / self.compute.processes

    @property
    def fits_host(self) -> bool:
        """Whether what is offloaded has room; True where the room is not known."""
        return not self.host_room or self.host <= self.host_room

    @property
    def fits(self) -> bool:
        """Whether a process has room on its device and in its machine; True where the room is not known."""
        return (not self.device.memory_gib or self.memory.peak <= self.room) and self.fits_host

    @property
    def hours(self) -> float | None:
        """Hours on the device; None where work or peak are not known."""
        if self.flops is None:
            return None
        return hours(self.flops, self.device, self.processes, half="fp32" not in self.formats)

    @property
    def cost(self) -> float | None:
        """US dollars; None where no price is known."""
        if self.hours is None or not self.device.usd_per_hour:
            return None
        return self.hours * self.device.usd_per_hour * self.processes


def forecasts(plan: Plan, store: Store) -> tuple[list[Forecast], list[str]]:
    """Return what each pending stage with a model will need, and what could not be known.

    Args:
        plan: of a recipe.
        store: keeps what was counted once.
    """
    shapes, rows = ModelShapes(plan, store.root / ".cache"), RowLengths(plan, store.root / ".cache")
    found = []
    for stage in plan.pending:
        if stage.spec.kind not in (*TRAINED, *SAMPLED, "evaluate"):
            continue
        shape = shapes.of_stage(stage)
        if shape is None:
            continue
        lengths = rows.of(stage)
        others = [shapes.of_input(item) for field in ("reward", "watch") for item in stage.inputs.get(field, [])]
        compute = stage.spec.compute if kind_of(stage.spec.kind).parallel else stage.spec.compute.alone()
        known = tuple(other for other in others if other is not None)
        facts = Facts(stage, shape, lengths, known, stored=shapes.stored_of(stage))
        found.append(facts.forecast(compute, getattr(stage.spec.config, "adapter", None)))
    return found, list(dict.fromkeys(shapes.notes))


def device_of(compute: Compute) -> Device:
    """Return the device a stage is planned for: the one `compute.hardware` names, else this machine's."""
    asked = compute.hardware
    if asked is not None:
        return (Hardware(name=asked) if isinstance(asked, str) else asked).device
    return this_machine(gpu=compute.device in ("auto", "cuda"))


@dataclass(frozen=True)
class Facts:
    """What is known of a stage, whatever it is computed on.

    Attributes:
        stage: of the plan.
        shape: of its model.
        lengths: of its rows; None when they are not on this machine.
        others: models beside the one it trains.
        stored: ``4bit`` or ``8bit`` where its model's files are quantised so, else nothing.
        changed: fields of `train` that are other than the recipe's, to see what they would bring.
    """

    stage: PlannedStage
    shape: ModelShape
    lengths: Lengths | None
    others: tuple[ModelShape, ...] = ()
    stored: str = ""
    changed: Mapping[str, int] = field(default_factory=dict)

    @property
    def train(self) -> Any:
        """The stage's `train`, with what is changed of it."""
        own: Any = self.stage.spec.config
        return own.train.model_copy(update=dict(self.changed))

    def with_train(self, changed: Mapping[str, int]) -> Facts:
        """Return the same stage with some fields of `train` changed."""
        return replace(self, changed={**self.changed, **changed})

    def forecast(self, compute: Compute, adapter: Adapter | None) -> Forecast:
        """Return what the stage needs under ``compute``, with or without an adapter."""
        device = device_of(compute)
        formats = formats_of(self.stage.spec.kind, compute, device, self.shape.hidden)
        made = [self._computed_in(word, compute, adapter, device) for word in formats]
        return replace(max(made, key=lambda forecast: forecast.memory.peak), formats=formats)

    def _computed_in(self, word: str, compute: Compute, adapter: Adapter | None, device: Device) -> Forecast:
        """Return what the stage needs in one number format."""
        kind = self.stage.spec.kind
        spread = ParallelLayout(
            processes=compute.processes * compute.nodes,
            zero=3 if compute.fsdp else compute.zero,
            offload=compute.offload,
            checkpointing=compute.activation_checkpointing is True,
            half=word != "fp32",
            on_gpu=device.is_gpu,
            dropout=kind in DROPOUT_KINDS,
            eager=compute.attention == "eager",
            fsdp=compute.fsdp,
        )
        made: Any = self._sampled if kind in SAMPLED else self._evaluated if kind == "evaluate" else self._trained
        forecast: Forecast = made(compute, adapter, device, spread)
        return replace(forecast, host=host_bytes(self.shape, forecast.trained, spread))

    def _parts(self, adapter: Adapter | None, spread: ParallelLayout) -> tuple[int, Memory]:
        """Return the trained parameters, and the memory of weights, gradients and optimizer."""
        shape, trained = self.shape, self.shape.parameters
        if adapter is not None:
            layers = shape.layers - shape.layers // 2 if adapter.layers == "top-half" else shape.layers
            trained = shape.adapter(adapter.r, layers=layers)
        quantize = self.stored or (adapter.quantize if adapter is not None else None)
        weights, gradients, optimizer = state(shape, trained, spread, quantize=quantize)
        buffers = buffer_bytes(shape, trained, spread)
        return trained, Memory(weights=weights, gradients=gradients, optimizer=optimizer, buffers=buffers)

    def _trained(self, compute: Compute, adapter: Adapter | None, device: Device, spread: ParallelLayout) -> Forecast:
        """Forecast a stage that learns from rows."""
        kind, train, shape = self.stage.spec.kind, self.train, self.shape
        longest = self._longest(train, both=kind in ("dpo", "reward"))
        asked = max(1, train.kl_batch // compute.replicas) if kind == "kto" else compute.micro_batch
        stages = compute.pipeline_parallel
        micro = _micro_batch(train.batch_size, asked, longest, compute.replicas, passes=stages)
        trained, parts = self._parts(adapter, spread)
        if stages > 1:  # each has its layers and at most one end of the model
            share = (shape.linear / stages + shape.vocab * shape.hidden) / shape.parameters
            held = ("weights", "gradients", "optimizer")
            parts = replace(parts, **{name: getattr(parts, name) * share for name in held})
        rows, length = (2 * micro, longest // 2) if kind in ("dpo", "reward") else (micro, longest)
        length = -(-length // compute.sequence_parallel)
        logits, tp_size = 0.0, compute.tensor_parallel
        if kind == "pretrain":
            logits = logit_bytes(shape, rows * length, spread)
        elif kind != "reward":
            logits = tiled_logit_bytes(shape, rows * length, spread, trained=adapter is None)
        if tp_size > 1:
            parts = tensor_parallel(
                parts, shape, tp_size, adapter_r=adapter.r if adapter else 0, layers=shape.layers if adapter else 0
            )
            if kind in ("sft", "dpo", "kto"):  # trl puts the head together for its loss, and takes a whole gradient
                logits += 8.0 * shape.vocab * shape.hidden
        parts = self._learning(parts, adapter, spread, rows, length, logits)
        if stages > 1:  # what comes from one neighbour and goes back to it has a buffer for every row of the batch
            waiting = 8.0 * train.batch_size / compute.replicas * longest * shape.hidden
            parts = replace(parts, activations=parts.activations + waiting)
        parts = replace(
            parts,
            peak=peak(parts, accumulates=train.batch_size > micro * compute.replicas, recomputes=spread.checkpointing),
        )
        tokens = self._tokens(train)
        work = tokens and training_flops(
            shape, tokens, longest, trained_all=adapter is None, recompute=spread.checkpointing
        )
        return Forecast(self, compute, adapter, device, trained, longest, micro, tokens, work or None, parts)

    def _learning(
        self, parts: Memory, adapter: Adapter | None, spread: ParallelLayout, rows: int, length: int, logits: float
    ) -> Memory:
        """Add what a pass over ``rows`` of ``length`` tokens keeps, and what its end still needs."""
        shape, share, r = self.shape, 1.0, adapter.r if adapter is not None else 0
        if adapter is not None and adapter.layers == "top-half":
            share = (shape.layers - shape.layers // 2) / shape.layers
        activations = activation_bytes(shape, rows, length, spread, adapter_r=r, share=share)
        block = block_bytes(shape, rows, length, spread, adapter_r=r)
        ending = block + transient_bytes(shape, rows * length, spread)
        heap = heap_bytes(ending, spread, adapted=adapter is not None, headless=not logits)
        return replace(parts, activations=activations, ending=ending, logits=logits, heap=heap)

    def _sampled(self, compute: Compute, adapter: Adapter | None, device: Device, spread: ParallelLayout) -> Forecast:
        """Forecast a stage that learns from its own responses."""
        config, train, shape, kind = self.stage.spec.config, self.train, self.shape, self.stage.spec.kind
        prompt = self.lengths.longest_tokens(shape.vocab) if self.lengths else ASSUMED_LENGTH // 2
        longest = prompt + train.max_new_tokens
        at_once = train.rollout_batch if kind == "ppo" else train.responses_at_once
        share = max(1, at_once // spread.processes)
        trained, parts = self._parts(adapter, spread)
        if kind == "ppo":
            share = min(share, 128)
            micro = max(1, min(train.token_budget // longest, at_once // spread.processes))
            accumulates = at_once // train.minibatches > micro * spread.processes
        else:
            micro = _micro_batch(train.batch_size, compute.micro_batch, longest, spread.processes)
            accumulates = train.batch_size > micro * spread.processes
        shards = spread.processes if spread.zero >= 3 else 1
        frozen = _frozen_bytes(spread)
        others = sum(frozen * (o.parameters - o.vocab * o.hidden * (not o.tied)) for o in self.others)
        if adapter is None and (kind == "ppo" or getattr(train, "beta", 0.0) > 0):
            others += 4.0 * shape.parameters / shards
        logits = tiled_logit_bytes(shape, micro * longest, spread, trained=adapter is None)
        if kind == "ppo":
            logits = logit_bytes(shape, micro * train.max_new_tokens, spread, copies=PPO_COPIES)
        parts = self._learning(parts, adapter, spread, micro, longest, logits)
        parts = replace(parts, others=others, cache=cache_bytes(shape, share, longest, half=spread.half))
        if getattr(config, "layout", "shared") == "separate":
            own = self._separate_value(spread, micro, longest)
            trained += own[0]
            parts = replace(parts, **{name: getattr(parts, name) + more for name, more in own[1].parts().items()})
        parts = replace(parts, peak=peak(parts, accumulates=accumulates, recomputes=spread.checkpointing))
        tokens, work = self._sampled_work(train, longest, adapter)
        return Forecast(self, compute, adapter, device, trained, longest, micro, tokens, work, parts)

    def _separate_value(self, spread: ParallelLayout, rows: int, length: int) -> tuple[int, Memory]:
        """Return parameters and memory of a value function beside the policy.

        It starts from the first reward model with the policy's tokens, else from the policy.
        """
        shape = next((other for other in self.others if other.vocab == self.shape.vocab), self.shape)
        size = shape.parameters - shape.vocab * shape.hidden * (not shape.tied)
        parts = Memory(*state(shape, size, spread))
        return size, replace(self, shape=shape)._learning(parts, None, spread, rows, length, 0.0)

    def _sampled_work(self, train: Any, longest: int, adapter: Adapter | None) -> tuple[float | None, float | None]:
        """Return tokens and operations: sampled once, scored by reference and reward, learned from some times."""
        if self.stage.spec.kind == "ppo":
            responses, passes, scorers = train.iterations * train.rollout_batch, train.epochs, 2 + len(self.others)
        else:
            steps = _steps(train, self.lengths.rows * train.num_generations if self.lengths else None)
            if steps is None:
                return None, None
            responses, passes, scorers = steps * train.batch_size, train.num_iterations, 1 + len(self.others)
        tokens = float(responses * longest)
        once = forward_flops(self.shape, tokens, longest)
        learning = training_flops(self.shape, tokens, longest, trained_all=adapter is None)
        return tokens, once * (1 + scorers) + passes * learning

    def _evaluated(self, compute: Compute, adapter: Adapter | None, device: Device, spread: ParallelLayout) -> Forecast:
        """Forecast an evaluation: models one after another, with the rollout of 128 answers."""
        config: Any = self.stage.spec.config
        prompt = self.lengths.longest_tokens(self.shape.vocab) if self.lengths else ASSUMED_LENGTH // 2
        longest = prompt + config.max_new_tokens
        rows = min(config.limit or self.lengths.rows, self.lengths.rows) if self.lengths else config.limit
        frozen = _frozen_bytes(spread)
        parts = Memory(  # the baseline stays beside the model that answers; the judge comes when both are gone
            weights=max(
                min(len(config.models), 2) * quantised_bytes(self.shape, int(frozen), self.stored or None),
                *(frozen * other.parameters for other in self.others),
                0.0,
            ),
            cache=cache_bytes(self.shape, min(rows or 128, 128), longest, half=frozen == 2),
            logits=logit_bytes(self.shape, 128, spread, copies=2, learns=False),
        )
        parts = replace(parts, peak=peak(parts, accumulates=False))
        tokens = float(rows * longest * len(config.models)) if rows else None
        work = tokens and forward_flops(self.shape, tokens, longest) * (2 + len(self.others))
        return Forecast(self, compute, None, device, 0, longest, min(rows or 128, 128), tokens, work or None, parts)

    def _longest(self, train: Any, *, both: bool) -> int:
        """Return the tokens of the longest row: of both responses and both prompts where a pair is one row."""
        most = train.max_length or self.shape.context or 0
        if getattr(train, "mode", "rows") == "packed" and most:
            return int(most)
        bound = most * (2 if both else 1)
        if self.lengths is None:
            return int(min(bound, ASSUMED_LENGTH) if bound and train.max_length is None else bound or ASSUMED_LENGTH)
        known = self.lengths.longest_tokens(self.shape.vocab)
        return min(bound, known) if bound else known

    def _tokens(self, train: Any) -> float | None:
        """Return the tokens trained on in all."""
        if self.lengths is None or not self.lengths.rows:
            return None
        per_row = min(self.lengths.tokens(self.shape.vocab) / self.lengths.rows, self._longest(train, both=True))
        steps = train.max_steps
        rows = steps * train.batch_size if steps else train.epochs * self.lengths.rows
        return float(rows * per_row)


def _frozen_bytes(spread: ParallelLayout) -> float:
    """Return the bytes of a weight that only answers or scores: on a GPU in the format of the computation."""
    return 2.0 if spread.on_gpu and spread.half else 4.0


def _steps(train: Any, rows: int | None) -> int | None:
    if train.max_steps:
        return int(train.max_steps)
    return None if rows is None else max(1, int(train.epochs * rows / train.batch_size))


def _micro_batch(batch_size: int, asked: int | str, longest: int, processes: int, passes: int = 1) -> int:
    """Return the rows of a forward pass; where the batch does not divide, which is told elsewhere, about as many."""
    try:
        return divide(batch_size, asked, longest, processes, passes=passes).micro_batch
    except PipelineError:
        share = max(1, batch_size // processes)
        return divisor_up_to(share, asked) if isinstance(asked, int) else share
