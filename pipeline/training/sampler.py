"""Checkpoints answer prompts: on all processes of a stage, and only what no stage of the store has asked before.

Evaluation and the kind `sample` answer by this. A request is one response of a checkpoint to every prompt. Its prompts
are sorted by length and cut into batches, whatever the number of ranks. Batches are divided over the ranks, and what
each rank sampled is gathered after every batch. A row's random numbers depend on the seed and its row id, so the
responses do not depend on the number of ranks.

Each batch is kept in the store under all that decides its tokens (`ResponseCache`). The text is made from the tokens
when they are read, so other stop strings reuse the same tokens.

Knows nothing of prompts' origin or of scores.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pipeline.artifacts.responses import ResponseCache, facts_digest
from pipeline.errors import agreeing, counted, listed
from pipeline.models.generate.continuation import with_leading_space
from pipeline.models.generate.decode import GenerationSettings, check_prompts
from pipeline.models.generate.engines.names import EngineName
from pipeline.models.generate.sampling import Sampling
from pipeline.models.generate.steps import Say, cache_use
from pipeline.models.generate.stop_strings import cut_at_stop
from pipeline.models.logprobs import logprob_batches, response_logprobs
from pipeline.models.tokenizer.contract import end_ids
from pipeline.parallel.ranks import Ranks
from pipeline.plain_data import JsonObject
from pipeline.stage import ResolvedInput, StageContext
from pipeline.training.model_slot import Loaded, ModelSlot

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FinishReason = Literal["eos", "stop", "max_new_tokens", "context"]
"""Why a response ends: at an end token, at a stop string, at the limit of tokens, or where the context is full."""

BATCH_SIZE = 128
"""Rows decoded together. Another number changes the rounding of the logits, so it asks for another `VERSION`."""

VERSION = 1
"""Raised when the same request would give other tokens: what was kept before is then not used."""


class Response(NamedTuple):
    """One response.

    Attributes:
        text: text without special tokens, cut before a stop string, without white space around it. Of a model
            without a chat template, the white space between prompt and response is part of it.
        ids: tokens of the response, the end token or the stop string included.
        finish_reason: why it ends.
    """

    text: str
    ids: list[int]
    finish_reason: FinishReason


@dataclass(frozen=True)
class Request:
    """One response of a checkpoint to every prompt.

    Attributes:
        source: the checkpoint.
        tokenizer: its tokenizer.
        prompts: token ids of each prompt.
        row_ids: identity of each prompt for its random numbers.
        sampling: how tokens are chosen.
        max_new_tokens: longest response.
        seed: seed of the random numbers.
        stop: strings before which a text is cut.
        engine: samples the tokens.
    """

    source: ResolvedInput
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[list[int]]
    row_ids: Sequence[int]
    sampling: Sampling
    max_new_tokens: int
    seed: int = 0
    stop: Sequence[str] = ()
    engine: EngineName = "batched"

    def batches(self) -> list[list[int]]:
        """Return the rows that are decoded together, shortest prompts first; each row is in one batch."""
        order = sorted(range(len(self.prompts)), key=lambda row: len(self.prompts[row]))
        return [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]


@dataclass(frozen=True)
class Scoring:
    """Responses whose log-probabilities under a checkpoint are asked for.

    Attributes:
        source: the checkpoint.
        tokenizer: its tokenizer.
        prompts: token ids of each prompt.
        responses: token ids of each response.
        temperature: divides the logits.
    """

    source: ResolvedInput
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[list[int]]
    responses: Sequence[list[int]]
    temperature: float


@dataclass(frozen=True)
class _Unit:
    """What one rank computes at a time, with one model.

    Attributes:
        source: the model.
        tokenizer: its tokenizer.
        facts: all that decides the value beside the model; the value is kept under them.
        compute: computes the value: a list with an item for each of ``rows``.
        rows: number of rows.
        is_kept: whether the rank that computed the value keeps it.
        in_vllm: whether vLLM has the model.
    """

    source: ResolvedInput
    tokenizer: PreTrainedTokenizerBase
    facts: JsonObject
    compute: Callable[[Loaded, Say], list[Any]]
    rows: int
    is_kept: bool = True
    in_vllm: bool = False

    @cached_property
    def key(self) -> str:
        """Identity of the value among all models."""
        return f"{self.source.fingerprint}/{facts_digest(self.facts)}"


class _Turn(NamedTuple):
    """What the ranks computed at a time.

    Attributes:
        values: the values by their place in the list of units.
        seconds: seconds of this rank, without the loading of a model.
    """

    values: dict[int, list[Any]]
    seconds: float


class Sampler:
    """Answers the requests of one stage.

    Every rank makes it with the same requests, and calls the same methods in the same order.

    Attributes:
        sampled: number of tokens that were sampled, not reused.
        seconds: seconds of sampling them, without the loading of models.
        reused: number of responses that were there before.
    """

    def __init__(self, ctx: StageContext, requests: Sequence[Request]) -> None:
        self._ctx, self._requests = ctx, tuple(requests)
        self._ranks = Ranks.current()
        self._cache = ResponseCache(ctx.responses or ctx.work / "responses")
        self._slot = ModelSlot(ctx)
        self._facts: dict[EngineName, JsonObject] = self._ranks.broadcast(
            {
                name: {"version": VERSION, **self._slot.facts(name)}
                for name in ("batched", *(one.engine for one in requests))
            }
        )
        self._told: set[str] = set()
        self._done, self._total = 0, sum(len(request.prompts) for request in requests)
        self.sampled, self.seconds = 0, 0.0
        self._units = {id(one): [self._batch_unit(one, rows) for rows in one.batches()] for one in requests}
        units = [unit for own in self._units.values() for unit in own]
        self._values = self._read(units)
        self.reused = sum(unit.rows for unit in units if unit.key in self._values)
        if self.reused:
            ctx.note(_reuse(units, frozenset(self._values)))

    def answer(self, requests: Sequence[Request]) -> list[list[Response]]:
        """Return a response to every prompt of each request; the requests are some of those of the stage.

        Raises:
            PipelineError: a prompt is empty or fills the context, or an option is out of range.
            Interrupted: the run was asked to stop; finished batches are kept.
        """
        units = [unit for request in requests for unit in self._units[id(request)]]
        missing = list({unit.key: unit for unit in units if unit.key not in self._values}.values())
        self._done += sum(unit.rows for unit in units) - sum(unit.rows for unit in missing)
        self._ctx.progress(self._done, self._total)
        if missing:
            names = list(dict.fromkeys(unit.source.name for unit in missing))
            rows = counted(sum(unit.rows for unit in missing), "time")
            self._ctx.phase(f"{listed(names)} {agreeing(len(names), 'answers', 'answer')}, {rows} in all")
        for turn in self._turns(missing):
            self.seconds += turn.seconds
            for place, value in turn.values.items():
                self._values[missing[place].key] = value
                self._done += missing[place].rows
                self.sampled += sum(len(ids) for ids, _ in value)
            self._ctx.progress(self._done, self._total, tokens_per_s=self.sampled / self.seconds)
            self._ctx.stop_if_asked()
        return [self._responses(request) for request in requests]

    def logprobs(self, scorings: Sequence[Scoring]) -> list[list[list[float]]]:
        """Return the log-probability of each token of the responses of each scoring; none for an empty response.

        Raises:
            Interrupted: the run was asked to stop.
        """
        wholes = [self._scoring_unit(scoring) for scoring in scorings]
        values = self._read(wholes)
        missing = {unit.key: i for i, unit in enumerate(wholes) if unit.key not in values}
        shares = -(-self._ranks.count // max(1, len(missing)))  # all ranks have work
        parts = [self._scoring_unit(scorings[i], (part, shares)) for i in missing.values() for part in range(shares)]
        rows: dict[str, list[list[float]]] = {key: [[] for _ in scorings[i].responses] for key, i in missing.items()}
        for turn in self._turns(parts):
            for place, value in turn.values.items():
                own = rows[wholes[list(missing.values())[place // shares]].key]
                own[:] = [new or old for new, old in zip(value, own, strict=True)]
            self._ctx.stop_if_asked()
        for key, i in missing.items():
            values[key] = rows[key]
            if self._ranks.is_first:
                self._tell(self._kept(wholes[i], rows[key]))
        return [values[unit.key] for unit in wholes]

    def report(self) -> None:
        """Free the last model, and report how many tokens were sampled, and how fast, for the stage's manifest."""
        self._slot.free()
        rate = round(self.sampled / self.seconds, 1) if self.seconds else 0.0
        self._ctx.report(sampling={"tokens": self.sampled, "tokens_per_s": rate, "responses_reused": self.reused})

    def _turns(self, units: Sequence[_Unit]) -> Iterator[_Turn]:
        """Compute units, each rank a share of consecutive ones; yield what all have computed after each of its units.

        Consecutive units mostly have one model, so a rank loads few models.
        """
        index, count = self._ranks.index, self._ranks.count
        first, end = (len(units) * rank // count for rank in (index, index + 1))
        for turn in range(-(-len(units) // count)):
            started, loaded_s = time.perf_counter(), self._slot.load_s
            values, notes = {}, list[str]()
            if (place := first + turn) < end:
                unit = units[place]
                values[place] = unit.compute(self._loaded(unit, notes.append), notes.append)
                notes += self._kept(unit, values[place]) if unit.is_kept else []
            gathered = self._ranks.all_gather([(values, notes)])
            self._tell([note for _, some in gathered for note in some])
            both = {place: value for some, _ in gathered for place, value in some.items()}
            yield _Turn(both, time.perf_counter() - started - (self._slot.load_s - loaded_s))

    def _loaded(self, unit: _Unit, say: Say) -> Loaded:
        """Return the model of a unit; only one is loaded at a time."""
        if not unit.in_vllm:
            return self._slot.load(unit.source, unit.tokenizer, say)
        own = [one for one in self._requests if one.source == unit.source and one.engine == "vllm"]
        return self._slot.load_in_vllm(unit.source, max(max(map(len, one.prompts)) + one.max_new_tokens for one in own))

    def _read(self, units: Sequence[_Unit]) -> dict[str, list[Any]]:
        """Return the kept values of units, by key: what rank 0 reads, on all ranks."""
        values: dict[str, list[Any]] = {}
        for unit in units if self._ranks.is_first else ():
            if _may_change(unit.source):
                continue
            value = self._cache.read(unit.source.fingerprint, unit.facts)
            if isinstance(value, list) and len(value) == unit.rows:
                values[unit.key] = value
        return self._ranks.broadcast(values)

    def _kept(self, unit: _Unit, value: list[Any]) -> list[str]:
        """Keep a value for later stages; return a note if that is not possible."""
        if _may_change(unit.source):
            return []
        problem = self._cache.keep(unit.source.fingerprint, unit.facts, value)
        if problem is None:
            return []
        return [f"{_NOT_KEPT} ({problem.found}): a rerun samples them again"]

    def _tell(self, notes: Sequence[str]) -> None:
        """Show each note once, and only the first of those that something cannot be kept."""
        for note in notes:
            kind = _NOT_KEPT if note.startswith(_NOT_KEPT) else note
            if kind not in self._told:
                self._told.add(kind)
                self._ctx.note(note)

    def _batch_unit(self, request: Request, rows: Sequence[int]) -> _Unit:
        prompts, row_ids = [request.prompts[row] for row in rows], [request.row_ids[row] for row in rows]
        is_random = not request.sampling.greedy
        facts: JsonObject = {
            **self._facts[request.engine],
            "what": "responses",
            "sampling": asdict(request.sampling) if is_random else "greedy",
            "seed": request.seed if is_random else None,
            "row_ids": row_ids if is_random else None,
            "max_new_tokens": request.max_new_tokens,
            "prompts": prompts,
        }

        def compute(loaded: Loaded, say: Say) -> list[Any]:
            model, pad = loaded.model, request.tokenizer.pad_token_id
            eos = end_ids(request.tokenizer, model)
            settings = GenerationSettings(request.max_new_tokens, eos, pad, request.sampling, request.seed)
            check_prompts(model, request.prompts, settings)
            if loaded.vllm is None:
                cache_use(model, request.prompts, pad, say)  # measured once, with prompts that all ranks agree on
            sampled = loaded.engine(request.engine, BATCH_SIZE, say)(model, prompts, settings, row_ids)
            return [[ids, _end_of(ids, eos, request.max_new_tokens)] for ids in sampled.responses]

        in_vllm = request.engine == "vllm"
        return _Unit(request.source, request.tokenizer, facts, compute, len(rows), in_vllm=in_vllm)

    def _scoring_unit(self, scoring: Scoring, share: tuple[int, int] | None = None) -> _Unit:
        """Return the unit of a scoring; ``share`` is the number of a share of its batches, and how many there are."""
        spoken = [i for i, response in enumerate(scoring.responses) if response]
        facts: JsonObject = {
            **self._facts["batched"],
            "what": "logprobs",
            "temperature": scoring.temperature,
            "rows": [[scoring.prompts[i], response] for i, response in enumerate(scoring.responses)],
        }

        def compute(loaded: Loaded, say: Say) -> list[Any]:
            model = loaded.model
            values: list[list[float]] = [[] for _ in scoring.responses]
            part, shares = share or (0, 1)
            batches = logprob_batches(model, [(scoring.prompts[i], scoring.responses[i]) for i in spoken])
            for batch in batches[part::shares]:
                rows = [spoken[i] for i in batch]
                prompts, responses = [scoring.prompts[i] for i in rows], [scoring.responses[i] for i in rows]
                own = response_logprobs(model, prompts, responses, temperature=scoring.temperature)
                for row, value in zip(rows, own, strict=True):
                    values[row] = value
            return values

        return _Unit(scoring.source, scoring.tokenizer, facts, compute, len(scoring.responses), is_kept=share is None)

    def _responses(self, request: Request) -> list[Response]:
        """Return the responses of a request in the order of its prompts."""
        responses: dict[int, Response] = {}
        for rows, unit in zip(request.batches(), self._units[id(request)], strict=True):
            for row, (ids, reason) in zip(rows, self._values[unit.key], strict=True):
                responses[row] = _response(ids, reason, request, row)
        return [responses[row] for row in range(len(request.prompts))]


def _may_change(source: ResolvedInput) -> bool:
    """Return whether a checkpoint is the latest of a hub's repository: its name stays, and its weights may not."""
    hub_id, _, revision = source.fingerprint.partition("@")
    return hub_id.startswith("hub:") and not re.fullmatch("[0-9a-f]{7,64}", revision)


_NOT_KEPT = "the responses cannot be kept"


def _response(ids: list[int], finish_reason: FinishReason, request: Request, row: int) -> Response:
    cut = cut_at_stop(ids, request.stop, request.tokenizer)
    text = with_leading_space(cut.text.strip(), cut.ids, request.prompts[row], request.tokenizer)
    return Response(text, cut.ids, "stop" if cut.is_cut else finish_reason)


def _end_of(ids: Sequence[int], eos: Sequence[int], max_new_tokens: int) -> FinishReason:
    if ids and ids[-1] in eos:
        return "eos"
    return "max_new_tokens" if len(ids) >= max_new_tokens else "context"


def _reuse(units: Sequence[_Unit], known: frozenset[str]) -> str:
    """Return a sentence on how many checkpoints were answered before, wholly or in part."""
    places: dict[str, list[bool]] = {}
    for unit in units:
        places.setdefault(unit.source.ref, []).append(unit.key in known)
    whole = sum(all(each) for each in places.values())
    partial = sum(any(each) and not all(each) for each in places.values())
    checkpoints = f"{whole} of {counted(len(places), 'checkpoint')} {agreeing(whole, 'was', 'were')} answered before"
    return checkpoints + (f", and {partial} in part" if partial else "") + ": these responses are reused"
