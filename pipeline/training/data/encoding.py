"""Encodes rows as token ids and labels: conversations through the chat template, plain text as it is.

Owns one function for each shape of rows; stages and `trueup check` call them. No row is dropped silently: `EncodedRows`
lists which rows are kept, which cannot be rendered and why, which are too long, and which pairs have equal sides. Knows
nothing of models. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from pipeline.errors import PipelineError, Problem
from pipeline.labels import IGNORE
from pipeline.models.prompted_response import PromptedResponse
from pipeline.models.tokenizer.contract import conversation_problems
from pipeline.models.tokenizer.encoding import Text, TextEncoder, Tokens
from pipeline.models.tokenizer.template import TemplateFaultError
from pipeline.plain_data import Row
from pipeline.training.data.row_text import Piece, RowEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int], None]
"""Called with the number of rows that are done."""

ANSWER = {"role": "assistant", "content": "An answer."}
"""Placeholder answer for testing whether a prompt can be rendered with an answer."""

_BATCH = 256
"""Rows encoded together, and between two reports of progress."""


@dataclass(frozen=True)
class RowFault:
    """A row that cannot be encoded.

    Attributes:
        index: index of the row.
        reason: why; completes a sentence that begins with "row".
    """

    index: int
    reason: str


class EncodedRow(TypedDict, total=False):
    """An encoded row; which columns it has depends on the function that made it.

    Attributes:
        input_ids: tokens of a conversation or a document.
        labels: `input_ids`, with `IGNORE` for tokens that are not trained on.
        seq_lengths: lengths of the conversations of a packed row.
        prompt_ids: tokens of a prompt.
        chosen_ids: tokens of the better response of a pair; for a reward model with the prompt before it.
        rejected_ids: tokens of the worse response of a pair; for a reward model with the prompt before it.
        completion_ids: tokens of a response.
        KL_completion_ids: tokens of the response to another prompt (KTO).
        label: whether the response is good (KTO).
        margin: how much better the better response is.
        prompt_tokens: tokens of the prompt within `chosen_ids` and `rejected_ids`.
        row: the row as it was read.
    """

    input_ids: list[int]
    labels: list[int]
    seq_lengths: list[int]
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    completion_ids: list[int]
    KL_completion_ids: list[int]
    label: bool
    margin: float
    prompt_tokens: int
    row: Row


class EncodedRows(NamedTuple):
    """Encoded rows, and what became of the others. All lists but `rows` and `faults` hold indices of input rows.

    Attributes:
        rows: encoded rows, to train on.
        kept: input row of each encoded row; an input row that needs several texts occurs several times.
        faults: rows that cannot be rendered.
        too_long: rows above the length limit; a conversation is cut at its end, other rows are left out.
        same: pairs whose sides are the same tokens; they are left out.
        spelled: rows whose content spells a control token, which stays text.
    """

    rows: list[EncodedRow]
    kept: list[int]
    faults: list[RowFault]
    too_long: list[int]
    same: list[int]
    spelled: list[int]


def nothing_encoded() -> EncodedRows:
    """Return an empty `EncodedRows`."""
    return EncodedRows([], [], [], [], [], [])


def encode_messages(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    max_length: int | None = None,
    *,
    progress: Progress | None = None,
) -> EncodedRows:
    """Encode conversations for training on the assistant's tokens only, its end token included.

    Trained on are the assistant's text, tool calls and reasoning, in turns without ``train: False``. A conversation
    longer than ``max_length`` is cut at its end, and left out if no trained token remains.

    Returns:
        Rows with `input_ids` and `labels` (`IGNORE` for tokens that are not trained on).

    Raises:
        PipelineError: there is no chat template for a conversation.
    """
    encoder = RowEncoder.of(tokenizer)

    def finish(encoded: EncodedRows, i: int, pieces: list[Piece], tokens: list[Tokens]) -> None:
        for piece, piece_tokens in zip(pieces, tokens, strict=True):
            ids, labels = _labelled(piece, piece_tokens)
            if max_length is not None and len(ids) > max_length:
                ids, labels = ids[:max_length], labels[:max_length]
                if i not in encoded.too_long[-1:]:
                    encoded.too_long.append(i)
            if any(label != IGNORE for label in labels):
                encoded.rows.append({"input_ids": ids, "labels": labels})
                encoded.kept.append(i)

    return _encode(encoder, rows, encoder.conversation, finish, progress, with_answers=True)


def template_problems(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], encoded: EncodedRows) -> list[Problem]:
    """Return what is wrong with how the first kept conversation is rendered."""
    if not encoded.kept or not tokenizer.chat_template:
        return []
    first = rows[encoded.kept[0]]
    return conversation_problems(tokenizer, first["messages"], first.get("tools"))


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    max_length: int | None = None,
    *,
    progress: Progress | None = None,
    scored: bool = False,
) -> EncodedRows:
    """Encode preference pairs; those with a side above ``max_length`` or with equal sides are left out.

    Args:
        tokenizer: of the model.
        rows: pairs.
        max_length: tokens of prompt and response together.
        progress: called with the number of rows that are done.
        scored: whether responses are only scored, and so may contain tool results; otherwise all of a response is
            trained on.

    Returns:
        Rows with `prompt_ids`, `chosen_ids` and `rejected_ids`; the responses end with their end token.

    Raises:
        PipelineError: there is no chat template for a conversation.
    """
    encoder = RowEncoder.of(tokenizer)

    def sides(row: Row) -> list[Piece]:
        return encoder.replies(row, row["chosen"], row["rejected"], scored=scored)

    def finish(encoded: EncodedRows, i: int, pieces: list[Piece], tokens: list[Tokens]) -> None:
        prompt = [*pieces[0].prefix, *tokens[0].ids]
        chosen = encoder.response(prompt, pieces[1], tokens[1])
        rejected = encoder.response(prompt, pieces[2], tokens[2])
        if max_length is not None and len(prompt) + max(len(chosen), len(rejected)) > max_length:
            encoded.too_long.append(i)
        elif chosen == rejected:
            encoded.same.append(i)
        else:
            encoded.rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
            encoded.kept.append(i)

    return _encode(encoder, rows, sides, finish, progress)


def encode_labelled(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    max_length: int | None = None,
    *,
    progress: Progress | None = None,
) -> EncodedRows:
    """Encode responses with a label, good or bad (KTO); those above ``max_length`` are left out.

    Returns:
        Rows with `prompt_ids`, `completion_ids` and `label`.

    Raises:
        PipelineError: there is no chat template for a conversation.
    """
    encoder = RowEncoder.of(tokenizer)

    def finish(encoded: EncodedRows, i: int, pieces: list[Piece], tokens: list[Tokens]) -> None:
        prompt = [*pieces[0].prefix, *tokens[0].ids]
        ids = encoder.response(prompt, pieces[1], tokens[1])
        if max_length is not None and len(prompt) + len(ids) > max_length:
            encoded.too_long.append(i)
        else:
            encoded.rows.append({"prompt_ids": prompt, "completion_ids": ids, "label": rows[i]["label"]})
            encoded.kept.append(i)

    return _encode(encoder, rows, lambda row: encoder.replies(row, row["completion"]), finish, progress)


class Reader(NamedTuple):
    """A model, such as a reward model, that reads prompts and answers as text through its own tokenizer.

    Attributes:
        name: name for messages.
        tokenizer: tokenizer; without a chat template it reads plain text only.
    """

    name: str
    tokenizer: Any


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    max_length: int | None = None,
    *,
    readers: Sequence[Reader] = (),
    progress: Progress | None = None,
) -> EncodedRows:
    """Encode prompts up to the beginning of the answer; those above ``max_length`` are left out.

    Args:
        tokenizer: tokenizer of the model that answers.
        rows: prompts.
        max_length: longest prompt in tokens.
        readers: models that read the answers; a prompt that one of them cannot render is a fault.
        progress: called with the number of rows that are done.

    Returns:
        Rows with `prompt_ids`.

    Raises:
        PipelineError: there is no chat template for a conversation.
    """
    encoder = RowEncoder.of(tokenizer)

    def finish(encoded: EncodedRows, i: int, pieces: list[Piece], tokens: list[Tokens]) -> None:
        ids = [*pieces[0].prefix, *tokens[0].ids]
        if max_length is not None and len(ids) > max_length:
            encoded.too_long.append(i)
        else:
            encoded.rows.append({"prompt_ids": ids})
            encoded.kept.append(i)

    encoded = _encode(encoder, rows, encoder.prompt, finish, progress)
    must_talk = bool(tokenizer.chat_template)
    faults = {fault.index: fault for reader in reversed(readers) for fault in _unreadable(reader, rows, must_talk)}
    if not faults:
        return encoded
    without_faults = [(i, row) for i, row in zip(encoded.kept, encoded.rows, strict=True) if i not in faults]
    faults |= {fault.index: fault for fault in encoded.faults}
    return encoded._replace(
        rows=[row for _, row in without_faults],
        kept=[i for i, _ in without_faults],
        faults=[faults[i] for i in sorted(faults)],
        too_long=[i for i in encoded.too_long if i not in faults],
        spelled=[i for i in encoded.spelled if i not in faults],
    )


def _unreadable(reader: Reader, rows: Sequence[Row], must_talk: bool) -> list[RowFault]:
    """Return the prompts that a reader cannot render together with an answer.

    Raises:
        PipelineError: it has no chat template, and the answers or the prompts are turns of a conversation.
    """
    must_talk = must_talk or any(not row.get("plain_text") for row in rows)
    if must_talk and not reader.tokenizer.chat_template:
        statement = f"{reader.name} has another tokenizer than the policy, without a chat template"
        remedy = "put a chat_template.jinja into its folder"
        raise PipelineError(Problem(statement, "a chat template, to render conversations for it", remedy))
    encoded = encode_labelled(reader.tokenizer, [{**row, "completion": [ANSWER], "label": True} for row in rows])
    return [replace(fault, reason=f"{fault.reason} ({reader.name})") for fault in encoded.faults]


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, parsed: bool = False, progress: Progress | None = None
) -> list[list[int]]:
    """Encode plain texts without start and end tokens.

    Args:
        tokenizer: of the model.
        texts: texts to encode.
        parsed: whether the name of a control token becomes that token; otherwise it stays text.
        progress: called with the number of texts that are done.
    """
    encoder = TextEncoder(tokenizer)
    encoded: list[list[int]] = []
    for first in range(0, len(texts), _BATCH):
        chunk = texts[first : first + _BATCH]
        batch = [Text(text) for text in chunk] if parsed else [encoder.content(text) for text in chunk]
        encoded += [tokens.ids for tokens in encoder.encode(batch)]
        if progress is not None:
            progress(len(encoded))
    return encoded


def spelled_texts(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    max_length: int | None = None,
    *,
    progress: Progress | None = None,
) -> EncodedRows:
    """Return which plain texts spell a control token. All are kept, whatever their length, and none is encoded.

    Args:
        tokenizer: of the model.
        rows: rows with `text`.
        max_length: ignored, because texts are cut into rows later.
        progress: called with the number of rows that are done.
    """
    names = TextEncoder(tokenizer).names
    spelled: list[int] = []
    for i, row in enumerate(rows):
        if names(row["text"]):
            spelled.append(i)
        if progress is not None and not i % _BATCH:
            progress(i)
    return nothing_encoded()._replace(kept=list(range(len(rows))), spelled=spelled)


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], answers: Sequence[str]
) -> list[PromptedResponse]:
    """Encode each prompt together with its answer, which is given as text.

    Raises:
        PipelineError: the chat template cannot render one of them.
    """
    asked = [
        {**row, "completion": [{"role": "assistant", "content": answer}], "label": True}
        for row, answer in zip(rows, answers, strict=True)
    ]
    encoded = encode_labelled(tokenizer, asked)
    if encoded.faults:
        raise PipelineError(Problem(f"prompt {encoded.faults[0].index + 1} with its answer {encoded.faults[0].reason}"))
    return [PromptedResponse.of(row["prompt_ids"], row["completion_ids"]) for row in encoded.rows]


def _encode(
    encoder: RowEncoder,
    rows: Sequence[Row],
    pieces_of: Callable[[Row], list[Piece]],
    finish: Callable[[EncodedRows, int, list[Piece], list[Tokens]], None],
    progress: Progress | None,
    *,
    with_answers: bool = False,
) -> EncodedRows:
    """Render and encode rows batch by batch; ``finish`` adds each row's tokens to the result."""
    encoded = nothing_encoded()
    for first in range(0, len(rows), _BATCH):
        rendered: list[tuple[int, list[Piece]]] = []
        for i, row in enumerate(rows[first : first + _BATCH], first):
            try:
                rendered.append((i, pieces_of(row)))
            except TemplateFaultError as fault:
                encoded.faults.append(RowFault(i, str(fault)))
        pieces = [piece for _, parts in rendered for piece in parts]
        spoken = [piece.answers for piece in pieces] if with_answers else ()
        tokens = iter(encoder.text.encode([piece.text for piece in pieces], spoken))
        for i, parts in rendered:
            if any(piece.text.has_spelled for piece in parts):
                encoded.spelled.append(i)
            finish(encoded, i, parts, [next(tokens) for _ in parts])
        if progress is not None:
            progress(min(first + _BATCH, len(rows)))
    return encoded


def _labelled(piece: Piece, tokens: Tokens) -> tuple[list[int], list[int]]:
    labels = [IGNORE] * len(tokens.ids)
    for start, end in piece.answers:
        first, last = tokens.until(start), tokens.until(end)
        labels[first:last] = tokens.ids[first:last]
    ids = [*piece.prefix, *tokens.ids, *piece.suffix]
    return ids, [*[IGNORE] * len(piece.prefix), *labels, *piece.suffix]
