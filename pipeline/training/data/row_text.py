"""Renders rows as texts: through the chat template, or as plain text for a base model without one.

Owns which part of a row goes into which text, and how the tokens of a text begin and end. Knows nothing of batches,
lengths or losses. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pipeline.errors import PipelineError
from pipeline.models.tokenizer.encoding import Text, TextEncoder, Tokens, own_letters
from pipeline.models.tokenizer.template import ChatTemplate, Messages, Rendered, Span, TemplateFaultError, no_template
from pipeline.plain_data import Row as Row  # trainers take it from here

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Piece(NamedTuple):
    """A text to encode.

    Attributes:
        text: the text.
        answers: spans of the assistant's answers.
        prefix: tokens before the text.
        suffix: tokens after the text.
    """

    text: Text
    answers: list[Span]
    prefix: list[int]
    suffix: list[int]


@dataclass(frozen=True)
class RowEncoder:
    """Renders rows with a tokenizer's chat template, or as plain text without one; neither may change meanwhile."""

    text: TextEncoder
    template: ChatTemplate

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> RowEncoder:
        """Create the encoder of a tokenizer."""
        text = TextEncoder(tokenizer)
        return cls(text, ChatTemplate(text))

    @property
    def end(self) -> list[int]:
        """The tokenizer's end token, for texts that the template ends without one."""
        return [int(self.text.tokenizer.eos_token_id)]

    def continues(self, row: Row) -> bool:
        """Return whether a row is plain text to be continued, because there is no chat template.

        Raises:
            PipelineError: the row is a conversation, and there is no chat template.
        """
        if self.text.tokenizer.chat_template:
            return False
        if not row.get("plain_text"):
            raise PipelineError(no_template())
        return True

    def conversation(self, row: Row) -> list[Piece]:
        """Return the texts of a conversation."""
        if not self.continues(row):
            return [self._piece(rendered) for rendered in self.template.rendered(row["messages"], row.get("tools"))]
        letters = own_letters("".join(turn["content"] for turn in row["messages"]))
        text, answers = "", []
        for turn in row["messages"]:
            before, text = len(text), text + self.text.shield(turn["content"], letters)
            if turn["role"] == "assistant" and turn.get("train", True):
                answers.append(Span(before, len(text)))
        return [Piece(Text(text, letters), answers, self.text.prefix, self.end)]

    def prompt(self, row: Row) -> list[Piece]:
        """Return the text of a prompt up to the beginning of the answer."""
        if self.continues(row):
            return [self._plain_piece(row["prompt"])]
        return [Piece(self.template.prompt(row["prompt"], row.get("tools")), [], [], [])]

    def replies(self, row: Row, *responses: Messages, scored: bool = False) -> list[Piece]:
        """Return the text of a prompt, and the texts of the prompt with each response.

        Leading turns that all responses share, up to the last tool result, count as part of the prompt.

        Args:
            row: row with `prompt`, and perhaps `tools`.
            responses: turns of each response.
            scored: whether responses are only scored; otherwise they may contain assistant turns only.

        Raises:
            TemplateFaultError: a response contains a turn that is not the assistant's, or cannot be rendered.
        """
        shared = 0 if scored else _shared_turns(responses)
        prompt, replies = [*row["prompt"], *responses[0][:shared]], [response[shared:] for response in responses]
        if not scored and any(turn["role"] != "assistant" for reply in replies for turn in reply):
            raise TemplateFaultError(
                "has a response with a turn that is not the assistant's, expected the assistant's turns alone, for all "
                "of a response is learnt; move what comes before its last turn to the prompt"
            )
        pieces: list[Piece] = []
        for reply in replies:
            if self.continues(row):
                full_piece = self._plain_piece(prompt, reply)
                prompt_piece = Piece(full_piece.text.part(0, full_piece.answers[0].start), [], full_piece.prefix, [])
            else:
                text, rendered = self.template.reply(prompt, reply, row.get("tools"))
                prompt_piece, full_piece = Piece(text, [], [], []), self._piece(rendered)
            pieces += [full_piece] if pieces else [prompt_piece, full_piece]
        return pieces

    def _plain_piece(self, prompt: Messages, response: Messages = ()) -> Piece:
        sides = ["".join(turn["content"] for turn in side) for side in (prompt, response)]
        letters = own_letters("".join(sides))
        before, after = (self.text.shield(side, letters) for side in sides)
        answers = [Span(len(before), len(before) + len(after))] if response else []
        return Piece(Text(before + after, letters), answers, self.text.prefix, self.end if response else [])

    def _piece(self, rendered: Rendered) -> Piece:
        end = rendered.answers[-1].end
        text = rendered.text.part(0, end)  # nothing after the last answer is trained on or attended to
        return Piece(text, rendered.answers, [], self.end if rendered.adds_end else [])

    def response(self, before: list[int], piece: Piece, tokens: Tokens) -> list[int]:
        """Return the token ids of a response that follow the prompt's ids ``before``."""
        ids = [*piece.prefix, *tokens.ids]
        if ids[: len(before)] != before:  # a token spans prompt and response: encode the response by itself
            start = piece.answers[0].start
            tokens = self.text.encode_one(piece.text, [Span(start, start)])
            return [*tokens.ids[tokens.until(start) :], *piece.suffix]
        return [*ids[len(before) :], *piece.suffix]


def _shared_turns(responses: Sequence[Messages]) -> int:
    """Return how many leading turns all responses share, counted up to the last that is not the assistant's."""
    turns = 0
    for turn, same in enumerate(zip(*responses, strict=False)):
        if any(one != same[0] for one in same) or len(responses) == 1:
            break
        if same[0]["role"] != "assistant" and all(len(response) > turn + 1 for response in responses):
            turns = turn + 1
    return turns
