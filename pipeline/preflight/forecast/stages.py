"""Forecasts one stage: its operations, and the peak memory of each process by the tensors its kind holds at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

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
from pipeline.kind.traits import Workload
from pipeline.models.load.adapter_config import Adapter
from pipeline.plan import PlannedStage
from pipeline.preflight.forecast.batches import micro_batch_of, rows_asked, steps_of
from pipeline.preflight.forecast.machine import device_of
from pipeline.preflight.forecast.precision import precisions_of
from pipeline.preflight.forecast.rewards import RewardShape
from pipeline.preflight.forecast.rows import Lengths
from pipeline.recipe.schema import Compute
from pipeline.stage import Kind, kind_of

PPO_COPIES = 5.0
"""fp32 copies of the head's output that PPO's forward pass saves: logits, log-probabilities, and the entropy's."""
SCORED_TOKENS = 4096
"""Padded tokens in one forward pass of a reward model that only scores (`pipeline/models/scoring.py`)."""
ASSUMED_LENGTH = 1024
"""Tokens of the longest row if the rows are not on this machine and no setting bounds their length."""


@dataclass(frozen=True)
class Forecast:
    """Operations and memory of a stage under given compute settings.

    Attributes:
        facts: what is known of the stage.
        compute: compute settings of the forecast.
        adapter: adapter of the forecast; None trains all weights.
        device: device of the forecast.
        trained: number of trained parameters.
        longest: approximate tokens of the longest row.
        micro_batch: rows, or pairs, of a forward pass.
        tokens: tokens read, sampled or trained on, each counted once; None when the rows are not known.
        flops: operations of all processes; None when the rows are not known.
        memory: peak memory of one process.
        host: bytes of one process in host memory for offloaded GPU state.
        formats: precision of the computation; two if `auto` is not measured yet, and the larger memory is used.
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
        """The planned stage."""
        return self.facts.stage

    @property
    def shape(self) -> ModelShape:
        """The shape of the stage's model."""
        return self.facts.shape

    @property
    def processes(self) -> int:
        """Processes over all machines."""
        return self.compute.processes * self.compute.nodes

    @property
    def room(self) -> float:
        """Bytes available to one process: a GPU's memory, or an equal share of a machine's."""
        share = 1 if self.device.is_gpu else self.compute.processes
        return self.device.memory_gib * 2**30 / share

    @property
    def host_room(self) -> float:
        """Bytes of host memory available to one process for offloaded state; 0 when not known."""
        return self.device.host_gib * 2**30 / self.compute.processes

    @property
    def fits_host(self) -> bool:
        """Whether offloaded state fits host memory; True when host memory is not known."""
        return not self.host_room or self.host <= self.host_room

    @property
    def fits(self) -> bool:
        """Whether a process fits its device and host memory; True where their sizes are not known."""
        return (not self.device.memory_gib or self.memory.peak <= self.room) and self.fits_host

    @property
    def hours(self) -> float | None:
        """Hours on the device; None when the operations or the device's peak are not known."""
        if self.flops is None:
            return None
        return hours(self.flops, self.device, self.processes, half="fp32" not in self.formats)

    @property
    def cost(self) -> float | None:
        """Cost in US dollars; None when the hours or the price are not known."""
        if self.hours is None or not self.device.usd_per_hour:
            return None
        return self.hours * self.device.usd_per_hour * self.processes


