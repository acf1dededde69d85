"""Encodes rows with tokenizer and chat template before anything runs, to find rows that are too long or do not render.

Owns which tokenizer encodes a stage's rows, and the problems that follow for the stage when rows are left out. The
encoding is the stages' own; `pipeline/training/data/token_counts.py` runs it in a subprocess. Counts are cached by the
content of rows and tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts import Store
from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.kind.traits import Encoding, Reading, RowCounts
from pipeline.machine.disk import keep_if_possible
from pipeline.plain_data import JsonObject
from pipeline.plan import Plan, PlannedStage
from pipeline.preflight.checks.sources import Progress, SourceCount, SourceReport, SourceUse
from pipeline.preflight.checks.tokenizers import (
    TOKENIZER_FILES,
    LocalTokenizer,
    content_of,
    hub_folder,
    readers_of,
    tokenizer_of,
)
from pipeline.preflight.forecast.shapes import ModelShapes
from pipeline.records import digest
from pipeline.stage import Shape, kind_of
from pipeline.training.data.sources import FEW
from pipeline.training.data.token_counts import TokenCount, TokenRequest, count_tokens

REMEMBERED_FILE = "checked-tokens-3.json"
"""The number in the name is raised when the file's format or the encoding of rows changes."""

CONTEXT_KEYS = ("max_position_embeddings", "n_positions")
LONGEST_BY_DEFAULT = 2048
"""Default of `train.max_length` in tokens, the same as in `training/fitting.py`."""

WITH_TOKENIZER = ("tokenizer", "model", "models", "init", "policy")
"""Input fields that may provide the tokenizer of a stage's rows; the first one that is set does."""


@dataclass(frozen=True)
class StageTokens:
    """Token counts of a stage's rows.

    Attributes:
        use: the stage's data field and its source.
        tokenizer: name of the stage, folder or hub model the tokenizer comes from.
        max_length: longest allowed row in tokens; None when not known.
        count: counts of the encoded rows.
    """

    use: SourceUse
    tokenizer: str
    max_length: int | None
    count: TokenCount

    @property
    def notes(self) -> Iterator[str]:
        """Notes on the encoded rows for the user, one sentence each."""
        head, count, rows = f"stage {self.use.stage}:", self.count, self.use.source_name
        if count.too_long:
            are = agreeing(count.too_long, "is", "are")
            fate = "cut at the end" if "messages" in self.shapes else "left out"
            what = f"{count.too_long:,} of {counted(count.rows, 'row')} of {rows}"
            yield f"{head} {what} {are} longer than {self.max_length} tokens and {are} {fate}"
        if count.same:
            have, are = agreeing(count.same, "has", "have"), agreeing(count.same, "is", "are")
            what = f"{counted(count.same, 'pair')} of {rows}"
            yield f"{head} {what} {have} two sides of the same tokens and {are} left out"
        if count.short_of_room:
            what = f"{count.short_of_room:,} of {counted(count.rows, 'prompt')} of {rows}"
            less = agreeing(count.short_of_room, "leaves less room", "leave less room")
            yield f"{head} {what} {less} than `max_new_tokens` in the model's context: answers to them end there"
        if count.spelled:
            spell = agreeing(count.spelled, "spells", "spell")
            what = (
                f"{count.spelled:,} of {counted(count.rows, 'row')} of {rows} {spell} a control token; there it is text"
            )
            hint = ". If they are conversations rendered beforehand, set `control_tokens: parsed`"
            yield f"{head} {what}{hint if 'text' in self.shapes else ''}"
        if count.unrendered:
            are = agreeing(count.unrendered, "is", "are")
            yield f"{head} {counted(count.unrendered, 'row')} of {rows} cannot be rendered and {are} left out"

    @property
    def shapes(self) -> tuple[str, ...]:
        """The shapes of rows that the stage takes from the source."""
        return (self.use.shapes,) if isinstance(self.use.shapes, str) else self.use.shapes


class TokenReport(NamedTuple):
    """Results of encoding the rows of a plan: counts by stage, and problems."""

    stages: list[StageTokens]
    problems: list[Problem]


