"""Conversations to text: the chat template, and where in the text the assistant speaks.

Owns what is the template's business: which of several named templates is taken, what it refuses or leaves out, which
parts are the assistant's, which token ends a turn. Knows nothing of token ids beyond control tokens. Torch-free.

What the assistant says is found by the template's ``{% generation %}`` markers. Without them each of its turns is what
it adds to the prompt it answers; where the template writes earlier turns anew, an answer gets a text of its own, as it
was when it was generated; where that fails, the training variant that trl ships for the template helps out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import PipelineError, Problem
from pipeline.models.tokens import Text, TextEncoder, own_letters

Messages = Sequence[Mapping[str, Any]]

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

SAMPLE = ({"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"})
"""Rendered to see how a template ends the assistant's turn."""

_UNSET = {"bos_token": "", "eos_token": ""}
"""What a template adds up where the tokenizer has no such token."""

_OWN_KEYS = ("train",)  # of a turn: for the training, not for the template


class TemplateFaultError(Exception):
    """A conversation cannot be rendered; the message reads as the reason of a bad row does."""


class Span(NamedTuple):
    """Characters of a text."""

    start: int
    end: int


class Rendered(NamedTuple):
    """A text to train on.

    Attributes:
        text: of the conversation, or of its beginning.
        answers: where the assistant speaks and is to be learnt from, in order.
        adds_end: whether the template ends the last answer with no control token.
    """

    text: Text
    answers: list[Span]
    adds_end: bool


