"""Encodes a stage's rows before the stage runs, and counts how many fit and which cannot be rendered.

A program of its own, so that `trueup check` need not import transformers. It reads requests from standard input, and
writes progress and one count per request to standard output, as lines of JSON. The stages use the same functions to
encode rows.
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pipeline.errors import PipelineError, Problem
from pipeline.kind.traits import Encoding
from pipeline.recipe import DataSource
from pipeline.records import load
from pipeline.stage import ResolvedInput, Rows, Shape
from pipeline.training.data.encoding import (
    EncodedRows,
    Reader,
    encode_labelled,
    encode_messages,
    encode_pairs,
    encode_prompts,
    spelled_texts,
    template_problems,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LISTED_FAULTS = 20


class ReaderRequest(BaseModel):
    """A model that reads the answers to prompts as text.

    Attributes:
        name: name for messages.
        tokenizer: source of its tokenizer, as a stage's input.
        chat_template: replaces the tokenizer's own template; None keeps it.
    """

    name: str
    tokenizer: ResolvedInput
    chat_template: str | None


class TokenRequest(BaseModel):
    """Rows, and the tokenizer to encode them with.

    Attributes:
        tokenizer: source of the tokenizer, as a stage's input.
        chat_template: replaces the tokenizer's own template; None keeps it.
        trust_remote_code: whether the tokenizer's repository may run its own Python.
        encodings: encoding for each shape that the rows may have.
        source: data source of the rows.
        source_name: name of the source in the recipe.
        artifact: payload folder, if the source names an artifact.
        shapes: shapes of rows that the stage accepts.
        seed: seed of the stage.
        max_length: longest row in tokens; None if the model's context is not known.
        packed: whether conversations are packed into rows of `max_length`.
        room: longest prompt in tokens that leaves room for the longest answer; None if there is no such limit.
        readers: models that read the answers to prompts.
        held_out_only: whether only the held-out rows are used, if there are any.
    """

    tokenizer: ResolvedInput
    chat_template: str | None
    trust_remote_code: bool
    encodings: dict[Shape, Encoding]
    source: DataSource
    source_name: str
    artifact: Path | None
    shapes: tuple[Shape, ...]
    seed: int
    max_length: int | None
    packed: bool = False
    room: int | None = None
    readers: list[ReaderRequest] = []
    held_out_only: bool = False


class TokenFault(BaseModel):
    """A row that cannot be rendered: its file and line, and the reason."""

    where: str
    reason: str


class TokenCount(BaseModel):
    """What became of the rows of a request.

    Attributes:
        rows: rows of the source, training and held-out.
        train: training rows that are kept.
        sequences: encoded training rows: more if a template needs several texts for a conversation, fewer if packed.
        held_out: held-out rows that are kept.
        too_long: rows above `max_length`: conversations are cut at their end, other rows are left out.
        first_too_long: file and line of the first of them.
        same: pairs whose sides are the same tokens.
        short_of_room: prompts that leave less room than the longest answer takes.
        spelled: rows whose content spells a control token.
        unrendered: rows that cannot be rendered.
        faults: the first rows that cannot be rendered.
        labels: the different labels of the kept training rows, if they have labels.
        problems: what stopped the request as a whole; all numbers are then 0.
    """

    rows: int = 0
    train: int = 0
    sequences: int = 0
    held_out: int = 0
    too_long: int = 0
    first_too_long: str = ""
    same: int = 0
    short_of_room: int = 0
    spelled: int = 0
    unrendered: int = 0
    faults: list[TokenFault] = []
    labels: list[bool] = []
    problems: list[dict[str, str]] = []


def count_tokens(request: TokenRequest, progress: Callable[[int, int], None]) -> TokenCount:
    """Encode the rows of a request and count what became of them.

    Args:
        request: rows and tokenizer.
        progress: called with the number of rows done and of all rows.
    """
    try:
        tokenizer = _tokenizer(request.tokenizer, request.chat_template, request)
        rows = load(
            request.source, request.shapes, seed=request.seed, name=request.source_name, artifact=request.artifact
        )
        if request.held_out_only and rows.held_out:
            rows = replace(rows, train=[], places=rows.places[len(rows.train) :])
        readers = [Reader(one.name, _tokenizer(one.tokenizer, one.chat_template, request)) for one in request.readers]
        encode = encoder(request.encodings[rows.shape], tokenizer, request.max_length, readers)
        total = len(rows.train) + len(rows.held_out)
        train = encode(rows.train, progress=lambda done: progress(done, total))
        held_out = encode(rows.held_out, progress=lambda done: progress(len(rows.train) + done, total))
        if rows.shape == "messages" and (wrong := template_problems(tokenizer, rows.train, train)):
            raise PipelineError(*wrong)
    except PipelineError as error:
        return TokenCount(problems=[_plain(problem) for problem in error.problems])
    return _counted(rows, train, held_out, request)


def _tokenizer(source: ResolvedInput, chat_template: str | None, request: TokenRequest) -> Any:
    from pipeline.models.load.pretrained import load_tokenizer  # loads torch; `preflight` imports this module

    tokenizer = load_tokenizer(source, request.trust_remote_code)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def encoder(
    encoding: Encoding, tokenizer: PreTrainedTokenizerBase, max_length: int | None, readers: Sequence[Reader] = ()
) -> Callable[..., EncodedRows]:
    """Return the function with which a stage encodes its rows."""
    encode: Callable[..., EncodedRows]
    match encoding:
        case "messages":
            encode = encode_messages
        case "pairs":
            encode = encode_pairs
        case "scored_pairs":
            encode = partial(encode_pairs, scored=True)
        case "labelled":
            encode = encode_labelled
        case "prompts":
            encode = partial(encode_prompts, readers=readers)
        case "texts":
            encode = spelled_texts
    return partial(encode, tokenizer, max_length=max_length)


def _counted(rows: Rows, train: EncodedRows, held_out: EncodedRows, request: TokenRequest) -> TokenCount:
    first, room = len(rows.train), request.room
    too_long = [*train.too_long, *(first + i for i in held_out.too_long)]
    faults = [*train.faults, *(replace(fault, index=first + fault.index) for fault in held_out.faults)]
    return TokenCount(
        rows=first + len(rows.held_out),
        train=len(set(train.kept)),
        sequences=_bins([len(row["input_ids"]) for row in train.rows], request.max_length)
        if request.packed and request.max_length and train.rows
        else len(train.rows or train.kept),
        held_out=len(set(held_out.kept)),
        too_long=len(too_long),
        first_too_long=rows.places[too_long[0]] if too_long else "",
        same=len(train.same) + len(held_out.same),
        short_of_room=0
        if room is None
        else sum(len(row["prompt_ids"]) > room for row in (*train.rows, *held_out.rows)),
        spelled=len(train.spelled) + len(held_out.spelled),
        unrendered=len(faults),
        faults=[TokenFault(where=rows.places[one.index], reason=one.reason) for one in faults[:LISTED_FAULTS]],
        labels=sorted({bool(row["label"]) for row in train.rows if "label" in row}),
    )


def _bins(lengths: Sequence[int], size: int) -> int:
    """Return how many rows of ``size`` tokens best-fit decreasing packing needs for rows of these lengths."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        index = bisect_left(rooms, length)
        room = rooms.pop(index) if index < len(rooms) else size
        insort(rooms, room - length)
    return len(rooms)


def _plain(problem: Problem) -> dict[str, str]:
    return {name: getattr(problem, name) for name in ("found", "expected", "remedy", "where")}


def answer(requests: Sequence[TokenRequest], write: Callable[[str], None]) -> None:
    """Answer requests in order: lines of progress ``{"done": …, "of": …}``, then one line ``{"count": …}`` for each."""
    for request in requests:
        count = count_tokens(request, lambda done, total: write(json.dumps({"done": done, "of": total})))
        write(json.dumps({"count": count.model_dump()}))


if __name__ == "__main__":
    given = [TokenRequest.model_validate(item) for item in json.load(sys.stdin)]
    answer(given, lambda line: print(line, flush=True))