def count_stage_tokens(
    plan: Plan,
    store: Store,
    shapes: ModelShapes,
    sources: SourceReport,
    refused: Collection[str] = (),
    progress: Progress | None = None,
) -> TokenReport:
    """Encode the rows of every pending stage whose tokenizer is on this machine.

    Args:
        plan: plan of a recipe.
        store: caches token counts.
        shapes: shapes of the models, for their context lengths.
        sources: the row counts.
        refused: stages that get too few rows and are not encoded.
        progress: is called with the progress.
    """
    asked: list[tuple[SourceUse, LocalTokenizer, TokenRequest]] = []
    for use, stage, tokenizer in _encoded_uses(plan, sources):
        if use.stage in refused:
            continue
        asked.append((use, tokenizer, _request(plan, use, stage, tokenizer, shapes)))
    counts = _counts([request for _, _, request in asked], store, progress)
    stages = [
        StageTokens(use, tokenizer.name, request.max_length, count)
        for (use, tokenizer, request), count in zip(asked, counts, strict=True)
    ]
    problems: dict[str, Problem] = {}
    for stage_tokens in stages:
        for problem in _problems(plan, stage_tokens, sources.counts[stage_tokens.use]):
            problems.setdefault(f"{problem.where} {problem.found}", problem)
    return TokenReport(stages, list(problems.values()))


def _encoded_uses(plan: Plan, sources: SourceReport) -> Iterator[tuple[SourceUse, PlannedStage, LocalTokenizer]]:
    """Yield the data fields whose tokenizer is on this machine, with stage and tokenizer."""
    stages = {stage.spec.name: stage for stage in plan.stages}
    for use in sources.counts:
        stage = stages.get(use.stage)
        if stage is None or not _encodings(stage, use):
            continue
        if getattr(stage.spec.config, "control_tokens", "text") == "parsed":
            continue  # control tokens in its texts are intended
        items = next((stage.inputs[field] for field in WITH_TOKENIZER if stage.inputs.get(field)), [])
        tokenizers = (tokenizer_of(plan, item, getattr(stage.spec.config, "chat_template", None)) for item in items)
        seen: set[tuple[Path, str | None]] = set()
        for tokenizer in tokenizers:
            if tokenizer is not None and (tokenizer.folder, tokenizer.chat_template) not in seen:
                seen.add((tokenizer.folder, tokenizer.chat_template))
                yield use, stage, tokenizer


def _request(
    plan: Plan, use: SourceUse, stage: PlannedStage, tokenizer: LocalTokenizer, shapes: ModelShapes
) -> TokenRequest:
    source, reading, encodings = plan.recipe.data[use.source_name], _reading(stage, use.field), _encodings(stage, use)
    if source.path is not None:
        source = source.model_copy(update={"path": [str(file) for file in source.files]})
    return TokenRequest.model_validate(
        {
            "tokenizer": tokenizer.item,
            "chat_template": tokenizer.chat_template,
            "trust_remote_code": plan.recipe.trust_remote_code,
            "encodings": encodings,
            "source": source.model_dump(mode="json"),
            "source_name": use.source_name,
            "artifact": use.artifact,
            "shapes": _shapes(use),
            "seed": use.seed,
            "max_length": _max_length(stage, use, shapes),
            "packed": getattr(getattr(stage.spec.config, "train", None), "mode", "") == "packed",
            "room": _room(stage, reading, shapes) if reading.long_prompts == "answered" else None,
            "readers": readers_of(plan, stage, tokenizer) if "prompt" in encodings else [],
            "held_out_only": reading.held_out_only,
        }
    )


def _reading(stage: PlannedStage, field: str) -> Reading:
    """Return how a stage uses the rows of a field."""
    return kind_of(stage.spec.kind).traits.reading(field)


def _shapes(use: SourceUse) -> tuple[Shape, ...]:
    """Return the shapes of rows that a stage takes from a source."""
    return (use.shapes,) if isinstance(use.shapes, str) else use.shapes


def _encodings(stage: PlannedStage, use: SourceUse) -> dict[Shape, Encoding]:
    """Return the encoding of a stage's rows for each shape they may have; empty if they are not encoded here."""
    known = _reading(stage, use.field).encodings
    return {shape: known[shape] for shape in _shapes(use)} if set(_shapes(use)) <= set(known) else {}


def _context(stage: PlannedStage, shapes: ModelShapes) -> int | None:
    """Return the context length of a stage's model in tokens, or the shortest of its models; None if not known."""
    models = [item for field in ("models", "policy", "reference") for item in stage.inputs.get(field, [])]
    configs = [shapes.config_of_input(item) or {} for item in models] or [shapes.config_of(stage) or {}]
    known = [fields[key] for fields in configs for key in CONTEXT_KEYS if isinstance(fields.get(key), int)]
    return min(known, default=None)