class Chat(NamedTuple):
    """What a template is given: turns and tools in which no text spells a control token."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    spelled: dict[str, str]


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer.

    Attributes:
        encoder: of the tokenizer.
    """

    encoder: TextEncoder

    @property
    def tokenizer(self) -> Any:
        """The tokenizer it is of."""
        return self.encoder.tokenizer

    def source(self, tools: Sequence[Any] | None = None) -> str:
        """Return the Jinja text; of several named templates the one transformers takes.

        Raises:
            PipelineError: there is none.
        """
        found = self.tokenizer.chat_template
        if isinstance(found, dict):
            name = "tool_use" if tools and "tool_use" in found else "default"
            if name not in found:
                problem = Problem(
                    f"the tokenizer's chat templates are {', '.join(sorted(found))}",
                    "one of the name default",
                    "set `chat_template` in the sft stage to the one that is meant",
                )
                raise PipelineError(problem)
            found = found[name]
        if not found:
            raise PipelineError(no_template())
        return str(found)

    def chat(self, messages: Messages, tools: Sequence[Any] | None = None) -> Chat:
        """Return turns and tools with private characters for what their text spells."""
        turns = [{key: value for key, value in turn.items() if key not in _OWN_KEYS} for turn in messages]
        given = list(tools) if tools else None
        texts = [turn["content"] for turn in turns if isinstance(turn.get("content"), str)]
        if any(len(turn) > 2 for turn in turns) or given:
            texts = list(_strings([turns, given]))
        if not any(map(self.encoder.spells, texts)):
            return Chat(turns, given, {})
        spelled = own_letters("".join(texts))
        shielded = _mapped([turns, given], lambda text: self.encoder.shield(text, spelled))
        return Chat(shielded[0], shielded[1], spelled)

    def text(self, chat: Chat, until: int | None = None, *, opens_answer: bool = False, source: str = "") -> Text:
        """Render the turns of a chat, or the first ones, with the beginning of an answer where one is asked for.

        Raises:
            TemplateFaultError: the template refuses them.
        """
        return Text(self._rendered(chat, until, opens_answer, source, marks=False)[0], chat.spelled)

    def prompt(self, messages: Messages, tools: Sequence[Any] | None = None) -> Text:
        """Render a prompt up to where the answer begins.

        Raises:
            TemplateFaultError: the template refuses it, or leaves something out.
        """
        chat = self.chat(messages, tools)
        text = self.text(chat, opens_answer=True)
        self._refuse_left_out(chat, messages, [], [Rendered(text, [], adds_end=False)])
        return text

    def _rendered(
        self, chat: Chat, until: int | None, opens_answer: bool, source: str, *, marks: bool
    ) -> tuple[str, list[Any]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        source = source or self.source(chat.tools)
        try:
            texts, marked = render_jinja_template(
                conversations=[chat.messages[:until]],
                tools=chat.tools,
                chat_template=source,
                add_generation_prompt=opens_answer,
                return_assistant_tokens_mask=marks,
                **{**_UNSET, **self.tokenizer.special_tokens_map},
            )
        except Exception as error:  # a template is a program of others: it may raise anything
            why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise TemplateFaultError(f"is refused by the chat template, which says: {why}") from error
        return texts[0], list(marked[0]) if marks and marked else []

    def rendered(self, messages: Messages, tools: Sequence[Any] | None = None) -> list[Rendered]:
        """Render a conversation to train on the assistant's turns.

        Returns:
            One text where the template only ever adds to what it wrote; else as many as its answers need, in order.

        Raises:
            TemplateFaultError: the template refuses it, leaves something out, or hides where the answers are.
        """
        chat, learnt = self.chat(messages, tools), _learnt(messages)
        source = self.source(tools)
        if not learnt:
            raise TemplateFaultError("has no turn of the assistant to learn from, expected one without `train: false`")
        if GENERATION.search(source):
            found = self._by_marks(chat, messages, learnt, source)
        else:
            found = self._by_turns(chat, learnt) or self._by_variant(chat, messages, learnt, source)
        if not found:
            raise TemplateFaultError(
                "cannot be masked: the chat template begins an answer otherwise than its generation prompt does, "
                "expected a template with {% generation %} markers, or one that only adds to what it wrote"
            )
        self._refuse_left_out(chat, messages, learnt, found)
        return found

    def reply(self, prompt: Messages, response: Messages, tools: Sequence[Any] | None = None) -> tuple[Text, Rendered]:
        """Render a prompt up to where the answer begins, and the whole with its response as the one answer.

        Raises:
            TemplateFaultError: the template refuses it, leaves something out, or begins the answer otherwise.
        """
        chat = self.chat([*prompt, *response], tools)
        before, whole = self.text(chat, len(prompt), opens_answer=True), self.text(chat)
        if not whole.text.startswith(before.text):
            raise TemplateFaultError(
                "is rendered otherwise once the answer follows: the text of its prompt is not the beginning of prompt "
                "and answer, expected a chat template that only adds to what it wrote"
            )
        made = self._ended(whole, [Span(len(before.text), len(whole.text))])
        learnt = [len(prompt) + i for i in _learnt(response)]
        self._refuse_left_out(chat, [*prompt, *response], learnt, [made], whole=True)
        return before, made

    def _by_marks(self, chat: Chat, messages: Messages, learnt: list[int], source: str) -> list[Rendered]:
        text, marked = self._rendered(chat, None, False, source, marks=True)
        spans = [Span(int(start), int(end)) for start, end in marked]
        spoken = [i for i, turn in enumerate(messages) if turn["role"] == "assistant"]
        if len(learnt) < len(spoken):
            if len(spans) != len(spoken):
                raise TemplateFaultError(
                    f"has {len(spoken)} turns of the assistant and {len(spans)} parts between the template's markers, "
                    "expected one for each turn, since some are not to be learnt"
                )
            spans = [span for span, turn in zip(spans, spoken, strict=True) if turn in learnt]
        return [self._ended(Text(text, chat.spelled), spans)._replace(adds_end=False)] if spans else []

    def _by_turns(self, chat: Chat, learnt: list[int]) -> list[Rendered]:
        """Find each answer as what it adds to its prompt; none where a prompt is not the beginning of its answer."""
        made: list[tuple[Text, list[Span]]] = []
        for turn in reversed(learnt):
            before = self.text(chat, turn, opens_answer=True).text
            upto = self.text(chat, turn + 1).text
            if not upto.startswith(before):
                return []
            if not (made and made[-1][0].text.startswith(upto)):
                whole = Text(upto, chat.spelled)
                if not made and turn + 1 < len(chat.messages):
                    later = self.text(chat)
                    whole = later if later.text.startswith(upto) else whole
                made.append((whole, []))
            made[-1][1].insert(0, Span(len(before), len(upto)))
        return [self._ended(text, spans) for text, spans in reversed(made)]

    def _by_variant(self, chat: Chat, messages: Messages, learnt: list[int], source: str) -> list[Rendered]:
        variant = training_variant(source)
        if variant is None or self.text(chat).text != self.text(chat, source=variant).text:
            return []
        return self._by_marks(chat, messages, learnt, variant)

    def _ended(self, text: Text, spans: list[Span]) -> Rendered:
        """Take what stands behind an answer's end token off it, and see whether the last one has such a token."""
        ended, adds_end = [], False
        for span in spans:
            said = text.text[span.start : span.end].rstrip()
            adds_end = not said.endswith(tuple(self.encoder.control))
            ended.append(span if adds_end else Span(span.start, span.start + len(said)))
        return Rendered(text, ended, adds_end)

    def _refuse_left_out(
        self, chat: Chat, messages: Messages, learnt: list[int], found: list[Rendered], *, whole: bool = False
    ) -> None:
        """Refuse a conversation of which the template drops text, tools, calls or thoughts without a word."""
        plain = "".join(one.text.text for one in found)
        for i, turn in enumerate(chat.messages):
            if turn["role"] != "tool" and not _holds(plain, turn.get("content")):
                raise TemplateFaultError(_left_out(f"the text of turn {i + 1}", "contents that are plain text"))
        if not chat.tools and all(turn["role"] != "tool" and len(turn) == 2 for turn in chat.messages):
            return
        text = _squeezed(plain)
        for tool in chat.tools or ():
            name = _name_of(tool)
            if name and _squeezed(name) not in text:
                raise TemplateFaultError(_left_out(f"the tool `{name}`", "tools"))
        said = [_squeezed(one.text.text[span.start : span.end]) for one in found for span in one.answers]
        if whole or len(said) != len(learnt):
            said = [text] * len(learnt)
        answers = dict(zip(learnt, said, strict=True))
        for i, turn in enumerate(chat.messages):
            for call in turn.get("tool_calls") or ():
                name = str(call["function"]["name"])
                if _squeezed(name) not in answers.get(i, text):
                    raise TemplateFaultError(_left_out(f"the call of `{name}` in turn {i + 1}", "tool calls"))
            if turn["role"] == "tool" and _longest_word(turn["content"]) not in text:
                raise TemplateFaultError(_left_out(f"the tool's result in turn {i + 1}", "tool turns"))
            thought = turn.get("reasoning_content")
            if i in answers and thought and _squeezed(thought) not in answers[i]:
                raise TemplateFaultError(_left_out(f"the reasoning of turn {i + 1}", "`reasoning_content`"))

    def end_token(self) -> int | None:
        """Return the control token that ends the assistant's turn, None where the template ends it with text."""
        try:
            (found,) = self.rendered(SAMPLE)[-1:]
        except (TemplateFaultError, PipelineError):
            return None
        text, span = found.text.text, found.answers[-1]
        said = text[span.start : span.end].rstrip()
        behind = text[span.end :].lstrip()
        ends = [token for token in self.encoder.control if said.endswith(token)]
        ends = ends or [token for token in self.encoder.control if behind.startswith(token)]
        return self.encoder.control[max(ends, key=len)] if ends else None


def no_template() -> Problem:
    """Return the problem of a conversation for which there is no chat template."""
    return Problem(
        "the tokenizer has no chat template",
        "one, to render conversations",
        "give the tokenizer or sft stage a `chat_template`, or take data of plain text, which needs none",
    )


@cache
def training_variant(source: str) -> str | None:
    """Return the template that trl ships to train on what ``source`` renders, with markers; None where it has none."""
    spec = find_spec("trl")
    if spec is None or not spec.submodule_search_locations:
        return None
    for path in sorted(Path(spec.submodule_search_locations[0], "chat_templates").glob("*.jinja")):
        variant = path.with_name(f"{path.stem}_training.jinja")
        if variant.is_file() and path.read_text(encoding="utf-8").strip() == source.strip():
            return variant.read_text(encoding="utf-8")
    return None


def _learnt(messages: Messages) -> list[int]:
    return [i for i, turn in enumerate(messages) if turn["role"] == "assistant" and turn.get("train", True)]


def _left_out(what: str, words: str) -> str:
    return (
        f"loses {what}: the chat template leaves it out; expected a template that renders {words} "
        "(`chat_template` of the sft stage, or that of the model's folder)"
    )


def _name_of(tool: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""


def _holds(text: str, content: Any) -> bool:
    """Whether a text holds a turn's content; a template may trim it and take the thought before an answer out."""
    if not isinstance(content, str) or content.strip() in text:
        return True
    return _longest_word(content.rpartition("</think>")[2]) in text


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _longest_word(text: str) -> str:
    return max(re.findall(r"\w+", text), key=len, default="")


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for part in pair for text in _strings(part)]
    if isinstance(value, list | tuple):
        return [text for part in value for text in _strings(part)]
    return []


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Return plain data with every text changed; the names of fields and roles are no control tokens and stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(str(key)): _mapped(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(part, change) for part in value]
    return value
