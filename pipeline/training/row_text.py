"""Rows to texts: through the chat template, or as they are where a base model goes on with plain text.

Owns what of a row stands in which text, and how the tokens of a text begin and end. Knows nothing of batches, lengths
or losses. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.errors import PipelineError
from pipeline.models.template import ChatTemplate, Messages, Rendered, Span, TemplateFaultError, no_template
from pipeline.models.tokens import Text, TextEncoder, Tokens, own_letters

Row = Mapping[str, Any]


class Piece(NamedTuple):
    """A text to be encoded, and how its tokens begin and end."""

    text: Text
    answers: list[Span]
    prefix: list[int]
    suffix: list[int]


@dataclass(frozen=True)
class RowEncoder:
    """A tokenizer with its chat template, or without one for plain text; neither may change meanwhile."""

    text: TextEncoder
    template: ChatTemplate

    @classmethod
    def of(cls, tokenizer: Any) -> RowEncoder:
        """Make one."""
        text = TextEncoder(tokenizer)
        return cls(text, ChatTemplate(text))

    @property
    def end(self) -> list[int]:
        """The tokenizer's end token, where a template writes none."""
        return [int(self.text.tokenizer.eos_token_id)]

    def continues(self, row: Row) -> bool:
        """Whether a row is plain text that is to be continued, for there is no chat template.

        Raises:
            PipelineError: it is a conversation, and there is none.
        """
        if self.text.tokenizer.chat_template:
            return False
        if not row.get("plain_text"):
            raise PipelineError(no_template())
        return True

    def conversation(self, row: Row) -> list[Piece]:
        """Return the texts of a conversation."""
        if not self.continues(row):
            made = self.template.rendered(row["messages"], row.get("tools"))
            return [self._piece(one) for one in made]
        letters = own_letters("".join(turn["content"] for turn in row["messages"]))
        text, answers = "", []
        for turn in row["messages"]:
            before, text = len(text), text + self.text.shield(turn["content"], letters)
            if turn["role"] == "assistant" and turn.get("train", True):
                answers.append(Span(before, len(text)))
        return [Piece(Text(text, letters), answers, self.text.prefix, self.end)]

    def prompt(self, row: Row) -> list[Piece]:
        """Return the text of a prompt up to where the answer begins."""
        if self.continues(row):
            return [self._continued(row["prompt"])]
        return [Piece(self.template.prompt(row["prompt"], row.get("tools")), [], [], [])]

    def replies(self, row: Row, *responses: Messages, scored: bool = False) -> list[Piece]:
        """Return the text of a prompt, and that of the prompt with each response.

        Turns that all responses begin with, up to a tool's result, belong to the prompt.
        """
        shared = 0 if scored else _shared_turns(responses)
        prompt, rests = [*row["prompt"], *responses[0][:shared]], [response[shared:] for response in responses]
        if not scored and any(turn["role"] != "assistant" for rest in rests for turn in rest):
            raise TemplateFaultError(
                "has a response with a turn that is not the assistant's, expected the assistant's turns alone, for all "
                "of a response is learnt; move what comes before its last turn to the prompt"
            )
        made: list[Piece] = []
        for rest in rests:
            if self.continues(row):
                whole = self._continued(prompt, rest)
                before = Piece(whole.text.part(0, whole.answers[0].start), [], whole.prefix, [])
            else:
                text, rendered = self.template.reply(prompt, rest, row.get("tools"))
                before, whole = Piece(text, [], [], []), self._piece(rendered)
            made += [whole] if made else [before, whole]
        return made

    def _continued(self, prompt: Messages, response: Messages = ()) -> Piece:
        sides = ["".join(turn["content"] for turn in side) for side in (prompt, response)]
        letters = own_letters("".join(sides))
        before, after = (self.text.shield(side, letters) for side in sides)
        answers = [Span(len(before), len(before) + len(after))] if response else []
        return Piece(Text(before + after, letters), answers, self.text.prefix, self.end if response else [])

    def _piece(self, rendered: Rendered) -> Piece:
        end = rendered.answers[-1].end
        text = rendered.text.part(0, end)  # what stands behind is neither learnt nor seen by anything
        return Piece(text, rendered.answers, [], self.end if rendered.adds_end else [])

    def response(self, before: list[int], piece: Piece, tokens: Tokens) -> list[int]:
        """Return the ids of a response, as they follow those of its prompt."""
        ids = [*piece.prefix, *tokens.ids]
        if ids[: len(before)] != before:  # a token across the two: encode the response by itself
            start = piece.answers[0].start
            tokens = self.text.encode_one(piece.text, [Span(start, start)])
            return [*tokens.ids[tokens.until(start) :], *piece.suffix]
        return [*ids[len(before) :], *piece.suffix]


def _shared_turns(responses: Sequence[Messages]) -> int:
    """Return how many turns all responses begin with, up to and with the last that is not the assistant's."""
    turns = 0
    for turn, same in enumerate(zip(*responses, strict=False)):
        if any(one != same[0] for one in same) or len(responses) == 1:
            break
        if same[0]["role"] != "assistant" and all(len(response) > turn + 1 for response in responses):
            turns = turn + 1
    return turns