def _room(stage: PlannedStage, reading: Reading, shapes: ModelShapes) -> int | None:
    """Return the tokens left for a prompt in the model's context beside the longest response; None if not known."""
    config: Any = stage.spec.config
    context = _context(stage, shapes)
    train = getattr(config, "train", None)
    if reading.long_prompts == "left_out" and (context or shapes.config_of(stage)):
        context = min(context or LONGEST_BY_DEFAULT, getattr(train, "max_length", None) or LONGEST_BY_DEFAULT)
    response = getattr(train, "max_new_tokens", None) or getattr(config, "max_new_tokens", None) or 0
    return max(context - response, 1) if context else None


def _max_length(stage: PlannedStage, use: SourceUse, shapes: ModelShapes) -> int | None:
    """Return the longest row that fits a stage, in tokens; for prompts, the tokens left beside the response."""
    config: Any = stage.spec.config
    asked = getattr(getattr(config, "train", None), "max_length", None)
    context, reading = _context(stage, shapes), _reading(stage, use.field)
    if reading.long_prompts == "answered":
        return max(context - 1, 1) if context else None
    if reading.bound == "context":
        return context
    if "prompt" not in _shapes(use):
        is_known = context or shapes.config_of(stage)
        return asked or (min(context or LONGEST_BY_DEFAULT, LONGEST_BY_DEFAULT) if is_known else None)
    return _room(stage, reading, shapes)


def _problems(plan: Plan, tokens: StageTokens, source: SourceCount) -> Iterator[Problem]:
    """Yield the problems that would stop the stage, with the stage's own texts."""
    use, count = tokens.use, tokens.count
    stage = next(one for one in plan.stages if one.spec.name == use.stage)
    reading = _reading(stage, use.field)
    where = plan.recipe.where("stages", use.stage, use.field)
    for problem in count.problems:
        yield Problem(**{**problem, "where": problem["where"] or where}, stage=use.stage)
    if count.problems:
        return
    options = plan.recipe.data[use.source_name]
    if count.faults and (options.on_bad_row == "stop" or count.unrendered == count.rows):
        yield from _fault_problems(use, tokens, where, can_skip=count.unrendered < count.rows)
        return
    leaves_out = getattr(getattr(stage.spec.config, "train", None), "max_length", None) is not None
    if source.shape == "prompt" and count.too_long and not (reading.long_prompts == "left_out" and leaves_out):
        are = agreeing(count.too_long, "is", "are")
        statement = f"{count.too_long} of {counted(count.rows, 'prompt')} {are} longer than {tokens.max_length} tokens"
        expected = "prompts that leave room for the response in the model's context"
        remedy = "shorten or drop them" + ("" if reading.long_prompts == "answered" else ", or lower max_new_tokens")
        yield Problem(statement, expected, remedy, count.first_too_long, use.stage)
        return
    usable = count.train or (count.held_out and reading.held_out_only) or reading.is_test
    if source.train and not usable:
        what = "pair" if source.shape == "preference" else "prompt" if source.shape == "prompt" else "row"
        expected = f"{what}s of at most {tokens.max_length} tokens"
        remedy = "shorten them" if reading.bound == "context" else "raise train.max_length"
        yield Problem(f"no {what} fits", expected, remedy, where, use.stage)
        return
    if len(count.labels) == 1:
        missing = "bad row" if count.labels[0] else "good row"
        expected = f"{missing}s of at most {tokens.max_length} tokens"
        yield Problem(f"no {missing} fits", expected, "raise train.max_length", where, use.stage)
    if use.field != "data":
        return
    rows = RowCounts(count.sequences, count.held_out, source.shape)
    few = kind_of(stage.spec.kind).rows_problem(stage.spec.config, rows)
    if few is not None:
        statement = few.found
        if count.too_long and source.shape != "messages":
            are = agreeing(count.too_long, "is", "are")
            statement += f", for {count.too_long:,} of {count.rows:,} {are} longer than {tokens.max_length} tokens"
        yield Problem(statement, few.expected, few.remedy, where, use.stage)