@dataclass(frozen=True)
class Facts:
    """What is known of a stage independently of its compute settings.

    Attributes:
        stage: the planned stage.
        shape: shape of its model.
        lengths: lengths of its rows; None when they are not on this machine.
        others: shapes of the reward models beside the trained one.
        stored: ``4bit`` or ``8bit`` if the model's files are quantised so; empty otherwise.
        changed: fields of `train` that replace the recipe's in this forecast.
        before: forecast of the pending stage that samples the rows; None if they are there, or not sampled.
    """

    stage: PlannedStage
    shape: ModelShape
    lengths: Lengths | None
    others: tuple[RewardShape, ...] = ()
    stored: str = ""
    changed: Mapping[str, int] = field(default_factory=dict)
    before: Forecast | None = None

    @property
    def kind(self) -> Kind:
        """The stage's kind."""
        return kind_of(self.stage.spec.kind)

    @property
    def workload(self) -> Workload:
        """What the stage computes with its model."""
        return self.kind.workload or Workload()

    @property
    def train(self) -> Any:
        """The stage's `train` block with the fields of `changed` replaced."""
        own: Any = self.stage.spec.config
        return own.train.model_copy(update=dict(self.changed))

    @property
    def _scorers(self) -> int:
        """Forward passes in which the reward models read one response."""
        return sum(len(other.models) for other in self.others)

    def with_train(self, changed: Mapping[str, int]) -> Facts:
        """Return the facts with some fields of `train` replaced."""
        return replace(self, changed={**self.changed, **changed})

    def forecast(self, compute: Compute, adapter: Adapter | None) -> Forecast:
        """Forecast the stage under ``compute``, with or without an adapter."""
        device = device_of(compute)
        formats = precisions_of(self.kind, compute, device, self.shape.hidden)
        candidates = [self._computed_in(word, compute, adapter, device) for word in formats]
        return replace(max(candidates, key=lambda forecast: forecast.memory.peak), formats=formats)

    def _computed_in(self, word: str, compute: Compute, adapter: Adapter | None, device: Device) -> Forecast:
        """Forecast the stage in one precision."""
        layout = ParallelLayout(
            processes=compute.processes * compute.nodes,
            zero=3 if compute.fsdp else compute.zero,
            offload=compute.offload,
            checkpointing=compute.activation_checkpointing is True,
            half=word != "fp32",
            on_gpu=device.is_gpu,
            dropout=self.workload.dropout,
            eager=compute.attention == "eager",
            fsdp=compute.fsdp,
        )
        methods = {"rows": self._trained, "answers": self._evaluated, "candidates": self._scored}
        forecast = methods.get(self.workload.over, self._sampled)(compute, adapter, device, layout)
        return replace(forecast, host=host_bytes(self.shape, forecast.trained, layout))

    def _parts(self, adapter: Adapter | None, layout: ParallelLayout) -> tuple[int, Memory]:
        """Return the number of trained parameters; the memory of weights, gradients, optimizer state and buffers."""
        shape, trained = self.shape, self.shape.parameters
        if adapter is not None:
            layers = shape.layers - shape.layers // 2 if adapter.layers == "top-half" else shape.layers
            trained = shape.adapter(adapter.r, layers=layers)
        quantize = self.stored or (adapter.quantize if adapter is not None else None)
        weights, gradients, optimizer = state(shape, trained, layout, quantize=quantize)
        buffers = buffer_bytes(shape, trained, layout)
        return trained, Memory(weights=weights, gradients=gradients, optimizer=optimizer, buffers=buffers)

    def _trained(self, compute: Compute, adapter: Adapter | None, device: Device, layout: ParallelLayout) -> Forecast:
        """Forecast a stage that trains on rows of a data source."""
        train, shape, per_row = self.train, self.shape, self.workload.sequences_per_row
        longest = self._longest(train, sequences=per_row)
        asked = rows_asked(train, compute, self.kind.traits.compute)
        stages = compute.pipeline_parallel
        micro = micro_batch_of(train.batch_size, asked, longest, compute.replicas, stages)
        trained, parts = self._parts(adapter, layout)
        if stages > 1:  # each pipeline stage holds its layers, and the embedding or the head
            share = (shape.linear / stages + shape.vocab * shape.hidden) / shape.parameters
            sharded = ("weights", "gradients", "optimizer")
            parts = replace(parts, **{name: getattr(parts, name) * share for name in sharded})
        rows, length = per_row * micro, -(-(longest // per_row) // compute.sequence_parallel)
        logits, tp_size = self._logits(rows * length, adapter, layout), compute.tensor_parallel
        if tp_size > 1:
            parts = tensor_parallel(
                parts, shape, tp_size, adapter_r=adapter.r if adapter else 0, layers=shape.layers if adapter else 0
            )
            if self.workload.head == "weight":  # trl's loss gathers the head's weight, and makes a full gradient
                logits += 8.0 * shape.vocab * shape.hidden
        parts = replace(parts, others=self._reference_bytes(adapter, layout))
        parts = self._learning(parts, adapter, layout, rows, length, logits)
        if stages > 1:  # buffers for received activations and returned gradients, for every row of the batch
            waiting = 8.0 * train.batch_size / compute.replicas * longest * shape.hidden
            parts = replace(parts, activations=parts.activations + waiting)
        parts = replace(
            parts,
            peak=peak(parts, accumulates=train.batch_size > micro * compute.replicas, recomputes=layout.checkpointing),
        )
        tokens = self._tokens(train)
        flops = tokens and training_flops(
            shape, tokens, longest, trained_all=adapter is None, recompute=layout.checkpointing
        )
        return Forecast(self, compute, adapter, device, trained, longest, micro, tokens, flops or None, parts)

    def _logits(self, tokens: int, adapter: Adapter | None, layout: ParallelLayout) -> float:
        """Return the bytes of the output layer's logits in a pass over ``tokens``."""
        if self.workload.head == "weight":
            return tiled_logit_bytes(self.shape, tokens, layout, trained=adapter is None)
        return logit_bytes(self.shape, tokens, layout) if self.workload.head == "module" else 0.0

    def _reference_bytes(self, adapter: Adapter | None, layout: ParallelLayout) -> float:
        """Return the bytes of a reference model in fp32; with an adapter there is none, because it can be disabled."""
        if adapter is not None or not self.workload.has_reference(self.train):
            return 0.0
        return 4.0 * self.shape.parameters / (layout.processes if layout.zero >= 3 else 1)

    def _learning(
        self, parts: Memory, adapter: Adapter | None, layout: ParallelLayout, rows: int, length: int, logits: float
    ) -> Memory:
        """Add the saved activations of a pass over ``rows`` of ``length`` tokens, and what its end still needs."""
        shape, share, r = self.shape, 1.0, adapter.r if adapter is not None else 0
        if adapter is not None and adapter.layers == "top-half":
            share = (shape.layers - shape.layers // 2) / shape.layers
        activations = activation_bytes(shape, rows, length, layout, adapter_r=r, share=share)
        block = block_bytes(shape, rows, length, layout, adapter_r=r)
        ending = block + transient_bytes(shape, rows * length, layout)
        heap = heap_bytes(ending, layout, adapted=adapter is not None, headless=not logits)
        return replace(parts, activations=activations, ending=ending, logits=logits, heap=heap)

    def _sampled(self, compute: Compute, adapter: Adapter | None, device: Device, layout: ParallelLayout) -> Forecast:
        """Forecast a stage that trains on its own sampled responses."""
        config, train, shape = self.stage.spec.config, self.train, self.shape
        is_rollout = self.workload.over == "rollouts"
        prompt = self.lengths.longest_tokens(shape.vocab) if self.lengths else ASSUMED_LENGTH // 2
        longest = prompt + train.max_new_tokens
        at_once = train.rollout_batch if is_rollout else train.responses_at_once
        share = max(1, at_once // layout.processes)
        trained, parts = self._parts(adapter, layout)
        if is_rollout:
            share = min(share, 128)
            micro = max(1, min(train.token_budget // longest, at_once // layout.processes))
            accumulates = at_once // train.minibatches > micro * layout.processes
        else:
            micro = micro_batch_of(train.batch_size, compute.micro_batch, longest, layout.processes)
            accumulates = train.batch_size > micro * layout.processes
        frozen = _frozen_bytes(layout)
        others = sum(frozen * other.loaded for other in self.others)
        if reference := self._reference_bytes(adapter, layout):
            others += reference
        logits = self._logits(micro * longest, adapter, layout)
        if is_rollout:
            logits = logit_bytes(shape, micro * train.max_new_tokens, layout, copies=PPO_COPIES)
        parts = self._learning(parts, adapter, layout, micro, longest, logits)
        parts = replace(parts, others=others, cache=cache_bytes(shape, share, longest, half=layout.half))
        if getattr(config, "layout", "shared") == "separate":
            own = self._separate_value(layout, micro, longest)
            trained += own[0]
            parts = replace(parts, **{name: getattr(parts, name) + more for name, more in own[1].parts().items()})
        parts = replace(parts, peak=peak(parts, accumulates=accumulates, recomputes=layout.checkpointing))
        tokens, work = self._sampled_work(train, longest, adapter)
        return Forecast(self, compute, adapter, device, trained, longest, micro, tokens, work, parts)

    def _separate_value(self, layout: ParallelLayout, rows: int, length: int) -> tuple[int, Memory]:
        """Return parameters and memory of a separate value model.

        It is initialised from the first reward model with the policy's vocabulary size, else from the policy.
        """
        scalars = (other.scalar for other in self.others)
        shape = next((one for one in scalars if one is not None and one.vocab == self.shape.vocab), self.shape)
        size = shape.parameters - shape.vocab * shape.hidden * (not shape.tied)
        parts = Memory(*state(shape, size, layout))
        return size, replace(self, shape=shape)._learning(parts, None, layout, rows, length, 0.0)

    def _sampled_work(self, train: Any, longest: int, adapter: Adapter | None) -> tuple[float | None, float | None]:
        """Return tokens and operations: one sampling pass, one pass per scorer, and several training passes."""
        if self.workload.over == "rollouts":
            responses, passes, scorers = train.iterations * train.rollout_batch, train.epochs, 2 + self._scorers
        else:
            steps = steps_of(train, self.lengths.rows * train.num_generations if self.lengths else None)
            if steps is None:
                return None, None
            responses, passes, scorers = steps * train.batch_size, train.num_iterations, 1 + self._scorers
        tokens = float(responses * longest)
        once = forward_flops(self.shape, tokens, longest)
        learning = training_flops(self.shape, tokens, longest, trained_all=adapter is None)
        return tokens, once * (1 + scorers) + passes * learning

    def _evaluated(self, compute: Compute, adapter: Adapter | None, device: Device, layout: ParallelLayout) -> Forecast:
        """Forecast a stage that answers prompts: models one after another, each up to 128 answers at a time."""
        config: Any = self.stage.spec.config
        prompt = self.lengths.longest_tokens(self.shape.vocab) if self.lengths else ASSUMED_LENGTH // 2
        longest = prompt + config.max_new_tokens
        rows = min(config.limit or self.lengths.rows, self.lengths.rows) if self.lengths else config.limit
        frozen = _frozen_bytes(layout)
        parts = Memory(  # one model is loaded at a time, a judge after the models that answer
            weights=max(
                quantised_bytes(self.shape, int(frozen), self.stored or None),
                *(frozen * other.parameters for other in self.others),
                0.0,
            ),
            cache=cache_bytes(self.shape, min(rows or 128, 128), longest, half=frozen == 2),
            logits=logit_bytes(self.shape, 128, layout, copies=2, learns=False),
        )
        parts = replace(parts, peak=peak(parts, accumulates=False))
        tokens = float(rows * longest * config.responses_per_prompt) if rows else None
        work = tokens and forward_flops(self.shape, tokens, longest) * (config.passes_per_response + self._scorers)
        return Forecast(self, compute, None, device, 0, longest, min(rows or 128, 128), tokens, work or None, parts)

    def _scored(self, compute: Compute, adapter: Adapter | None, device: Device, layout: ParallelLayout) -> Forecast:
        """Forecast a stage whose reward models, one after another, read every answer once."""
        shape, before, tokens, longest = self.shape, self.before, None, ASSUMED_LENGTH
        if self.lengths is not None:
            tokens, longest = self.lengths.tokens(shape.vocab), self.lengths.longest_tokens(shape.vocab)
        elif before is not None:
            tokens, longest = before.tokens, before.longest
        rows, flops = max(1, SCORED_TOKENS // longest), 0.0
        parts = Memory(
            weights=_frozen_bytes(layout) * max(other.parameters for other in self.others),
            activations=block_bytes(shape, rows, longest, layout),
        )
        parts = replace(parts, peak=peak(parts, accumulates=False))
        if tokens:
            flops = sum(forward_flops(one, tokens, longest) for other in self.others for one in other.models)
        return Forecast(self, compute, None, device, 0, longest, rows, tokens or None, flops or None, parts)

    def _longest(self, train: Any, *, sequences: int) -> int:
        """Return the tokens of the longest row in all its ``sequences``, such as the sides of a pair with prompts."""
        most = train.max_length or self.shape.context or 0
        if getattr(train, "mode", "rows") == "packed" and most:
            return int(most)
        bound = most * sequences
        if self.lengths is None:
            return int(min(bound, ASSUMED_LENGTH) if bound and train.max_length is None else bound or ASSUMED_LENGTH)
        known = self.lengths.longest_tokens(self.shape.vocab)
        return min(bound, known) if bound else known

    def _tokens(self, train: Any) -> float | None:
        """Return the total number of tokens trained on; None when the rows are not known."""
        if self.lengths is None or not self.lengths.rows:
            return None
        per_row = min(self.lengths.tokens(self.shape.vocab) / self.lengths.rows, self._longest(train, sequences=2))
        steps = train.max_steps
        rows = steps * train.batch_size if steps else train.epochs * self.lengths.rows
        return float(rows * per_row)


def _frozen_bytes(layout: ParallelLayout) -> float:
    """Return the bytes of a frozen weight: on a GPU in the precision of the computation, else fp32."""
    return 2.0 if layout.on_gpu and layout.half else 4.0
