"""Traits of a kind of stage: what plan, checks and forecast must know of it before it runs.

Owns the records that a kind registers beside its configuration. Their defaults describe a plain training kind:
transformers' Trainer on the rows of one data source. Knows nothing of any single kind, of recipes, or of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.errors import Problem, agreeing, counted
from pipeline.kind.markers import Shape
from pipeline.plain_data import JsonObject, ShapedRow

Encoding = Literal["messages", "pairs", "scored_pairs", "labelled", "prompts", "texts"]
"""How rows are encoded: one word for each function of `pipeline/training/data/encoding.py`."""

ENCODINGS: Mapping[Shape, Encoding] = {
    "text": "texts",
    "messages": "messages",
    "preference": "pairs",
    "labelled": "labelled",
    "prompt": "prompts",
}
"""The encoding of the rows of each shape, unless a kind names another."""

ModelParallel = Literal["pipeline_parallel", "tensor_parallel", "sequence_parallel"]
"""A key of `compute` for model parallelism."""

MODEL_PARALLEL: tuple[ModelParallel, ...] = ("pipeline_parallel", "tensor_parallel", "sequence_parallel")
"""Keys of `compute` for model parallelism."""

MICRO_BATCH = "compute.micro_batch"


@dataclass(frozen=True)
class Reading:
    """How a stage uses the rows of one of its data fields.

    Attributes:
        encodings: how rows become tokens, by their shape; rows of other shapes are not encoded before the stage runs.
        is_test: whether the rows are only scored after training, and not trained on.
        splits_rows: whether a row may become several sequences, so that few rows can still fill a batch.
        bound: what limits the tokens of a row: `train.max_length`, or only the model's context.
        long_prompts: what becomes of a prompt that leaves no room for the longest response: it is `refused`, `left_out`
            if `train.max_length` is set, or `answered` as far as the context reaches.
        held_out_only: whether only the held-out rows are used, if the source has any.
        columns: columns the stage reads beside those of the row format.
    """

    encodings: Mapping[Shape, Encoding] = field(default_factory=lambda: ENCODINGS)
    is_test: bool = False
    splits_rows: bool = False
    bound: Literal["max_length", "context"] = "max_length"
    long_prompts: Literal["refused", "left_out", "answered"] = "refused"
    held_out_only: bool = False
    columns: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ComputeSupport:
    """What of `compute` a kind supports beside data parallelism; it matters for kinds that are `Traits.parallel`.

    Attributes:
        model_parallel: the keys of `MODEL_PARALLEL` that may be above 1.
        rows_per_pass: setting that gives the rows of a forward pass; another than `compute.micro_batch` makes that one
            ineffective.
        divided: fields of `train` that count rows which are divided over the processes.
        transformers_trainer: whether transformers' Trainer takes the steps: with DeepSpeed it has bf16 on a GPU only.
        activation_checkpointing: whether activation checkpointing is supported.
        sharded_fp16: whether fp16 is supported with ZeRO and FSDP.
        unsharded_fields: fields of `train` that need the full weights in every process, each with what needs them.
    """

    model_parallel: frozenset[ModelParallel] = frozenset()
    rows_per_pass: str = MICRO_BATCH
    divided: tuple[str, ...] = ("batch_size",)
    transformers_trainer: bool = True
    activation_checkpointing: bool = True
    sharded_fp16: bool = True
    unsharded_fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def takes_micro_batch(self) -> bool:
        """Whether `compute.micro_batch` has an effect."""
        return self.rows_per_pass == MICRO_BATCH


@dataclass(frozen=True)
class Workload:
    """What a kind computes with its model; the forecast of its operations and memory follows.

    Attributes:
        over: `rows` of a data source, for `train:` of `CommonTrain`; `responses` that it samples and trains on, for
            `train:` of `OnPolicyTrain`; `rollouts`, for `train:` of `PPOSettings`; or `answers` that it generates and
            scores without training, for a configuration with `models`, `max_new_tokens`, `limit`,
            `responses_per_prompt` and `passes_per_response`; or `candidates`, answers of a data source that the
            reward models of `reward` score, or the one that the stage makes, without another model.
        sequences_per_row: sequences of a row in a forward pass: 2 for both sides of a pair.
        head: how the loss uses the output layer: `module` calls it, which makes the logits of all tokens; `weight`
            reads its weight and makes logits in tiles, as trl's losses do, which bypasses an adapter on it; `none` if
            the model has no output layer over the vocabulary.
        dropout: whether the model trains with its dropout on.
        reference: whether a frozen copy of the model is in memory beside the trained one, if there is no adapter to
            disable: `none`, `always`, or `with_beta` if `train.beta` is above 0.
    """

    over: Literal["rows", "responses", "rollouts", "answers", "candidates"] = "rows"
    sequences_per_row: int = 1
    head: Literal["module", "weight", "none"] = "module"
    dropout: bool = True
    reference: Literal["none", "with_beta", "always"] = "none"

    @property
    def trains(self) -> bool:
        """Whether the model is trained."""
        return self.over not in ("answers", "candidates")

    def has_reference(self, train: Any) -> bool:
        """Return whether a stage with the block ``train`` needs a frozen reference model."""
        if self.reference == "with_beta":
            return float(getattr(train, "beta", 0.0)) > 0
        return self.reference == "always"


@dataclass(frozen=True)
class Packages:
    """Python packages of an extra that a kind needs.

    Attributes:
        modules: names by which they are imported.
        install: command that installs them.
    """

    modules: tuple[str, ...]
    install: str


class RequestForecast(NamedTuple):
    """What a stage will ask of a server that may cost money.

    Attributes:
        items: pairs to judge, or answers to sample.
        calls: different requests.
        cached: requests whose reply is in the store's cache.
        prompt_tokens: about how many tokens the other requests have.
        completion_tokens: most tokens of their replies; None if the replies have no bound.
        server: model and host.
        noun: what an item is called.
        verb: what becomes of an item.
    """

    items: int
    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int | None
    server: str
    noun: str = "pair"
    verb: str = "judge"

    @property
    def sent(self) -> int:
        """Calls that are sent."""
        return self.calls - self.cached

    @property
    def tokens(self) -> int:
        """Tokens of requests and replies, as far as they are known."""
        return self.prompt_tokens + (self.completion_tokens or 0)

    def data(self) -> JsonObject:
        """Return it as plain data; the number of items has their name."""
        numbers = {name: value for name, value in self._asdict().items() if name not in ("items", "noun", "verb")}
        return {f"{self.noun}s": self.items, **numbers}

    def __str__(self) -> str:
        """Say it in one line."""
        what = f"{counted(self.items, self.noun)} to {self.verb}"
        if not self.sent:
            return f"{what}, and no calls to send to {self.server}: all are cached"
        cached = f" ({self.cached:,} more {agreeing(self.cached, 'is', 'are')} cached)" if self.cached else ""
        most = "of any length" if self.completion_tokens is None else f"of at most {self.completion_tokens:,}"
        tokens = f"about {counted(self.prompt_tokens, 'token')}, and replies {most}"
        calls = f"{counted(self.sent, 'call')} to {self.server}{cached}"
        return f"{what} with {calls}: {tokens}"


class RowCounts(NamedTuple):
    """Numbers of rows that a stage gets, before or after they are encoded.

    Attributes:
        train: training rows.
        held_out: held-out rows.
        shape: shape of the rows.
    """

    train: int
    held_out: int
    shape: str


RowCheck = Callable[[Any, RowCounts], Problem | None]
"""Returns the problem of too few rows for a `train` block, or None."""

MachineCheck = Callable[[Any], Iterable[Problem]]
"""Returns what a configuration needs and this machine lacks."""


class RequestRows(NamedTuple):
    """The rows of a stage's field `data`, for a forecast of its requests.

    Attributes:
        rows: training rows, then held-out rows.
        held_out: number of held-out rows.
        shape: their shape.
        seed: seed of the stage.
        store: folder of the store, whose cache may have replies.
    """

    rows: Sequence[ShapedRow]
    held_out: int
    shape: Shape
    seed: int
    store: Path


class Requests(NamedTuple):
    """How the requests of a kind that asks a server are known before they are sent.

    Attributes:
        asks: returns whether a configuration asks a server.
        forecast: returns the forecast of each server for rows, and a problem if it is over a limit of the
            configuration.
        cap: returns the limit in words, for rows that are not there yet.
    """

    asks: Callable[[Any], bool]
    forecast: Callable[[Any, RequestRows], Sequence[tuple[RequestForecast, Problem | None]]]
    cap: Callable[[Any], str]


def fill_a_batch(train: Any, rows: RowCounts) -> Problem | None:
    """Return a problem if the rows do not fill one batch; None if they do, or if ``train`` has no `batch_size`."""
    batch_size = getattr(train, "batch_size", 0)
    if rows.train >= batch_size:
        return None
    what = counted(rows.train, "pair" if rows.shape == "preference" else "row")
    return too_few(
        f"there {agreeing(rows.train, 'is', 'are')} {what} to train on", f"one batch of {batch_size}", "rows"
    )


def too_few(statement: str, needed: str, what: str) -> Problem:
    """Return the problem of too few rows."""
    return Problem(statement, f"at least {needed}", f"lower train.batch_size or bring more {what}")


@dataclass(frozen=True)
class Traits:
    """What plan, checks and forecast know of a kind; a kind names only what differs from a plain training kind.

    Attributes:
        parallel: whether it may run in several processes; else it runs in one, whatever `compute` says.
        replicated: whether each of its processes holds the whole model and works on a share of the prompts; ZeRO, FSDP
            and model parallelism of `compute` then do not reach it.
        reads: how it uses the rows of its data fields, for fields that are used otherwise than `Reading()` says.
        compute: what of `compute` it supports.
        workload: what it computes with its model; if None, that of a plain training kind where the configuration has
            a `train` block for it, and no forecast elsewhere.
        row_check: returns a problem if the rows of the field `data` are too few.
        packages: packages of an extra that it needs.
        machine_check: returns what a configuration needs and this machine lacks, for what only some of them need.
        requests: how its requests to a server are known beforehand; None if it sends none.
        holds: fields of inputs whose models its artifact holds side by side; empty if it holds one model or none.
        folds_adapters: whether it folds the adapters of its input `adapters` into the full weights of its `model`.
    """

    parallel: bool = False
    replicated: bool = False
    reads: Mapping[str, Reading] = field(default_factory=dict)
    compute: ComputeSupport = ComputeSupport()
    workload: Workload | None = None
    row_check: RowCheck = fill_a_batch
    packages: Packages | None = None
    machine_check: MachineCheck | None = None
    requests: Requests | None = None
    holds: tuple[str, ...] = ()
    folds_adapters: bool = False

    def reading(self, field_name: str) -> Reading:
        """Return how the rows of a data field are used."""
        return self.reads.get(field_name, Reading())


PLAIN = Traits()
"""The traits of a plain training kind."""

PLAIN_TRAIN = frozenset({"batch_size", "epochs", "max_steps", "max_length"})
"""Fields of the `train` block of a plain training kind; its forecast reads them."""