def _fault_problems(use: SourceUse, tokens: StageTokens, where: str, *, can_skip: bool) -> Iterator[Problem]:
    count = tokens.count
    remedy = "mend the data or the template"
    if can_skip:
        remedy += f", or set `data.{use.source_name}.on_bad_row: skip` to leave such rows out and keep them in a file"
    if count.unrendered == 1:
        yield Problem(f"row {count.faults[0].reason}", "", remedy, count.faults[0].where, use.stage)
        return
    is_alike = count.unrendered == count.rows > FEW and len({fault.reason for fault in count.faults}) == 1
    for fault in count.faults[:1] if is_alike else count.faults:
        yield Problem(f"row {fault.reason}", where=fault.where, stage=use.stage)
    if is_alike:
        statement = f"all {count.rows} rows cannot be rendered with the tokenizer of {tokens.tokenizer} for this reason"
        yield Problem(statement, "", remedy, where, use.stage)
        return
    more = f" (the first {len(count.faults)} are listed)" if count.unrendered > len(count.faults) else ""
    statement = (
        f"{count.unrendered} of {count.rows} rows cannot be rendered with the tokenizer of {tokens.tokenizer}{more}"
    )
    yield Problem(statement, "", remedy, where, use.stage)


def _counts(requests: Sequence[TokenRequest], store: Store, progress: Progress | None) -> list[TokenCount]:
    """Return the counts of requests, from the cache or newly encoded."""
    file = store.root / ".cache" / REMEMBERED_FILE
    try:
        known: JsonObject = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    keys = [_key(request, store) for request in requests]
    missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
    if missing:
        counts = _encode(list(missing.values()), progress)
        fresh = dict(zip(missing, (count.model_dump() for count in counts), strict=True))
        known |= fresh
        keep_if_possible(file, json.dumps(known, sort_keys=True))
    return [TokenCount.model_validate(known[key]) for key in keys]


def _key(request: TokenRequest, store: Store) -> str:
    """Return the cache key of a request: the content of rows and tokenizers, the options, and library versions."""
    rows = digest(request.source, cache=store.root / ".cache", artifact=request.artifact).digest
    paths = [Path(one.path) for one in (request.tokenizer, *(reader.tokenizer for reader in request.readers))]
    folders = [path if path.is_dir() else hub_folder(str(path)) or path for path in paths]
    content = hashlib.sha256()
    for each, name in product(folders, TOKENIZER_FILES):
        content.update(content_of(each / name))
    left_out: Any = {"tokenizer": True, "source": {"path"}, "artifact": True, "readers": {"__all__": {"tokenizer"}}}
    options = request.model_dump(mode="json", exclude=left_out)
    # The counts contain file and line of the first rows that are too long or cannot be rendered.
    places = [str(file) for file in request.source.files] if request.source.path else str(request.artifact)
    libraries = [
        version(name) for name in ("transformers", "tokenizers", "trl")
    ]  # trl ships training variants of chat templates
    text = json.dumps([rows, content.hexdigest(), options, places, libraries], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _encode(requests: Sequence[TokenRequest], progress: Progress | None) -> list[TokenCount]:
    """Encode in this process if torch and transformers are imported already, else in a subprocess."""

    def say(i: int, done: int, total: int) -> None:
        if progress is not None:
            name = requests[i].source_name
            tokenizer = requests[i].tokenizer.name
            progress(f"data {name}: {done:,} of {counted(total, 'row')} rendered with the tokenizer of {tokenizer}")

    if "torch" in sys.modules and "transformers" in sys.modules:
        return [count_tokens(one, partial(say, i)) for i, one in enumerate(requests)]
    if progress is not None:
        progress("loading the tokenizers")
    return _encode_in_subprocess(requests, say)


def _encode_in_subprocess(requests: Sequence[TokenRequest], say: Callable[[int, int, int], None]) -> list[TokenCount]:
    """Encode in a subprocess, so that this process need not import transformers.

    Raises:
        PipelineError: the subprocess ended before it had encoded all requests.
    """
    line = [sys.executable, "-m", "pipeline.training.data.token_counts"]
    counts: list[TokenCount] = []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
    ):
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps([one.model_dump(mode="json") for one in requests]))
        child.stdin.close()
        for text in child.stdout:
            message = json.loads(text)
            if "count" in message:
                counts.append(TokenCount.model_validate(message["count"]))
            else:
                say(len(counts), message["done"], message["of"])
        child.wait()
        errors.seek(0)
        reason = (errors.read().strip().splitlines() or [f"it ended with status {child.returncode}"])[-1]
    if len(counts) < len(requests):
        name = requests[len(counts)].source_name
        raise PipelineError(Problem(f"data {name}: its rows could not be encoded ({reason})"))
    return counts
